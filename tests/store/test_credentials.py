"""What the webhook remembers of certificates, and that no revocation is missed: on both databases."""

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Select
from sqlalchemy import event as sqlalchemy_event

from clustercert.errors import Unavailable
from clustercert.model import CertificateRecord, Revocation
from clustercert.store import credentials as module
from clustercert.store.credentials import Bounds, Credential, Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.gathered import Gathered
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations, add_revocation
from stores import NOW, Store, certificate_record, event


class Statements:
    """How many statements a database was asked, by what they read."""

    def __init__(self, database: Database) -> None:
        self.texts: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
            self.texts.append(statement)

        sqlalchemy_event.listen(database.engine.sync_engine, "before_cursor_execute", note)

    def reading(self, table: str) -> int:
        return sum(f"FROM {table}" in text for text in self.texts)


class Clock:
    """A feed's time, in the hands of the test."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
async def feed(database: Database) -> Feed:
    feed = Feed(database, Clock())
    await feed.refresh()
    return feed


@pytest.fixture
async def known(database: Database, feed: Feed) -> Credentials:
    return Credentials(database, feed)


@pytest.fixture
async def elsewhere(store: Store) -> AsyncIterator[Revocations]:
    """Another process, which revokes."""
    database = Database(store.url)
    yield Revocations(database)
    await database.close()


async def recorded(database: Database, **changed: object) -> CertificateRecord:
    record, its_event = certificate_record()
    record = replace(record, **changed)  # type: ignore[arg-type] # as the tests say
    await Ledger(database).record(record, its_event)
    return record


def revocation(record: CertificateRecord, what: str) -> Revocation:
    everything = Revocation(
        id=0,
        epoch=0,
        fingerprint=None,
        user_id="",
        cluster_id="",
        at=NOW,
        by="cli:test",
        reason="unspecified",
    )
    match what:
        case "certificate":
            return replace(
                everything,
                fingerprint=record.fingerprint,
                user_id=record.user_id,
                cluster_id=record.cluster_id,
            )
        case "user in cluster":
            return replace(everything, user_id=record.user_id, cluster_id=record.cluster_id)
        case "user":
            return replace(everything, user_id=record.user_id)
        case _:
            return replace(everything, cluster_id=record.cluster_id)


WHATS = ("certificate", "user in cluster", "user", "cluster")


async def is_revoked(known: Credentials, record: CertificateRecord) -> bool:
    found = await known.find(record.fingerprint)
    assert found is not None
    return found.revoked


async def test_a_certificate_is_read_once(database: Database, known: Credentials) -> None:
    record = await recorded(database)
    statements = Statements(database)
    for _ in range(3):
        found = await known.find(record.fingerprint)
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
    found = await known.find(record.fingerprint)
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
    asking = asyncio.create_task(known.find(record.fingerprint))
    await read.wait()
    await elsewhere.revoke(revocation(record, "cluster"), event())
    await feed.refresh()
    go_on.set()
    found = await asking
    assert found is not None
    assert found.revoked


async def test_more_revocations_than_are_followed_make_it_forget_everything(
    database: Database, store: Store, feed: Feed, known: Credentials, elsewhere: Revocations
) -> None:
    record, other = await recorded(database), await recorded(database)
    assert not await is_revoked(known, record)
    assert not await is_revoked(known, other)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    generation = store.rows("SELECT value FROM generation")[0][0]
    # Older in the feed's order than the one that counts, and more than are read at once.
    numbers = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5001) SELECT i FROM n) AS n"
    no, when = ("0", "'2026-03-14 15:09:26.000000'") if store.file else ("false", "now()")
    store.execute(
        'INSERT INTO revocation (epoch, changed, user_id, cluster_id, at, "by", reason, proved)'
        f" SELECT {generation}, {generation}, 'somebody else', '', {when}, 'cli:test', 'unspecified', {no}"
        f" FROM {numbers}"
    )
    store.execute(f"UPDATE revocation SET changed = {generation} + 1 WHERE fingerprint IS NOT NULL")
    store.execute("UPDATE generation SET value = value + 1")
    await feed.refresh()
    statements = Statements(database)
    assert await is_revoked(known, record)
    assert not await is_revoked(known, other)
    assert statements.reading("certificate") == 2
    assert not await is_revoked(known, other)
    assert statements.reading("certificate") == 2, "and goes on from there"


async def test_many_small_revocations_make_it_forget_everything_too(
    database: Database, elsewhere: Revocations
) -> None:
    feed = Feed(database, Clock(), most=3)
    await feed.refresh()
    known = Credentials(database, feed)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    await feed.refresh()
    for number in range(4):
        await elsewhere.revoke(replace(revocation(record, "user"), user_id=f"user {number}"), event())
        await feed.refresh()
    assert len(feed._touched) <= 3
    assert await is_revoked(known, record)


async def test_a_restored_backup_makes_it_forget_everything(
    database: Database, store: Store, feed: Feed, known: Credentials, elsewhere: Revocations
) -> None:
    record = await recorded(database)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    await feed.refresh()
    assert await is_revoked(known, record)
    store.execute("UPDATE generation SET value = 0")
    store.execute("DELETE FROM revocation")
    store.execute("UPDATE certificate SET revoked_at = NULL")
    await feed.refresh()
    assert not await is_revoked(known, record)


async def test_the_unknown_is_asked_for_again_after_a_second(
    database: Database, feed: Feed, known: Credentials
) -> None:
    fingerprint = os.urandom(32)
    statements = Statements(database)
    for _ in range(3):
        assert await known.find(fingerprint) is None
    assert statements.reading("certificate") == 1
    forgetful = Credentials(database, feed, Bounds(unknown_seconds=0.01))
    assert await forgetful.find(fingerprint) is None
    record = await recorded(database, fingerprint=fingerprint)
    await asyncio.sleep(0.02)
    assert not await is_revoked(forgetful, record)


async def test_unknown_ids_dont_fill_the_memory(database: Database, feed: Feed) -> None:
    known = Credentials(database, feed, Bounds(unknown=4))
    for _ in range(10):
        await known.find(os.urandom(32))
    assert len(known._unknown_until) <= 4


async def test_the_least_recently_used_goes_first(database: Database, feed: Feed) -> None:
    known = Credentials(database, feed, Bounds(known=2))
    a, b, c = [await recorded(database, cluster_id="a cluster") for _ in range(3)]
    for record in (a, b, a, c):
        await known.find(record.fingerprint)
    statements = Statements(database)
    await known.find(a.fingerprint)
    assert statements.reading("certificate") == 0
    await known.find(b.fingerprint)
    assert statements.reading("certificate") == 1
    assert len(known._texts) <= 2


async def test_those_who_ask_at_once_share_one_reading(database: Database, known: Credentials) -> None:
    record = await recorded(database)
    statements = Statements(database)
    found = await asyncio.gather(*(known.find(record.fingerprint) for _ in range(20)))
    assert {each.fingerprint for each in found if each} == {record.fingerprint}
    assert statements.reading("certificate") == 1


async def test_those_who_ask_meanwhile_share_the_next_reading(database: Database, known: Credentials) -> None:
    records = [await recorded(database) for _ in range(70)]
    statements = Statements(database)
    found = await asyncio.gather(*(known.find(record.fingerprint) for record in records))
    assert [each.fingerprint for each in found if each] == [record.fingerprint for record in records]
    assert statements.reading("certificate") == 2


async def test_who_asks_while_another_is_read_waits_for_one_reading_alone() -> None:
    read: list[list[str]] = []
    go_on = asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        read.append(list(keys))
        await go_on.wait()
        return {key: key.upper() for key in keys if key != "none"}

    gathered = Gathered(upper, 3)
    first = asyncio.create_task(gathered("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(gathered(key)) for key in ("b", "a", "none", "b", "c", "d")]
    await asyncio.sleep(0)
    go_on.set()
    assert await first == "A"
    assert await asyncio.gather(*others) == ["B", "A", None, "B", "C", "D"]
    assert read == [["a"], ["b", "none", "c"], ["d"]]
    assert (gathered._asked, gathered._waiting, gathered._reading) == ({}, [], None)


async def test_one_who_gives_up_takes_nobody_along() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        begun.set()
        await go_on.wait()
        return {key: key.upper() for key in keys}

    gathered = Gathered(upper, 10)
    first, second = asyncio.create_task(gathered("a")), asyncio.create_task(gathered("a"))
    await begun.wait()
    first.cancel()
    go_on.set()
    assert await second == "A"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    outcomes = [Unavailable("away"), None]

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        await asyncio.sleep(0)
        if failure := outcomes.pop(0):
            raise failure
        return {key: key.upper() for key in keys}

    gathered = Gathered(upper, 10)
    both = await asyncio.gather(gathered("a"), gathered("a"), return_exceptions=True)
    assert [type(each) for each in both] == [Unavailable, Unavailable]
    assert await gathered("a") == "A"


async def test_cut_off_it_answers_from_memory_for_two_seconds_and_then_not_at_all(
    database: Database, store: Store, known: Credentials, feed: Feed
) -> None:
    clock = feed._clock
    assert isinstance(clock, Clock)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    # The database answers no more, in a way that both kinds have.
    store.execute("ALTER TABLE certificate RENAME TO elsewhere")
    store.execute("ALTER TABLE generation RENAME TO generation_elsewhere")
    with pytest.raises(Unavailable):
        await feed.refresh()
    clock.time += Feed.STALE_AFTER - 0.001
    assert not await is_revoked(known, record)
    clock.time += 0.001
    with pytest.raises(Unavailable):
        await known.find(record.fingerprint)
    with pytest.raises(Unavailable):
        await known.find(os.urandom(32))
    store.execute("ALTER TABLE elsewhere RENAME TO certificate")
    statements = Statements(database)
    assert not await is_revoked(known, record)
    assert statements.reading("certificate") == 1, "the database itself answers while the feed does not"
    store.execute("ALTER TABLE generation_elsewhere RENAME TO generation")
    await feed.refresh()
    assert not await is_revoked(known, record)
    assert statements.reading("certificate") == 1


async def test_what_was_revoked_while_it_was_cut_off_is_known_at_once_afterwards(
    database: Database, known: Credentials, feed: Feed, elsewhere: Revocations
) -> None:
    clock = feed._clock
    assert isinstance(clock, Clock)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    clock.time += 60
    await elsewhere.revoke(revocation(record, "user"), event())
    await feed.refresh()
    assert await is_revoked(known, record)


async def test_a_database_that_hangs_is_given_up(database: Database, feed: Feed) -> None:
    class Hanging(Credentials):
        async def _read(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, Credential]:
            await asyncio.sleep(0.2)
            return {}

    with pytest.raises(Unavailable):
        await Hanging(database, feed, Bounds(read_seconds=0.01)).find(bytes(32))
    await asyncio.sleep(0.25)


async def test_a_revocation_reaches_a_watching_worker_within_a_second(
    database: Database, elsewhere: Revocations
) -> None:
    feed = Feed(database)
    known = Credentials(database, feed)
    record = await recorded(database)
    async with feed.watching():
        assert not await is_revoked(known, record)
        await elsewhere.revoke(revocation(record, "certificate"), event())
        revoked_at = time.monotonic()
        async with asyncio.timeout(5):
            while not await is_revoked(known, record):
                await asyncio.sleep(0.005)
        assert time.monotonic() - revoked_at < 1.0


async def test_no_revocation_slips_past_a_feed_that_reads_all_the_time(
    database: Database, store: Store, feed: Feed, known: Credentials
) -> None:
    """Two processes revoke, a third one follows: were generations committed out of their order, some would be lost."""
    records = [await recorded(database) for _ in range(40)]
    for record in records:
        assert not await is_revoked(known, record)
    others = [Database(store.url) for _ in range(2)]
    done = False

    async def follow() -> None:
        while not done:
            await feed.refresh()

    async def revoke(by: Database, share: list[CertificateRecord]) -> None:
        for record in share:
            await Revocations(by).revoke(revocation(record, "certificate"), event())

    following = asyncio.create_task(follow())
    await asyncio.gather(revoke(others[0], records[::2]), revoke(others[1], records[1::2]))
    done = True
    await following
    await feed.refresh()
    statements = Statements(database)
    assert all([await is_revoked(known, record) for record in records])
    assert statements.reading("certificate") == len(records)
    for other in others:
        await other.close()


async def test_who_raises_the_generation_is_waited_for_so_that_none_is_overtaken(
    database: Database, store: Store, feed: Feed, known: Credentials, elsewhere: Revocations
) -> None:
    slow, fast = await recorded(database), await recorded(database)
    assert not await is_revoked(known, slow)
    assert not await is_revoked(known, fast)
    other = Database(store.url)
    before = feed.value
    async with other.epoch(event()) as (connection, epoch):
        await add_revocation(connection, revocation(slow, "user in cluster"), epoch=epoch, changed=epoch)
        second = asyncio.create_task(elsewhere.revoke(revocation(fast, "user in cluster"), event()))
        await asyncio.sleep(0.1)
        assert not second.done()
        await feed.refresh()
        assert feed.value == before
    await second
    await feed.refresh()
    assert await is_revoked(known, slow)
    assert await is_revoked(known, fast)
    await other.close()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_memory_says_what_the_ledger_says(
    database: Database, elsewhere: Revocations, seed: int
) -> None:
    chance = random.Random(seed)
    feed = Feed(database, Clock(), most=8)
    await feed.refresh()
    known = Credentials(database, feed, Bounds(known=12))
    records: list[CertificateRecord] = []
    made: list[Revocation] = []
    for _ in range(60):
        match chance.randrange(5):
            case 0 | 1:
                named = {"user_id": chance.choice("ab"), "cluster_id": chance.choice("xyz")}
                records.append(await recorded(database, **named))
            case 2 | 3 if records:
                chosen = revocation(chance.choice(records), chance.choice(WHATS))
                made.append(await elsewhere.revoke(chosen, event()))
            case _ if made:
                undone = made.pop(chance.randrange(len(made)))
                await elsewhere.undo(undone.id, by="cli:test", at=NOW, event=event())
        if chance.random() < 0.5:
            await feed.refresh()
            for record in chance.sample(records, min(4, len(records))):
                (truth,) = await elsewhere.find(record.fingerprint.hex())
                assert await is_revoked(known, record) == truth.revoked


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
