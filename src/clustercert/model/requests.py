"""The origin and the sender of a request, and checks of URLs."""

from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_address
from typing import Self
from urllib.parse import SplitResult, urlsplit

from clustercert.model.ids import new_id


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_https_url(url: object) -> bool:
    """Whether a value is an HTTPS URL without credentials and fragment."""
    parts = _parts(url)
    return parts is not None and parts.scheme == "https"


def is_protected_url(url: object) -> bool:
    """Whether a value is an HTTPS URL, or an HTTP URL of this machine, without credentials and fragment."""
    parts = _parts(url)
    return parts is not None and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    )


def is_service_url(url: object) -> bool:
    """Whether a value is the URL of a service: `http` or `https` and a host, without path and query."""
    parts = _parts(url)
    return parts is not None and parts.scheme in ("http", "https") and not parts.path and not parts.query


def is_loopback_redirect(url: object) -> bool:
    """Whether a value is a loopback redirect URI: an address of a client on the user's machine.

    The host is `127.0.0.1` or `localhost`. If the port is missing, the client may add any port. Source: RFC 8252
    section 7.3.
    """
    parts = _parts(url)
    if parts is None or parts.query or "?" in str(url):
        return False
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")


def _parts(url: object) -> SplitResult | None:
    """Split a URL. Returns `None` if the URL has no host, or has credentials, a fragment or spaces."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return parts if parts.hostname and has_port and "@" not in parts.netloc and not parts.fragment else None


AuthMethod = str
"""How a caller authenticated: a name chosen by the authenticator, such as `token` or `oidc`, at most 16 characters.

`cli`: an operator with access to the store. `service`: the service itself.
"""

KEYSTONE_METHODS = ("keystone", "keystone_key", "keystone_app")
"""How users of Keystone authenticate: with a token, an access key, or a token of an application credential."""

AUTH_METHODS = ("token", "access_key", "oidc", *KEYSTONE_METHODS, "cli")
"""The authentication methods of callers whose requests the policy decides."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        address: the source IP address as determined by `http.source_address`; "local" for work on this machine.
        request_id: 32 hex digits, which are also sent to the caller.
    """

    address: str
    request_id: str

    @property
    def network(self) -> str:
        """The address or, for IPv6, the /64 network of the address: one client usually owns a whole /64."""
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
        id: a user's id, `cli:` and the name of an operating-system user, or the name of a component of this service.
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
        headers: as in ASGI: lower-case names and raw values, including duplicates.
        body: the raw bytes, which request signatures cover.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    origin: Origin
