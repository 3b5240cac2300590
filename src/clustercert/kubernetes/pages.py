"""Reads the pages of a list from an API server, in smaller pages where objects are long."""

from collections.abc import AsyncIterator, Mapping

from clustercert.http_client import UnreadableResponse
from clustercert.kube_api import KubeApi
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, RemoteFailed

PAGE = 250
"""The maximum number of objects in a page."""


class TooManyPages(Exception):
    """A list has more pages than the caller reads."""


async def pages(
    api: KubeApi, path: str, parameters: Mapping[str, str], most: int
) -> AsyncIterator[JsonObject]:
    """Fetch the pages of a list. Fetches fewer objects at once where objects are long: a binding may have 1.5 MiB.

    Raises TooManyPages after `most` pages, because a hostile API server may send pages forever. Also raises
    ApiServerRefused, RemoteFailed or Unavailable.

    Args:
        parameters: the query, for example a `labelSelector`.
    """
    limit, following, count = PAGE, dict[str, str](), 0
    while True:
        try:
            page = await api.get(path, {**parameters, "limit": str(limit), **following})
        except RemoteFailed as error:
            if limit == 1 or not is_too_long(error):
                raise
            limit = max(limit // 16, 1)
            continue
        yield page
        count += 1
        if not (after := _next_page(page)):
            return
        if count == most:
            raise TooManyPages
        limit, following = min(limit * 2, PAGE), {"continue": after}


def _next_page(page: JsonObject) -> str:
    """Return the `continue` of a page, or "" for the last page."""
    metadata = page.get("metadata")
    return str(metadata.get("continue") or "") if isinstance(metadata, dict) else ""


def is_too_long(error: ClustercertError) -> bool:
    """Return whether the cause of an error is a response that is too long to read."""
    return isinstance(error.__cause__, UnreadableResponse)
