"""The servers that we are measured against, one file each; here what is known of any server under load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import wrk

# To see how long an answer takes at about the rate that is wanted.
CALIBRATING_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, serving.

    Attributes:
        requests: to be sent in turn.
        roots: the processes whose time is its own, its database's among them.
        conversation: the script that goes on from an answer, where one is not the whole; see `wrk`.
    """

    url: str
    requests: Sequence[bytes]
    roots: Sequence[int]
    conversation: Path | None = None

    def load(self, connections: int, seconds: float, pause_ms: float = 0) -> wrk.Load:
        """One run; see `wrk`."""
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
        """About so many requests a second, arriving as from many clients who don't know of each other."""
        return self.load(connections, seconds, self.pause_ms(rate, connections))

    def pause_ms(self, rate: float, connections: int) -> float:
        """The mean pause that makes so many connections come to that rate, found by trying."""
        between_ms = connections / rate * 1000
        answer_ms = self.load(connections, CALIBRATING_SECONDS, between_ms).mean_ms
        return max(1.0, between_ms - answer_ms)
