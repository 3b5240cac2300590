"""Service accounts of a cluster, whose API server publishes its keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from clustercert.http import middleware
from support import world as worlds
from support.apiserver import ApiServer
from support.apiserver.service_accounts import ISSUER
from support.log_capture import captured_logs
from support.service import Service
from support.world import World

pytestmark = pytest.mark.slow


@pytest.fixture
def double(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server with a service account that may log in here."""
    with ApiServer(tmp_path) as running:
        running.add_service_account("monitoring", "prometheus")
        yield running


@contextmanager
def discovering(world: World, double: ApiServer) -> Iterator[httpx.Client]:
    """A service that finds the keys by discovery."""
    issuer = {
        "name": "cluster-a",
        "preset": "kubernetes",
        "issuer": ISSUER,
        "audiences": ["clustercert"],
        "discovery_url": double.url,
        "ca_file": str(double.server_ca),
        "projects": [world.project.id],
        "roles": [{"role": "reader", "claims": {"/kubernetes.io/namespace": ["monitoring"]}}],
    }
    with Service(
        world.settings(identity={"region": worlds.REGION, "issuers": [issuer]})
    ).running() as service:
        yield service.client


def token(double: ApiServer) -> str:
    return double.tokens.token("monitoring", "prometheus", ["clustercert"])


def projects(client: httpx.Client, token: str) -> httpx.Response:
    return client.get("/v3/auth/projects", headers={"Authorization": f"Bearer {token}"})


def test_keys_are_found_by_discovery_if_the_cluster_allows_it_to_everybody(
    double: ApiServer, world: World
) -> None:
    double.bind("system:unauthenticated", "system:service-account-issuer-discovery")
    with discovering(world, double) as client:
        [found] = projects(client, token(double)).json()["projects"]
        assert found["id"] == world.project.id
        double.tokens.rotate()
        assert projects(client, token(double)).status_code == 200


def test_a_cluster_that_hides_its_keys_is_an_issuer_that_is_away(double: ApiServer, world: World) -> None:
    with discovering(world, double) as client, captured_logs(middleware) as said:
        assert projects(client, token(double)).status_code == 503
    assert "status 403" in str(said)
