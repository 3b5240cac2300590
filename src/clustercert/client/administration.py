"""Calls the administration API of a service."""

from collections.abc import Iterator
from urllib.parse import quote

from clustercert.client.connection import ApiError, Connection, json_object
from clustercert.model import JsonObject

OWN = "/clustercert/v1"
_NOT_FOUND = 404
_PAGE = 500


class AdministrationClient(Connection):
    """Reads and changes resources by their path below `/clustercert/v1`. Raises ClientError."""

    def find(self, path: str) -> JsonObject | None:
        """Return a resource, or None if it does not exist."""
        try:
            return self.exchange("GET", OWN + path).body
        except ApiError as error:
            if error.http_status == _NOT_FOUND:
                return None
            raise

    def put(self, path: str, body: JsonObject) -> JsonObject:
        return self.exchange("PUT", OWN + path, body=body).body

    def delete(self, path: str) -> None:
        self.exchange("DELETE", OWN + path)

    def all(self, path: str, name: str) -> Iterator[JsonObject]:
        """Yield all resources of a list, which has this name in its pages."""
        cursor = ""
        while True:
            page = self.exchange("GET", f"{OWN}{path}?limit={_PAGE}{cursor}").body
            with self.check_format():
                items = page[name]
                if not isinstance(items, list):
                    raise TypeError("The value is not a list.")
                found = [json_object(each) for each in items]
            yield from found
            if page.get("next") is None:
                return
            cursor = f"&cursor={quote(str(page['next']), safe='')}"


def path_of(*parts: str, domain: str | None = None) -> str:
    """Return a path with its parts percent-encoded."""
    query = f"?domain={quote(domain, safe='')}" if domain is not None else ""
    return "".join(f"/{quote(part, safe='')}" for part in parts) + query
