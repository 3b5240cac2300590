"""The schema: what the migrations make is what the tables say, whoever runs them and however often."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event as engine_events
from sqlalchemy import insert

from clustercert.errors import SchemaError, Unavailable
from clustercert.store import migrate, tables
from clustercert.store.database import Database
from stores import child, execute, rows, sqlite_url, start


def schema(file: Path) -> dict[object, list[str]]:
    """The statements that SQLite itself keeps, line by line, whatever their order."""
    statements = rows(
        file, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'alembic%'"
    )
    return {
        name: sorted(re.sub(r"\s+", " ", line).strip(" ,") for line in str(sql).split("\n"))
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
    made = Database(sqlite_url(tmp_path / "made.db"))
    async with made.write() as connection:
        await connection.run_sync(tables.metadata.create_all)
    await made.close()
    assert schema(file) == schema(tmp_path / "made.db")
    assert len(schema(file)) > 20


def test_a_new_database_has_a_generation_and_nothing_else(file: Path) -> None:
    assert rows(file, "SELECT id, value FROM generation") == [(1, 0)]
    assert rows(file, "SELECT version_num FROM alembic_version") == [(migrate.head(),)]
    for table in tables.metadata.sorted_tables:
        if table.name != "generation":
            assert rows(file, f'SELECT count(*) FROM "{table.name}"') == [(0,)]


async def test_upgrading_again_changes_nothing(database: Database, file: Path) -> None:
    async with database.change() as connection:
        await connection.execute(insert(tables.domain).values(id="1" * 32, name="kept", enabled=True))
    before = schema(file)
    await migrate.upgrade(database)
    assert schema(file) == before
    assert rows(file, "SELECT name FROM domain") == [("kept",)]
    assert rows(file, "SELECT value FROM generation") == [(1,)]
    assert await migrate.current(database) == migrate.head()
    await migrate.check(database)


def test_several_processes_upgrade_at_once(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    with ExitStack() as stack:
        processes = [stack.enter_context(child("upgrade", file)) for _ in range(3)]
        for process in processes:
            start(process)
        assert [process.wait(20) for process in processes] == [0, 0, 0]
    assert rows(file, "SELECT id, value FROM generation") == [(1, 0)]
    assert file.stat().st_mode & 0o777 == 0o600


async def test_an_upgrade_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    database = Database(sqlite_url(file))

    @engine_events.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def fail(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        if "CREATE TABLE audit_event" in statement:
            raise OSError("the disk is gone")

    with pytest.raises(Unavailable):
        await migrate.upgrade(database)
    assert rows(file, "SELECT count(*) FROM sqlite_master") == [(0,)]
    engine_events.remove(database.engine.sync_engine, "before_cursor_execute", fail)
    await migrate.upgrade(database)
    await migrate.check(database)
    await database.close()


async def test_a_database_without_schema_is_refused(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "new.db"))
    assert await migrate.current(database) is None
    with pytest.raises(SchemaError, match=r"no schema yet. Run `clustercert db upgrade`."):
        await migrate.check(database)
    await database.close()


async def test_a_newer_database_is_refused_and_left_alone(database: Database, file: Path) -> None:
    execute(file, "UPDATE alembic_version SET version_num = '9999'")
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match=r"has schema 9999, .* a newer one made it"):
            await refused(database)
    assert rows(file, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_an_older_database_is_refused() -> None:
    with pytest.raises(
        SchemaError, match=r"has schema 0001 and this program needs 0002. Run `clustercert db"
    ):
        migrate._check("0001", "0002", {"0001", "0002"})


def test_the_migrations_are_one_line_from_the_first_to_the_head() -> None:
    names = sorted(path.name for path in Path(migrate.__file__).with_name("migrations").glob("versions/*.py"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    assert migrate.head() == names[-1][:4]
