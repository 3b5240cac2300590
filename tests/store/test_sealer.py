"""The sealer gives every event one leaf index, in commit order, also with several sealers and after a crash."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from clustercert.audit.log import KEY_CONTEXT
from clustercert.audit.sealer import MAX_BATCH, LogSealer
from clustercert.custody.keks import KekFile, write_new_kek_file
from clustercert.merkle.notes import VerifierKey, verify_checkpoint
from clustercert.model import Actor
from clustercert.model.errors import LogDamaged, Unavailable, UnsealError
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.audit.log import THINNED_AT_ONCE
from clustercert.store.certificates.ledger import Ledger
from support import programs, sealer_process
from support.lock_waits import LockWaits
from support.sealer_process import NAME, SealerProcess, check, commitments
from support.stores import NOW, ORIGIN, Store, blob, certificate_record, event
from support.wait import SECONDS


@pytest.fixture
def kek(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    write_new_kek_file(path)
    return path


@pytest.fixture
async def log(store: Store, kek: Path) -> AsyncIterator[SealerProcess]:
    async with sealer_process.opened(store, kek) as it:
        yield it


async def test_the_log_is_created_once_with_a_sealed_key(log: SealerProcess, store: Store) -> None:
    begun = await log.sealer.ensure_log(actor=Actor("cli:test", ORIGIN))
    assert (begun.origin, begun.size) == (NAME, 0)
    assert await log.sealer.ensure_log() == begun == await log.queries.log()
    verifier = VerifierKey(begun.origin, begun.public_key)
    assert await log.log.verifier_key() == verifier
    happened = store.events()[-1]
    assert (happened["kind"], happened["actor"], happened["subject"]) == (
        "audit_log.begun",
        "cli:test",
        begun.origin,
    )
    assert happened["detail"] == {"verifier_key": str(verifier)}
    secret = await log.custody.unseal(begun.sealed_key, KEY_CONTEXT)
    assert Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == begun.public_key
    assert secret not in store.content()


async def test_several_processes_create_one_log(store: Store, kek: Path) -> None:
    async with (
        sealer_process.opened(store, kek, name="one") as one,
        sealer_process.opened(store, kek, name="other") as other,
    ):
        first, second = await asyncio.gather(one.sealer.ensure_log(), other.sealer.ensure_log())
        assert first == second
        assert store.rows("SELECT origin FROM audit_log") == [(first.origin,)]
        assert [each["kind"] for each in store.events()] == ["keys.created", "audit_log.begun"]


async def test_events_get_their_places_in_order_and_the_head_is_signed(
    log: SealerProcess, store: Store
) -> None:
    await log.happen(3)
    # Creating the log and the first data key also recorded events.
    assert await log.sealer.seal_all() == 5
    assert check(store) == 5
    assert store.rows(
        "SELECT leaf_index, subject FROM audit_event JOIN audit_place ON event_id = id"
        " WHERE kind = 'thing.happened' ORDER BY id"
    ) == [
        (1, "thing 0"),
        (2, "thing 1"),
        (3, "thing 2"),
    ]
    newest = await log.log.checkpoint()
    head = verify_checkpoint(newest.note, await log.log.verifier_key())
    assert (head.size, head.root) == (5, sealer_process.root(commitments(store)))
    assert (newest.size, newest.root, newest.at) == (5, head.root, NOW)


async def test_without_events_nothing_is_written(log: SealerProcess, store: Store) -> None:
    await log.sealer.seal_all()
    before = store.rows("SELECT size, at, note FROM audit_checkpoint")
    assert await log.sealer.seal_all() == 0
    [kek] = log.custody.sources
    assert isinstance(kek, KekFile)
    async with sealer_process.opened(store, kek.path, NOW + timedelta(days=1)) as later:
        assert await later.sealer.seal_all() == 0
    assert store.rows("SELECT size, at, note FROM audit_checkpoint") == before


async def test_the_log_grows_in_any_steps(log: SealerProcess, store: Store) -> None:
    await log.sealer.ensure_log()
    await log.happen(1)
    # Two from the creation, up to a full tile, one more, several tiles in many batches, and one more than a batch.
    for count, size in ((1, 4), (252, 256), (1, 257), (767, 1024), (MAX_BATCH + 1, 1025 + MAX_BATCH)):
        await log.happen(count)
        await log.sealer.seal_all()
        assert len(commitments(store)) == size
    assert check(store) == 1025 + MAX_BATCH


async def test_a_batch_is_bounded(log: SealerProcess, store: Store) -> None:
    await log.sealer.ensure_log()
    await log.happen(MAX_BATCH + 10)
    assert await log.sealer.seal() == MAX_BATCH
    assert await log.sealer.seal() == 12
    assert await log.sealer.seal() == 0
    assert check(store) == MAX_BATCH + 12
    assert store.rows("SELECT size FROM audit_checkpoint ORDER BY size") == [(MAX_BATCH,), (MAX_BATCH + 12,)]


async def test_an_event_committed_late_is_not_skipped(on_postgresql: Store, kek: Path) -> None:
    """On SQLite, ids follow the order of commits, because it has one writer at a time."""
    async with sealer_process.opened(on_postgresql, kek) as log:
        await log.sealer.ensure_log()
        async with log.database.transaction() as connection:
            await connection.execute(insert(tables.audit_event), event_row(event("slow.one")))
            await log.happen(1, "quick.one")
            assert await log.sealer.seal_all() == 3
        assert await log.sealer.seal_all() == 1
    assert check(on_postgresql) == 4
    [(quick_id, quick_place)] = on_postgresql.rows(
        "SELECT id, leaf_index FROM audit_event JOIN audit_place ON event_id = id WHERE kind = 'quick.one'"
    )
    [(slow_id, slow_place)] = on_postgresql.rows(
        "SELECT id, leaf_index FROM audit_event JOIN audit_place ON event_id = id WHERE kind = 'slow.one'"
    )
    assert isinstance(quick_id, int)
    assert isinstance(slow_id, int)
    assert slow_id < quick_id
    assert (quick_place, slow_place) == (2, 3)


async def test_several_sealers_at_once_make_one_log(store: Store, kek: Path) -> None:
    async with (
        sealer_process.opened(store, kek) as one,
        sealer_process.opened(store, kek) as other,
        sealer_process.opened(store, kek) as third,
    ):
        done = asyncio.Event()

        async def happen() -> None:
            for _ in range(30):
                await third.happen(7)
            done.set()

        async def seal(log: SealerProcess) -> int:
            count = 0
            while not done.is_set():
                count += await log.sealer.seal_all()
                await asyncio.sleep(0)
            return count

        counts = await asyncio.gather(happen(), seal(one), seal(other), seal(third))
        left = await one.sealer.seal_all()
    assert sum(count for count in counts if count) + left == 212
    assert check(store) == 212


async def test_a_second_sealer_waits_for_the_first_and_continues_after_it(store: Store, kek: Path) -> None:
    async with sealer_process.opened(store, kek) as one, sealer_process.opened(store, kek) as other:
        await one.happen(2)
        await one.sealer.seal_all()
        await one.happen(2)
        async with one.database.transaction() as connection:
            await connection.execute(select(tables.audit_log).with_for_update())
            waits = LockWaits(other.database, store)
            waiting = asyncio.create_task(other.sealer.seal())
            await waits.begun(waiting)
        assert await waiting == 2
    assert check(store) == 6


async def test_issuing_does_not_wait_for_the_sealer(
    on_postgresql: Store, kek: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sealer_process.opened(on_postgresql, kek) as log:
        await log.sealer.ensure_log()
        await log.happen(5)

        async def run(make: Callable[[Connection, object], None], changes: object) -> None:
            async with log.database.transaction() as transaction:
                await transaction.run_sync(make, changes)
                async with asyncio.timeout(SECONDS):
                    await Ledger(log.database).record(*certificate_record())

        monkeypatch.setattr(log.database, "run", run)
        assert await log.sealer.seal_all() == 7
    assert on_postgresql.rows("SELECT count(*) FROM certificate") == [(1,)]
    assert check(on_postgresql) == 7


async def test_a_sealer_that_lost_a_race_starts_over(
    store: Store, kek: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sealer_process.opened(store, kek) as one, sealer_process.opened(store, kek) as other:
        await one.happen(2)
        run, tries = one.database.run, 0

        async def late(make: Callable[[Connection, object], None], changes: object) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                assert await other.sealer.seal() == 4
                await other.happen(3)
            await run(make, changes)

        monkeypatch.setattr(one.database, "run", late)
        assert await one.sealer.seal() == 3
    assert tries == 2
    assert check(store) == 7


async def test_a_store_error_is_not_taken_for_a_lost_race(log: SealerProcess, store: Store) -> None:
    await log.happen(2)
    await log.sealer.seal_all()
    await log.happen(3)
    # A tile beyond the size of the log. The sealer treats it as missing.
    store.execute('INSERT INTO audit_tile (level, "index", hashes) VALUES (1, 0, ?)', b"")
    await log.happen(300)
    with pytest.raises(IntegrityError):
        await log.sealer.seal_all()
    placed = store.rows("SELECT count(*) FROM audit_place")
    assert placed == store.rows("SELECT size FROM audit_log"), "nothing of what was refused has happened"


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(("count", "steps"), [(20, 5), pytest.param(300, 11, marks=pytest.mark.long)])
async def test_a_sealer_killed_at_any_step_leaves_a_valid_log(
    store: Store, kek: Path, count: int, steps: int
) -> None:
    async with sealer_process.opened(store, kek) as log:
        await log.happen(250)
        await log.sealer.seal_all()
        # The first tile becomes full, and the next one begins.
        await log.happen(count)
    ended = programs.run("killed_sealer", store.url, kek)
    assert ended.returncode == 0, ended.stderr
    killed = int(ended.stdout)
    assert killed >= steps, killed
    sizes = []
    for number in range(1, killed + 2):
        url = make_url(store.url)
        url = url.set(database=f"{url.database}_{number}")
        copy = Store(url.render_as_string(hide_password=False))
        sizes.append(check(copy))
        async with sealer_process.opened(copy, kek) as log:
            await log.sealer.seal_all()
        assert check(copy) == 252 + count
        copy.remove()
    assert set(sizes) == {*range(252, 252 + count, MAX_BATCH), 252 + count}, "all of a batch or nothing"
    assert sizes == sorted(sizes)


DAMAGE: dict[str, tuple[str, Callable[[Store], object], str]] = {
    "a hash at the edge": (
        "UPDATE audit_tile SET hashes = ? WHERE level = 0",
        lambda store: bytes(32) + tile(store, 0)[32:],
        "does not match its tree",
    ),
    "a tile cut off": (
        "UPDATE audit_tile SET hashes = ? WHERE level = 0",
        lambda _: b"",
        "a tile is missing",
    ),
    "a tile too long": (
        "UPDATE audit_tile SET hashes = ? WHERE level = 0",
        lambda store: tile(store, 0) + bytes(32),
        "more hashes than the size of the log allows",
    ),
    "a tile gone": ("DELETE FROM audit_tile WHERE level = ?", lambda _: 0, "a tile is missing"),
    "a smaller size": ("UPDATE audit_log SET size = ?", lambda _: 4, "does not match its tree"),
    "the head gone": ("DELETE FROM audit_checkpoint WHERE size > ?", lambda _: 0, "checkpoint is missing"),
    "another note": ("UPDATE audit_checkpoint SET note = ?", lambda _: "", "not a signed note"),
    "a forged note": (
        "UPDATE audit_checkpoint SET note = ?",
        lambda store: str(store.rows("SELECT note FROM audit_checkpoint")[0][0]).replace("\n5\n", "\n6\n"),
        "signature does not verify",
    ),
}


def tile(store: Store, level: int) -> bytes:
    [(hashes,)] = store.rows("SELECT hashes FROM audit_tile WHERE level = ?", level)
    return blob(hashes)


@pytest.mark.parametrize("what", DAMAGE)
async def test_a_log_that_differs_from_its_checkpoint_is_not_signed_again(
    log: SealerProcess, store: Store, what: str
) -> None:
    await log.happen(3)
    await log.sealer.seal_all()
    await log.happen(1)
    statement, value, problem = DAMAGE[what]
    store.execute(statement, value(store))
    with pytest.raises(LogDamaged, match=problem):
        await log.sealer.seal_all()
    assert store.rows("SELECT count(*) FROM audit_unsealed") == [(1,)]
    assert store.rows("SELECT count(*) FROM audit_checkpoint WHERE size > 5") == [(0,)]


async def test_the_log_key_survives_a_data_key_rotation_and_is_bound_to_its_row(
    log: SealerProcess, store: Store
) -> None:
    await log.sealer.seal_all()
    report = await replace(log.custody.rotation, propagation_seconds=0).rotate_data_key(
        actor=Actor("cli:test", ORIGIN)
    )
    assert (report.resealed, report.damaged) == (1, ())
    await log.happen(1)
    again = LogSealer(log.queries, log.custody, lambda: NOW, NAME)
    assert await again.seal_all() == 2
    assert check(store) == 4
    store.execute("UPDATE audit_log SET sealed_key = ?", await log.custody.seal(bytes(32), "audit_log:other"))
    await log.happen(1)
    with pytest.raises(UnsealError):
        await LogSealer(log.queries, log.custody, lambda: NOW, NAME).seal_all()


async def test_a_public_key_of_another_private_key_is_damage(log: SealerProcess, store: Store) -> None:
    await log.sealer.seal_all()
    store.execute("UPDATE audit_log SET public_key = ?", bytes(32))
    await log.happen(1)
    with pytest.raises(LogDamaged, match="public key"):
        await LogSealer(log.queries, log.custody, lambda: NOW, NAME).seal_all()


async def test_without_a_database_nothing_is_sealed(log: SealerProcess, store: Store) -> None:
    store.execute("DROP TABLE audit_event")
    with pytest.raises(Unavailable):
        await log.sealer.seal_all()


async def test_an_hour_with_more_checkpoints_than_a_page_is_thinned_completely(
    log: SealerProcess, store: Store
) -> None:
    await log.sealer.seal_all()
    hour = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
    count = THINNED_AT_ONCE + 500
    rows = [
        {"size": -number, "at": hour - timedelta(seconds=number / 10), "root": b"", "note": ""}
        for number in range(1, count + 1)
    ]
    async with log.database.transaction() as connection:
        await connection.execute(insert(tables.audit_checkpoint), rows)
    log.sealer._thinned_to = -count - 1
    await log.sealer.thin_checkpoints()
    # The last checkpoint of the hour remains, and the newest one, which is not old enough.
    assert store.rows("SELECT size FROM audit_checkpoint ORDER BY size") == [(-1,), (2,)]


async def test_old_checkpoints_are_thinned_to_one_an_hour(store: Store, kek: Path) -> None:
    start = NOW.replace(minute=0, second=0)
    minutes = [0, 20, 59, 60, 61, 200, 24 * 60 - 1, 24 * 60, 25 * 60]
    for minute in minutes:
        async with sealer_process.opened(store, kek, start + timedelta(minutes=minute)) as log:
            await log.happen(1)
            await log.sealer.seal_all()
    # The newest is 24 hours and 59 minutes old, so the first hour of the second day is not thinned.
    async with sealer_process.opened(store, kek, start + timedelta(minutes=25 * 60, days=1)) as log:
        await log.sealer.thin_checkpoints()
        await log.sealer.thin_checkpoints()
        kept = [each.at for each in await log.queries.checkpoints(0, 100)]
    assert kept == [
        start + timedelta(minutes=minute) for minute in (59, 61, 200, 24 * 60 - 1, 24 * 60, 25 * 60)
    ]
    assert check(store) == len(minutes) + 2


async def test_the_time_of_the_oldest_unsealed_event(log: SealerProcess) -> None:
    await log.sealer.seal_all()
    assert await log.sealer.unsealed_since() is None
    later = replace(event(), at=NOW + timedelta(minutes=1))
    async with log.database.transaction(event(), later):
        pass
    assert await log.sealer.unsealed_since() == NOW
    await log.sealer.seal_all()
    assert await log.sealer.unsealed_since() is None
