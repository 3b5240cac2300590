"""Network addresses."""

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_https_url(url: object) -> bool:
    """Whether a value is an HTTPS address without credentials and fragment."""
    parts = _parts(url)
    return parts is not None and parts.scheme == "https"


def is_service_url(url: object) -> bool:
    """Whether a value is the address of a service: a scheme and a host, without a path."""
    parts = _parts(url)
    return parts is not None and parts.scheme in ("http", "https") and not parts.path and not parts.query


def is_loopback_redirect(url: object) -> bool:
    """Whether a value is an address for a client on the user's machine, as in RFC 8252, 7.3.

    The host is `127.0.0.1` or `localhost`. Without a port, the client may add any.
    """
    parts = _parts(url)
    if parts is None or parts.query or "?" in str(url):
        return False
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")


def _parts(url: object) -> SplitResult | None:
    """Split an address. Returns `None` if it has no host, or has credentials, a fragment or spaces."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return parts if parts.hostname and has_port and "@" not in parts.netloc and not parts.fragment else None
