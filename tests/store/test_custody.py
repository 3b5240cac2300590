"""Custody: errors at start-up, sealed secrets, and new data keys from other processes."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, KekVariable, write_new_kek_file
from clustercert.custody.sources import KekSource
from clustercert.model import Actor
from clustercert.model.errors import CustodyError, Unavailable, UnsealError
from clustercert.pki.envelope import Kek, data_key_id_of, kek_line, new_kek
from clustercert.store.engine.database import Database
from support.stores import ORIGIN, Store, patient, sqlite_url


@pytest.fixture
def kek_file(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    write_new_kek_file(path)
    return path


@pytest.fixture
async def custody(database: Database, kek_file: Path) -> Custody:
    custody = Custody(database, KekFile(kek_file))
    await custody.initialise(actor=Actor("cli:test", ORIGIN))
    return custody


async def refusal(database: Database, *keks: KekSource) -> str:
    with pytest.raises(CustodyError) as caught:
        await Custody(database, *keks).open()
    return caught.value.message


async def rotate_data_key(custody: Custody) -> None:
    """Rotate the data key without waiting for running workers."""
    await replace(custody.rotation, propagation_seconds=0).rotate_data_key(actor=Actor("cli:test", ORIGIN))


async def test_a_process_without_keys_decrypts_and_encrypts_nothing(
    custody: Custody, database: Database
) -> None:
    sealed = await custody.seal(b"secret", "thing:1")
    without = Custody(database)
    with pytest.raises(Unavailable):
        await without.unseal(sealed, "thing:1")
    with pytest.raises(Unavailable):
        await without.seal(b"secret", "thing:1")
    assert "has no key-encryption keys" in await refusal(database)
    with pytest.raises(CustodyError):
        await without.rotation.rotate_kek(actor=Actor("cli:test", ORIGIN))


async def test_the_first_data_key_is_made_once(
    custody: Custody, database: Database, store: Store, kek_file: Path
) -> None:
    kek = KekFile(kek_file).read()[0]
    before = store.rows("SELECT * FROM data_key_wrapping")
    await custody.initialise()
    assert store.rows("SELECT * FROM data_key_wrapping") == before
    assert store.rows("SELECT id, active FROM data_key") == [(1, 1)]
    assert store.rows("SELECT data_key_id, kek_id FROM data_key_wrapping") == [(1, kek.id)]
    assert store.rows("SELECT kind, actor, subject FROM audit_event") == [("keys.created", "cli:test", "1")]
    assert store.events()[0]["detail"] == {"kek_ids": [kek.id], "data_key_id": 1}


@pytest.mark.parametrize("source", ["file", "variable"])
async def test_several_make_the_first_data_key_at_once(store: Store, kek_file: Path, source: str) -> None:
    keks = KekFile(kek_file) if source == "file" else KekVariable("KEK", kek_file.read_text())
    databases = [patient(store.url) for _ in range(4)]
    custodies = [Custody(database, keks) for database in databases]
    await asyncio.gather(*(custody.initialise() for custody in custodies))
    assert store.rows("SELECT id FROM data_key") == [(1,)]
    assert store.rows("SELECT count(*) FROM audit_event") == [(1,)]
    sealed = await custodies[0].seal(b"secret", "client_ca:1")
    assert [await custody.unseal(sealed, "client_ca:1") for custody in custodies] == [b"secret"] * 4
    for database in databases:
        await database.close()


async def test_a_database_without_data_key_stops_the_start(database: Database, kek_file: Path) -> None:
    assert await refusal(database, KekFile(kek_file)) == (
        "The database has no active data key. Run `clustercert db upgrade`."
    )


async def test_a_missing_kek_file_stops_the_start(
    custody: Custody, database: Database, kek_file: Path
) -> None:
    kek_file.unlink()
    assert await refusal(database, KekFile(kek_file)) == (
        f"Can't read the file {kek_file} of key-encryption keys: No such file or directory."
    )


async def test_a_wrong_kek_stops_the_start_and_both_are_named(
    custody: Custody, database: Database, kek_file: Path
) -> None:
    [right], wrong = KekFile(kek_file).read(), [new_kek(), new_kek()]
    message = await refusal(database, KekVariable("CLUSTERCERT_KEK", "".join(kek_line(kek) for kek in wrong)))
    assert message == (
        f"The data keys of this database are wrapped by key-encryption key {right.id}, but the environment variable "
        f"CLUSTERCERT_KEK has {wrong[0].id}, {wrong[1].id}. Start with the key-encryption keys that belong to this "
        "database."
    )


async def test_a_damaged_data_key_stops_the_start(
    custody: Custody, database: Database, store: Store, kek_file: Path
) -> None:
    [(wrapped,)] = store.rows("SELECT wrapped FROM data_key_wrapping")
    assert isinstance(wrapped, bytes)
    store.execute("UPDATE data_key_wrapping SET wrapped = ?", wrapped[:-1] + bytes([wrapped[-1] ^ 1]))
    assert await refusal(database, KekFile(kek_file)) == (
        "The database is damaged: data key 1 is damaged or belongs to another row. "
        "Restore the table data_key_wrapping from a backup."
    )


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path, kek_file: Path) -> None:
    database = patient(sqlite_url(tmp_path / "missing" / "store.db"))
    with pytest.raises(Unavailable):
        await Custody(database, KekFile(kek_file)).open()
    await database.close()


async def test_a_sealed_secret_opens_in_other_processes_but_only_for_its_row(
    custody: Custody, store: Store, kek_file: Path
) -> None:
    store.store_secrets({"access_key:ONE": await custody.seal(b"one", "access_key:ONE")})
    store.store_secrets({"access_key:TWO": await custody.seal(b"two", "access_key:TWO")})
    store.execute("UPDATE access_key SET id = CASE id WHEN 'ONE' THEN 'THREE' ELSE id END")
    database = patient(store.url)
    other = Custody(database, KekFile(kek_file))
    sealed = store.stored_secrets()
    assert await other.unseal(sealed["access_key:TWO"], "access_key:TWO") == b"two"
    for bound_to in ("access_key:THREE", "access_key:TWO", "client_ca:ONE"):
        with pytest.raises(UnsealError):
            await other.unseal(sealed["access_key:THREE"], bound_to)
    await database.close()


async def test_neither_keys_nor_secrets_are_in_the_database(
    custody: Custody, database: Database, store: Store, kek_file: Path
) -> None:
    store.store_secrets({"client_ca:1": await custody.seal(b"a very secret key", "client_ca:1")})
    await database.close()
    content = store.content()
    assert store.stored_secrets()["client_ca:1"] in content
    data_key = custody._ring.data_keys[0].key
    for secret in (b"a very secret key", KekFile(kek_file).read()[0].key, data_key, data_key.hex().encode()):
        assert secret not in content


async def test_decrypting_needs_neither_database_nor_file(
    custody: Custody, database: Database, store: Store, kek_file: Path
) -> None:
    sealed = await custody.seal(b"secret", "client_ca:1")
    await database.close()
    store.execute("DROP TABLE data_key_wrapping")
    kek_file.unlink()
    assert await custody.unseal(sealed, "client_ca:1") == b"secret"


async def test_secrets_under_another_process_s_new_keys_are_opened(
    custody: Custody, store: Store, kek_file: Path
) -> None:
    database = patient(store.url)
    other = Custody(database, KekFile(kek_file))
    old = await custody.seal(b"old", "client_ca:1")
    await other.rotation.rotate_kek(actor=Actor("cli:test", ORIGIN))
    await rotate_data_key(other)
    assert await other.rotation.retire(actor=Actor("cli:test", ORIGIN))
    new = await other.seal(b"new", "client_ca:2")
    assert data_key_id_of(new) == 2
    assert await custody.unseal(new, "client_ca:2") == b"new"
    assert await custody.unseal(old, "client_ca:1") == b"old"
    await database.close()


async def test_a_new_data_key_seals_as_soon_as_it_is_noticed(
    custody: Custody, database: Database, store: Store, kek_file: Path
) -> None:
    other = patient(store.url)
    await database.generation.refresh()
    await custody.seal(b"", "client_ca:1")
    await rotate_data_key(Custody(other, KekFile(kek_file)))
    await database.generation.refresh()
    assert data_key_id_of(await custody.seal(b"secret", "client_ca:1")) == 2
    await other.close()


async def test_sealing_needs_no_database_while_nothing_has_changed(
    custody: Custody, database: Database, store: Store
) -> None:
    await database.generation.refresh()
    await custody.seal(b"", "client_ca:1")
    store.execute("DROP TABLE data_key_wrapping")
    assert data_key_id_of(await custody.seal(b"secret", "client_ca:1")) == 1


async def test_nothing_is_sealed_by_what_may_be_out_of_date(
    custody: Custody, database: Database, store: Store
) -> None:
    assert not database.generation.fresh()
    store.execute("DROP TABLE data_key_wrapping")
    with pytest.raises(Unavailable):
        await custody.seal(b"secret", "client_ca:1")


async def test_unreadable_keys_are_unavailable_without_details_for_callers(
    custody: Custody, store: Store, kek_file: Path
) -> None:
    kek_text = kek_file.read_text()
    kek_file.unlink()
    other = patient(store.url)
    rotating = Custody(other, KekVariable("KEK", kek_text))
    await rotate_data_key(rotating)
    sealed = await rotating.seal(b"secret", "client_ca:1")
    with pytest.raises(Unavailable) as caught:
        await custody.unseal(sealed, "client_ca:1")
    assert str(kek_file) not in caught.value.message
    assert str(kek_file) in str(caught.value.__cause__)
    # This process goes on with the data key that it has.
    assert data_key_id_of(await custody.seal(b"secret", "client_ca:2")) == 1
    custody.require_opened()
    kek_file.touch(0o600)
    kek_file.write_text(kek_text)
    await custody.open()
    assert await custody.unseal(sealed, "client_ca:1") == b"secret"
    assert data_key_id_of(await custody.seal(b"secret", "client_ca:2")) == 2
    await other.close()


async def test_a_secret_under_a_missing_data_key_cannot_be_decrypted(custody: Custody) -> None:
    with pytest.raises(UnsealError) as caught:
        await custody.unseal(b"\x01\x00\x00\x00\x09" + bytes(40), "client_ca:1")
    assert caught.value.reason == "the secret of client_ca:1 is sealed under data key 9, which does not exist"


@dataclass(frozen=True, slots=True)
class ReadTooEarly(KekVariable):
    """A source that at first returns the keys from before the rotation in the database."""

    answers: list[tuple[Kek, ...]]

    async def keks(self) -> tuple[Kek, ...]:
        return self.answers.pop(0)


async def test_keys_read_during_a_rotation_are_read_again(
    custody: Custody, database: Database, kek_file: Path
) -> None:
    await Custody(database, ReadTooEarly("", "", [(new_kek(),), KekFile(kek_file).read()])).open()
    with pytest.raises(CustodyError):
        await Custody(database, ReadTooEarly("", "", [(new_kek(),), (new_kek(),)])).open()
