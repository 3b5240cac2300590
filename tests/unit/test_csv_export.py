"""CSV that gives back what was put in, and no cell that a program would run."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.csv_text import csv_text

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - the wide forms are meant


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_with_at_most_an_apostrophe_more(rows: list[tuple[str, str]]) -> None:
    text = csv_text([{"a": a, "b": b} for a, b in rows], ("a", "b"))
    header, *read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert header == ["a", "b"]
    assert [tuple(line) for line in read] == [
        tuple(f"'{cell}" if cell.startswith(STARTS) else cell for cell in row) for row in rows
    ]


@pytest.mark.parametrize("start", STARTS)
def test_no_cell_begins_like_a_formula(start: str) -> None:
    text = csv_text([{"a": f"{start}cmd|' /C calc'!A0"}], ("a",))
    (_, (cell,)) = csv.reader(io.StringIO(text, newline=""))
    assert cell == f"'{start}cmd|' /C calc'!A0"


def test_other_values_have_a_plain_form_and_lines_end_as_the_standard_says() -> None:
    row = {"none": None, "yes": True, "number": -3, "list": ["=a", "b"], "object": {"k": 1}, "left out": "x"}
    text = csv_text([row], ("none", "yes", "number", "list", "object"))
    assert text == 'none,yes,number,list,object\r\n,true,-3,"[""=a"", ""b""]","{""k"": 1}"\r\n'
    assert csv_text([], ("a", "b")) == "a,b\r\n"
