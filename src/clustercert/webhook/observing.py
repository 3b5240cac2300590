"""Use case: learn from an API server's audit events which credentials were used."""

from collections.abc import Callable, Iterable
from datetime import datetime

from clustercert.model import Origin
from clustercert.store.credentials import Credentials
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.audit_events import Observed
from clustercert.webhook.sightings import Sighting, Sightings


class Observation:
    """Takes note of what was observed."""

    def __init__(self, credentials: Credentials, sightings: Sightings, now: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._sightings = sightings
        self._now = now

    async def observe(self, gate: Gate, events: Iterable[Observed], origin: Origin) -> int:
        """Note each credential once, with the time of its first and last use; how many. Raises Unavailable."""
        # An API server's clock may be ahead of ours.
        now = self._now()
        spans: dict[bytes, tuple[Observed, datetime, datetime]] = {}
        for event in events:
            at = min(event.at, now)
            for fingerprint in event.who.fingerprints:
                _, first, last = spans.get(fingerprint, (event, at, at))
                spans[fingerprint] = event, min(first, at), max(last, at)
        for fingerprint, (event, first, last) in spans.items():
            known = await self._credentials.find(fingerprint)
            self._sightings.note(Sighting(gate, event.who, fingerprint, known, first, last, origin))
        return len(spans)
