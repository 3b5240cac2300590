"""Migrations create the declared tables, and programs refuse the schemas that they can't use."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event as engine_events
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from clustercert.model.errors import SchemaError, StoreFault, Unavailable
from clustercert.store import tables
from clustercert.store.certificates import CertificateMaintenance
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from clustercert.store.ledger import Ledger
from support import postgres
from support.migrations import NEXT, with_the_next
from support.stores import NOW, Store, certificate_record, child, patient, rows, sqlite_url, start
from support.wait import SECONDS, eventually_async

HEAD = migrate.head()


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Database]:
    database = patient(store.url)
    try:
        yield database
    finally:
        await database.close()


def columns(store: Store) -> object:
    """Return the columns in the database."""
    if store.file is not None:
        return schema(store.file)
    query = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
    return sorted(map(str, store.rows(query))), sorted(map(str, store.rows(indexes)))


def schema(file: Path) -> dict[object, list[str]]:
    """Return the parts of the statements in SQLite's schema, without their order."""
    statements = rows(
        file, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'alembic%'"
    )
    return {
        name: sorted(
            filter(None, (re.sub(r"\s+", " ", part).strip(" ()") for part in re.split("[\n,]", str(sql))))
        )
        for name, sql in statements
    }


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


@pytest.mark.slow
async def test_several_processes_upgrade_at_once(new_store: Store) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(child("upgrade", new_store)) for _ in range(3)]
        for process in processes:
            start(process)
        assert [process.wait(SECONDS) for process in processes] == [0, 0, 0]
    assert new_store.rows("SELECT id, value FROM generation") == [(1, 0)]
    assert new_store.rows("SELECT id, oldest_program FROM migration") == [(1, migrate.head())]
    if new_store.file is not None:
        assert new_store.file.stat().st_mode & 0o777 == 0o600


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


async def test_a_table_of_another_application_is_not_taken_over(new_store: Store) -> None:
    async with opened(new_store) as database:
        async with database.transaction() as connection:
            await connection.execute(text("CREATE TABLE role (id INTEGER)"))
        with pytest.raises((Unavailable, DBAPIError)):
            await migrate.upgrade(database)
        assert await migrate.current(database) is None


async def test_a_role_that_may_not_make_tables_is_told_so(server: postgres.Server) -> None:
    store = Store(server.create())
    postgres.administer(store.url, f"ALTER DATABASE {make_url(store.url).database} OWNER TO postgres")
    async with opened(store) as database:
        with pytest.raises(StoreFault, match="can't use its database") as caught:
            await migrate.upgrade(database)
    assert "lacks rights. Make it the owner" in caught.value.reason
    store.remove()


async def test_a_database_without_schema_is_refused(new_store: Store) -> None:
    async with opened(new_store) as database:
        assert await migrate.current(database) is None
        with pytest.raises(SchemaError, match=r"no schema yet. Run `clustercert db upgrade`."):
            await migrate.check(database)


async def test_an_older_database_is_refused(database: Database, tmp_path: Path) -> None:
    newer = with_the_next(tmp_path, oldest_program=NEXT)
    with pytest.raises(
        SchemaError, match=rf"has schema {HEAD} and this program needs {NEXT}. Run `clustercert db"
    ):
        await migrate.check(database, newer)


@pytest.mark.parametrize("revision", ["0001", "0012"])
async def test_a_database_of_a_build_before_the_first_migration_is_refused_and_left_alone(
    new_store: Store, revision: str
) -> None:
    async with opened(new_store) as database:
        async with database.transaction() as connection:
            await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
            await connection.execute(text(f"INSERT INTO alembic_version VALUES ('{revision}')"))
        before = columns(new_store)
        for refused in (migrate.check, migrate.upgrade):
            with pytest.raises(SchemaError) as caught:
                await refused(database)
            assert caught.value.message == (
                f"The database has schema {revision} of a build before version 0.1.0, which can't be upgraded: set"
                " `database_url` to an empty database or `data_dir` to an empty folder."
            )
    assert columns(new_store) == before
    assert new_store.rows("SELECT version_num FROM alembic_version") == [(revision,)]


async def test_a_newer_database_is_refused_and_left_alone(
    database: Database, store: Store, tmp_path: Path
) -> None:
    await migrate.upgrade(database, with_the_next(tmp_path, oldest_program=NEXT))
    before = columns(store)
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match=rf"has schema {NEXT}, .* too new for this program"):
            await refused(database)
    assert columns(store) == before
    assert store.rows("SELECT version_num FROM alembic_version") == [(NEXT,)]


async def test_an_unknown_revision_is_refused_whatever_another_one_allowed(
    database: Database, store: Store
) -> None:
    store.execute("UPDATE alembic_version SET version_num = '9999'")
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match=r"has schema 9999, .* too new for this program"):
            await refused(database)


async def test_a_newer_database_that_leaves_this_program_what_it_needs_is_used(
    database: Database, store: Store, tmp_path: Path
) -> None:
    """During a rolling upgrade, older replicas continue, restart, and run `db upgrade`."""
    ledger = Ledger(database)
    before, during, after = (certificate_record() for _ in range(3))
    await ledger.record(*before)
    newer = patient(store.url)
    await asyncio.gather(
        migrate.upgrade(newer, with_the_next(tmp_path, oldest_program=HEAD)), ledger.record(*during)
    )
    await newer.close()
    await ledger.record(*after)
    async with opened(store) as restarted:
        await migrate.upgrade(restarted)
        await migrate.check(restarted)
        await CertificateMaintenance(restarted).live(NOW, [NOW])
    assert await migrate.current(database) == NEXT
    assert store.recorded() == {record.fingerprint.hex() for record, _ in (before, during, after)}


def test_the_migrations_are_one_line_from_the_first_to_the_head() -> None:
    names = sorted(path.name for path in migrate.MIGRATIONS.glob("versions/*.py"))
    assert [int(name[:4]) for name in names] == list(range(1001, 1001 + len(names)))
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS).replace("%", "%%"))
    walked = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert walked == [name[:4] for name in reversed(names)]
    assert walked[0] == HEAD


def test_an_installation_without_migrations_says_so(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="migrations are missing"):
        migrate.head(tmp_path)
