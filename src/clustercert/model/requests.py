"""A request as it comes in, before anybody has judged it."""

import uuid
from dataclasses import dataclass, field
from typing import Literal, Self, TypedDict

AuthMethod = Literal["token", "access_key", "cli", "service"]
"""How a caller proved who they are; `cli` is the operator at the store itself, `service` this program on its own."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        address: the peer's IP address as text, or "local" for the command line.
        request_id: 32 hex digits, the one that the caller is told.
    """

    address: str
    request_id: str

    @classmethod
    def local(cls) -> Self:
        """This program itself, with a new request id."""
        return cls(address="local", request_id=uuid.uuid4().hex)


class Who(TypedDict):
    """Who changes something, as the use cases take it for the audit.

    Attributes:
        actor: a user's id, `cli:<operating-system user>`, or a part of this program.
    """

    actor: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class UnverifiedRequest:
    """A request as it came over the wire: what an authenticator judges before anything else reads it.

    Attributes:
        method: upper case.
        raw_path: percent-encoded, without the query.
        raw_query: percent-encoded, without the question mark.
        headers: as ASGI gives them: lower-case names, values as the bytes that were sent, repeats kept.
        body: all of it; signatures cover the very bytes.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    origin: Origin
