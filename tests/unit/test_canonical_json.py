"""Events and log lines are written as the standard library writes JSON."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.observability import canonical_json

# Halves of surrogate pairs among them.
TEXTS = st.text(st.characters(codec=None))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(TEXTS, inner),
)


@given(VALUES, st.booleans())
def test_any_value_is_written_as_the_standard_library_does(value: object, sort_names: bool) -> None:
    written = canonical_json.dumps(value, sort_names=sort_names)
    assert written == json.dumps(value, sort_keys=sort_names, separators=(",", ":")).encode("ascii")


def test_no_control_character_reaches_a_terminal() -> None:
    text = "".join(map(chr, [*range(0x20), 0x85, 0x9B, 0x202E]))
    assert all(byte >= 0x20 for byte in canonical_json.dumps(text))


def test_what_is_no_json_is_refused_or_left_to_default() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(TypeError):
        canonical_json.dumps({"at": time})
    assert (
        canonical_json.dumps({"at": time, "big": 1 << 70}, default=str)
        == json.dumps({"at": str(time), "big": 1 << 70}, separators=(",", ":")).encode()
    )
