"""Access control for audit events: project admins see their projects' events, operators and auditors all events."""

from dataclasses import dataclass, replace

import structlog

from clustercert.audit.event_parsing import parse_body
from clustercert.audit.log import AuditLog, InclusionProof
from clustercert.model import Caller
from clustercert.model.errors import Forbidden, NotFound
from clustercert.model.rights import reads_project, require_reader, require_view
from clustercert.store.audit.log import EventFilter, EventPage, StoredEvent

logger = structlog.get_logger()

ONLY_READERS = (
    "Only operators and auditors can see the events of all projects. Request the events of one project."
)


@dataclass(frozen=True, slots=True)
class EventAccess:
    """Reads events for callers. Only operators and auditors may read the events of all projects (`project_id=None`).

    An event belongs to the project in its sealed body. The columns of the event's database row are used only to find
    the event.

    All methods raise NotFound if the caller has no role in the project, Forbidden if the role is insufficient, or
    Unavailable.
    """

    log: AuditLog

    async def page(
        self, caller: Caller, filters: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        _require(caller, filters.project_id)
        page = await self.log.events(filters, cursor=cursor, newest_first=newest_first, limit=limit)
        return replace(page, events=tuple(each for each in page.events if _is_in(each, filters.project_id)))

    async def event(self, caller: Caller, project_id: str | None, leaf_index: int) -> StoredEvent:
        """Return one event. Raises NotFound if the event does not exist or belongs to another project."""
        _require(caller, project_id)
        event = await self.log.pages.event(leaf_index, project_id)
        if event is None or not _is_in(event, project_id):
            raise NotFound(
                "Event not found. Check the leaf index. The event may have been deleted, or may not be sealed yet."
            )
        return event

    async def proof(
        self, caller: Caller, project_id: str | None, leaf_index: int, size: int | None
    ) -> InclusionProof:
        """Return an event's inclusion proof; see `AuditLog.inclusion`."""
        return await self.log.inclusion(await self.event(caller, project_id, leaf_index), size)


def _is_in(event: StoredEvent, project_id: str | None) -> bool:
    """Whether the event's sealed body names this project. Always true if `project_id` is `None`."""
    if project_id is None or parse_body(event.body).get("project_id") == project_id:
        return True
    logger.error("audit event row names another project than its sealed body", leaf_index=event.leaf_index)
    return False


def _require(caller: Caller, project_id: str | None) -> None:
    if project_id is None:
        require_reader(caller, ONLY_READERS)
        return
    require_view(caller, project_id)
    if not reads_project(caller, project_id):
        raise Forbidden("Only project admins, operators and auditors can see these events.")
