"""Fixtures: one world and one running application for all API tests, and further applications with other settings."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from clustercert.custody.keks import write_new_kek_file
from clustercert.wiring import components
from support import postgres
from support import world as worlds
from support.administration import Administration
from support.keystone import Keystone, KeystoneData, new_data
from support.revocation_client import RevocationClient
from support.service import Service
from support.world import World, settings


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def service(world: World) -> Iterator[Service]:
    with Service(world.settings()).running() as running:
        yield running


@pytest.fixture(scope="session")
def client(service: Service) -> httpx.Client:
    return service.client


@pytest.fixture
def service_with(world: World) -> Iterator[Callable[..., Service]]:
    """Start another application on the same data, with some settings changed."""
    with ExitStack() as stack:

        def start(address: str = "127.0.0.1", **changed: object) -> Service:
            return stack.enter_context(Service(world.settings(**changed), address).running())

        yield start


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RevocationClient]:
    """A revocation client for each kind of database."""
    on_postgresql = request.param == "postgresql"
    database_url = request.getfixturevalue("server").create() if on_postgresql else None
    world = worlds.make(tmp_path_factory.mktemp("revocation"), database_url)
    with Service(world.settings()).running() as service:
        yield RevocationClient(world, service.client)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def administration(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Administration]:
    """A client of the administration API for each kind of database."""
    on_postgresql = request.param == "postgresql"
    database_url = request.getfixturevalue("server").create() if on_postgresql else None
    world = worlds.make(tmp_path_factory.mktemp("administration"), database_url)
    with Service(world.settings()).running() as service:
        yield Administration(world, service)


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
        opened = components(settings(tmp_path))
        operator = service.run(opened.__aenter__())
        yield Keystone(service, operator, keystone_data.domain, keystone_data.project, keystone_data.alice)
        service.run(opened.__aexit__(None, None, None))
