"""A request's body as it arrives, for routes that take any size."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from clustercert.errors import RequestTimeout


async def chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body's chunks, each at most so many seconds after the one before was taken. Raises RequestTimeout.

    Each chunk gives the request as much time again as it had at its beginning.
    """
    more = True
    while more:
        try:
            async with asyncio.timeout(seconds):
                message = await request.receive()
        except TimeoutError as error:
            raise RequestTimeout(f"Nothing of the request's body arrived for {seconds:g} seconds.") from error
        if message["type"] == "http.disconnect":
            raise RequestTimeout("The connection ended before the request's body did.")
        # `edge` put it there.
        request.scope["clustercert.renew"]()
        yield message.get("body", b"")
        more = message.get("more_body", False)
