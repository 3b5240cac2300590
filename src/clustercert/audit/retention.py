"""Events are deleted for their age or for somebody's privacy; the log keeps their commitments, and says so.

What was deleted is still proved to have been there, and can't be told from its commitment: the salt is gone with it.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from clustercert.audit.ranges import ranges_of
from clustercert.errors import NotFound
from clustercert.model import AuditEvent, Origin
from clustercert.store.evidence import DELETED, EvidenceRows


class Retention:
    """Deletes events. Each deletion is an event itself, which is kept for good, in the same transaction."""

    def __init__(self, rows: EvidenceRows, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._now = now

    async def prune(self, before: datetime, *, actor: str, origin: Origin) -> int:
        """Delete some of the events of before a time; how many, 0 at the end. Raises Unavailable.

        What isn't sealed yet stays until it is.
        """
        why = {"why": "retention", "before": before.isoformat()}
        marker = self._marker(f"before {before:%Y-%m-%dT%H:%M:%SZ}", why, actor, origin)
        return len(await self._rows.delete(marker, before=before))

    async def erase(self, event_id: int, why: str, *, actor: str, origin: Origin) -> int:
        """Delete one event; its place. Raises NotFound, also for what is not sealed yet or says what was deleted."""
        marker = self._marker(str(event_id), {"why": why}, actor, origin)
        places = await self._rows.delete(marker, only=event_id)
        if not places:
            raise NotFound(
                f"There is no event {event_id} that can be erased: only sealed ones can, and none that says what was"
                " deleted."
            )
        return places[0]

    def _marker(
        self, subject: str, why: dict[str, str], actor: str, origin: Origin
    ) -> Callable[[Sequence[int]], AuditEvent]:
        return lambda places: AuditEvent(
            at=self._now(),
            kind=DELETED,
            project_id=None,
            actor=actor,
            subject=subject,
            origin=origin,
            detail={
                **why,
                "count": len(places),
                "places": [list(pair) for pair in ranges_of(places)],
            },
        )
