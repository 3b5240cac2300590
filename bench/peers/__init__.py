"""The servers that this service is compared with, one module each, and the load on any server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import wrk

# Duration of a trial run that measures the response time at about the requested rate, in seconds.
CALIBRATING_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server.

    Attributes:
        requests: sent in turn.
        roots: the processes whose processor time counts, including its database's.
        conversation: the script that sends further requests after a response, if one is not enough; see `wrk`.
    """

    url: str
    requests: Sequence[bytes]
    roots: Sequence[int]
    conversation: Path | None = None

    def load(self, connections: int, seconds: float, pause_ms: float = 0) -> wrk.Load:
        """Run a load; see `wrk`."""
        return wrk.run(
            self.url,
            self.requests,
            connections=connections,
            seconds=seconds,
            roots=self.roots,
            pause_ms=pause_ms,
            conversation=self.conversation,
        )

    def load_at(self, rate: float, connections: int, seconds: float) -> wrk.Load:
        """Send about this number of requests per second, as from many independent clients."""
        return self.load(connections, seconds, self.pause_ms(rate, connections))

    def pause_ms(self, rate: float, connections: int) -> float:
        """Find by trial the mean pause with which the connections reach this rate."""
        between_ms = connections / rate * 1000
        answer_ms = self.load(connections, CALIBRATING_SECONDS, between_ms).mean_ms
        return max(1.0, between_ms - answer_ms)
