"""A request's body as it arrives, for routes that take any size."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import Request

from clustercert.errors import RequestTimeout

if TYPE_CHECKING:
    from clustercert.web.deadlines import Deadlines


async def chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body's chunks, each at most so many seconds after the one before was taken. Raises RequestTimeout.

    Each chunk gives the request as much time again as it had at its beginning.
    """
    # `edge` put them there.
    deadlines: Deadlines = request.scope["clustercert.deadlines"]
    more = True
    while more:
        try:
            with deadlines.within(seconds):
                message = await request.receive()
        except TimeoutError as error:
            raise RequestTimeout(f"Nothing of the request's body arrived for {seconds:g} seconds.") from error
        if message["type"] == "http.disconnect":
            raise RequestTimeout("The connection ended before the request's body did.")
        request.scope["clustercert.renew"]()
        yield message.get("body", b"")
        more = message.get("more_body", False)
