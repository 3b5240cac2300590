"""The servers that we are measured against, one file each; here what is known of any server under load."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench import wrk


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, serving.

    Attributes:
        requests: to be sent in turn.
        roots: the processes whose time is its own, its database's among them.
    """

    url: str
    requests: Sequence[bytes]
    roots: Sequence[int]

    def load(self, connections: int, seconds: float, pause_ms: float | None = None) -> wrk.Load:
        """One run; see `wrk`."""
        return wrk.run(
            self.url,
            self.requests,
            connections=connections,
            seconds=seconds,
            roots=self.roots,
            pause_ms=pause_ms,
        )
