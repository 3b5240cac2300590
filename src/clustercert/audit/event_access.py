"""Access control for audit events: project admins see their projects' events, operators see all events."""

from dataclasses import dataclass

from clustercert.audit.log import AuditLog, InclusionProof
from clustercert.model import Caller
from clustercert.model.errors import Forbidden, NotFound
from clustercert.policy.roles import administers, operates, require_reach
from clustercert.store.audit import StoredEvent
from clustercert.store.event_pages import EventFilter, EventPage


@dataclass(frozen=True, slots=True)
class EventAccess:
    """Reads events for callers. If `project_id` is `None`, reads all projects, which only operators may do.

    All methods raise NotFound if the caller has no role in the project, Forbidden if the role is insufficient, or
    Unavailable.
    """

    log: AuditLog

    async def page(
        self, caller: Caller, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        _require(caller, wanted.project_id)
        return await self.log.events(wanted, cursor=cursor, newest_first=newest_first, limit=limit)

    async def event(self, caller: Caller, project_id: str | None, event_id: int) -> StoredEvent:
        """Return one event. Raises NotFound if it does not exist or belongs to another project."""
        _require(caller, project_id)
        event = await self.log.pages.event(event_id, project_id)
        if event is None:
            raise NotFound("Event not found. Check its id; it may have been deleted.")
        return event

    async def proof(
        self, caller: Caller, project_id: str | None, event_id: int, size: int | None
    ) -> InclusionProof:
        """Return an event's inclusion proof; see `AuditLog.inclusion`."""
        return await self.log.inclusion(await self.event(caller, project_id, event_id), size)


def _require(caller: Caller, project_id: str | None) -> None:
    if project_id is None:
        if not operates(caller):
            raise Forbidden(
                "Only operators can see the events of all projects. Request the events of one project."
            )
        return
    require_reach(caller, project_id)
    if not administers(caller, project_id):
        raise Forbidden("Only project admins and operators can see these events.")
