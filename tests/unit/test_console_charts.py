"""Drawings of the console."""

from hypothesis import given
from hypothesis import strategies as st

from clustercert.http.console.charts import bar_chart


@given(st.lists(st.integers(min_value=0, max_value=10**9), max_size=40))
def test_bars_fit_into_the_drawing_and_are_as_high_as_their_numbers(numbers: list[int]) -> None:
    chart = bar_chart([(str(each), each) for each in numbers])
    assert chart.highest == max(numbers, default=0)
    assert [each.number for each in chart.bars] == numbers
    for bar in chart.bars:
        assert 0 <= bar.x < bar.x + bar.width <= 100
        assert abs(bar.y + bar.height - 100) < 0.02
        assert (bar.height > 0) == (bar.number > 0)
        if bar.number == chart.highest > 0:
            assert bar.height == 100
