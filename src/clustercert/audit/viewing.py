"""Who may see which event: a project's admins the project's, operators all."""

from dataclasses import dataclass

from clustercert.audit.log import AuditLog, InclusionProof
from clustercert.errors import Forbidden, NotFound
from clustercert.model import Caller
from clustercert.policy import administers, operates, require_reach
from clustercert.store.audit import StoredEvent
from clustercert.store.event_pages import EventFilter, EventPage


@dataclass(frozen=True, slots=True)
class Viewing:
    """Shows events to callers. Without a project, all of them, for operators.

    Everything here raises NotFound where the caller has no role in the project, Forbidden where their role is too
    small, Unavailable.
    """

    log: AuditLog

    async def page(
        self, caller: Caller, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """A page of the events that are looked for."""
        _require(caller, wanted.project_id)
        return await self.log.events(wanted, cursor=cursor, newest_first=newest_first, limit=limit)

    async def event(self, caller: Caller, project_id: str | None, event_id: int) -> StoredEvent:
        """One event. Raises NotFound where there is none, or it is another project's."""
        _require(caller, project_id)
        event = await self.log.pages.event(event_id, project_id)
        if event is None:
            raise NotFound("There is no such event. Check its id; it may have been deleted since.")
        return event

    async def proof(
        self, caller: Caller, project_id: str | None, event_id: int, size: int | None
    ) -> InclusionProof:
        """The proof that an event is in the log of this size, or of its newest one. Raises as `inclusion` does."""
        return await self.log.inclusion(await self.event(caller, project_id, event_id), size)


def _require(caller: Caller, project_id: str | None) -> None:
    if project_id is None:
        if not operates(caller):
            raise Forbidden("This is for operators of the service. Ask for the events of one project.")
        return
    require_reach(caller, project_id)
    if not administers(caller, project_id):
        raise Forbidden("Only the project's admins and operators see its events.")
