"""Addresses of issuers."""

from urllib.parse import urlsplit

DISCOVERY_PATH = "/.well-known/openid-configuration"


def is_https_url(url: object) -> bool:
    """Whether a value is an HTTPS address without credentials and fragment."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_complete = parts.scheme == "https" and bool(parts.hostname) and has_port
    return is_complete and "@" not in parts.netloc and not parts.fragment
