"""Events of decisions, read in bulk."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import event as engine_events

from clustercert.audit.sealer import LogSealer
from clustercert.issuance.recorded_callers import RecordedCallers
from clustercert.model import Actor
from clustercert.store.audit import decision_events
from clustercert.store.audit.decision_events import DecisionEvents
from clustercert.store.audit.log import AuditQueries
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.database import Database
from support.sealed_log import PlainCustody
from support.stores import NOW, ORIGIN, certificate_record, event

HOUR = timedelta(hours=1)
PROJECT = "0c97ac3cb280f4d91fa7c0096739e1f8"


async def happen(database: Database, *subjects: str, at: datetime, kind: str = "certificate.issued") -> None:
    project = PROJECT if kind == "certificate.issued" else None
    events = [replace(event(kind, subject), at=at, project_id=project) for subject in subjects]
    async with database.transaction(*events):
        pass


async def issuances(database: Database, issued_at: dict[str, datetime]) -> list[str]:
    """The subjects of the events that are found."""
    found = []
    async for page in DecisionEvents(database).issuances(issued_at):
        for fingerprint, body in page.items():
            assert json.loads(body)["subject"] == fingerprint
            found.append(fingerprint)
    return found


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_the_events_of_certificates_are_found_wherever_they_are(
    database: Database, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(decision_events, "ISSUED_PAGE", size)
    clock = [NOW]
    sealer = LogSealer(AuditQueries(database), PlainCustody(), lambda: clock[0], "audit.test")
    await sealer.ensure_log()
    times = {"a": NOW, "b": NOW, "c": NOW + HOUR, "late": NOW + 3 * HOUR}
    await happen(database, "x", "b", "a", "y", at=NOW)
    await happen(database, "a", at=NOW, kind="certificate.refused")
    clock[0] += HOUR
    await sealer.seal_all()
    await happen(database, "z", "c", at=NOW + HOUR)
    clock[0] += HOUR
    await sealer.seal_all()
    # Without a checkpoint after it, and an event that was recorded before another with an earlier time.
    await happen(database, "late", at=NOW + 3 * HOUR)
    await happen(database, "signed-slowly", at=NOW + 3 * HOUR - timedelta(minutes=1))

    assert sorted(await issuances(database, times)) == ["a", "b", "c", "late"]
    slow = {"signed-slowly": NOW + 3 * HOUR - timedelta(minutes=1)}
    assert await issuances(database, slow | times) == ["b", "a", "c", "late", "signed-slowly"]
    # The events of certificates that were deleted are left out.
    gone = {"gone": NOW, "gone-too": NOW + HOUR, "never": NOW + 9 * HOUR}
    assert sorted(await issuances(database, times | gone)) == ["a", "b", "c", "late"]
    assert await issuances(database, gone) == []
    assert await issuances(database, {}) == []


async def test_the_events_between_two_certificates_are_skipped(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_events, "ISSUED_PAGE", 2)
    clock = [NOW]
    sealer = LogSealer(AuditQueries(database), PlainCustody(), lambda: clock[0], "audit.test")
    await sealer.ensure_log()
    await happen(database, "first", at=NOW)
    for hours in range(1, 50):
        clock[0] = NOW + hours * HOUR
        await happen(database, str(hours), at=clock[0])
        await sealer.seal_all()
    statements = list[str]()

    def note(*executed: object) -> None:
        statements.append(str(executed[2]))

    async with database.read() as connection:
        engine = connection.sync_engine
    engine_events.listen(engine, "before_cursor_execute", note)
    try:
        assert await issuances(database, {"first": NOW, "49": NOW + 49 * HOUR}) == ["first", "49"]
    finally:
        engine_events.remove(engine, "before_cursor_execute", note)
    assert sum("audit_event" in each for each in statements) < 6


async def happen_to(database: Database, actor: str, count: int, *, kind: str = "certificate.issued") -> None:
    """Add events of a user in the project, one after the other: subjects 0, 1, 2…"""
    made = [
        replace(event(kind, str(number)), project_id=PROJECT, actor=Actor(actor, ORIGIN))
        for number in range(count)
    ]
    async with database.transaction(*made):
        pass


def subjects_in(bodies: list[bytes]) -> list[str]:
    return [json.loads(body)["subject"] for body in bodies]


async def test_the_newest_decisions_on_a_user_are_few_and_from_few_events(database: Database) -> None:
    await happen_to(database, "alice", 3)
    await happen_to(database, "bob", 4)
    await happen_to(database, "alice", 1, kind="user.created")
    await happen(database, "elsewhere", at=NOW, kind="certificate.refused")
    found = DecisionEvents(database)
    assert subjects_in(await found.newest_decisions(["alice"], PROJECT, 1000)) == ["2", "1", "0"]
    # Of the 7 newest events, one is of alice in the project.
    assert subjects_in(await found.newest_decisions(["alice"], PROJECT, 7)) == ["2"]
    assert await found.newest_decisions(["alice"], "0" * 32, 1000) == []
    await happen_to(database, "busy", 2 * decision_events.MAX_FOUND)
    newest = subjects_in(await found.newest_decisions(["busy"], PROJECT, 1000))
    assert (
        newest
        == [str(number) for number in reversed(range(2 * decision_events.MAX_FOUND))][
            : decision_events.MAX_FOUND
        ]
    )


async def test_a_decision_at_a_time_is_found_among_the_events_around(database: Database) -> None:
    clock = [NOW]
    sealer = LogSealer(AuditQueries(database), PlainCustody(), lambda: clock[0], "audit.test")
    await sealer.ensure_log()
    for number in range(3):
        clock[0] = NOW + number * HOUR
        made = replace(
            event("certificate.issued", str(number)), project_id=PROJECT, actor=Actor("alice", ORIGIN)
        )
        async with database.transaction(replace(made, at=clock[0])):
            pass
        await sealer.seal_all()
    found = DecisionEvents(database)

    async def at(
        time: datetime, *, actor: str = "alice", project: str = PROJECT, searched: int = 1000
    ) -> list[str]:
        body = await found.decision_at(time, actor, project, searched)
        return subjects_in([body] if body is not None else [])

    assert [await at(NOW + number * HOUR) for number in range(4)] == [["0"], ["1"], ["2"], []]
    assert await at(NOW, actor="bob") == await at(NOW, project="0" * 32) == []
    # Nothing is searched after the first event of the log, which is about the log itself.
    assert await at(NOW, searched=1) == []


async def test_the_last_request_of_a_user_is_found_without_the_events_after_it(database: Database) -> None:
    record, _ = certificate_record()
    await Ledger(database).record(record, event("certificate.issued", record.fingerprint.hex()))
    await happen(database, *map(str, range(100)), at=NOW + HOUR)
    statements = list[str]()

    def note(*executed: object) -> None:
        statements.append(str(executed[2]))

    async with database.read() as connection:
        engine = connection.sync_engine
    engine_events.listen(engine, "before_cursor_execute", note)
    try:
        # The event of this record does not have the inputs of its decision.
        assert await RecordedCallers(database).last(PROJECT, record.user_id) is None
    finally:
        engine_events.remove(engine, "before_cursor_execute", note)
    assert sum("audit_event" in each for each in statements) < 10
