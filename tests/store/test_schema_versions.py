"""Which schemas the program works with."""

import asyncio
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from clustercert.model.errors import SchemaError
from clustercert.store.certificate_maintenance import CertificateMaintenance
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from clustercert.store.ledger import Ledger
from support.migrations import NEXT, columns, opened, with_the_next
from support.stores import NOW, Store, certificate_record, patient


async def test_a_database_without_schema_is_refused(new_store: Store) -> None:
    async with opened(new_store) as database:
        assert await migrate.current(database) is None
        with pytest.raises(SchemaError, match=r"no schema yet. Run `clustercert db upgrade`."):
            await migrate.check(database)


def test_an_older_database_is_refused() -> None:
    with pytest.raises(
        SchemaError, match=r"has schema 0001 and this program needs 0002. Run `clustercert db"
    ):
        migrate._check("0001", "0002", {"0001", "0002"}, "0001")


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
    store.execute("UPDATE alembic_version SET version_num = '0099'")
    for refused in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match=r"has schema 0099, .* too new for this program"):
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
        migrate.upgrade(newer, with_the_next(tmp_path, oldest_program="0001")), ledger.record(*during)
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
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS).replace("%", "%%"))
    walked = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert walked == [name[:4] for name in reversed(names)]
    assert migrate.head() == walked[0]


def test_an_installation_without_migrations_says_so(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="migrations are missing"):
        migrate.head(tmp_path)
