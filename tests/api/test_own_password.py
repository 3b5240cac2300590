"""Users change their own password with Keystone's call."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from clustercert.limits.issuing import PASSWORDS
from clustercert.model import User, new_id
from support.keystone import BY, PASSWORD, UNAUTHORIZED, Keystone, login_body
from support.service import Service
from support.stores import rows
from support.world import World

NEW = "battery staple"


def change(http: httpx2.Client, user_id: str, old: str, new: str, **headers: str) -> httpx2.Response:
    body = {"user": {"original_password": old, "password": new}}
    return http.post(f"/v3/users/{user_id}/password", json=body, headers=headers)


def login(keystone: Keystone, user: User, password: str) -> int:
    return keystone.http.post("/v3/auth/tokens", json=login_body(user, password=password)).status_code


def test_the_old_password_changes_the_password_and_ends_all_logins(
    keystone: Keystone, tmp_path: Path
) -> None:
    alice, database = keystone.alice, tmp_path / "data" / "clustercert.db"
    tokens = [keystone.login(), keystone.login()]
    asked = {"auth": {"identity": {"methods": ["token"], "token": {}}}}
    key = keystone.http.post(
        "/v3.0/OS-CREDENTIAL/securitytokens", json=asked, headers={"X-Auth-Token": tokens[0]}
    ).json()["credential"]
    done = change(keystone.http, alice.id, PASSWORD, NEW)
    assert (done.status_code, done.content) == (204, b"")
    for token in tokens:
        keystone.eventually_refused(token)
    signed = keystone.signed(
        "GET",
        "/v3/auth/projects",
        (key["access"], key["secret"]),
        more={"X-Security-Token": key["securitytoken"]},
    )
    assert signed.status_code == 401
    assert (login(keystone, alice, PASSWORD), login(keystone, alice, NEW)) == (401, 201)
    query = "SELECT body FROM audit_event WHERE subject = ? AND kind = 'user.password_changed'"
    ((body,),) = rows(database, query, alice.id)
    assert isinstance(body, bytes)
    assert json.loads(body)["actor"] == alice.id
    assert not {PASSWORD, NEW} & set(re.findall(r'"([^"]*)"', body.decode()))


def test_nothing_but_the_right_old_password_changes_it(keystone: Keystone) -> None:
    alice, bob = keystone.alice, keystone.new_user("bob")
    own = {"X-Auth-Token": keystone.login()}
    for user_id, old in ((alice.id, "wrong"), (bob.id, "wrong"), (new_id(), PASSWORD), ("alice", PASSWORD)):
        refused = change(keystone.http, user_id, old, NEW, **own)
        assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
    assert login(keystone, alice, PASSWORD) == 201
    assert login(keystone, bob, PASSWORD) == 201


@pytest.mark.parametrize("password", [None, "disabled"])
def test_users_who_can_not_log_in_can_not_change_it(keystone: Keystone, password: str | None) -> None:
    carol = keystone.new_user("carol", password and PASSWORD)
    if password is not None:
        keystone.do(keystone.directory.enable_user(carol, enabled=False, **BY))
    assert change(keystone.http, carol.id, PASSWORD, NEW).status_code == 401


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"user": {"original_password": PASSWORD, "password": "short"}}, "at least 8 characters"),
        ({"user": {"original_password": PASSWORD, "password": PASSWORD}}, "the same as original_password"),
        ({"user": {"original_password": PASSWORD}}, "user.password"),
        ({"user": {"password": NEW}}, "user.original_password"),
        ({"user": {"original_password": PASSWORD, "password": None}}, "user.password"),
        ({}, "user"),
    ],
)
def test_a_bad_request_is_a_400_in_keystones_form(keystone: Keystone, body: object, says: str) -> None:
    path = f"/v3/users/{keystone.alice.id}/password"
    refused = keystone.http.post(path, json=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["title"] == "Bad Request"
    assert says in refused.json()["error"]["message"]
    assert PASSWORD not in refused.text
    assert login(keystone, keystone.alice, PASSWORD) == 201


def test_guesses_count_like_those_at_a_login(service_with: Callable[..., Service], world: World) -> None:
    service = service_with(limits={"failures_per_minute": 3})
    user = world.people["admin"].user
    guesses = [change(service.client, user.id, "wrong", NEW).status_code for _ in range(4)]
    assert guesses == [401] * 3 + [429]
    password = world.people["admin"].password
    assert change(service.client, user.id, password, NEW).status_code == 429
    body = login_body(user, password=password)
    assert service.client.post("/v3/auth/tokens", json=body).status_code == 429


def test_a_user_changes_the_password_only_so_often(keystone: Keystone) -> None:
    """Each change leaves an event for ever, and takes as long as three logins."""
    current, other, changes, begun = PASSWORD, NEW, 0, time.monotonic()
    while (refused := change(keystone.http, keystone.alice.id, current, other)).status_code == 204:
        current, other, changes = other, current, changes + 1
    # On a slow machine, more changes become possible meanwhile.
    more = (time.monotonic() - begun) * PASSWORDS.count / PASSWORDS.seconds
    assert PASSWORDS.count <= changes <= PASSWORDS.count + more
    assert (refused.status_code, "Try again in" in refused.json()["error"]["message"]) == (429, True)
    assert int(refused.headers["Retry-After"]) > 0
    assert change(keystone.http, keystone.alice.id, "wrong", NEW).status_code == 401
    assert login(keystone, keystone.alice, current) == 201
