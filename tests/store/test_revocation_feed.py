"""The revocation feed misses no revocation and no undo, on both databases."""

import asyncio
import random
from dataclasses import replace

import pytest

from clustercert.model import CertificateRecord, Revocation
from clustercert.model.errors import Unavailable
from clustercert.observability import metrics
from clustercert.store.certificates.revocations import RevocationQueries, add_revocation
from clustercert.store.engine.database import Database, raise_generation
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from support.credential_cache import PATIENT, SCOPES, Clock, is_revoked, look_up, recorded, revocation
from support.lock_waits import LockWaits
from support.log_capture import captured_lines_of_new_loggers
from support.statements import Statements
from support.stores import NOW, Store, event, patient
from support.wait import eventually_async


async def test_more_revocations_than_are_followed_make_it_forget_everything(
    database: Database,
    store: Store,
    feed: RevocationFeed,
    known: CredentialCache,
    elsewhere: RevocationQueries,
) -> None:
    record, other = await recorded(database), await recorded(database)
    assert not await is_revoked(known, record)
    assert not await is_revoked(known, other)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    generation = store.rows("SELECT value FROM generation")[0][0]
    # More changes than are read at once, all older than the relevant one.
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
    database: Database, elsewhere: RevocationQueries
) -> None:
    feed = RevocationFeed(database, Clock(), max_changes=3)
    await feed.refresh()
    known = CredentialCache(database, feed, PATIENT)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    await elsewhere.revoke(revocation(record, "certificate"), event())
    await feed.refresh()
    for number in range(4):
        await elsewhere.revoke(replace(revocation(record, "user"), user_id=f"user {number}"), event())
        await feed.refresh()
    assert len(feed._changed_at) <= 3
    assert await is_revoked(known, record)


async def test_a_restored_backup_makes_it_forget_everything(
    database: Database,
    store: Store,
    feed: RevocationFeed,
    known: CredentialCache,
    elsewhere: RevocationQueries,
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


async def test_a_restored_backup_that_has_grown_again_makes_it_forget_everything(
    database: Database,
    store: Store,
    feed: RevocationFeed,
    known: CredentialCache,
    elsewhere: RevocationQueries,
) -> None:
    """Other workers reconnected first and raised the generation above the value before the restore."""
    clock = feed._clock
    assert isinstance(clock, Clock)
    record, other = await recorded(database), await recorded(database)
    for _ in range(2):
        await elsewhere.revoke(revocation(other, "certificate"), event())
    await feed.refresh()
    assert not await is_revoked(known, record)
    store.execute("UPDATE generation SET value = 0")
    store.execute("DELETE FROM revocation")
    await elsewhere.revoke(revocation(record, "certificate"), event())
    for _ in range(2):
        await elsewhere.revoke(revocation(other, "certificate"), event())
    clock.time += RevocationFeed.STALE_AFTER
    await feed.refresh()
    assert feed.value == 3
    assert await is_revoked(known, record)


async def test_without_the_database_memory_answers_for_a_second(
    database: Database, store: Store, known: CredentialCache, feed: RevocationFeed
) -> None:
    clock = feed._clock
    assert isinstance(clock, Clock)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    # Makes both kinds of database fail.
    store.execute("ALTER TABLE certificate RENAME TO elsewhere")
    store.execute("ALTER TABLE generation RENAME TO generation_elsewhere")
    with pytest.raises(Unavailable):
        await feed.refresh()
    clock.time += RevocationFeed.STALE_AFTER - 0.001
    assert not await is_revoked(known, record)
    clock.time += 0.001
    with pytest.raises(Unavailable):
        await look_up(known, record)
    with pytest.raises(Unavailable):
        await known.by_number("0" * 40)
    store.execute("ALTER TABLE elsewhere RENAME TO certificate")
    statements = Statements(database)
    assert not await is_revoked(known, record)
    assert statements.reading("certificate") == 1, "the database itself answers while the feed does not"
    store.execute("ALTER TABLE generation_elsewhere RENAME TO generation")
    await feed.refresh()
    assert not await is_revoked(known, record)
    assert statements.reading("certificate") == 2, "what was read while nobody followed is read again"
    assert not await is_revoked(known, record)
    assert statements.reading("certificate") == 2


async def test_what_was_revoked_while_it_was_cut_off_is_known_at_once_afterwards(
    database: Database, known: CredentialCache, feed: RevocationFeed, elsewhere: RevocationQueries
) -> None:
    clock = feed._clock
    assert isinstance(clock, Clock)
    record = await recorded(database)
    assert not await is_revoked(known, record)
    clock.time += 60
    await elsewhere.revoke(revocation(record, "user"), event())
    await feed.refresh()
    assert await is_revoked(known, record)


async def test_a_revocation_reaches_a_watching_worker_within_a_second(
    database: Database, elsewhere: RevocationQueries
) -> None:
    feed = RevocationFeed(database)
    known = CredentialCache(database, feed, PATIENT)
    record = await recorded(database)
    async with feed.watching():
        assert not await is_revoked(known, record)
        await elsewhere.revoke(revocation(record, "certificate"), event())
        await eventually_async(lambda: is_revoked(known, record))


async def test_a_feed_that_cant_read_counts_its_failures(feed: RevocationFeed, store: Store) -> None:
    clock = feed._clock
    assert isinstance(clock, Clock)
    store.execute("DROP TABLE generation")
    clock.time += RevocationFeed.STALE_AFTER
    counter = metrics.BACKGROUND_FAILURES.labels("read revocations")._value
    before = counter.get()
    with captured_lines_of_new_loggers() as logs:
        async with feed.watching():
            await eventually_async(lambda: logs and counter.get() > before)
    assert (logs[0]["event"], logs[0]["work"]) == ("caches disabled", "read revocations")


async def test_no_revocation_slips_past_a_feed_that_reads_all_the_time(
    database: Database, store: Store, feed: RevocationFeed, known: CredentialCache
) -> None:
    """Two processes revoke, and a third reads the feed. It would miss some if generations committed out of order."""
    records = [await recorded(database) for _ in range(40)]
    for record in records:
        assert not await is_revoked(known, record)
    others = [patient(store.url) for _ in range(2)]
    done = False

    async def follow() -> None:
        while not done:
            await feed.refresh()

    async def revoke(by: Database, share: list[CertificateRecord]) -> None:
        for record in share:
            await RevocationQueries(by).revoke(revocation(record, "certificate"), event())

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
    database: Database, store: Store, feed: RevocationFeed, known: CredentialCache
) -> None:
    slow, fast = await recorded(database), await recorded(database)
    assert not await is_revoked(known, slow)
    assert not await is_revoked(known, fast)
    other, third = patient(store.url), patient(store.url)
    waits = LockWaits(third, store)
    before = feed.value
    async with other.transaction(event()) as connection:
        epoch = await raise_generation(connection)
        await add_revocation(connection, revocation(slow, "user in cluster"), epoch=epoch, changed=epoch)
        second = asyncio.create_task(
            RevocationQueries(third).revoke(revocation(fast, "user in cluster"), event())
        )
        await waits.begun(second)
        await feed.refresh()
        assert feed.value == before
    await second
    await feed.refresh()
    assert await is_revoked(known, slow)
    assert await is_revoked(known, fast)
    await other.close()
    await third.close()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_memory_says_what_the_ledger_says(
    database: Database, elsewhere: RevocationQueries, seed: int
) -> None:
    chance = random.Random(seed)
    feed = RevocationFeed(database, Clock(), max_changes=8)
    await feed.refresh()
    known = CredentialCache(database, feed, replace(PATIENT, known=12))
    records: list[CertificateRecord] = []
    made: list[Revocation] = []
    for _ in range(60):
        match chance.randrange(5):
            case 0 | 1:
                user_id, cluster_id = chance.choice("ab"), chance.choice("xyz")
                records.append(await recorded(database, user_id=user_id, cluster_id=cluster_id))
            case 2 | 3 if records:
                chosen = revocation(chance.choice(records), chance.choice(SCOPES))
                made.append(await elsewhere.revoke(chosen, event()))
            case _ if made:
                undone = made.pop(chance.randrange(len(made)))
                await elsewhere.undo(undone.id, by="cli:test", at=NOW, event=event())
        if chance.random() < 0.5:
            await feed.refresh()
            for record in chance.sample(records, min(4, len(records))):
                (truth,) = await elsewhere.find(record.fingerprint.hex())
                assert await is_revoked(known, record) == (truth.revoked_at is not None)
