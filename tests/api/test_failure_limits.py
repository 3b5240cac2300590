"""Sources with many failed authentications, and access keys with wrong signatures."""

import json
from collections.abc import Callable

import httpx2
import pytest
from prometheus_client import REGISTRY

from clustercert.authn.access_keys import WRONG_SIGNATURES
from clustercert.limits.failures import MANY_OF_ACCOUNT
from support.keystone import UNAUTHORIZED, Keystone, login_body
from support.service import Service
from support.stores import blob, rows
from support.world import Person, World

ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}
PROXY = {"trusted_proxies": ["127.0.0.1"]}
ATTEMPTS = 3


@pytest.fixture
def limited(service_with: Callable[..., Service]) -> httpx2.Client:
    return service_with(server=PROXY, limits={"failures_per_minute": ATTEMPTS}).client


def get(client: httpx2.Client, token: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    return client.get("/v3/auth/projects", headers={"X-Auth-Token": token} | (headers or {}))


def login(client: httpx2.Client, world: World, password: str, **headers: str) -> int:
    body = login_body(world.people["admin"].user, password=password)
    return client.post("/v3/auth/tokens", json=body, headers=headers).status_code


def test_failures_beyond_the_limit_are_a_429_and_right_credentials_go_on(
    limited: httpx2.Client, world: World
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


def test_a_source_over_the_limit_gets_no_password_checked(limited: httpx2.Client, world: World) -> None:
    password = world.people["admin"].password
    assert [login(limited, world, "wrong password") for _ in range(ATTEMPTS + 1)] == [401] * ATTEMPTS + [429]
    assert login(limited, world, password) == 429
    assert login(limited, world, password, **ELSEWHERE) == 201


def test_ten_wrong_passwords_of_one_user_are_counted_for_the_alert(
    limited: httpx2.Client, world: World
) -> None:
    name = "clustercert_accounts_with_failures_total"
    before = REGISTRY.get_sample_value(name) or 0.0
    for number in range(MANY_OF_ACCOUNT):
        address = {"X-Forwarded-For": f"203.0.113.{number}"}
        assert login(limited, world, "wrong password", **address) == 401
    assert REGISTRY.get_sample_value(name) == before + 1


def test_failures_of_api_servers_do_not_count(limited: httpx2.Client, world: World) -> None:
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


def test_a_user_creates_a_limited_number_of_tokens_and_temporary_keys(world: World) -> None:
    """A user without any role could write a hundred rows and events a second, which stay."""
    limits = {"tokens": "2/1h", "temporary_keys": "1/1h"}
    person, other = world.people["stranger"], world.people["admin"]
    by_token = {"auth": {"identity": {"methods": ["token"], "token": {"id": person.token}}}}
    key = {"auth": {"identity": {"methods": ["token"]}}}, {"X-Auth-Token": person.token}
    with Service(world.settings(limits=limits, audit={"refusals_per_minute": 1})).running() as service:
        client = service.client
        # Both a password and a token count.
        tokens = [client.post("/v3/auth/tokens", json=by_token), login_response(client, person)]
        assert [each.status_code for each in tokens] == [201, 201]
        for refused in (client.post("/v3/auth/tokens", json=by_token), login_response(client, person)):
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 1800
            assert "Use one token for several requests" in refused.json()["error"]["message"]
        assert login_response(client, other).status_code == 201
        keys = [
            client.post("/v3.0/OS-CREDENTIAL/securitytokens", json=key[0], headers=key[1]).status_code
            for _ in range(3)
        ]
        assert keys == [201, 429, 429]
    bodies = [json.loads(blob(text)) for (text,) in rows(world.database, "SELECT body FROM audit_event")]
    own = [
        each
        for each in bodies
        if each["actor"] == person.user.id and "TooManyRequests" in json.dumps(each["detail"])
    ]
    [single] = [each for each in own if each["kind"] == "request.refused"]
    assert (single["subject"], single["detail"]["auth_method"]) == ("/v3/auth/tokens", "login")
    [repeated] = [each for each in own if each["kind"] == "refusals.repeated"]
    assert repeated["detail"]["count"] == 3


def login_response(client: httpx2.Client, person: Person) -> httpx2.Response:
    return client.post("/v3/auth/tokens", json=login_body(person.user, password=person.password))
