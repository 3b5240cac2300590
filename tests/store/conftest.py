"""A migrated database of its own for each test, of each kind that there is."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import postgres
from clustercert.store.credentials import Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.revocations import Revocations
from identities import House, furnished_house
from remembered import Clock
from stores import Store, migrate, new_template, sqlite_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, copied by each test."""
    file = tmp_path_factory.mktemp("migrated") / "store.db"
    migrate(Store(sqlite_url(file)))
    return file


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """One for all tests of this process that leave it running."""
    with postgres.server() as running:
        yield running


@pytest.fixture(scope="session")
def template(server: postgres.Server) -> str:
    """The name of a migrated database; made once, copied by each test."""
    return new_template(server)


@pytest.fixture
def file(tmp_path: Path, migrated_file: Path) -> Path:
    """An empty SQLite database with the schema."""
    return Path(shutil.copy(migrated_file, tmp_path / "store.db"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, such as `make test-fast` leaves out by this word."""
    for item in items:
        if isinstance(item, pytest.Function) and "on_postgresql" in item.fixturenames:
            item.add_marker("postgresql")


@pytest.fixture
def on_postgresql(server: postgres.Server, template: str) -> Iterator[Store]:
    """An empty PostgreSQL database with the schema."""
    store = Store(server.create(template))
    yield store
    store.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty database with the schema."""
    if request.param == "sqlite":
        return Store(sqlite_url(request.getfixturevalue("file")))
    found: Store = request.getfixturevalue("on_postgresql")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A database without a schema; of SQLite, none at all."""
    if request.param == "sqlite":
        yield Store(sqlite_url(tmp_path / "new.db"))
        return
    server: postgres.Server = request.getfixturevalue("server")
    new = Store(server.create())
    yield new
    new.remove()


@pytest.fixture
async def database(store: Store) -> AsyncIterator[Database]:
    database = Database(store.url)
    yield database
    await database.close()


@pytest.fixture
async def feed(database: Database) -> Feed:
    feed = Feed(database, Clock())
    await feed.refresh()
    return feed


@pytest.fixture
async def known(database: Database, feed: Feed) -> Credentials:
    return Credentials(database, feed)


@pytest.fixture
async def elsewhere(store: Store) -> AsyncIterator[Revocations]:
    """Another process, which revokes."""
    database = Database(store.url)
    yield Revocations(database)
    await database.close()


@pytest.fixture
async def house(database: Database, store: Store) -> AsyncIterator[House]:
    async with furnished_house(database, store) as it:
        yield it
