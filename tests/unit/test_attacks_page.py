"""docs/evidence/attacks.md: each row names an existing test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "evidence" / "attacks.md"
MINIMUM = 60
SECTIONS = [
    "Tokens and login",
    "Tokens of OIDC issuers",
    "Tokens of Keystone",
    "Login at an issuer with the command line",
    "Signatures",
    "HTTP",
    "Bodies and requests for certificates",
    "Policy and rights",
    "Revoked certificates and the webhook",
    "Audit log and secrets",
    "Availability",
]


def rows() -> list[tuple[str, ...]]:
    """The attack, the answer and the test of each row, without heads of tables."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    found = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]
    return [row for row in found if row[0] not in {"attack", "---"}]


ROWS = rows()


@cache
def functions(file: Path) -> frozenset[str]:
    """The test functions of a file."""
    found = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(each.name for each in found if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_rows_test_exists(row: tuple[str, ...]) -> None:
    attack, answer, test = row
    assert attack
    assert answer
    named = re.fullmatch(r"`([a-z0-9]+/test_\w+\.py)::(test_\w+)`", test)
    assert named, test
    assert named[2] in functions(TESTS / named[1])


def test_the_page_has_enough_attacks_of_each_kind() -> None:
    assert len({attack for attack, _, _ in ROWS}) == len(ROWS) >= MINIMUM
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == SECTIONS
    assert all(section.count("::test_") >= 10 for section in sections)
