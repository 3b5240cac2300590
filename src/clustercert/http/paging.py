"""Pages of lists: the query parameters `limit` and `cursor`, and the body."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request

from clustercert.http.query import check_parameters
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, InvalidRequest

MAX_PAGE = 500
DEFAULT_PAGE = 100
# Row ids are 64-bit integers.
MAX_ID = 2**63 - 1

# Of all lists that are sorted by a string. A misspelled one would list too much.
_LIST_PARAMETERS = {"limit", "cursor", "domain", "name", "user", "group", "scope"}
_KEY = re.compile(r"[0-9A-Za-z:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page.

    Attributes:
        cursor: the row id from `next` of the previous page; `None` for the first page.
    """

    limit: int
    cursor: int | None


async def page_request(
    limit: Annotated[str | None, Query(description=f"The page size, 1 to {MAX_PAGE}.")] = None,
    cursor: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
) -> PageRequest:
    """Parse the query parameters. Raises InvalidRequest."""
    bad_limit = InvalidRequest(f"limit: must be 1 to {MAX_PAGE}.")
    bad_cursor = InvalidRequest("cursor: send `next` of the previous page.")
    size = row_number(limit, bad_limit) if limit is not None else DEFAULT_PAGE
    if not 1 <= size <= MAX_PAGE:
        raise bad_limit
    return PageRequest(size, row_number(cursor, bad_cursor) if cursor is not None else None)


PageDep = Annotated[PageRequest, Depends(page_request)]


@dataclass(frozen=True, slots=True)
class KeyPageRequest:
    """A request for one page of a list that is sorted by a string, such as an id.

    Attributes:
        after: `next` of the previous page; empty for the first page.
    """

    limit: int
    after: str


async def key_page_request(
    request: Request,
    limit: Annotated[str | None, Query(description=f"The page size, 1 to {MAX_PAGE}.")] = None,
    cursor: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
) -> KeyPageRequest:
    """Parse the query parameters. Raises InvalidRequest, also for unknown ones."""
    check_parameters(request.query_params, _LIST_PARAMETERS)
    size = (await page_request(limit)).limit
    if cursor is not None and not _KEY.fullmatch(cursor):
        raise InvalidRequest("cursor: send `next` of the previous page.")
    return KeyPageRequest(size, cursor or "")


KeyPageDep = Annotated[KeyPageRequest, Depends(key_page_request)]


def row_number(text: str, error: ClustercertError) -> int:
    """Parse a row id in decimal. Raises the given error if the string is not a row id."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID):
        raise error
    return int(text)


def keyed_page(name: str, views: Sequence[JsonObject], page: KeyPageRequest, key: str = "id") -> JsonObject:
    """Return the body of a page. `views` has one more item than the page if there is a next page."""
    is_last = len(views) <= page.limit
    return page_body(name, views[: page.limit], None if is_last else str(views[page.limit - 1][key]))


def keyed_page_of_all(
    name: str, views: Iterable[JsonObject], page: KeyPageRequest, key: str = "id"
) -> JsonObject:
    """Return the body of a page from a complete list in any order."""
    rest = sorted((each for each in views if str(each[key]) > page.after), key=lambda each: str(each[key]))
    return keyed_page(name, rest[: page.limit + 1], page, key)


def page_body(name: str, items: Iterable[JsonObject], cursor: int | str | None) -> JsonObject:
    """Return the body of a page: the items, and the cursor of the next page."""
    return {name: list(items), "next": str(cursor) if cursor is not None else None}
