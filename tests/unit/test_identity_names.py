import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.identity.names import (
    MAX_NAME,
    checked_description,
    checked_name,
    checked_new_name,
    searchable,
)
from clustercert.model.errors import InvalidRequest
from clustercert.model.ids import is_id

nouns = st.sampled_from(sorted(MAX_NAME))


@given(st.text(max_size=300), nouns)
def test_a_name_is_refused_or_kept_bounded_and_printable_in_one_form(text: str, noun: str) -> None:
    try:
        name = checked_name(text, noun)
    except InvalidRequest:
        return
    assert 1 <= len(name) <= MAX_NAME[noun]
    assert name == name.strip()
    assert not any(unicodedata.category(character)[0] == "C" for character in name)
    assert unicodedata.is_normalized("NFC", name)
    assert name.encode()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64), nouns)
def test_a_kept_name_is_found_by_how_it_was_written(text: str, noun: str) -> None:
    name = unicodedata.normalize("NFC", text)
    if len(name) <= MAX_NAME[noun]:
        assert checked_name(f"  {text} ", noun) == searchable(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t ",
        "a\x00b",
        "a\nb",
        "a\x7fb",
        "a\u202eb",
        "a\u2066b",
        "a\u200bb",
        "a\u2028b",
        "a\ud800b",
        "\ue000",
        "x" * 65,
    ],
)
def test_invisible_reordering_and_unpaired_characters_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="printable characters"):
        checked_name(text, "project")


@pytest.mark.parametrize("noun", sorted(MAX_NAME))
def test_a_new_name_has_no_slash_that_documents_for_apply_could_not_have(noun: str) -> None:
    with pytest.raises(InvalidRequest, match=f"name: a/b has a slash, .* another name for the {noun}"):
        checked_new_name("a/b", noun)


def test_both_ways_to_compose_an_accent_are_one_name() -> None:
    assert checked_name("Zoe\u0308", "user") == checked_name("Zo\u00eb", "user") == "Zo\u00eb"


def test_a_description_may_be_empty_and_has_a_bound() -> None:
    assert checked_description("") == ""
    assert checked_description("x" * 255) == "x" * 255
    for text in ("x" * 256, "two\nlines", "\u202e"):
        with pytest.raises(InvalidRequest, match="description"):
            checked_description(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("0" * 32, True),
        ("0c97ac3cb280f4d91fa7c0096739e1f8", True),
        ("0" * 31, False),
        ("A" * 32, False),
        ("\u0660" * 32, False),
    ],
)
def test_an_id_is_32_lower_case_hex_digits(text: str, *, answer: bool) -> None:
    assert is_id(text) is answer
