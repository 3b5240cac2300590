"""`clustercert db copy`: from SQLite to PostgreSQL, with the audit log and the ids of deleted rows."""

import asyncio
import time
from pathlib import Path

import pytest

from clustercert.store import tables
from support import world
from support.command_line import Operator
from support.store_records import issue
from support.stores import Store, execute, patient, rows, sqlite_url

NEWEST = "DELETE FROM certificate WHERE id = (SELECT max(id) FROM certificate)"


@pytest.fixture
def source(tmp_path: Path) -> Operator:
    """The operator of a service with people, clusters, and three certificates, of which the newest is deleted."""
    place = world.make(tmp_path)
    operator = Operator(tmp_path)
    operator.configure()
    asyncio.run(
        issued(
            sqlite_url(place.database), place.people["member"].user.id, place.clusters["plain"].id, count=3
        )
    )
    execute(place.database, NEWEST)
    return operator


def file_of(operator: Operator) -> Path:
    return operator.folder / "data" / "clustercert.db"


async def issued(url: str, user_id: str, cluster_id: str, *, count: int = 1) -> None:
    database = patient(url)
    for _ in range(count):
        await issue(database, user_id, cluster_id)
    await database.close()


def all_rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables that a copy has, by table."""
    return asyncio.run(read_rows(url))


async def read_rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    database = patient(url)
    found = {}
    async with database.read() as connection:
        for table in tables.metadata.sorted_tables:
            if table.name not in ("migration", "lease"):
                found[table.name] = sorted(map(tuple, await connection.execute(table.select())), key=repr)
    await database.close()
    return found


def test_everything_is_copied_and_the_log_stays_intact(source: Operator, on_postgresql: Store) -> None:
    checkpoint = source.folder / "kept"
    checkpoint.write_text(source.output("audit", "checkpoint"))
    key = source.output("audit", "checkpoint", "--verifier-key").strip()
    source.output("domain", "create", "unsealed")
    before = all_rows(sqlite_url(file_of(source)))
    source.configure(f"database_url = '{on_postgresql.url}'")
    done = source.run("db", "copy", file_of(source))
    assert (done.code, done.out) == (0, ""), done.err
    assert f"Copied {sum(map(len, before.values()))} rows." in done.err
    assert all_rows(on_postgresql.url) == before
    assert before["certificate"]
    assert before["audit_unsealed"]

    source.output("db", "check")
    source.output("audit", "verify", "--checkpoint", checkpoint, "--key", key)
    # New rows get ids above those of deleted rows, as on SQLite.
    [(used,)] = rows(file_of(source), "SELECT seq FROM sqlite_sequence WHERE name = 'certificate'")
    asyncio.run(issued(on_postgresql.url, "user", "cluster"))
    assert isinstance(used, int)
    assert on_postgresql.rows("SELECT max(id) FROM certificate") == [(used + 1,)]


def test_a_target_that_is_not_empty_is_refused(source: Operator, on_postgresql: Store) -> None:
    on_postgresql.execute("INSERT INTO domain (id, name, enabled) VALUES ('d', 'there', true)")
    before = all_rows(on_postgresql.url)
    source.configure(f"database_url = '{on_postgresql.url}'")
    assert "is not empty: its table domain has rows" in source.error("db", "copy", file_of(source))
    assert all_rows(on_postgresql.url) == before


def test_a_database_that_a_service_uses_is_refused(source: Operator, on_postgresql: Store) -> None:
    source.configure(f"database_url = '{on_postgresql.url}'")
    lease = "INSERT INTO lease (name, holder, expires_at) VALUES ('sealing', 'h', ?)"
    execute(file_of(source), lease, int(time.time()) + 600)
    assert "A service uses the SQLite database. Stop the service." in source.error(
        "db", "copy", file_of(source)
    )
    execute(file_of(source), "UPDATE lease SET expires_at = ?", int(time.time()) - 1)
    source.output("db", "copy", file_of(source))


def test_a_copy_that_fails_leaves_the_target_empty(source: Operator, on_postgresql: Store) -> None:
    before = all_rows(on_postgresql.url)
    source.configure(f"database_url = '{on_postgresql.url}'")
    # SQLite ignores the length of a column, PostgreSQL does not.
    execute(file_of(source), "UPDATE certificate SET key_type = ?", "x" * 40)
    assert source.run("db", "copy", file_of(source)).code != 0
    assert all_rows(on_postgresql.url) == before
    execute(file_of(source), "UPDATE certificate SET key_type = 'ec-p256'")
    source.output("db", "copy", file_of(source))


def test_other_targets_and_missing_files_are_refused(source: Operator) -> None:
    assert "The settings name no PostgreSQL database." in source.error("db", "copy", file_of(source))
    source.configure("database_url = 'postgresql+asyncpg://nobody@127.0.0.1/nothing'")
    assert "missing.db is not a file." in source.error("db", "copy", source.folder / "missing.db")
    assert not (source.folder / "missing.db").exists()
