"""Unknown ids, sent by operators, who can access every project; on both databases."""

from collections.abc import Iterator

import httpx2
import pytest

from support.service import Service
from support.world import World

OWN = "/clustercert/v1"


@pytest.fixture(scope="module")
def anywhere(own_world: World) -> Iterator[tuple[World, httpx2.Client]]:
    with Service(own_world.settings()).running() as service:
        yield own_world, service.client


@pytest.mark.parametrize("strange", ["%00", "a%00b", "%ED%A0%80", "%FF", "%0A", "x" * 3000, "%F0%9F%98%80"])
@pytest.mark.parametrize(
    "path",
    [
        OWN + "/projects/{}/certificates",
        OWN + "/projects/{}/events",
        OWN + "/projects/{}/events/1",
        OWN + "/projects/{}/events/1/proof",
        OWN + "/projects/{}/clusters/{}/certificates",
        OWN + "/projects/{}/clusters/{}/access",
        OWN + "/projects/{}/clusters/{}/revocations",
        OWN + "/users/{}/revocations",
        OWN + "/access-requests/{}",
        OWN + "/clusters/{}/offers",
        OWN + "/access-requests?cluster={}",
        OWN + "/clusters/{}/client-cas/{}/crl",
        "/v3/projects/{}",
        "/api/v3/projects/{}/clusters/{}",
    ],
)
def test_what_is_no_id_is_not_there_or_makes_no_sense(
    anywhere: tuple[World, httpx2.Client], path: str, strange: str
) -> None:
    world, client = anywhere
    response = client.get(path.replace("{}", strange), headers=world.people["operator"].headers)
    assert response.status_code in (200, 400, 404)
    if response.status_code == 200:
        assert next(iter(response.json().values())) == []


@pytest.mark.parametrize(("strange", "status"), [("%00", 404), ("%ED%A0%80", 400), ("%0A", 404)])
@pytest.mark.parametrize("tail", ["", "/complete", "/abort"])
def test_no_rotation_is_in_what_is_no_project(
    anywhere: tuple[World, httpx2.Client], tail: str, strange: str, status: int
) -> None:
    world, client = anywhere
    path = f"{OWN}/projects/{strange}/clusters/plain/client-ca-rotation{tail}"
    assert client.post(path, headers=world.people["operator"].headers).status_code == status


def test_no_user_gets_a_name_that_is_not_utf_8(anywhere: tuple[World, httpx2.Client]) -> None:
    world, client = anywhere
    headers = world.people["operator"].headers
    assert client.put(f"{OWN}/users/%FF", json={}, headers=headers).status_code == 400
    assert "\ufffd" not in client.get(f"{OWN}/users", headers=headers).text
    assert client.put(f"{OWN}/users/%C3%BC", json={}, headers=headers).status_code == 201
