"""Pages of lists are bounded in items and bytes, and together have each item once."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from clustercert.http.paging import KeyPageRequest, keyset_page, sorted_page
from clustercert.model import JsonObject

MAX_BYTES = 1_000_000
# Sizes of items; some are larger than a page.
SIZES = st.lists(st.sampled_from([1, 1, 1, 100_000, 600_000, 2_000_000]), max_size=60)


@given(SIZES, st.integers(1, 50))
async def test_pages_have_each_item_once_and_end_in_time(sizes: list[int], limit: int) -> None:
    items: list[JsonObject] = [{"id": f"{n:04}", "text": "x" * size} for n, size in enumerate(sizes)]

    async def read(*, after: str, limit: int) -> Sequence[JsonObject]:
        return [each for each in items if str(each["id"]) > after][:limit]

    for pages_of in ("read", "all"):
        seen, after = list[object](), ""
        while True:
            page = KeyPageRequest(limit, after, MAX_BYTES)
            body = (
                await keyset_page("items", read, lambda each: each, page)
                if pages_of == "read"
                else sorted_page("items", items[::-1], page)
            )
            found = body["items"]
            assert isinstance(found, list)
            assert len(found) <= limit
            assert len(found) <= 1 or len(json.dumps(found)) <= MAX_BYTES * 1.01
            seen += found
            if body["next"] is None:
                break
            assert found
            after = str(body["next"])
        assert seen == items
