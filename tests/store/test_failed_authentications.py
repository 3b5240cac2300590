"""Failed authentications are counted by source address and recorded at most once a minute."""

import asyncio
import functools
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.audit.refusals import MAX_KNOWN, FailedAuthentications
from clustercert.background import running
from clustercert.model.errors import Unavailable
from clustercert.store.engine.database import Database
from support.stores import NOW, Store
from support.wait import eventually_async


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


def sources(store: Store) -> list[list[dict[str, Any]]]:
    """Return the source addresses in each event."""
    found = []
    for event in store.events():
        assert (event["kind"], event["project_id"]) == ("authentication.failed", None)
        detail: Any = event["detail"]
        assert detail["count"] == sum(source["count"] for source in detail["sources"])
        found.append(detail["sources"])
    return found


async def test_many_failures_are_one_event_with_count_first_and_last(
    database: Database, store: Store
) -> None:
    failures = FailedAuthentications(Clock())
    for source, known, unknown in [
        ("192.0.2.1", "", "60"),
        ("192.0.2.9", "AK", ""),
        ("192.0.2.1", "user", ""),
        ("192.0.2.1", "user", "5f"),
    ]:
        failures.count(source, known, unknown)
    await failures.flush(database)
    await failures.flush(database)
    second = timedelta(seconds=1)
    assert sources(store) == [
        [
            {
                "source": "192.0.2.1",
                "count": 3,
                "first": (NOW + second).isoformat(),
                "last": (NOW + 4 * second).isoformat(),
                "known": ["user"],
                "unknown": ["5f", "60"],
            },
            {
                "source": "192.0.2.9",
                "count": 1,
                "first": (NOW + 2 * second).isoformat(),
                "last": (NOW + 2 * second).isoformat(),
                "known": ["AK"],
                "unknown": [],
            },
        ]
    ]


async def test_many_sources_do_not_enlarge_the_event(database: Database, store: Store) -> None:
    failures = FailedAuthentications(Clock(), max_sources=3)
    for number in range(1000):
        failures.count(f"2001:db8::{number:x}", f"user {number}", f"{number:016x}")
    await failures.flush(database)
    [event] = sources(store)
    assert [(one["source"], one["count"]) for one in event] == [
        ("other", 997),
        ("2001:db8::0", 1),
        ("2001:db8::1", 1),
        ("2001:db8::2", 1),
    ]
    assert len(event[0]["known"]) == len(event[0]["unknown"]) == MAX_KNOWN


async def test_failures_that_could_not_be_recorded_are_recorded_later(
    database: Database, store: Store
) -> None:
    failures = FailedAuthentications(Clock())
    away = Database("postgresql+asyncpg://nobody@127.0.0.1:9/nothing", busy_seconds=1)
    failures.count("192.0.2.1")
    with pytest.raises(Unavailable):
        await failures.flush(away)
    await away.close()
    failures.count("192.0.2.1", "AK")
    await failures.flush(database)
    [[source]] = sources(store)
    assert (source["count"], source["known"]) == (2, ["AK"])
    assert source["first"] == (NOW + timedelta(seconds=1)).isoformat()


async def test_a_stopping_worker_records_its_failures(database: Database, store: Store) -> None:
    failures = FailedAuthentications(Clock(), seconds=3600)
    async with running("work", functools.partial(failures.flush_periodically, database)):
        await asyncio.sleep(0)
        failures.count("192.0.2.1")
    assert [[one["count"] for one in event] for event in sources(store)] == [[1]]


async def test_failures_are_recorded_periodically(database: Database, store: Store) -> None:
    failures = FailedAuthentications(Clock(), seconds=0.01)
    failures.count("192.0.2.1")
    async with running("work", functools.partial(failures.flush_periodically, database)):
        await eventually_async(store.events)
        assert len(store.events()) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["", "a", "b"]))), st.integers(1, 5))
def test_no_failure_is_lost_with_few_separate_sources(
    requests: list[tuple[int, str]], max_sources: int
) -> None:
    failures = FailedAuthentications(lambda: NOW, max_sources=max_sources)
    for number, known in requests:
        failures.count(str(number), known)
    event = failures._event(failures._counts)
    assert event.count == len(requests)
    assert len(event.sources) <= max_sources + 1
    assert {one for source in event.sources for one in source["known"]} == {k for _, k in requests if k}
