"""Migrations create the declared tables, also when several processes run them, or run them again."""

import asyncio
import contextlib
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event as engine_events
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from clustercert.model.errors import SchemaError, StoreFault, Unavailable
from clustercert.store import tables
from clustercert.store.credential_cache import CredentialCache
from clustercert.store.credential_usage import Alerts, CredentialUsageQueries, UnknownUse
from clustercert.store.directory import DirectoryQueries
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from clustercert.store.ledger import Ledger
from clustercert.store.revocation_feed import RevocationFeed
from clustercert.store.revocations import NO_END, RevocationQueries
from support import postgres
from support.migrations import columns, ledger_row, opened, record, schema, up_to
from support.samples import CLUSTER_ID
from support.store_records import register_cluster
from support.stores import NOW, Store, certificate_record, child, event, patient, rows, sqlite_url, start
from support.wait import SECONDS, eventually_async


async def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    async with database.read() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"compare_server_default": True}), tables.metadata
            )
        )
    assert differences == []


async def test_it_is_so_to_the_letter_in_sqlite(file: Path, tmp_path: Path) -> None:
    made = patient(sqlite_url(tmp_path / "made.db"))
    async with made.transaction() as connection:
        await connection.run_sync(tables.metadata.create_all)
    await made.close()
    assert schema(file) == schema(tmp_path / "made.db")
    assert len(schema(file)) > 20


def test_a_new_database_has_a_generation_and_nothing_else(store: Store) -> None:
    assert store.rows("SELECT id, value FROM generation") == [(1, 0)]
    assert store.rows("SELECT version_num FROM alembic_version") == [(migrate.head(),)]
    for table in tables.metadata.sorted_tables:
        if table.name not in ("generation", "migration"):
            assert store.rows(f'SELECT count(*) FROM "{table.name}"') == [(0,)]


async def test_upgrading_again_changes_nothing(database: Database, store: Store) -> None:
    async with database.transaction(invalidate=True) as connection:
        await connection.execute(insert(tables.domain).values(id="1" * 32, name="kept", enabled=True))
    before = columns(store)
    await migrate.upgrade(database)
    assert columns(store) == before
    assert store.rows("SELECT name FROM domain") == [("kept",)]
    assert store.rows("SELECT value FROM generation") == [(1,)]
    assert await migrate.current(database) == migrate.head()
    await migrate.check(database)


async def test_users_disabled_before_revocations_existed_have_none_good(
    new_store: Store, tmp_path: Path
) -> None:
    people = {"alice": "1" * 32, "disabled": "2" * 32, "removed": "3" * 32}
    async with opened(new_store) as database:
        await migrate.upgrade(database, up_to("0001", tmp_path))
    new_store.execute("INSERT INTO domain (id, name, enabled) VALUES (?, 'acme', true)", "d" * 32)
    for name in ("alice", "disabled"):
        new_store.execute(
            'INSERT INTO "user" (id, domain_id, name, enabled, created_at) VALUES (?, ?, ?, ?,'
            " '2026-03-14 15:09:26.000000')",
            *(people[name], "d" * 32, name, name == "alice"),
        )
    issued = {name: replace(certificate_record()[0], user_id=user_id) for name, user_id in people.items()}
    async with opened(new_store) as database:
        async with database.transaction() as connection:
            recorded = [
                ledger_row(record, "rule", "credential_number", "username") for record in issued.values()
            ]
            await connection.execute(insert(tables.certificate).values(epoch=0), recorded)
        await migrate.upgrade(database)
        known = CredentialCache(database, RevocationFeed(database))
        found = {name: await known.by_fingerprint(record.fingerprint) for name, record in issued.items()}
        revoked = {name for name, credential in found.items() if credential and credential.revoked}
        assert revoked == {"disabled", "removed"}
        await DirectoryQueries(database).enable_user(people["disabled"], True, event("user.enabled"))
        again, its_event = certificate_record()
        again = replace(again, user_id=people["disabled"])
        await Ledger(database).record(again, its_event)
        good = await known.by_fingerprint(again.fingerprint)
        assert good is not None
        assert not good.revoked
        (revocation,) = await RevocationQueries(database).of_user(people["removed"], limit=9)
        assert (revocation.epoch, revocation.by) == (NO_END, "clustercert")
        assert revocation.at.tzinfo is not None


# As a sealer with schema 0005 set a leaf index.
SEAL = text(
    "UPDATE audit_event SET leaf_index = (SELECT count(leaf_index) FROM audit_event)"
    " WHERE id = (SELECT min(id) FROM audit_event WHERE leaf_index IS NULL)"
)


async def seal(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(SEAL)


async def test_events_keep_their_places_and_those_without_one_go_on_waiting(
    new_store: Store, tmp_path: Path
) -> None:
    waiting = "SELECT event_id FROM audit_unsealed ORDER BY event_id"
    async with opened(new_store) as database:
        await migrate.upgrade(database, up_to("0005", tmp_path))
        for _ in range(7):
            await record(database)
        new_store.execute("DELETE FROM audit_event WHERE id = 2")
        for _ in range(4):
            await seal(database)
        before = new_store.rows(
            "SELECT leaf_index, id, project_id FROM audit_event WHERE leaf_index IS NOT NULL ORDER BY id"
        )
        assert [place for place, *_ in before] == [0, 1, 2, 3]
        await migrate.upgrade(database)
        after = "SELECT leaf_index, event_id, project_id FROM audit_place ORDER BY event_id"
        assert new_store.rows(after) == before
        assert new_store.rows(waiting) == [(6,), (7,)]
        await record(database)
        assert new_store.rows(waiting) == [(6,), (7,), (8,)]


async def test_no_event_of_an_older_replica_is_lost_during_the_upgrade(
    new_store: Store, tmp_path: Path
) -> None:
    recorded, stop = 0, False

    async def older_replica() -> None:
        nonlocal recorded
        async with opened(new_store) as database:
            while not stop:
                await record(database)
                recorded += 1
                # It fails once the column is dropped.
                with contextlib.suppress(Unavailable, ProgrammingError):
                    await seal(database)

    async def has_recorded(count: int) -> None:
        await eventually_async(lambda: recorded >= count)

    async with opened(new_store) as database:
        await migrate.upgrade(database, up_to("0005", tmp_path))
        replica = asyncio.create_task(older_replica())
        await has_recorded(20)
        await migrate.upgrade(database)
        await has_recorded(recorded + 20)
        stop = True
        await replica
    places = new_store.rows("SELECT leaf_index, event_id FROM audit_place ORDER BY leaf_index")
    assert [place for place, _ in places] == list(range(len(places)))
    assert len(places) >= 19
    waiting = new_store.rows("SELECT event_id FROM audit_unsealed")
    events = new_store.rows("SELECT id FROM audit_event ORDER BY id")
    assert sorted([(number,) for _, number in places] + waiting) == events
    assert len(events) == recorded


@pytest.mark.slow
@pytest.mark.parametrize("has", ["nothing", "the first schema"])
async def test_several_processes_upgrade_at_once(new_store: Store, has: str, tmp_path: Path) -> None:
    if has != "nothing":
        async with opened(new_store) as database:
            await migrate.upgrade(database, up_to("0001", tmp_path))
            with pytest.raises(SchemaError, match=r"has schema 0001 and this program needs"):
                await migrate.check(database)
    with ExitStack() as stack:
        processes = [stack.enter_context(child("upgrade", new_store)) for _ in range(3)]
        for process in processes:
            start(process)
        assert [process.wait(SECONDS) for process in processes] == [0, 0, 0]
    assert new_store.rows("SELECT id, value FROM generation") == [(1, 0)]
    assert new_store.rows("SELECT id, oldest_program FROM migration") == [(1, "0012")]
    if new_store.file is not None:
        assert new_store.file.stat().st_mode & 0o777 == 0o600


async def test_a_program_without_credential_numbers_cannot_start_or_upgrade(
    database: Database, store: Store, tmp_path: Path
) -> None:
    older = up_to("0004", tmp_path)
    assert migrate.head(older) == "0004"
    before = columns(store)
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(
            SchemaError, match=rf"has schema {migrate.head()}, .* too new for this program\. Run the newer"
        ):
            await refused(database, older)
    assert columns(store) == before


async def test_what_was_recorded_before_credential_numbers_is_kept_and_has_none(
    new_store: Store, tmp_path: Path
) -> None:
    records = [certificate_record()[0] for _ in range(3)]
    serial = "7f" * 20
    records[2] = replace(records[2], serial=serial, groups=(f"clustercert:credential:{serial}",))
    kept = "SELECT * FROM certificate ORDER BY id"
    async with opened(new_store) as database:
        await migrate.upgrade(database, up_to("0004", tmp_path))
        rows_of_then = [ledger_row(record, "credential_number", "username") for record in records]
        async with database.transaction() as connection:
            await connection.execute(insert(tables.certificate).values(epoch=0), rows_of_then[:2])
        before = new_store.rows(kept)
        await migrate.upgrade(database)
        # From a replica that still runs.
        async with database.transaction() as connection:
            await connection.execute(insert(tables.certificate).values(epoch=0), rows_of_then[2:])
        after = new_store.rows(kept)
        assert [set(map(str, row)) - {"None"} for row in after[:2]] == [
            set(map(str, row)) - {"None"} for row in before
        ]
        query = "SELECT count(*) FROM certificate WHERE credential_number IS NULL AND altered_at IS NULL"
        assert new_store.rows(query) == [(3,)]
        known = CredentialCache(database, RevocationFeed(database), now=lambda: NOW)
        for record in records[:2]:
            found = await known.by_fingerprint(record.fingerprint)
            assert found is not None
            assert (found.credential_number, found.groups) == (None, frozenset(record.groups))
        assert await known.has_unnumbered(records[0].user_id)
        bound = await known.by_number(serial)
        assert bound is not None
        assert (bound.fingerprint, bound.groups) == (records[2].fingerprint, frozenset())


async def test_unknown_credentials_are_merged_by_user_name_and_groups(
    new_store: Store, tmp_path: Path
) -> None:
    hours = [NOW + timedelta(hours=number) for number in range(30)]

    def unknown(number: int, cluster: str, username: str, groups: list[str]) -> dict[str, object]:
        return {
            "cluster_id": cluster,
            "fingerprint": number.to_bytes(32),
            "username": username,
            "groups": groups,
            "first_seen_at": hours[number],
            "last_seen_at": hours[number] + timedelta(minutes=number % 7),
        }

    old = [
        *(unknown(number, CLUSTER_ID, "bob", ["devs", "system:authenticated"]) for number in range(20)),
        unknown(20, CLUSTER_ID, "bob", ["system:authenticated", "devs", "devs"]),
        unknown(21, CLUSTER_ID, "bob", []),
        unknown(22, CLUSTER_ID, "eve", ["devs", "system:authenticated"]),
        unknown(23, "there", "bob", ["devs", "system:authenticated"]),
    ]
    async with opened(new_store) as database:
        await migrate.upgrade(database, up_to("0004", tmp_path))
        async with database.transaction() as connection:
            await connection.execute(insert(tables.unknown_credential), old[::-1])
        await migrate.upgrade(database)
        async with database.read() as connection:
            found = (await connection.execute(select(tables.unknown_identity))).all()
        hashes = {(row.cluster_id, row.identity): row.hashes for row in found}
        merged = {
            (row.cluster_id, row.username, row.hashes, row.fingerprints[0], row.fingerprints[-1])
            for row in found
        }
        assert merged == {
            (CLUSTER_ID, "bob", 21, f"{5:064x}", f"{20:064x}"),
            (CLUSTER_ID, "bob", 1, f"{21:064x}", f"{21:064x}"),
            (CLUSTER_ID, "eve", 1, f"{22:064x}", f"{22:064x}"),
            ("there", "bob", 1, f"{23:064x}", f"{23:064x}"),
        }
        (many,) = (row for row in found if row.hashes == 21)
        assert len(many.fingerprints) == 16
        assert (many.first_seen_at, many.last_seen_at) == (hours[0], hours[20] + timedelta(minutes=6))
        # The program continues with the same rows.
        use = UnknownUse(
            CLUSTER_ID, "bob", ("devs", "system:authenticated"), (f"{99:064x}",), hours[29], hours[29]
        )
        assert hashes[CLUSTER_ID, use.identity] == 21
        await register_cluster(database, new_store)
        assert (
            await CredentialUsageQueries(database).add_unknown([use], use.last, lambda kind, _: event(kind))
            == Alerts()
        )
        query = "SELECT hashes FROM unknown_identity WHERE cluster_id <> 'there' AND username = 'bob' ORDER BY hashes"
        assert new_store.rows(query) == [(1,), (22,)]
        # The table that older replicas still write exists.
        assert new_store.rows("SELECT count(*) FROM unknown_credential") == [(24,)]


async def test_an_upgrade_waits_for_another_one_for_as_long_as_that_takes(on_postgresql: Store) -> None:
    impatient = Database(on_postgresql.url, SECONDS, statement_seconds=2)
    async with opened(on_postgresql) as database:
        async with database.migration() as connection:
            await connection.execute(select(tables.migration.c.id).with_for_update())
            upgrade = asyncio.create_task(migrate.upgrade(impatient))
            waits = (
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND clock_timestamp() > query_start + interval '2.5 seconds'"
            )
            await eventually_async(lambda: upgrade.done() or on_postgresql.rows(waits))
            assert not upgrade.done()
        await upgrade
    await impatient.close()


async def test_an_upgrade_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    database = patient(sqlite_url(file))

    @engine_events.listens_for(database.writing_engine, "before_cursor_execute")
    def fail(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        if "CREATE TABLE audit_event" in statement:
            raise OSError("the disk is gone")

    with pytest.raises(Unavailable):
        await migrate.upgrade(database)
    assert rows(file, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("migration",)]
    engine_events.remove(database.writing_engine, "before_cursor_execute", fail)
    await migrate.upgrade(database)
    await migrate.check(database)
    await database.close()


async def test_a_role_that_may_not_make_tables_is_told_so(server: postgres.Server) -> None:
    store = Store(server.create())
    postgres.administer(store.url, f"ALTER DATABASE {make_url(store.url).database} OWNER TO postgres")
    async with opened(store) as database:
        with pytest.raises(StoreFault, match="can't use its database") as caught:
            await migrate.upgrade(database)
    assert "lacks rights. Make it the owner" in caught.value.reason
    store.remove()
