"""A migrated SQLite database of its own for each test."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clustercert.store import migrate
from clustercert.store.database import Database
from stores import sqlite_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, copied by each test."""
    file = tmp_path_factory.mktemp("migrated") / "store.db"

    async def make() -> None:
        database = Database(sqlite_url(file))
        await migrate.upgrade(database)
        await database.close()

    asyncio.run(make())
    return file


@pytest.fixture
def file(tmp_path: Path, migrated_file: Path) -> Path:
    """An empty database with the schema."""
    return Path(shutil.copy(migrated_file, tmp_path / "store.db"))


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    database = Database(sqlite_url(file))
    yield database
    await database.close()
