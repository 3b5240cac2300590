"""Answers as they go over the wire, where all of one is there at once."""

from collections.abc import Iterable

from uvicorn._types import HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Fields = Iterable[tuple[bytes, bytes]]

# Fields that say how an answer is sent: uvicorn acts on them.
_UVICORNS = frozenset({b"connection", b"transfer-encoding"})


def whole(
    start: HTTPResponseStartEvent, end: HTTPResponseBodyEvent, defaults: Fields, *, keep_alive: bool
) -> bytes | None:
    """Head and body in one piece; None for whatever is less usual than a body and its length.

    Also for fields that would look like another one, or like the end of the head: whoever takes them refuses them.

    Source: RFC 9110 5.5, RFC 9112 6.3.
    """
    fields, body = list(start.get("headers", ())), end.get("body", b"")
    if (
        end.get("more_body", False)
        or (b"content-length", b"%d" % len(body)) not in fields
        or any(name in _UVICORNS for name, _ in fields)
    ):
        return None
    fields += defaults
    if not keep_alive:
        fields.append((b"connection", b"close"))
    before = head(start["status"], fields)
    ends = len(fields) + 2
    return (
        before + body if before.count(b"\n") == before.count(b"\r") == ends and b"\0" not in before else None
    )


def head(status: int, fields: Fields) -> bytes:
    """The status line and the fields as they are, with the empty line behind them."""
    return b"".join((STATUS_LINE[status], *[b"%b: %b\r\n" % field for field in fields], b"\r\n"))


def retry_after(headers: Fields) -> float:
    """Seconds that an answer names, 0 for none."""
    return max(
        (int(value) for name, value in headers if name.lower() == b"retry-after" and value.isdigit()),
        default=0,
    )
