"""One world and one running application for all tests of the API; settings of their own get an application more."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

import world as worlds
from inprocess import Service
from world import World


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
    """Start one more application over the same data, with some settings changed."""
    with ExitStack() as stack:

        def start(address: str = "127.0.0.1", **changed: object) -> Service:
            return stack.enter_context(Service(world.settings(**changed), address).running())

        yield start
