"""Migrations create the declared tables, and programs refuse the schemas that they can't use."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event as engine_events
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from clustercert.model.errors import SchemaError, StoreFault, Unavailable
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
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


# Everything that a migration can change in PostgreSQL. `contype = 'n'` repeats `attnotnull`.
_CATALOGS = """
    SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
           pg_get_expr(d.adbin, d.adrelid), a.attidentity::text || a.attgenerated::text, a.attcollation::text
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'relation', relname, relkind::text, '', '', '', '', '' FROM pg_class
     WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '', '', ''
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL
    SELECT 'index', indexdef, '', '', '', '', '', '' FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'trigger', pg_get_triggerdef(oid), '', '', '', '', '', '' FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'function', pg_get_functiondef(oid), '', '', '', '', '', '' FROM pg_proc
     WHERE pronamespace = 'public'::regnamespace
"""


def schema(store: Store) -> set[str]:
    """Return every column, constraint, index and trigger of a database, without the order of columns."""
    if store.file is None:
        return {line for row in store.rows(_CATALOGS) if "alembic" not in (line := str(row))}
    statements = store.rows(
        "SELECT name, sql FROM sqlite_master"
        " WHERE sql NOT NULL AND name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite%'"
    )
    parts = ((name, part) for name, sql in statements for part in re.split("[\n,]", str(sql)))
    return {f"{name}: {' '.join(part.split()).strip(' ()')}" for name, part in parts}


async def test_the_migrations_create_exactly_the_declared_schema(new_store: Store) -> None:
    async with opened(new_store) as database:
        async with database.transaction() as connection:
            await connection.run_sync(tables.metadata.create_all)
        declared = schema(new_store)
        async with database.transaction() as connection:
            await connection.run_sync(tables.metadata.drop_all)
            if new_store.file is None:
                await connection.execute(text("DROP FUNCTION audit_event_unsealed"))
        assert schema(new_store) == set()
        await migrate.upgrade(database)
    assert schema(new_store) == declared
    assert len(declared) > 300


def test_that_comparison_sees_each_kind_of_change(store: Store) -> None:
    changes = [
        'ALTER TABLE "user" ADD COLUMN colour TEXT',
        "ALTER TABLE project DROP COLUMN labels",
        "ALTER TABLE domain RENAME COLUMN enabled TO is_enabled",
        "DROP INDEX ix_project_name",
        "CREATE INDEX ix_project_name ON project (description)",
        "DROP INDEX ix_certificate_revoked_used_at",
        "CREATE INDEX ix_certificate_revoked_used_at ON certificate (revoked_used_at)",
        "CREATE TABLE colour (name TEXT)",
        "DROP TRIGGER audit_event_unsealed" + (" ON audit_event" if store.file is None else ""),
    ]
    if store.file is None:
        changes += [
            "ALTER TABLE role ALTER COLUMN name TYPE VARCHAR(65)",
            "ALTER TABLE role ALTER COLUMN name DROP NOT NULL",
            "ALTER TABLE role ALTER COLUMN name SET DEFAULT ''",
            "ALTER TABLE role DROP CONSTRAINT uq_role_name",
            "ALTER TABLE role ADD CONSTRAINT short CHECK (length(name) < 9)",
            "ALTER TABLE token DROP CONSTRAINT fk_token_user_id_user",
            "DROP FUNCTION audit_event_unsealed",
        ]
    seen = [schema(store)]
    for change in changes:
        store.execute(change)
        seen.append(schema(store))
    assert [
        change for change, before, after in zip(changes, seen[:-1], seen[1:], strict=True) if before == after
    ] == []


def test_migrations_do_not_depend_on_what_the_program_declares_now() -> None:
    for file in migrate.MIGRATIONS.rglob("*.py"):
        assert "clustercert" not in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE)


def test_a_new_database_has_a_generation_and_nothing_else(store: Store) -> None:
    assert store.rows("SELECT id, value FROM generation") == [(1, 0)]
    assert store.rows("SELECT version_num FROM alembic_version") == [(migrate.head(),)]
    for table in tables.metadata.sorted_tables:
        if table.name not in ("generation", "migration"):
            assert store.rows(f'SELECT count(*) FROM "{table.name}"') == [(0,)]


async def test_upgrading_again_changes_nothing(database: Database, store: Store) -> None:
    async with database.transaction(invalidate=True) as connection:
        await connection.execute(insert(tables.domain).values(id="1" * 32, name="kept", enabled=True))
    before = schema(store)
    await migrate.upgrade(database)
    assert schema(store) == before
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
        before = schema(new_store)
        for refused in (migrate.check, migrate.upgrade):
            with pytest.raises(SchemaError) as caught:
                await refused(database)
            assert caught.value.message == (
                f"The database has schema {revision} of a build before version 0.1.0, which can't be upgraded: set"
                " `database_url` to an empty database or `data_dir` to an empty folder."
            )
    assert schema(new_store) == before
    assert new_store.rows("SELECT version_num FROM alembic_version") == [(revision,)]


async def test_a_newer_database_is_refused_and_left_alone(
    database: Database, store: Store, tmp_path: Path
) -> None:
    await migrate.upgrade(database, with_the_next(tmp_path, oldest_program=NEXT))
    before = schema(store)
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match=rf"has schema {NEXT}, .* too new for this program"):
            await refused(database)
    assert schema(store) == before
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
