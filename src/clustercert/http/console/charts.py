"""Geometry of drawings: bars that templates write as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a drawing whose width and height are 100. Lengths are in percent of these.

    Attributes:
        label: what the bar stands for.
        number: the number that its height shows.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    number: int


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bars side by side.

    Attributes:
        highest: the number of the highest bar.
    """

    bars: tuple[Bar, ...]
    highest: int


# The part of the width of a bar that stays free on its right.
_GAP = 0.18
# The height of the smallest bar that is not zero, so that it can be seen.
_LEAST = 1.5


def bar_chart(rows: Sequence[tuple[str, int]]) -> BarChart:
    """Return a drawing of numbers with their labels. The highest bar is as high as the drawing."""
    highest = max((number for _, number in rows), default=0)
    step = 100 / max(1, len(rows))
    bars = []
    for position, (label, number) in enumerate(rows):
        height = max(100 * number / highest, _LEAST) if number else 0.0
        x, width = round(position * step, 2), round(step * (1 - _GAP), 2)
        bars.append(Bar(x, round(100 - height, 2), width, round(height, 2), label, number))
    return BarChart(tuple(bars), highest)
