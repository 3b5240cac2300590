"""Use case: learn from an API server's audit events which credentials were used."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from clustercert.model import Origin
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.audit_events import Observed
from clustercert.webhook.recognition import Recognition
from clustercert.webhook.sightings import Reporter, Sighting, Sightings

if TYPE_CHECKING:
    from clustercert.webhook.review import Identity


class Observation:
    """Takes note of what was observed."""

    def __init__(self, recognition: Recognition, sightings: Sightings, now: Callable[[], datetime]) -> None:
        self._recognition = recognition
        self._sightings = sightings
        self._now = now

    async def observe(
        self, gate: Gate, events: Iterable[Observed], origin: Origin, reporter: Reporter = "audit-events"
    ) -> int:
        """Note each identity once, with the time of its first and last use; how many. Raises Unavailable."""
        # An API server's clock may be ahead of ours.
        now = self._now()
        spans: dict[Identity, tuple[datetime, datetime]] = {}
        for event in events:
            at = min(event.at, now)
            first, last = spans.get(event.who, (at, at))
            spans[event.who] = min(first, at), max(last, at)
        for who, (first, last) in spans.items():
            for shown in await self._recognition.recognize(gate.cluster_id, who):
                self._sightings.note(Sighting(gate, who, shown, first, last, origin, reporter))
        return len(spans)
