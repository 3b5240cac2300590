"""Sources with many failed authentications, and access keys with wrong signatures."""

from collections.abc import Callable

import httpx
import pytest

from clustercert.authn.signature_lock import WRONG_SIGNATURES
from support.keystone import UNAUTHORIZED, Keystone, login_body
from support.service import Service
from support.world import World

ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}
PROXY = {"trusted_proxies": ["127.0.0.1"]}
ATTEMPTS = 3


@pytest.fixture
def limited(service_with: Callable[..., Service]) -> httpx.Client:
    return service_with(server=PROXY, limits={"failures_per_minute": ATTEMPTS}).client


def get(client: httpx.Client, token: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return client.get("/v3/auth/projects", headers={"X-Auth-Token": token} | (headers or {}))


def login(client: httpx.Client, world: World, password: str, **headers: str) -> int:
    body = login_body(world.people["admin"].user, password=password)
    return client.post("/v3/auth/tokens", json=body, headers=headers).status_code


def test_failures_beyond_the_limit_are_a_429_and_right_credentials_go_on(
    limited: httpx.Client, world: World
) -> None:
    wrong, right = "x" * 43, world.people["admin"].token
    assert [get(limited, wrong).status_code for _ in range(ATTEMPTS + 1)] == [401] * ATTEMPTS + [429]
    response = limited.get(world.path(tail=""), headers={"X-Auth-Token": wrong})
    assert (response.status_code, response.json()["errorCode"]) == (429, "CCE.02429001")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    # Not an attempt to guess, so the limit does not apply.
    assert limited.get(world.path(tail="")).status_code == 401
    for headers in ({}, ELSEWHERE):
        assert get(limited, right, headers).status_code == 200
    assert get(limited, wrong, ELSEWHERE).status_code == 401


def test_a_source_over_the_limit_gets_no_password_checked(limited: httpx.Client, world: World) -> None:
    password = world.people["admin"].password
    assert [login(limited, world, "wrong password") for _ in range(ATTEMPTS + 1)] == [401] * ATTEMPTS + [429]
    assert login(limited, world, password) == 429
    assert login(limited, world, password, **ELSEWHERE) == 201


def test_failures_of_api_servers_do_not_count(limited: httpx.Client, world: World) -> None:
    path = f"/clustercert/v1/kubernetes/clusters/{world.clusters['plain'].id}/authorize"
    headers = {"Authorization": "Bearer wrong"}
    assert {limited.post(path, headers=headers, json={}).status_code for _ in range(2 * ATTEMPTS)} == {401}
    assert login(limited, world, world.people["admin"].password) == 201


def test_a_locked_access_key_gets_the_401_of_any_failure(keystone: Keystone) -> None:
    key = keystone.new_key(keystone.alice)
    wrong = key[0], "guess"
    path = "/v3/auth/projects"
    for _ in range(WRONG_SIGNATURES):
        assert keystone.signed("GET", path, wrong).status_code == 401
    refused = keystone.signed("GET", path, key)
    assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
    assert keystone.http.get(path, headers={"X-Auth-Token": keystone.login()}).status_code == 200
