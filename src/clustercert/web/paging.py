"""How long lists are read page by page: the two query parameters, and their bounds."""

from typing import Annotated

from fastapi import Query

from clustercert.errors import InvalidRequest

MAX_PAGE = 500
DEFAULT_PAGE = 100
# What a row's number can be; a larger one is none.
MAX_ID = 2**63 - 1

Limit = Annotated[str | None, Query(description=f"At most this many, 1 to {MAX_PAGE}.")]
Cursor = Annotated[str | None, Query(description="`next` of the page before.")]


def page_limit(text: str | None) -> int:
    """Raises InvalidRequest."""
    if text is None:
        return DEFAULT_PAGE
    if not is_row_number(text) or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequest(f"limit: must be 1 to {MAX_PAGE}.")
    return int(text)


def page_before(text: str | None) -> int | None:
    """The number of the row that the page ends before, or None for the first page. Raises InvalidRequest."""
    if text is None:
        return None
    if not is_row_number(text):
        raise InvalidRequest("cursor: send what `next` of the page before said.")
    return int(text)


def is_row_number(text: str) -> bool:
    """Whether it is decimal digits of a number that a row can have."""
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID
