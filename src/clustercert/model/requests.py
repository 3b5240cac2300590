"""Requests before authentication, and the origins and actors that audit events name."""

from dataclasses import dataclass, field
from ipaddress import IPv6Network
from typing import Self

from clustercert.model.ids import new_id

AuthMethod = str
"""How a caller authenticated: the authenticator's name for it, at most 16 characters, such as `token` or `oidc`.

`cli`: an operator with access to the store. `service`: the service itself.
"""

KEYSTONE_METHODS = ("keystone", "keystone_key", "keystone_app")
"""How users of Keystone authenticate: by a token, an access key, or a token of an application credential."""

AUTH_METHODS = ("token", "access_key", "oidc", *KEYSTONE_METHODS, "cli")
"""The methods of callers about whom the policy decides."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        address: the source IP address as determined by `http.source_address`, or "local" for the command line.
        request_id: 32 hex digits, also sent to the caller.
    """

    address: str
    request_id: str

    @property
    def network(self) -> str:
        """The address or, for IPv6, its /64: one client usually has all addresses in a /64."""
        if ":" not in self.address:
            return self.address
        return str(IPv6Network((self.address.partition("%")[0], 64), strict=False))

    @classmethod
    def local(cls) -> Self:
        """Return the origin of work on this machine, with a new request id."""
        return cls(address="local", request_id=new_id())


@dataclass(frozen=True, slots=True)
class Actor:
    """The user or component that caused an audit event.

    Attributes:
        id: a user's id, `cli:<operating-system user>`, or the name of a component of this service.
    """

    id: str
    origin: Origin

    @classmethod
    def service(cls) -> Self:
        """Return the service itself as an actor, with a new request id."""
        return cls("clustercert", Origin.local())


@dataclass(frozen=True, slots=True)
class UnverifiedRequest:
    """A request before authentication.

    Attributes:
        method: upper case.
        raw_path: percent-encoded, without the query.
        raw_query: percent-encoded, without the question mark.
        headers: as in ASGI: lower-case names, raw values, duplicates included.
        body: the raw bytes, which signatures cover.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    origin: Origin
