"""Draws a flame graph of the service's Python code as an SVG. py-spy takes the samples from outside."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, ROW = 1200, 16
# Narrower rectangles are unreadable, and would only make the file large.
NARROWEST = 1.5
CHARACTER = 6.2
# The frames below our code in every sample: the server's event loop.
FIRST_FRAME = "Edge.__call__"
_FONT = 'font-family="monospace" font-size="10"'
_COLOURS = {"clustercert/": "#e4572e", "cryptography/": "#2e86ab", "sqlalchemy/": "#76b041", "": "#c9b79c"}


@dataclass(slots=True)
class Frame:
    """A function and the functions that it called.

    Attributes:
        samples: the number of samples in which it was on the stack.
    """

    samples: int = 0
    calls: dict[str, "Frame"] = field(default_factory=dict)


def start_sampling(pid: int, seconds: float, file: Path) -> "subprocess.Popen[bytes]":
    """Start to sample a process and its children: the threads that hold the interpreter lock."""
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    options = ["--subprocesses", "--gil", "--rate", "250", "--format", "raw"]
    command = [py_spy, "record", *options, "--pid", str(pid), "--duration", str(round(seconds))]
    return subprocess.Popen(
        [*command, "--output", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def read(raw: str) -> Frame:
    """Parse py-spy's lines into a tree. A line has frames, outermost first, separated by semicolons, and a count."""
    root = Frame()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";") if not frame.startswith("process ")]
        if FIRST_FRAME in "".join(frames):
            start = next(number for number, frame in enumerate(frames) if frame.startswith(FIRST_FRAME))
            frames = ["requests", *frames[start:]]
        else:
            frames = ["everything else", *frames[-12:]]
        at = root
        at.samples += int(count)
        for frame in frames:
            at = at.calls.setdefault(frame, Frame())
            at.samples += int(count)
    return root


def _function(frame: str) -> str:
    """Return a frame without its line number, so that a function is one frame."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rpartition(':')[0]})" if place else name


def draw(root: Frame, title: str) -> str:
    """Draw the SVG, with the outermost frame at the bottom. A tooltip shows the full name of a frame."""
    rectangles = list(_rectangles(root, WIDTH / root.samples))
    height = (max(level for _, _, level, _, _ in rectangles) + 3) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {_FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fffdf8"/>',
        f'<text x="6" y="14" font-size="13">{escape(title)}</text>',
    ]
    for left, width, level, name, samples in rectangles:
        top = height - (level + 1) * ROW
        text = name[: int(width / CHARACTER)] if width > 5 * CHARACTER else ""
        share = f"{100 * samples / root.samples:.1f} %"
        lines.append(
            f'<g><title>{escape(name)}: {share}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
            f'height="{ROW - 1}" rx="1" fill="{_colour(name)}"/>'
            f'<text x="{left + 3:.1f}" y="{top + 11}">{escape(text)}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _rectangles(
    frame: Frame, scale: float, left: float = 0, level: int = 0
) -> Iterator[tuple[float, float, int, str, int]]:
    """Yield (left, width, level, name, samples) for all frames below a frame, widest first."""
    for name, called in sorted(frame.calls.items(), key=lambda item: -item[1].samples):
        width = called.samples * scale
        if width >= NARROWEST:
            yield left, width, level, name, called.samples
            yield from _rectangles(called, scale, left, level + 1)
        left += width


def _colour(name: str) -> str:
    return next(colour for part, colour in _COLOURS.items() if part in name)
