"""Rotation: nothing is lost, whoever is at work meanwhile and whenever it is killed."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import pytest

from clustercert.custody import (
    Custody,
    DataKeyRotation,
    KekFile,
    KekRotation,
    KekVariable,
    write_new_kek_file,
)
from clustercert.errors import Conflict, CustodyError
from clustercert.model import Origin
from clustercert.sealing import Kek, data_key_id_of, kek_line, new_kek
from clustercert.store.database import Database
from clustercert.store.generation import Generation
from clustercert.store.keys import KeyRows, SealedRow
from stores import ORIGIN, child, events, execute, rows, said, sqlite_url, store_secret, stored_secrets

# What a process waits by default for the others.
SETTLE = Generation.STALE_AFTER + Generation.INTERVAL


class By(TypedDict):
    """Who rotates."""

    actor: str
    origin: Origin


BY: By = {"actor": "cli:test", "origin": ORIGIN}


@pytest.fixture
def folder(tmp_path: Path, migrated_file: Path) -> Path:
    """A database and the file of its key-encryption key."""
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(migrated_file, folder / "store.db")
    write_new_kek_file(folder / "kek")
    return folder


@asynccontextmanager
async def opened(folder: Path, keks: KekVariable | None = None) -> AsyncIterator[Custody]:
    """Custody as a process has it that starts now; its rotations wait for no workers."""
    database = Database(sqlite_url(folder / "store.db"))
    custody = Custody(database, keks or KekFile(folder / "kek"))
    await custody.initialise()
    custody.rotation = replace(custody.rotation, settle=0)
    try:
        yield custody
    finally:
        await database.close()


async def fill(custody: Custody, folder: Path, count: int = 3) -> None:
    for number in range(count):
        for bound_to in (f"access_key:AK{number:05}", f"client_ca:{number:032x}"):
            store_secret(folder / "store.db", bound_to, await custody.seal(bound_to.encode(), bound_to))


async def assert_all_open(folder: Path, count: int) -> None:
    """Every secret opens in a process that starts now."""
    sealed = stored_secrets(folder / "store.db")
    assert len(sealed) == count
    async with opened(folder) as custody:
        for bound_to, secret in sealed.items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode()


def keks_of(folder: Path) -> tuple[Kek, ...]:
    return KekFile(folder / "kek").read()


def wrapped_by(folder: Path) -> list[object]:
    return [kek_id for (kek_id,) in rows(folder / "store.db", "SELECT kek_id FROM data_key ORDER BY id")]


def sealed_by(folder: Path) -> set[int | None]:
    return {data_key_id_of(sealed) for sealed in stored_secrets(folder / "store.db").values()}


def last_event(folder: Path) -> tuple[object, ...]:
    event = events(folder / "store.db")[-1]
    return event["kind"], event["actor"], event["subject"], event["detail"]


async def test_a_new_kek_wraps_everything_and_the_old_one_can_go(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder)
        before = stored_secrets(folder / "store.db")
        [old] = keks_of(folder)
        report = await custody.rotation.rotate_kek(**BY)
        new, *others = keks_of(folder)
        assert others == [old]
        assert report == KekRotation(kek_id=new.id, added=True, rewrapped=1)
        assert wrapped_by(folder) == [new.id]
        assert last_event(folder) == (
            "keys.rotated",
            "cli:test",
            new.id,
            {"kek_id": new.id, "data_key_ids": [1]},
        )
        assert await custody.rotation.retire(**BY) == (old.id,)
        assert keks_of(folder) == (new,)
        assert last_event(folder) == ("keys.retired", "cli:test", new.id, {"kek_ids": [old.id]})
        assert await custody.rotation.retire(**BY) == ()
    assert stored_secrets(folder / "store.db") == before
    await assert_all_open(folder, 6)


async def test_a_key_that_the_operator_put_in_front_is_taken(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder)
        new = new_kek()
        KekFile(folder / "kek").prepend(new)
        assert await custody.rotation.retire(**BY) == (), "neither what wraps nor what will wrap is dropped"
        assert await custody.rotation.rotate_kek(**BY) == KekRotation(kek_id=new.id, added=False, rewrapped=1)
        assert len(keks_of(folder)) == 2
    await assert_all_open(folder, 6)


async def test_a_variable_gets_its_new_key_from_the_operator(folder: Path) -> None:
    old, new = new_kek(), new_kek()
    async with opened(folder, KekVariable("KEK", kek_line(old))) as custody:
        await fill(custody, folder)
        with pytest.raises(
            CustodyError, match="Put a new key, 32 random bytes in base64, on a line in front"
        ):
            await custody.rotation.rotate_kek(**BY)
        assert wrapped_by(folder) == [old.id]
    both = KekVariable("KEK", kek_line(new) + kek_line(old))
    async with opened(folder, both) as custody:
        assert await custody.rotation.rotate_kek(**BY) == KekRotation(kek_id=new.id, added=False, rewrapped=1)
        with pytest.raises(CustodyError, match=f"Take the keys {old.id} out of it"):
            await custody.rotation.retire(**BY)
        assert last_event(folder)[0] == "keys.rotated"
    async with opened(folder, KekVariable("KEK", kek_line(new))) as custody:
        assert await custody.rotation.retire(**BY) == ()
        for bound_to, secret in stored_secrets(folder / "store.db").items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode()


async def test_nothing_is_rotated_by_a_wrong_kek(folder: Path, tmp_path: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder)
    right = (folder / "kek").read_text()
    (folder / "kek").write_text(kek_line(new_kek()))
    database = Database(sqlite_url(folder / "store.db"))
    rotation = Custody(database, KekFile(folder / "kek")).rotation
    before = (folder / "kek").read_text(), rows(folder / "store.db", "SELECT * FROM data_key")
    for work in (rotation.rotate_kek, rotation.rotate_data_key, rotation.retire):
        with pytest.raises(CustodyError, match="belong to this database"):
            await work(**BY)
    assert ((folder / "kek").read_text(), rows(folder / "store.db", "SELECT * FROM data_key")) == before
    await database.close()
    (folder / "kek").write_text(right)
    await assert_all_open(folder, 6)


async def test_every_secret_is_sealed_anew_by_a_new_data_key(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder, 230)
        before = stored_secrets(folder / "store.db")
        execute(folder / "store.db", "UPDATE client_ca SET sealed_key = NULL WHERE id = ?", f"{0:032x}")
        report = await custody.rotation.rotate_data_key(**BY)
        assert report == DataKeyRotation(data_key_id=2, resealed=459, damaged=())
        assert sealed_by(folder) == {2}
        [kek] = keks_of(folder)
        assert rows(folder / "store.db", "SELECT id, kek_id, active FROM data_key ORDER BY id") == [
            (1, kek.id, 0),
            (2, kek.id, 1),
        ]
        assert last_event(folder) == ("keys.rotated", "cli:test", "2", {"kek_id": kek.id, "data_key_id": 2})
        assert rows(folder / "store.db", "SELECT value FROM generation") == [(2,)]
        for bound_to, secret in before.items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode(), (
                "what was read before still opens"
            )
    await assert_all_open(folder, 459)


async def test_secrets_that_do_not_open_are_named_and_kept(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder)
        broken = {"access_key:AK00001": b"", "client_ca:" + f"{2:032x}": b"\x01\x00\x00\x00\x09" + bytes(50)}
        execute(folder / "store.db", "UPDATE access_key SET sealed_secret = ? WHERE id = 'AK00001'", b"")
        execute(
            folder / "store.db",
            "UPDATE client_ca SET sealed_key = ? WHERE id = ?",
            broken[f"client_ca:{2:032x}"],
            f"{2:032x}",
        )
        report = await custody.rotation.rotate_data_key(**BY)
        assert report == DataKeyRotation(data_key_id=2, resealed=4, damaged=tuple(broken))
        after = stored_secrets(folder / "store.db")
        assert {name: after[name] for name in broken} == broken


async def test_a_secret_that_changed_meanwhile_is_not_put_back(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder, 1)
    database = Database(sqlite_url(folder / "store.db"))
    old, ca_id = stored_secrets(folder / "store.db"), f"{0:032x}"
    read = [
        SealedRow("access_key", "AK00000", old["access_key:AK00000"]),
        SealedRow("client_ca", ca_id, old[f"client_ca:{ca_id}"]),
    ]
    execute(folder / "store.db", "UPDATE access_key SET sealed_secret = x'ff'")
    assert await KeyRows(database).reseal([(row, b"new") for row in read]) == 1
    assert stored_secrets(folder / "store.db") == {
        "access_key:AK00000": b"\xff",
        f"client_ca:{ca_id}": b"new",
    }
    await database.close()


async def test_a_data_key_that_changed_meanwhile_is_not_put_back(folder: Path) -> None:
    async with opened(folder) as custody:
        rotation = custody.rotation
        await rotation.rotate_data_key(**BY)
        first, second = await rotation.rows.all()
        stale = replace(second, wrapped=b"stale")
        exchange = [(first, replace(first, wrapped=b"lost")), (stale, replace(second, wrapped=b"lost"))]
        before = rows(folder / "store.db", "SELECT * FROM data_key"), last_event(folder)
        with pytest.raises(Conflict):
            await rotation.rows.rewrap(exchange, rotation._event("keys.rotated", "", {}, **BY))
        with pytest.raises(Conflict):
            await rotation.rows.add_active(second, rotation._event("keys.rotated", "", {}, **BY))
        assert (rows(folder / "store.db", "SELECT * FROM data_key"), last_event(folder)) == before


async def test_rotations_at_the_same_time_wait_for_each_other(folder: Path) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder, 60)

    async def rotate(what: str) -> None:
        async with opened(folder) as custody:
            rotation = custody.rotation
            work = {
                "kek": rotation.rotate_kek,
                "data key": rotation.rotate_data_key,
                "retire": rotation.retire,
            }
            await work[what](**BY)

    await asyncio.gather(
        *(rotate(what) for what in ("kek", "data key", "retire", "kek", "data key", "retire"))
    )
    assert rows(folder / "store.db", "SELECT id, active FROM data_key") == [(1, 0), (2, 0), (3, 1)]
    assert sealed_by(folder) == {3}
    assert set(wrapped_by(folder)) == {keks_of(folder)[0].id}
    await assert_all_open(folder, 120)


@pytest.mark.slow
async def test_workers_go_on_through_rotations_and_lose_nothing(folder: Path) -> None:
    file = folder / "store.db"
    async with opened(folder) as custody:
        await fill(custody, folder, 20)
        with (
            child(str(folder / "kek"), file, "store_worker.py") as one,
            child(str(folder / "kek"), file, "store_worker.py") as two,
        ):
            for step in range(2):
                await custody.rotation.rotate_kek(**BY)
                rotation = replace(custody.rotation, settle=SETTLE)
                report = await rotation.rotate_data_key(**BY)
                assert report.data_key_id == step + 2
                assert report.damaged == ()
                assert sealed_by(folder) == {report.data_key_id}, "the workers have noticed"
                await custody.rotation.retire(**BY)
            stored = []
            for worker in (one, two):
                assert worker.stdin is not None
                worker.stdin.close()
                stored.append(int(said(worker)[0]))
                assert worker.wait() == 0
    assert min(stored) > 5
    assert len(keks_of(folder)) == 1
    await assert_all_open(folder, 40 + sum(stored))


@pytest.mark.slow
@pytest.mark.parametrize(("what", "steps"), [("kek", 15), ("data-key", 20), ("retire", 10)])
async def test_killed_at_any_step_everything_is_readable_and_a_second_run_finishes(
    folder: Path, what: str, steps: int
) -> None:
    async with opened(folder) as custody:
        await fill(custody, folder, 1)
        if what == "retire":
            await custody.rotation.rotate_kek(**BY)
    old = keks_of(folder)
    program = Path(__file__).parents[1] / "store_killed.py"
    killed = int(
        subprocess.run([sys.executable, program, what, folder], capture_output=True, check=True).stdout
    )
    assert killed >= steps, killed
    for number in range(1, killed + 2):
        copy = Path(f"{folder}-{number}")
        await assert_all_open(copy, 2)
        async with opened(copy) as custody:
            await again(custody, what, copy, old, finished=number == killed + 1)
        await assert_all_open(copy, 2)
        assert not list(copy.glob(".*")), "nothing is left beside the file"
        shutil.rmtree(copy)


async def again(custody: Custody, what: str, folder: Path, old: tuple[Kek, ...], *, finished: bool) -> None:
    """Run what was killed once more; it comes to the same end, whatever was done already."""
    if what == "kek":
        report = await custody.rotation.rotate_kek(**BY)
        keks = keks_of(folder)
        assert keks[-1:] == old
        assert wrapped_by(folder) == [keks[0].id] == [report.kek_id]
        if finished:
            assert len(keks) == 3
    elif what == "data-key":
        report_of_data = await custody.rotation.rotate_data_key(**BY)
        assert sealed_by(folder) == {report_of_data.data_key_id}
        assert report_of_data.damaged == ()
    else:
        left = keks_of(folder)
        assert left in (old, old[:1])
        assert await custody.rotation.retire(**BY) == tuple(kek.id for kek in left[1:])
        assert keks_of(folder) == old[:1]
