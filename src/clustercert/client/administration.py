"""Calls the administration API of a service."""

from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from urllib.parse import quote, unquote, urlencode

from clustercert.client.connection import OWN, ApiError, InvalidArgument, ServiceClient
from clustercert.model import JsonObject
from clustercert.model.rights import AUDITOR, OPERATOR


class AdministrationClient(ServiceClient):
    """Reads and changes resources by their path below `/clustercert/v1`. The methods raise ClientError.

    Attributes:
        is_user: whether the caller is a user. Only users can have certificates.
        warn: called with the text of each warning in a response.
    """

    is_user = True
    warn: Callable[[str], None] = staticmethod(lambda _text: None)

    @cached_property
    def caller(self) -> JsonObject:
        """The caller's `id`, `name` and `service_roles`."""
        return self.get("/caller")

    @property
    def is_operator(self) -> bool:
        return self._has_role(OPERATOR)

    @property
    def reads_everything(self) -> bool:
        """Whether the caller may see the certificates and audit events of all projects."""
        return self.is_operator or self._has_role(AUDITOR)

    def _has_role(self, role: str) -> bool:
        roles = self.caller.get("service_roles")
        return isinstance(roles, list) and role in roles

    def find(self, path: str) -> JsonObject | None:
        """Return a resource, or None if it does not exist."""
        found = self.find_state(path)
        return found[0] if found is not None else None

    def get(self, path: str, /, **query: str) -> JsonObject:
        separator = "?" if query else ""
        return self.exchange(
            "GET", f"{OWN}{path}{separator}{urlencode(query, quote_via=quote, safe='')}"
        ).body

    def create(self, path: str, body: JsonObject) -> JsonObject:
        """Create a resource. Raises ClientError if the resource exists already."""
        try:
            return self.exchange("PUT", OWN + path, body=body, headers={"If-None-Match": "*"}).body
        except ApiError as error:
            if error.http_status != HTTPStatus.PRECONDITION_FAILED:
                raise
            kind, name = path.partition("?")[0].split("/")[-2:]
            raise ApiError(
                f"There is already a {kind.removesuffix('s')} {unquote(name)}. Choose a different name.",
                error.http_status,
            ) from error

    def put(self, path: str, body: JsonObject) -> JsonObject:
        """Create a resource, or replace all its fields."""
        response = self.exchange("PUT", OWN + path, body=body)
        for warning in response.headers.get_all("Warning", ()):
            self.warn(warning.partition('"')[2].rstrip('"'))
        return response.body

    def update(self, path: str, **fields: object) -> JsonObject:
        """Change some fields of a resource. Raises ClientError if another client changes the resource meanwhile."""
        return self.change(path, lambda _: fields)

    def change(self, path: str, changes: Callable[[JsonObject], JsonObject]) -> JsonObject:
        """Like `update`, but a function computes the new fields from the current fields."""
        current = self.exchange("GET", OWN + path)
        headers = {"If-Match": current.headers.get("ETag", "*")}
        body = {**current.body, **changes(current.body)}
        return self.exchange("PUT", OWN + path, body=body, headers=headers).body

    def post(self, path: str, body: JsonObject | None = None) -> JsonObject:
        return self.exchange("POST", OWN + path, body=body or {}).body

    def text(self, path: str, media_type: str) -> str:
        """Return a resource as text of the given media type. Raises ClientError."""
        content = self.download(OWN + path, {"Accept": media_type})
        with self.check_format():
            return content.decode()

    def find_state(self, path: str) -> tuple[JsonObject, str] | None:
        """Return a resource and its ETag, or None if it does not exist."""
        try:
            response = self.exchange("GET", OWN + path)
        except ApiError as error:
            if error.http_status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return response.body, response.headers.get("ETag", "*")

    def delete(self, path: str, etag: str | None = None) -> JsonObject:
        """Delete a resource, and return the answer's body. Raises ClientError, also if the ETag has changed."""
        try:
            headers = {"If-Match": etag} if etag is not None else None
            return self.exchange("DELETE", OWN + path, headers=headers).body
        except ApiError as error:
            if error.http_status != HTTPStatus.PRECONDITION_FAILED or etag is None:
                raise
            raise ApiError(
                "The object was changed meanwhile, so it was not deleted.",
                error.http_status,
            ) from error


def check_name(text: str) -> None:
    """Raise InvalidArgument if a text is empty or not printable, and therefore not a valid name."""
    if not text or not text.isprintable():
        raise InvalidArgument(
            f"{text!r} is not a name: it is empty, or has characters that can't be printed."
        )


def path_of(*parts: str, domain: str | None = None) -> str:
    """Percent-encode names and join them to a URL path. Raises InvalidArgument if a name is not valid in a path."""
    for part in parts:
        check_name(part)
        if "/" in part:
            raise InvalidArgument(f"{part} is not a name: a name can't contain a slash.")
    query = f"?domain={quote(domain, safe='')}" if domain is not None else ""
    return "".join(f"/{quote(part, safe='')}" for part in parts) + query
