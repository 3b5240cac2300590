"""Key rotation loses no secrets, also with concurrent changes and after a crash at any point."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import pytest
from sqlalchemy.engine import make_url

from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, KekVariable, write_new_kek_file
from clustercert.custody.rotation import DataKeyRotation, KekRotation
from clustercert.model import Actor
from clustercert.model.errors import Conflict, CustodyError
from clustercert.pki.envelope import Kek, data_key_id_of, kek_line, new_kek
from clustercert.store.engine.generation import Generation
from clustercert.store.keys import KeyQueries, SealedRow, Wrapping
from support import programs
from support.stores import ORIGIN, Store, blob, child, event, patient, said

# How long a process waits for the others by default.
SETTLE = Generation.PROPAGATION


class By(TypedDict):
    """The actor of a rotation."""

    actor: Actor


BY: By = {"actor": Actor("cli:test", ORIGIN)}


@dataclass(frozen=True)
class Place:
    """A database, and the file of its key-encryption key."""

    store: Store
    kek: Path

    def copied(self, number: int) -> "Place":
        """Return a copy that `killed_rotations` made."""
        url = make_url(self.store.url)
        store = url.set(database=f"{url.database}_{number}").render_as_string(hide_password=False)
        return Place(Store(store), Path(f"{self.kek.parent}_{number}") / self.kek.name)


@pytest.fixture
def place(tmp_path: Path, store: Store) -> Place:
    kek = tmp_path / "keys" / "kek"
    kek.parent.mkdir()
    write_new_kek_file(kek)
    return Place(store, kek)


@asynccontextmanager
async def opened(place: Place, keks: KekVariable | None = None) -> AsyncIterator[Custody]:
    """Open custody as in a new process. Its rotations don't wait for workers."""
    database = patient(place.store.url)
    custody = Custody(database, keks or KekFile(place.kek))
    await custody.initialise()
    custody.rotation = replace(custody.rotation, propagation_seconds=0)
    try:
        yield custody
    finally:
        await database.close()


async def fill(custody: Custody, place: Place, count: int = 3) -> None:
    names = [
        name for number in range(count) for name in (f"access_key:AK{number:05}", f"client_ca:{number:032x}")
    ]
    place.store.store_secrets({name: await custody.seal(name.encode(), name) for name in names})


async def assert_all_open(place: Place, count: int) -> None:
    """Check that a new process can open every secret."""
    sealed = place.store.stored_secrets()
    assert len(sealed) == count
    async with opened(place) as custody:
        for bound_to, secret in sealed.items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode()


def keks_of(place: Place) -> tuple[Kek, ...]:
    return KekFile(place.kek).read()


def wrapped_by(place: Place) -> list[object]:
    return [
        kek_id
        for (kek_id,) in place.store.rows("SELECT kek_id FROM data_key_wrapping ORDER BY data_key_id, kek_id")
    ]


def keys_in(place: Place) -> tuple[list[tuple[object, ...]], ...]:
    """All data keys and their wrapped forms."""
    return tuple(place.store.rows(f"SELECT * FROM {table}") for table in ("data_key", "data_key_wrapping"))


def sealed_by(place: Place) -> set[int | None]:
    return {data_key_id_of(sealed) for sealed in place.store.stored_secrets().values()}


def last_event(place: Place) -> tuple[object, ...]:
    event = place.store.events()[-1]
    return event["kind"], event["actor"], event["subject"], event["detail"]


async def test_a_new_kek_wraps_everything_and_the_old_one_can_go(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place)
        before = place.store.stored_secrets()
        [old] = keks_of(place)
        report = await custody.rotation.rotate_kek(**BY)
        new, *others = keks_of(place)
        assert others == [old]
        assert report == KekRotation(kek_ids=(new.id,), added=(new.id,), rewrapped=1)
        assert wrapped_by(place) == [new.id]
        assert last_event(place) == (
            "keys.rotated",
            "cli:test",
            new.id,
            {"kek_ids": [new.id], "data_key_ids": [1]},
        )
        assert await custody.rotation.retire(**BY) == (old.id,)
        assert keks_of(place) == (new,)
        assert last_event(place) == ("keys.retired", "cli:test", old.id, {"kek_ids": [old.id]})
        assert await custody.rotation.retire(**BY) == ()
    assert place.store.stored_secrets() == before
    await assert_all_open(place, 6)


async def test_the_credentials_of_sessions_are_encrypted_again(place: Place) -> None:
    session_id = "5" * 64
    bound_to = f"console_session:{session_id}"
    async with opened(place) as custody:
        place.store.execute(
            "INSERT INTO console_session (id, user_id, issuer, method, address, created_at, seen_at, sealed_credential)"
            " VALUES (?, 'user', 'https://sso.example.com', 'oidc', '192.0.2.1', '2026-03-14 15:09:26.000000',"
            " '2026-03-14 15:09:26.000000', ?)",
            *(session_id, await custody.seal(b"{}", bound_to)),
        )
        assert (await custody.rotation.rotate_data_key(**BY)).resealed == 1
    [(sealed,)] = place.store.rows("SELECT sealed_credential FROM console_session")
    async with opened(place) as custody:
        assert data_key_id_of(blob(sealed)) == 2
        assert await custody.unseal(blob(sealed), bound_to) == b"{}"


async def test_a_key_that_the_operator_put_in_front_is_taken(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place)
        new = new_kek()
        KekFile(place.kek).prepend(new)
        assert await custody.rotation.retire(**BY) == (), "neither what wraps nor what will wrap is dropped"
        assert await custody.rotation.rotate_kek(**BY) == KekRotation(
            kek_ids=(new.id,), added=(), rewrapped=1
        )
        assert len(keks_of(place)) == 2
    await assert_all_open(place, 6)


async def test_a_variable_gets_its_new_key_from_the_operator(place: Place) -> None:
    old, new = new_kek(), new_kek()
    async with opened(place, KekVariable("KEK", kek_line(old))) as custody:
        await fill(custody, place)
        with pytest.raises(CustodyError, match="Put a new key, 32 random bytes in base64, on a line before"):
            await custody.rotation.rotate_kek(**BY)
        assert wrapped_by(place) == [old.id]
    both = KekVariable("KEK", kek_line(new) + kek_line(old))
    async with opened(place, both) as custody:
        assert await custody.rotation.rotate_kek(**BY) == KekRotation(
            kek_ids=(new.id,), added=(), rewrapped=1
        )
        with pytest.raises(CustodyError, match=f"Remove the keys {old.id} from this variable"):
            await custody.rotation.retire(**BY)
        assert last_event(place)[0] == "keys.rotated"
    async with opened(place, KekVariable("KEK", kek_line(new))) as custody:
        assert await custody.rotation.retire(**BY) == ()
        for bound_to, secret in place.store.stored_secrets().items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode()


async def test_nothing_is_rotated_by_a_wrong_kek(place: Place, tmp_path: Path) -> None:
    async with opened(place) as custody:
        await fill(custody, place)
    right = place.kek.read_text()
    place.kek.write_text(kek_line(new_kek()))
    database = patient(place.store.url)
    rotation = Custody(database, KekFile(place.kek)).rotation
    before = place.kek.read_text(), keys_in(place)
    for work in (rotation.rotate_kek, rotation.rotate_data_key, rotation.retire):
        with pytest.raises(CustodyError, match="belong to this database"):
            await work(**BY)
    assert (place.kek.read_text(), keys_in(place)) == before
    await database.close()
    place.kek.write_text(right)
    await assert_all_open(place, 6)


async def test_every_secret_is_sealed_anew_by_a_new_data_key(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place, 230)
        before = place.store.stored_secrets()
        place.store.execute("UPDATE client_ca SET sealed_key = NULL WHERE id = ?", f"{0:032x}")
        report = await custody.rotation.rotate_data_key(**BY)
        assert report == DataKeyRotation(data_key_id=2, resealed=459, damaged=())
        assert sealed_by(place) == {2}
        [kek] = keks_of(place)
        assert place.store.rows("SELECT id, active FROM data_key ORDER BY id") == [(1, 0), (2, 1)]
        assert wrapped_by(place) == [kek.id, kek.id]
        assert last_event(place) == ("keys.rotated", "cli:test", "2", {"kek_ids": [kek.id], "data_key_id": 2})
        assert place.store.rows("SELECT value FROM generation") == [(2,)]
        for bound_to, secret in before.items():
            assert await custody.unseal(secret, bound_to) == bound_to.encode(), (
                "what was read before still opens"
            )
    await assert_all_open(place, 459)


async def test_secrets_that_do_not_open_are_named_and_kept(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place)
        broken = {"access_key:AK00001": b"", "client_ca:" + f"{2:032x}": b"\x01\x00\x00\x00\x09" + bytes(50)}
        place.store.execute("UPDATE access_key SET sealed_secret = ? WHERE id = 'AK00001'", b"")
        place.store.execute(
            "UPDATE client_ca SET sealed_key = ? WHERE id = ?",
            broken[f"client_ca:{2:032x}"],
            f"{2:032x}",
        )
        report = await custody.rotation.rotate_data_key(**BY)
        assert report == DataKeyRotation(data_key_id=2, resealed=4, damaged=tuple(broken))
        after = place.store.stored_secrets()
        assert {name: after[name] for name in broken} == broken


async def test_a_secret_that_changed_meanwhile_is_not_put_back(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place, 1)
    database = patient(place.store.url)
    old, ca_id = place.store.stored_secrets(), f"{0:032x}"
    read = [
        SealedRow("access_key", "AK00000", old["access_key:AK00000"]),
        SealedRow("client_ca", ca_id, old[f"client_ca:{ca_id}"]),
    ]
    place.store.execute("UPDATE access_key SET sealed_secret = ?", b"\xff")
    assert await KeyQueries(database).reseal([(row, b"new") for row in read]) == 1
    assert place.store.stored_secrets() == {
        "access_key:AK00000": b"\xff",
        f"client_ca:{ca_id}": b"new",
    }
    await database.close()


async def test_a_data_key_that_changed_meanwhile_is_not_put_back(place: Place) -> None:
    async with opened(place) as custody:
        rotation = custody.rotation
        await rotation.rotate_data_key(**BY)
        first, second = await rotation.queries.data_keys()
        [kek] = keks_of(place)
        lost = (Wrapping(kek.id, b"lost"),)
        stale = replace(second, wrappings=(Wrapping(kek.id, b"stale"),))
        exchange = [(first, replace(first, wrappings=lost)), (stale, replace(second, wrappings=lost))]
        before = keys_in(place), last_event(place)
        with pytest.raises(Conflict):
            await rotation.queries.rewrap(exchange, event("keys.rotated"))
        with pytest.raises(Conflict):
            await rotation.queries.add_active(second, event("keys.rotated"))
        assert (keys_in(place), last_event(place)) == before


async def test_rotations_at_the_same_time_wait_for_each_other(place: Place) -> None:
    async with opened(place) as custody:
        await fill(custody, place, 60)

    async def rotate(what: str) -> None:
        async with opened(place) as custody:
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
    assert place.store.rows("SELECT id, active FROM data_key") == [(1, 0), (2, 0), (3, 1)]
    assert sealed_by(place) == {3}
    assert set(wrapped_by(place)) == {keks_of(place)[0].id}
    await assert_all_open(place, 120)


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
async def test_workers_go_on_through_rotations_and_lose_nothing(place: Place) -> None:
    not_noticed = set[int | None]()
    async with opened(place) as custody:
        await fill(custody, place, 20)
        with (
            child(str(place.kek), place.store, "custody_worker") as one,
            child(str(place.kek), place.store, "custody_worker") as two,
        ):
            for step in range(2):
                await custody.rotation.rotate_kek(**BY)
                rotation = replace(custody.rotation, propagation_seconds=SETTLE)
                report = await rotation.rotate_data_key(**BY)
                assert report.data_key_id == step + 2
                assert report.damaged == ()
                not_noticed |= sealed_by(place) - {report.data_key_id}
                await custody.rotation.retire(**BY)
            stored, slowest = list[int](), 0.0
            for worker in (one, two):
                assert worker.stdin is not None
                worker.stdin.close()
                count, seconds = said(worker)[0].split()
                stored.append(int(count))
                slowest = max(slowest, float(seconds))
                assert worker.wait() == 0
    assert min(stored) > 0
    # On a very busy machine, a worker may store a secret longer after its seal than the rotation waits.
    if slowest < Generation.INTERVAL:
        assert min(stored) > 5
        assert not_noticed == set(), "the workers have noticed each new key"
    assert len(keks_of(place)) == 1
    await assert_all_open(place, 40 + sum(stored))


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(("what", "steps"), [("kek", 13), ("data-key", 20), ("retire", 10)])
async def test_a_rotation_killed_at_any_step_loses_nothing_and_can_be_repeated(
    place: Place, what: str, steps: int
) -> None:
    async with opened(place) as custody:
        await fill(custody, place, 1)
        if what == "retire":
            await custody.rotation.rotate_kek(**BY)
    old = keks_of(place)
    ended = programs.run("killed_rotations", what, place.store.url, place.kek.parent)
    assert ended.returncode == 0, ended.stderr
    killed = int(ended.stdout)
    assert killed >= steps, killed
    for number in range(1, killed + 2):
        copy = place.copied(number)
        await assert_all_open(copy, 2)
        async with opened(copy) as custody:
            await again(custody, what, copy, old, finished=number == killed + 1)
        await assert_all_open(copy, 2)
        assert not list(copy.kek.parent.glob(".*")), "nothing is left beside the file"
        copy.store.remove()


async def again(custody: Custody, what: str, place: Place, old: tuple[Kek, ...], *, finished: bool) -> None:
    """Run the killed rotation again. It must complete, whatever was already done."""
    if what == "kek":
        report = await custody.rotation.rotate_kek(**BY)
        keks = keks_of(place)
        assert keks[-1:] == old
        assert wrapped_by(place) == [keks[0].id] == list(report.kek_ids)
        if finished:
            assert len(keks) == 3
    elif what == "data-key":
        report_of_data = await custody.rotation.rotate_data_key(**BY)
        assert sealed_by(place) == {report_of_data.data_key_id}
        assert report_of_data.damaged == ()
    else:
        left = keks_of(place)
        assert left in (old, old[:1])
        assert await custody.rotation.retire(**BY) == tuple(kek.id for kek in left[1:])
        assert keks_of(place) == old[:1]
