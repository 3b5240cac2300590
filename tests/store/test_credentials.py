"""What the webhook remembers of certificates: on both databases."""

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import Select

from clustercert.errors import Unavailable
from clustercert.store import credentials as module
from clustercert.store.credentials import Bounds, Credential, Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.revocations import Revocations
from remembered import WHATS, Clock, Statements, is_revoked, recorded, revocation
from stores import NOW, Store, event


async def test_a_certificate_is_read_once(database: Database, known: Credentials) -> None:
    record = await recorded(database)
    statements = Statements(database)
    for _ in range(3):
        found = await known.by_fingerprint(record.fingerprint)
        assert found is not None
        assert (found.cluster_id, found.user_id) == (record.cluster_id, record.user_id)
        assert not found.revoked
    assert sum("SELECT" in text for text in statements.texts) == statements.reading("certificate") == 1


@pytest.mark.parametrize("what", WHATS)
async def test_every_kind_of_revocation_and_its_undoing_reach_the_memory(
    database: Database, feed: Feed, known: Credentials, elsewhere: Revocations, what: str
) -> None:
    record, other = await recorded(database), await recorded(database, user_id="another")
    assert not await is_revoked(known, record)
    assert not await is_revoked(known, other)
    made = await elsewhere.revoke(revocation(record, what), event())
    assert not await is_revoked(known, record), "from memory, until the feed is read"
    await feed.refresh()
    statements = Statements(database)
    assert await is_revoked(known, record)
    assert not await is_revoked(known, other)
    assert statements.reading("certificate") == 1, "what isn't touched isn't read again"
    found = await known.by_fingerprint(record.fingerprint)
    assert found is not None
    assert found.revoked_at == (NOW if what == "certificate" else None)
    await elsewhere.undo(made.id, by="cli:test", at=NOW, event=event())
    await feed.refresh()
    assert not await is_revoked(known, record)


@pytest.mark.parametrize("what", WHATS)
async def test_what_is_revoked_before_the_first_sight_is_seen_so(
    database: Database, known: Credentials, elsewhere: Revocations, what: str
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, what), event())
    assert await is_revoked(known, record)


async def test_what_is_issued_after_a_revocation_is_good(
    database: Database, feed: Feed, known: Credentials, elsewhere: Revocations
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, "user in cluster"), event())
    later = await recorded(database, user_id=record.user_id, cluster_id=record.cluster_id)
    await feed.refresh()
    assert await is_revoked(known, record)
    assert not await is_revoked(known, later)


async def test_a_certificate_that_is_revoked_while_it_is_read_is_read_again(
    database: Database, feed: Feed, elsewhere: Revocations
) -> None:
    record = await recorded(database)
    read, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Credentials):
        async def _read(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, Credential]:
            found = await super()._read(fingerprints)
            read.set()
            await go_on.wait()
            return found

    known = Slow(database, feed)
    asking = asyncio.create_task(known.by_fingerprint(record.fingerprint))
    await read.wait()
    await elsewhere.revoke(revocation(record, "cluster"), event())
    await feed.refresh()
    go_on.set()
    found = await asking
    assert found is not None
    assert found.revoked


async def test_the_unknown_is_asked_for_again_after_a_second(
    database: Database, feed: Feed, known: Credentials
) -> None:
    fingerprint = os.urandom(32)
    statements = Statements(database)
    for _ in range(3):
        assert await known.by_fingerprint(fingerprint) is None
    assert statements.reading("certificate") == 1
    forgetful = Credentials(database, feed, Bounds(unknown_seconds=0.01))
    assert await forgetful.find(fingerprint) is None
    record = await recorded(database, fingerprint=fingerprint)
    await asyncio.sleep(0.02)
    assert not await is_revoked(forgetful, record)


async def test_unknown_ids_dont_fill_the_memory(database: Database, feed: Feed) -> None:
    known = Credentials(database, feed, Bounds(unknown=4))
    for _ in range(10):
        await known.by_fingerprint(os.urandom(32))
    assert len(known._unknown_until) <= 4


async def test_the_least_recently_used_goes_first(database: Database, feed: Feed) -> None:
    known = Credentials(database, feed, Bounds(known=2))
    a, b, c = [await recorded(database, cluster_id="a cluster") for _ in range(3)]
    for record in (a, b, a, c):
        await known.by_fingerprint(record.fingerprint)
    statements = Statements(database)
    await known.by_fingerprint(a.fingerprint)
    assert statements.reading("certificate") == 0
    await known.by_fingerprint(b.fingerprint)
    assert statements.reading("certificate") == 1
    assert len(known._texts) <= 2


async def test_those_who_ask_at_once_share_one_reading(database: Database, known: Credentials) -> None:
    record = await recorded(database)
    statements = Statements(database)
    found = await asyncio.gather(*(known.by_fingerprint(record.fingerprint) for _ in range(20)))
    assert {each.fingerprint for each in found if each} == {record.fingerprint}
    assert statements.reading("certificate") == 1


async def test_those_who_ask_meanwhile_share_the_next_reading(database: Database, known: Credentials) -> None:
    records = [await recorded(database) for _ in range(70)]
    statements = Statements(database)
    found = await asyncio.gather(*(known.by_fingerprint(record.fingerprint) for record in records))
    assert [each.fingerprint for each in found if each] == [record.fingerprint for record in records]
    assert statements.reading("certificate") == 2


async def test_a_database_that_hangs_is_given_up(database: Database, feed: Feed) -> None:
    class Hanging(Credentials):
        async def _read(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, Credential]:
            await asyncio.sleep(0.2)
            return {}

    with pytest.raises(Unavailable):
        await Hanging(database, feed, Bounds(read_seconds=0.01)).find(bytes(32))
    await asyncio.sleep(0.25)


async def test_the_start_reads_neither_certificates_nor_revocations(
    database: Database, elsewhere: Revocations
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    statements = Statements(database)
    await Feed(database, Clock()).refresh()
    assert statements.reading("generation") == 1
    assert statements.reading("revocation") == statements.reading("certificate") == 0


@pytest.mark.parametrize("statement", [module._CHANGED, module._CREDENTIALS], ids=["feed", "first sight"])
async def test_both_statements_read_indexes_alone(
    database: Database, store: Store, statement: Select[Any]
) -> None:
    bound = statement.params(
        {"seen": 1, "most": 2} if statement is module._CHANGED else {"fingerprints": [b"", b"x"]}
    )
    compiled = bound.compile(database.engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with database.read() as connection:
        if store.file is not None:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")
        else:
            # So few rows are read faster without an index.
            await connection.exec_driver_sql("SET enable_seqscan = off")
            rows = await connection.exec_driver_sql(f"EXPLAIN {compiled}")
        plan = "\n".join(str(row[-1]) for row in rows)
    assert "INDEX" in plan.upper()
    assert not re.search("SCAN (certificate|revocation)|Seq Scan|TEMP B-TREE|Sort", plan), plan


async def test_what_is_revoked_between_the_first_sight_and_the_feeds_first_reading_is_seen_so(
    database: Database, elsewhere: Revocations
) -> None:
    """A worker answers before its feed has begun, and the number that this begins with tells nothing of before."""
    feed = Feed(database, Clock())
    known = Credentials(database, feed)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    await feed.refresh()
    assert await is_revoked(known, record)
