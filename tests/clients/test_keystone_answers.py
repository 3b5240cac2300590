"""The recorded answers of Keystone, on which doubles of it are built, against those of a real one."""

from typing import Any

import pytest

from support.real_keystone import RealKeystone
from support.real_keystone.answers import FOLDER, Asking, plain, recorded


@pytest.fixture(scope="module")
def answers(keystone: RealKeystone) -> dict[str, dict[str, Any]]:
    return {name: plain(answer) for name, answer in Asking(keystone).answers()}


def form(value: object) -> object:
    """What a document has where, without the values. Lists have entries of one form or several, in any order."""
    if isinstance(value, dict):
        return {name: form(entry) for name, entry in sorted(value.items())}
    if isinstance(value, list):
        return sorted({repr(form(entry)) for entry in value})
    return type(value).__name__


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.iterdir()))
def test_keystone_still_answers_so(answers: dict[str, dict[str, Any]], name: str) -> None:
    assert answers[name]["status"] == recorded(name)["status"]
    assert form(answers[name]) == form(recorded(name))


def test_all_are_recorded(answers: dict[str, dict[str, Any]]) -> None:
    assert sorted(answers) == sorted(path.stem for path in FOLDER.iterdir())
