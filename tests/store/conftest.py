"""A migrated database for each test: on SQLite, and on PostgreSQL if it is installed."""

import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.model import Cluster
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from support import postgres
from support.accounts import Accounts, new_accounts
from support.credential_cache import PATIENT, Clock
from support.credential_usage import usage_at
from support.store_records import register_cluster
from support.stores import Store, migrate, new_template, patient, sqlite_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated SQLite file, which each test copies."""
    file = tmp_path_factory.mktemp("migrated") / "store.db"
    migrate(Store(sqlite_url(file)))
    return file


@pytest.fixture(scope="session")
def template(server: postgres.Server) -> str:
    """Return the name of a migrated database, which each test copies."""
    return new_template(server)


@pytest.fixture
def file(tmp_path: Path, migrated_file: Path) -> Path:
    """An empty SQLite database with the schema."""
    return Path(shutil.copy(migrated_file, tmp_path / "store.db"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a PostgreSQL server, so that a run can exclude them."""
    for item in items:
        if isinstance(item, pytest.Function) and "on_postgresql" in item.fixturenames:
            item.add_marker("postgresql")
        if item.get_closest_marker("long_on_server") and "postgresql" in item.name:
            item.add_marker("long")


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
    """A PostgreSQL database without a schema, or the path of an SQLite file that does not exist."""
    if request.param == "sqlite":
        yield Store(sqlite_url(tmp_path / "new.db"))
        return
    server: postgres.Server = request.getfixturevalue("server")
    new = Store(server.create())
    yield new
    new.remove()


@pytest.fixture
async def database(store: Store) -> AsyncIterator[Database]:
    database = patient(store.url)
    # What was read a moment ago stays fresh, however busy the machine is. Tests of its end have clocks of their own.
    begun = time.monotonic()
    database.generation._clock = lambda: begun
    yield database
    await database.close()


@pytest.fixture
async def feed(database: Database) -> RevocationFeed:
    feed = RevocationFeed(database, Clock())
    await feed.refresh()
    return feed


@pytest.fixture
async def known(database: Database, feed: RevocationFeed) -> CredentialCache:
    return CredentialCache(database, feed, PATIENT)


@pytest.fixture
async def there(database: Database, store: Store) -> Cluster:
    """A registered cluster."""
    return await register_cluster(database, store)


@pytest.fixture
def usage(database: Database, there: Cluster) -> CredentialUsage:
    return usage_at(database)


@pytest.fixture
async def elsewhere(store: Store) -> AsyncIterator[RevocationQueries]:
    """Revocation queries as in another process."""
    database = patient(store.url)
    yield RevocationQueries(database)
    await database.close()


@pytest.fixture
async def accounts(database: Database, store: Store) -> AsyncIterator[Accounts]:
    async with new_accounts(database, store) as it:
        yield it
