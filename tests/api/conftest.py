"""Fixtures: one world and one running application for all API tests, and further applications with other settings."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from clustercert.custody.keks import write_new_kek_file
from clustercert.server import reloading
from clustercert.wiring import open_components
from support import quick_work
from support import world as worlds
from support.administration import Administration
from support.keystone import Keystone, KeystoneData, new_data
from support.revocation_client import RevocationClient
from support.service import Service
from support.world import World, settings


@pytest.fixture(scope="module", autouse=True)
def audit() -> Iterator[None]:
    """Many tests wait for events."""
    with quick_work.quick_audit():
        yield


@pytest.fixture
def quick_propagation() -> Iterator[None]:
    """Logouts and removals wait for stale caches, which end after a fraction of a second during the test."""
    with quick_work.quick_propagation():
        yield


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services that are started after this try a failed reload again after 0.05 seconds, instead of two."""
    monkeypatch.setattr(reloading, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.05)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def service(world: World) -> Iterator[Service]:
    with Service(world.settings()).running() as running:
        yield running


@pytest.fixture(scope="session")
def client(service: Service) -> httpx2.Client:
    return service.client


@pytest.fixture
def service_with(world: World) -> Iterator[Callable[..., Service]]:
    """Start another application on the same data, with some settings changed."""
    with ExitStack() as stack:

        def start(address: str = "127.0.0.1", **changed: object) -> Service:
            return stack.enter_context(Service(world.settings(**changed), address).running())

        yield start


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def own_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data of the module's own in each kind of database."""
    on_postgresql = request.param == "postgresql"
    database_url = request.getfixturevalue("server").create() if on_postgresql else None
    return worlds.make(tmp_path_factory.mktemp("world"), database_url)


@pytest.fixture(scope="module")
def place(own_world: World) -> Iterator[RevocationClient]:
    """A revocation client for each kind of database."""
    with Service(own_world.settings()).running() as service:
        yield RevocationClient(own_world, service.client)


@pytest.fixture(scope="module")
def administration(own_world: World) -> Iterator[Administration]:
    """A client of the administration API for each kind of database."""
    with Service(own_world.settings()).running() as service:
        yield Administration(own_world, service)


@pytest.fixture(scope="session")
def keystone_data(tmp_path_factory: pytest.TempPathFactory) -> KeystoneData:
    """A store with a domain, a project and its admin, made once and copied by each test."""
    folder = tmp_path_factory.mktemp("keystone")
    write_new_kek_file(folder / "kek")
    return asyncio.run(new_data(folder))


@pytest.fixture
def keystone(tmp_path: Path, keystone_data: KeystoneData) -> Iterator[Keystone]:
    shutil.copytree(keystone_data.folder, tmp_path, dirs_exist_ok=True)
    with Service(settings(tmp_path)).running() as service:
        opened = open_components(settings(tmp_path))
        operator = service.run(opened.__aenter__())
        yield Keystone(service, operator, keystone_data.domain, keystone_data.project, keystone_data.alice)
        service.run(opened.__aexit__(None, None, None))
