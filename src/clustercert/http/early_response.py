"""A response that is sent before the request's body has been received completely."""

import asyncio
import contextlib
from collections.abc import Iterable

from starlette.types import Receive, Scope, Send

from clustercert.http.responses import Rendered
from clustercert.model.errors import Unavailable

# The limit is more than an API server can send: it copies up to 1 MB of header fields into a review, at 33 times their
# size.
MAX_DISCARDED = 64 * 1024 * 1024


class EarlyResponse(Rendered):
    """Sends the response at once, then discards the rest of the request's body, and ends the connection.

    Some clients send the whole body before they read. If the server closed the connection earlier, the unread data
    would reset it, and these clients would never see the response.

    Attributes:
        seconds: time limit for the rest of the body. After it, or after `MAX_DISCARDED` bytes, the connection ends.
    """

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]], seconds: float) -> None:
        super().__init__(body, [*headers, (b"connection", b"close")])
        self.seconds = seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Receiving the end of the body raises Unavailable if too many requests are in progress.
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(self.seconds):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    length, more = 0, True
    while more and length <= MAX_DISCARDED:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
