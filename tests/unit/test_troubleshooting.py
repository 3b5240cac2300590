"""docs/troubleshooting.md: each quoted message is in the code, or is one of another program that a test provokes."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "clustercert"
# Printed by kubectl. tests/clients/test_troubleshooting.py provokes them.
OF_KUBECTL = {
    "getting credentials: exec: … no such file or directory",
    "You must be logged in to the server",
    "certificate signed by unknown authority",
    "Forbidden",
    "cannot list",
    "Error from server (Forbidden): unknown",
    "memcache.go",
    "the selfsubjectreviews API is not enabled in the cluster or you do not have permission to call it",
    "failed to download openapi: unknown",
}
# Stands for a value that is filled in.
HOLE = "\0"


def rows() -> Iterator[tuple[str, ...]]:
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith(("| ---", "| message", "| line, or")):
            yield tuple(cell.strip() for cell in line.strip("|").split(" | "))


MESSAGES = [message for row in rows() for message in re.findall(r"`([^`]+)`", row[0])]


def text_of(node: ast.expr) -> str:
    """The text of an expression. Values that are filled in are holes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) if isinstance(value, ast.Constant) else HOLE for value in node.values)
    return HOLE


@cache
def texts() -> frozenset[str]:
    """All texts in the code, without the docstrings, and the console's templates."""
    templates = (file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.html"))
    # A value in a template is filled in.
    found = {re.sub("{{.*?}}", HOLE, each) for each in templates}
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found |= {
            text_of(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in statements
        }
    return frozenset(found)


def prints(text: str, message: str) -> bool:
    """Whether a text of the code can be shown as this message, which may be a part of it."""
    literal = [part.strip() for part in message.split("…") if part.strip()]
    # The search is slow, and most texts have none of the parts.
    return all(part in text for part in literal) and (
        re.search(f"{HOLE}.*".join(f"{re.escape(part)}.*" for part in literal), text, re.DOTALL) is not None
    )


def test_the_page_has_a_row_for_each_kind_of_trouble() -> None:
    assert len(MESSAGES) > 60
    assert {len(row) for row in rows()} == {3}
    assert all(all(row) for row in rows())


@pytest.mark.parametrize("message", sorted({*MESSAGES} - OF_KUBECTL))
def test_a_message_is_in_the_code(message: str) -> None:
    assert any(prints(text, message) for text in texts()), message


def test_messages_of_kubectl_are_on_the_page() -> None:
    assert {*MESSAGES} >= OF_KUBECTL
