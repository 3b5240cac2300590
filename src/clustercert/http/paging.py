"""Pages of lists: the query parameters `limit` and `cursor`, and the body of the response."""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from clustercert.http.dependencies import ServicesDep
from clustercert.model import JsonObject
from clustercert.observability import canonical_json

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_PAGE = 500
# The number of items in one read. A cluster can take up 64 KiB, so one read returns at most about 1.25 MiB.
_STEP = 20
DEFAULT_PAGE = 100
# Row ids are 64-bit integers.
MAX_ID = 2**63 - 1

_BAD_CURSOR = "send the value of `next` from the previous page"
_KEY = re.compile(r"[0-9A-Za-z:-]{1,128}", re.ASCII)


def row_number(text: str, error: Exception) -> int:
    """Parse a row id in decimal. Raises the given error if the string is not a row id."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID):
        raise error
    return int(text)


def _limit(text: str) -> int:
    error = ValueError(f"must be 1 to {MAX_PAGE}")
    size = row_number(text, error)
    if not 1 <= size <= MAX_PAGE:
        raise error
    return size


def _row_cursor(text: str) -> int:
    return row_number(text, ValueError(_BAD_CURSOR))


def _key_cursor(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise ValueError(_BAD_CURSOR)
    return text


_CURSOR = Query(description="The value of `next` in the previous page.")
_STRING = WithJsonSchema({"type": "string"})
Limit = Annotated[
    Annotated[int, BeforeValidator(_limit), _STRING] | None,
    Query(description=f"The page size, 1 to {MAX_PAGE}."),
]
RowCursor = Annotated[Annotated[int, BeforeValidator(_row_cursor), _STRING] | None, _CURSOR]
KeyCursor = Annotated[Annotated[str, BeforeValidator(_key_cursor)] | None, _CURSOR]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page.

    Attributes:
        cursor: the row id in `next` of the previous page; `None` for the first page.
        max_bytes: the approximate maximum size of the page, in bytes. A page always has at least one item.
    """

    limit: int
    cursor: int | None
    max_bytes: int


async def page_request(services: ServicesDep, limit: Limit = None, cursor: RowCursor = None) -> PageRequest:
    return PageRequest(limit or DEFAULT_PAGE, cursor, services.options.page_bytes)


PageDep = Annotated[PageRequest, Depends(page_request)]


@dataclass(frozen=True, slots=True)
class KeyPageRequest:
    """A request for one page of a list that is sorted by a string, such as an id.

    Attributes:
        after: the value of `next` in the previous page; empty for the first page.
        max_bytes: as in `PageRequest`.
    """

    limit: int
    after: str
    max_bytes: int


async def key_page_request(
    services: ServicesDep, limit: Limit = None, cursor: KeyCursor = None
) -> KeyPageRequest:
    return KeyPageRequest(limit or DEFAULT_PAGE, cursor or "", services.options.page_bytes)


KeyPageDep = Annotated[KeyPageRequest, Depends(key_page_request)]


class PageBody(BaseModel):
    """Base class for the bodies of pages."""

    next: str | None = Field(description="The cursor of the next page; null on the last page.")


class ReadPage(Protocol[T_co]):
    """Reads at most `limit` items with keys above `after`, sorted by key."""

    def __call__(self, *, after: str, limit: int) -> Awaitable[Sequence[T_co]]: ...


async def keyset_page(
    name: str, read: ReadPage[T], view: Callable[[T], JsonObject], page: KeyPageRequest
) -> JsonObject:
    """Return the body of a page of items that are sorted by their field `id`.

    Reads a few items at a time, to avoid loading items that don't fit into the page.
    """
    shown, after = _Shown(page.max_bytes), page.after
    while True:
        step = min(_STEP, page.limit + 1 - len(shown.views))
        found = await read(after=after, limit=step)
        for each in found:
            if len(shown.views) == page.limit or not shown.add(view(each)):
                return page_body(name, shown.views, after)
            after = str(shown.views[-1]["id"])
        if len(found) < step:
            return page_body(name, shown.views, None)


def sorted_page(name: str, views: Iterable[JsonObject], page: KeyPageRequest, key: str = "id") -> JsonObject:
    """Sort a complete list by the field `key`, and return the body of the requested page."""
    rest = sorted((each for each in views if str(each[key]) > page.after), key=lambda each: str(each[key]))
    return numbered_page(
        name,
        rest[: page.limit],
        lambda each: each,
        lambda each: str(each[key]),
        str(rest[page.limit - 1][key]) if len(rest) > page.limit else None,
        page.max_bytes,
    )


def numbered_page(
    name: str,
    items: Sequence[T],
    view: Callable[[T], JsonObject],
    cursor: Callable[[T], int | str | None],
    following: int | str | None,
    max_bytes: int,
) -> JsonObject:
    """Return the body of a page with these items. Leaves out the last items if the page would get too large.

    Args:
        cursor: returns the cursor of the page that begins after an item.
        following: the cursor of the page that begins after the last item; `None` if there is no such page.
    """
    views = fitting(items, view, max_bytes)
    return page_body(name, views, following if len(views) == len(items) else cursor(items[len(views) - 1]))


def fitting(items: Iterable[T], view: Callable[[T], JsonObject], max_bytes: int) -> list[JsonObject]:
    """Render as many of the first items as fit into a page, but at least one."""
    shown = _Shown(max_bytes)
    for each in items:
        if not shown.add(view(each)):
            break
    return shown.views


def page_body(name: str, items: Iterable[JsonObject], cursor: int | str | None) -> JsonObject:
    """Return the body of a page: the items, and the cursor of the next page."""
    return {name: list(items), "next": str(cursor) if cursor is not None else None}


class _Shown:
    """Collects the items of a page until the page is full."""

    def __init__(self, max_bytes: int) -> None:
        self.views: list[JsonObject] = []
        self._left = max_bytes

    def add(self, view: JsonObject) -> bool:
        """Add an item. Returns False, and does not add the item, if the page would get too large."""
        self._left -= len(canonical_json.dumps(view))
        if self.views and self._left < 0:
            return False
        self.views.append(view)
        return True
