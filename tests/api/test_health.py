from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support import world as worlds
from support.service import Service
from support.stores import execute, rows
from support.world import World


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[tuple[Service, World]]:
    """A service whose world no other test uses."""
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        yield service, world


def test_a_service_that_runs_is_healthy_and_ready(client: httpx2.Client) -> None:
    healthy = client.get("/healthz")
    assert (healthy.status_code, healthy.text) == (200, "ok\n")
    assert healthy.headers["content-type"].startswith("text/plain")
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_a_head_is_answered_as_a_get(client: httpx2.Client, path: str) -> None:
    asked, got = client.head(path), client.get(path)
    assert asked.status_code == got.status_code == (300 if path == "/" else 200)
    names = ["content-type", "cache-control"]
    # Each request changes the metrics.
    if path != "/metrics":
        names.append("content-length")
    for name in names:
        assert asked.headers.get(name) == got.headers.get(name)
    assert client.put(path).headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    [
        "/v3",
        "/v3/",
        "/v3/projects",
        "/v3/auth/projects",
        "/v3/auth/catalog",
        "/v3/auth/domains",
    ]
    + [f"/api/v3/projects/{{project}}/clusters{tail}" for tail in ("", "/{cluster}", "/{cluster}/openapi")],
)
@pytest.mark.parametrize("who", ["admin", "nobody"])
def test_a_head_of_the_clouds_apis_is_answered_as_a_get(
    client: httpx2.Client, world: World, path: str, who: str
) -> None:
    path = path.format(project=world.project.id, cluster=world.clusters["eip"].id)
    admin = world.people["admin"]
    headers = admin.headers if who == "admin" else {}
    asked, got = client.head(path, headers=headers), client.get(path, headers=headers)
    expected = 200 if who == "admin" or path in {"/v3", "/v3/"} else 401
    assert asked.status_code == got.status_code == expected
    for name in ("content-type", "cache-control", "vary", "www-authenticate"):
        assert asked.headers.get(name) == got.headers.get(name)


def test_a_head_issues_no_certificate(client: httpx2.Client, world: World) -> None:
    before = rows(world.database, "SELECT count(*) FROM certificate")
    for path in (world.path(), world.path().replace("/api/v3/", "/autopilot/v3/")):
        answer = client.head(path, headers=world.people["admin"].headers)
        allow = "GET, POST" if path == world.path() else "POST"
        assert (answer.status_code, answer.headers["Allow"]) == (405, allow)
    assert rows(world.database, "SELECT count(*) FROM certificate") == before


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
