"""A server that hands its clients over to the next process, which inherits the same listening socket."""

import signal
import time
from types import FrameType

import uvicorn

# How long requests are still answered after SIGTERM. A client that sends nothing in this time is disconnected.
DRAIN_SECONDS = 10.0
# No connections are accepted in the last seconds, so that clients that just connected can still send a request.
LAST_SECONDS = 2.0
_CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
    """After SIGTERM, answers each keep-alive connection once more, with `Connection: close`, and then stops.

    Closing a keep-alive connection at once could lose a request in transit, and HTTP clients don't repeat a POST. New
    connections are accepted nearly to the end, because the next process may start only after this one has ended.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. Only the first SIGTERM drains; any other signal stops the server at once."""
        if sig != signal.SIGTERM or not self.started or self._ends_at is not None:
            super().handle_exit(sig, frame)
            return
        self._ends_at = time.monotonic() + DRAIN_SECONDS
        # uvicorn sends these header fields with each response, and closes the connection after it.
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    async def on_tick(self, counter: int) -> bool:
        """Continue to drain. uvicorn calls this ten times a second. Returns whether to stop."""
        if self._ends_at is not None:
            remaining = self._ends_at - time.monotonic()
            if remaining < LAST_SECONDS:
                for server in self.servers:
                    server.close()
            if remaining < 0 or not self.server_state.connections:
                return True
        return await super().on_tick(counter)
