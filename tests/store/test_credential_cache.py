"""The webhook's cache of certificates, on both databases."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Select

from clustercert.model.errors import Unavailable
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes import credential_cache
from clustercert.store.kubernetes.credential_cache import (
    Bounds,
    CachedCertificate,
    CredentialCache,
    RevocationFeed,
)
from support.credential_cache import PATIENT, SCOPES, Clock, is_revoked, look_up, recorded, revocation
from support.statements import Statements
from support.stores import NOW, Store, event
from support.wait import eventually_async

OTHER_CLUSTER = "99999999-0000-4000-8000-000000000000"


async def test_a_certificate_is_read_once(database: Database, known: CredentialCache) -> None:
    record = await recorded(database)
    statements = Statements(database)
    for _ in range(3):
        found = await look_up(known, record)
        assert found is not None
        assert (found.cluster_id, found.user_id) == (record.cluster_id, record.user_id)
        assert (found.fingerprint, found.credential_number) == (record.fingerprint, record.credential_number)
        assert found.groups == {"clustercert:admins", "Ü,+\"'"}
        assert not found.revoked
    assert sum("SELECT" in text for text in statements.texts) == statements.reading("certificate") == 1


@pytest.mark.parametrize("what", SCOPES)
async def test_every_kind_of_revocation_and_its_undoing_reach_the_memory(
    database: Database,
    feed: RevocationFeed,
    known: CredentialCache,
    elsewhere: RevocationQueries,
    what: str,
) -> None:
    record = await recorded(database)
    other = await recorded(database, user_id="another")
    assert not await is_revoked(known, record)
    assert not await is_revoked(known, other)
    made = await elsewhere.revoke(revocation(record, what), event())
    assert not await is_revoked(known, record), "from memory, until the feed is read"
    await feed.refresh()
    statements = Statements(database)
    assert await is_revoked(known, record)
    assert not await is_revoked(known, other)
    assert statements.reading("certificate") == 1, "what isn't touched isn't read again"
    found = await look_up(known, record)
    assert found is not None
    assert found.revoked_at == (NOW if what == "certificate" else None)
    await elsewhere.undo(made.id, by="cli:test", at=NOW, event=event())
    await feed.refresh()
    assert not await is_revoked(known, record)


@pytest.mark.parametrize("what", SCOPES)
async def test_a_revocation_that_was_read_counts_although_its_certificate_can_not_be_read(
    database: Database, elsewhere: RevocationQueries, what: str
) -> None:
    clock = Clock()
    feed = RevocationFeed(database, clock)
    known = CredentialCache(database, feed, PATIENT)
    await feed.refresh()
    record = await recorded(database)
    other = await recorded(database, user_id="another", cluster_id=OTHER_CLUSTER)
    for each in (record, other):
        assert not await is_revoked(known, each)

    def remembered() -> list[bool | None]:
        found = [known.remembered(each.credential_number) for each in (record, other)]
        return [None if each is None else each.revoked for each in found]

    made = await elsewhere.revoke(revocation(record, what), event())
    await feed.refresh()
    assert remembered() == [None, None]
    clock.time += RevocationFeed.STALE_AFTER
    assert remembered() == [True, False]
    clock.time -= RevocationFeed.STALE_AFTER
    await elsewhere.undo(made.id, by="cli:test", at=NOW, event=event())
    await feed.refresh()
    clock.time += RevocationFeed.STALE_AFTER
    assert remembered() == [None, False]


@pytest.mark.parametrize("what", SCOPES)
async def test_a_revocation_that_was_read_counts_after_another_one_is_undone(
    database: Database, elsewhere: RevocationQueries, what: str
) -> None:
    clock = Clock()
    feed = RevocationFeed(database, clock)
    known = CredentialCache(database, feed, PATIENT)
    await feed.refresh()
    record = await recorded(database)
    assert not await is_revoked(known, record)
    first, second = [await elsewhere.revoke(revocation(record, what), event()) for _ in range(2)]
    await feed.refresh()
    for undone, still_revoked in ((second, True), (first, False)):
        await elsewhere.undo(undone.id, by="cli:test", at=NOW, event=event())
        await feed.refresh()
        clock.time += RevocationFeed.STALE_AFTER
        remembered = known.remembered(record.credential_number)
        assert (remembered is not None and remembered.revoked) == still_revoked
        clock.time -= RevocationFeed.STALE_AFTER


@pytest.mark.parametrize("what", SCOPES)
async def test_what_is_revoked_before_the_first_sight_is_seen_so(
    database: Database,
    known: CredentialCache,
    elsewhere: RevocationQueries,
    what: str,
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, what), event())
    assert await is_revoked(known, record)


async def test_what_is_issued_after_a_revocation_is_good(
    database: Database, feed: RevocationFeed, known: CredentialCache, elsewhere: RevocationQueries
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, "user in cluster"), event())
    later = await recorded(database, user_id=record.user_id, cluster_id=record.cluster_id)
    await feed.refresh()
    assert await is_revoked(known, record)
    assert not await is_revoked(known, later)


async def test_a_certificate_that_is_revoked_while_it_is_read_is_read_again(
    database: Database, feed: RevocationFeed, elsewhere: RevocationQueries
) -> None:
    record = await recorded(database)
    read, go_on = asyncio.Event(), asyncio.Event()

    class Slow(CredentialCache):
        async def _read(self, numbers: Sequence[str]) -> Mapping[str, CachedCertificate]:
            found = await super()._read(numbers)
            read.set()
            await go_on.wait()
            return found

    known = Slow(database, feed, PATIENT)
    asking = asyncio.create_task(look_up(known, record))
    await read.wait()
    await elsewhere.revoke(revocation(record, "cluster"), event())
    await feed.refresh()
    go_on.set()
    found = await asking
    assert found is not None
    assert found.revoked


async def test_an_unknown_number_is_asked_for_again_after_a_second(
    database: Database, feed: RevocationFeed, known: CredentialCache
) -> None:
    statements = Statements(database)
    for _ in range(3):
        assert await known.by_number("7" * 40) is None
    assert statements.reading("certificate") == 1
    forgetful = CredentialCache(database, feed, replace(PATIENT, unknown_seconds=0.01))
    assert await forgetful.by_number("7" * 40) is None
    record = await recorded(database, credential_number="7" * 40)
    await eventually_async(lambda: forgetful.by_number("7" * 40))
    assert not await is_revoked(forgetful, record)


async def test_a_serial_is_no_credential_number(database: Database, known: CredentialCache) -> None:
    """Another signer may choose a serial that equals the credential number of another certificate, or of none."""
    chosen = await recorded(database, serial="7" * 40)
    assert chosen.credential_number != chosen.serial
    assert await known.by_number(chosen.serial) is None
    found = await look_up(known, chosen)
    assert found is not None
    assert found.fingerprint == chosen.fingerprint


async def test_unknown_ids_dont_fill_the_memory(database: Database, feed: RevocationFeed) -> None:
    known = CredentialCache(database, feed, replace(PATIENT, unknown=4))
    for number in range(10):
        await known.by_number(f"{number:040x}")
    assert len(known._unknown) <= 4


async def test_the_least_recently_used_goes_first(database: Database, feed: RevocationFeed) -> None:
    known = CredentialCache(database, feed, replace(PATIENT, known=2))
    a, b, c = [await recorded(database, cluster_id="a cluster") for _ in range(3)]
    for record in (a, b, a, c):
        await look_up(known, record)
    statements = Statements(database)
    await look_up(known, a)
    assert statements.reading("certificate") == 0
    await look_up(known, b)
    assert statements.reading("certificate") == 1
    assert len(known._texts) <= 2


async def test_those_who_ask_at_once_share_one_reading(database: Database, known: CredentialCache) -> None:
    record = await recorded(database)
    statements = Statements(database)
    found = await asyncio.gather(*(look_up(known, record) for _ in range(20)))
    assert {each.fingerprint for each in found if each} == {record.fingerprint}
    assert statements.reading("certificate") == 1


async def test_those_who_ask_meanwhile_share_the_next_reading(
    database: Database, known: CredentialCache
) -> None:
    records = [await recorded(database) for _ in range(70)]
    statements = Statements(database)
    found = await asyncio.gather(*(look_up(known, record) for record in records))
    assert [each.fingerprint for each in found if each] == [record.fingerprint for record in records]
    assert statements.reading("certificate") == 2


async def test_a_database_that_hangs_is_given_up(database: Database, feed: RevocationFeed) -> None:
    ends = asyncio.Event()

    class Hanging(CredentialCache):
        async def _read(self, numbers: Sequence[str]) -> Mapping[str, CachedCertificate]:
            await ends.wait()
            return {}

    hanging = Hanging(database, feed, Bounds(read_seconds=0.01))
    with pytest.raises(Unavailable):
        await hanging.by_number("0" * 40)
    ends.set()
    await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_the_start_reads_neither_certificates_nor_revocations(
    database: Database, elsewhere: RevocationQueries
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    statements = Statements(database)
    await RevocationFeed(database, Clock()).refresh()
    assert statements.reading("generation") == 1
    assert statements.reading("revocation") == statements.reading("certificate") == 0


STATEMENTS: dict[str, tuple[Select[Any], dict[str, object], str]] = {
    "feed": (credential_cache._CHANGED, {"seen": 1, "limit": 2}, "changed"),
    "by number": (
        credential_cache._BY_NUMBER,
        {"numbers": ["0" * 40, "1" * 40]},
        "certificate",
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_statements_read_indexes_alone(database: Database, store: Store, name: str) -> None:
    statement, values, index = STATEMENTS[name]
    plan = await plan_of(database, store, statement.params(values))
    assert "INDEX" in plan.upper()
    # PostgreSQL plans by its statistics, and there are none for an empty table.
    assert index in plan or store.file is None
    assert not re.search("SCAN (certificate|revocation)|Seq Scan|TEMP B-TREE|Sort", plan), plan


async def plan_of(database: Database, store: Store, bound: Select[Any]) -> str:
    compiled = bound.compile(database.engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with database.read() as connection:
        if store.file is not None:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")
        else:
            # Without this, PostgreSQL would scan so few rows.
            await connection.exec_driver_sql("SET enable_seqscan = off")
            rows = await connection.exec_driver_sql(f"EXPLAIN {compiled}")
        return "\n".join(str(row[-1]) for row in rows)


async def test_a_revocation_before_the_feeds_first_reading_is_seen(
    database: Database, elsewhere: RevocationQueries
) -> None:
    """A worker reads a certificate before its feed starts, and the first generation shows no earlier changes."""
    feed = RevocationFeed(database, Clock())
    known = CredentialCache(database, feed, PATIENT)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    await feed.refresh()
    assert await is_revoked(known, record)
