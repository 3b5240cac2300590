"""Refusals of one caller are counted after the first few, and recorded at most once a minute."""

import asyncio
import functools
from datetime import datetime, timedelta
from typing import Any

import pytest

from clustercert.audit.refusals import OTHER, RepeatedRefusals, flush_until_stopped
from clustercert.background import running
from clustercert.model import Actor, Origin
from clustercert.model.errors import Unavailable
from clustercert.model.events.operation import RequestRefused
from clustercert.store.engine.database import Database
from support.samples import PROJECT_ID
from support.stores import NOW, Store

SECOND = timedelta(seconds=1)


def refusal(
    caller: str = "alice", at: datetime = NOW, error: str = "Forbidden", project_id: str | None = PROJECT_ID
) -> RequestRefused:
    return RequestRefused(
        at=at,
        project_id=project_id,
        actor=Actor(caller, Origin("192.0.2.1", "a" * 32)),
        subject="/x",
        method="GET",
        error=error,
        message="No.",
        auth_method="token",
    )


def repeated(store: Store) -> list[dict[str, Any]]:
    return [event for event in store.events() if event["kind"] == "refusals.repeated"]


async def test_after_the_first_few_a_minute_refusals_are_one_event(database: Database, store: Store) -> None:
    repeats = RepeatedRefusals(single_events=3)
    assert [repeats.is_repeated(refusal()) for _ in range(4)] == [False] * 3 + [True]
    assert not repeats.is_repeated(refusal("bob"))
    for number in range(500):
        assert repeats.is_repeated(refusal(at=NOW + number * SECOND, error="NotFound"))
    await repeats.flush(database)
    await repeats.flush(database)
    [event] = repeated(store)
    assert (event["project_id"], event["actor"], event["subject"]) == (PROJECT_ID, "alice", "alice")
    assert (event["source"], event["detail"]["count"]) == ("192.0.2.1", 501)
    counts = {each["error"]: each for each in event["detail"]["refusals"]}
    assert counts["Forbidden"]["count"] == 1
    assert counts["NotFound"] == {
        "kind": "request.refused",
        "error": "NotFound",
        "count": 500,
        "first": NOW.isoformat(),
        "last": (NOW + 499 * SECOND).isoformat(),
        "last_subject": "/x",
        "last_source": "192.0.2.1",
    }
    # A new minute begins.
    assert not repeats.is_repeated(refusal())


async def test_each_project_gets_its_own_event(database: Database, store: Store) -> None:
    repeats = RepeatedRefusals(single_events=0)
    for project_id in (PROJECT_ID, None, PROJECT_ID):
        repeats.is_repeated(refusal(project_id=project_id))
    await repeats.flush(database)
    found = [(event["project_id"], event["detail"]["count"]) for event in repeated(store)]
    assert sorted(found, key=str) == sorted([(PROJECT_ID, 2), (None, 1)], key=str)


async def test_many_callers_do_not_use_more_memory(database: Database, store: Store) -> None:
    repeats = RepeatedRefusals(single_events=0, max_counted=2)
    for number in range(100):
        repeats.is_repeated(refusal(f"user {number}"))
    await repeats.flush(database)
    counts = {event["actor"]: event["detail"]["count"] for event in repeated(store)}
    assert counts == {"user 0": 1, "user 1": 1, OTHER: 98}


async def test_refusals_that_could_not_be_recorded_are_recorded_later(
    database: Database, store: Store
) -> None:
    repeats = RepeatedRefusals(single_events=0)
    away = Database("postgresql+asyncpg://nobody@127.0.0.1:9/nothing", busy_seconds=1)
    repeats.is_repeated(refusal())
    with pytest.raises(Unavailable):
        await repeats.flush(away)
    await away.close()
    repeats.is_repeated(refusal(at=NOW + SECOND))
    await repeats.flush(database)
    [event] = repeated(store)
    [counts] = event["detail"]["refusals"]
    assert (counts["count"], counts["first"]) == (2, NOW.isoformat())


async def test_a_stopping_worker_records_its_counts(database: Database, store: Store) -> None:
    repeats = RepeatedRefusals(single_events=0, seconds=3600)
    async with running("work", functools.partial(repeats.flush_periodically, database)):
        await asyncio.sleep(0)
        repeats.is_repeated(refusal())
    assert len(repeated(store)) == 1


async def test_a_stop_during_a_flush_is_followed_by_another_flush() -> None:
    stop, stopped = asyncio.Event(), list[bool]()

    async def flush() -> None:
        stopped.append(stop.is_set())
        stop.set()

    await flush_until_stopped(flush, 0, stop)
    assert stopped == [False, True]
