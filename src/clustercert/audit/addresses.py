"""Where checkpoints go, as the settings say it.

* `file:/path`: appended to a file, for instance on a disk that only grows.
* `https://host/path`: posted as text; plain http to this machine alone.
* `syslog:/dev/log` and `syslog://host:port`: RFC 5424, over a local socket or UDP.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal
from urllib.parse import SplitResult, urlsplit

SYSLOG_PORT = 514
_FORMS = "write it like file:/path, https://host/path, syslog:/dev/log or syslog://host:514; http:// is for loopback"


@dataclass(frozen=True, slots=True)
class Address:
    """One of them.

    Attributes:
        path: of a file or a local socket.
        url: as it was given; it may have a password in it.
        host, port: of a syslog server.
    """

    kind: Literal["file", "url", "socket", "udp"]
    path: str = ""
    url: str = field(default="", repr=False)
    host: str = ""
    port: int = SYSLOG_PORT

    def __str__(self) -> str:
        """For the log: without what may be a password."""
        if self.kind == "url":
            parts = urlsplit(self.url)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return {"file": f"file:{self.path}", "socket": f"syslog:{self.path}"}.get(
            self.kind, f"syslog://{self.host}:{self.port}"
        )


def parsed_address(text: object) -> Address:
    """The address in a setting. Raises ValueError, which says how to write one."""
    if not isinstance(text, str):
        raise ValueError(_FORMS)  # noqa: TRY004 - pydantic takes a ValueError for what is wrong with a value
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_FORMS) from None
    match parts.scheme:
        case "file" if _is_local_path(parts):
            return Address("file", path=parts.path)
        case "syslog" if _is_local_path(parts):
            return Address("socket", path=parts.path)
        case "syslog" if parts.hostname and not parts.path:
            return Address("udp", host=parts.hostname, port=port or SYSLOG_PORT)
        case "https" if parts.hostname:
            return Address("url", url=text)
        case "http" if _is_loopback(parts.hostname or ""):
            return Address("url", url=text)
    raise ValueError(_FORMS)


def _is_local_path(parts: SplitResult) -> bool:
    return not parts.netloc and len(parts.path) > 1 and parts.path.startswith("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
