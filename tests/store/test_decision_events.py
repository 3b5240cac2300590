"""Events of decisions, read in bulk."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import event as engine_events

from clustercert.audit.sealer import LogSealer
from clustercert.store import decision_events
from clustercert.store.audit import AuditQueries
from clustercert.store.decision_events import DecisionEvents
from clustercert.store.engine.database import Database
from support.sealed_log import PlainCustody
from support.stores import NOW, event

HOUR = timedelta(hours=1)
PROJECT = "0c97ac3cb280f4d91fa7c0096739e1f8"


async def happen(database: Database, *subjects: str, at: datetime, kind: str = "certificate.issued") -> None:
    project = PROJECT if kind == "certificate.issued" else None
    events = [replace(event(kind, subject), at=at, project_id=project) for subject in subjects]
    async with database.transaction(*events):
        pass


async def subjects(database: Database, *bounds: object) -> list[str]:
    """The subjects of the events that are read."""
    found = []
    async for page in DecisionEvents(database).pages(*bounds):  # type: ignore[arg-type] # they are of its types
        found += [body.split(b'"subject":"')[1].split(b'"')[0].decode() for body in page]
    return found


@pytest.mark.parametrize("size", [1, 2, 2000])
async def test_decisions_are_read_in_order_sealed_or_not(
    database: Database, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(decision_events, "PAGE", size)
    clock = [NOW]
    sealer = LogSealer(AuditQueries(database), PlainCustody(), lambda: clock[0], "audit.test")
    await sealer.ensure_log()
    await happen(database, "a", "b", at=NOW)
    await sealer.seal_all()
    await happen(database, "c", at=NOW + HOUR)
    await happen(database, "other", at=NOW + HOUR, kind="user.created")
    await happen(database, "refused", at=NOW + HOUR, kind="certificate.refused")
    clock[0] += HOUR
    await sealer.seal_all()
    await happen(database, "late", at=NOW + 2 * HOUR)

    assert await subjects(database) == ["a", "b", "c", "refused", "late"]
    assert await subjects(database, NOW) == ["a", "b", "c", "refused", "late"]
    assert await subjects(database, NOW + HOUR) == ["c", "refused", "late"]
    assert await subjects(database, NOW + HOUR, NOW + HOUR) == ["c", "refused"]
    assert await subjects(database, NOW + 2 * HOUR) == ["late"]
    assert await subjects(database, NOW + 3 * HOUR) == []
    assert await subjects(database, None, None, PROJECT) == ["a", "b", "c", "late"]


async def test_what_was_sealed_before_is_not_read(database: Database) -> None:
    clock = [NOW]
    sealer = LogSealer(AuditQueries(database), PlainCustody(), lambda: clock[0], "audit.test")
    await sealer.ensure_log()
    await happen(database, *map(str, range(50)), at=NOW)
    await sealer.seal_all()
    await happen(database, "new", at=NOW + HOUR)
    ids = list[object]()

    def note(*executed: object) -> None:
        ids.append(executed[3])

    async with database.read() as connection:
        engine = connection.sync_engine
    engine_events.listen(engine, "before_cursor_execute", note)
    try:
        assert await subjects(database, NOW + HOUR) == ["new"]
    finally:
        engine_events.remove(engine, "before_cursor_execute", note)
    # The last event that was sealed before is number 50, after the one about the log.
    assert any("50" in str(parameters) or "51" in str(parameters) for parameters in ids)
