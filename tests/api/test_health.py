from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support import world as worlds
from support.service import Service
from support.stores import execute
from support.world import World


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[tuple[Service, World]]:
    """A service whose world no other test uses."""
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        yield service, world


def test_a_service_that_runs_is_healthy_and_ready(client: httpx.Client) -> None:
    healthy = client.get("/healthz")
    assert (healthy.status_code, healthy.text) == (200, "ok\n")
    assert healthy.headers["content-type"].startswith("text/plain")
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_a_head_is_answered_as_a_get(client: httpx.Client, path: str) -> None:
    asked, got = client.head(path), client.get(path)
    assert asked.status_code == got.status_code == (300 if path == "/" else 200)
    names = ["content-type", "cache-control"]
    # Each request changes the metrics.
    if path != "/metrics":
        names.append("content-length")
    for name in names:
        assert asked.headers.get(name) == got.headers.get(name)
    assert client.put(path).headers["Allow"] == "GET, HEAD"


def test_where_a_head_is_not_taken_the_405_does_not_name_it(client: httpx.Client, world: World) -> None:
    answer = client.head(world.path())
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST")


def test_without_its_database_it_is_healthy_and_not_ready(breakable: tuple[Service, World]) -> None:
    service, world = breakable
    execute(world.database, "drop table generation")
    response = service.client.get("/readyz")
    assert (response.status_code, response.json()["errorCode"]) == (503, "CCE.01503001")
    assert "database" in response.json()["errorMessage"]
    assert "generation" not in response.text
    assert service.client.get("/healthz").status_code == 200


def test_a_key_encryption_key_that_fails_later_stops_nothing(breakable: tuple[Service, World]) -> None:
    service, world = breakable
    (world.folder / "kek").unlink()
    assert service.client.get("/readyz").status_code == 200
    response = service.client.post(world.path(), json={"duration": 1}, headers=world.people["admin"].headers)
    assert response.status_code == 200


def test_a_ca_key_that_does_not_open_is_a_mute_internal_error(
    breakable: tuple[Service, World],
) -> None:
    service, world = breakable
    execute(world.database, "update client_ca set sealed_key = ?", b"\x01\0\0\0\x01" + bytes(60))
    response = service.client.post(world.path(), json={"duration": 1}, headers=world.people["admin"].headers)
    assert (response.status_code, response.json()["errorCode"]) == (500, "CCE.01500001")
    assert response.json()["errorMessage"] == "Internal error."


def test_a_certificate_that_cannot_be_recorded_does_not_leave(breakable: tuple[Service, World]) -> None:
    service, world = breakable
    refuse = "create trigger full before insert on audit_event begin select raise(abort, 'disk'); end"
    execute(world.database, refuse)
    for response in (
        service.client.post(world.path(), json={"duration": 1}, headers=world.people["admin"].headers),
        service.client.get(world.path(), headers=world.people["admin"].headers),
    ):
        assert response.status_code in (500, 503)
        assert "client-certificate-data" not in response.text
        assert "disk" not in response.text
