"""The limits and types of YAML that somebody else may have written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.yaml_io import MalformedYaml, parse
from clustercert.yaml_text import dump


@pytest.mark.parametrize(
    "text", ["12:34:56", "010", "0x1F", "1_000", "+1", ".5", "1.", ".inf", "2026-01-01", "190:20:30.15"]
)
def test_only_the_numbers_of_json_are_not_strings(text: str) -> None:
    assert parse(f"a: {text}".encode(), "f") == [{"a": text}]


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_each_number_of_json_is_read(number: float) -> None:
    [value] = parse(json.dumps({"a": number}).encode(), "f")
    assert value == {"a": number}
    assert type(value["a"]) is type(number)


@pytest.mark.parametrize("tag", ["int", "float"])
def test_a_tag_does_not_make_a_number_to_base_60(tag: str) -> None:
    with pytest.raises(MalformedYaml, match=r"f is not valid YAML \(line 1"):
        parse(f"a: !!{tag} 12:34:56".encode(), "f")


@pytest.mark.parametrize(
    "text", ["1e3", "123456e7", "0o17", "1.", "-.5", "+1", "on", "0x1F", "12:34:56", "~"]
)
def test_strings_that_a_parser_reads_as_something_else_are_quoted(text: str) -> None:
    assert dump({"a": text}) == f"a: '{text}'\n"


def test_numbers_are_written_without_quotes() -> None:
    assert (
        dump([1, 1.5, 1e20, -3, "10.0.0.1", "v1.32"]) == "- 1\n- 1.5\n- 1.0e+20\n- -3\n- 10.0.0.1\n- v1.32\n"
    )
