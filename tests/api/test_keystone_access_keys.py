"""Signatures with EC2 credentials of Keystone: who may send what, and for how long."""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.x509.oid import NameOID

from clustercert.authn.access_keys import WRONG_SIGNATURES
from clustercert.authn.keystone import access_keys as module
from clustercert.http import middleware
from clustercert.pki.request_signature import SignatureCredential, SignedParts, payload_hash, sign
from support import world as worlds
from support.keystone_double import Answer, KeystoneDouble, problem
from support.keystone_site import RULES, Site, groups, names, running
from support.log_capture import captured_logs
from support.service import BASE_URL, Service
from support.wait import SECONDS, eventually
from support.world import World

Key = tuple[str, str]
SCOPES = {"flat": "", "scoped": "{}///sdk_request", "derived": "{}/eu-de/cce"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("keystone"), cache="1s") as found:
        yield found


def post(client: httpx2.Client, path: str, key: Key, scheme: Any = "flat", **more: str) -> httpx2.Response:
    """Ask for a certificate, signed like one of the vendors' SDKs."""
    date, body = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", b'{"duration": 1}'
    headers = ((b"host", BASE_URL.removeprefix("http://").encode()), (b"x-sdk-date", date.encode()))
    parts = SignedParts("POST", path, "", headers, payload_hash(body))
    credential = SignatureCredential(scheme, key[0], SCOPES[scheme].format(date[:8]))
    sent = {
        "X-Sdk-Date": date,
        "Authorization": sign(parts, credential, key[1].encode()),
        "Content-Type": "application/json",
    }
    return client.post(path, content=body, headers=sent | more)


def ask(site: Site, key: Key, scheme: str = "flat", **more: str) -> httpx2.Response:
    return post(site.client, site.world.path(), key, scheme, **more)


def new_key(site: Site, *roles: str, groups: tuple[str, ...] = ()) -> tuple[str, Key]:
    user_id = site.user(*roles, groups=groups)
    return user_id, site.keystone.add_credential(user_id, site.world.project.id)


@pytest.mark.parametrize("scheme", SCOPES)
def test_a_signature_gets_a_certificate_for_the_users_roles_and_groups(site: Site, scheme: str) -> None:
    user_id, key = new_key(site, "member", groups=("team-blue",))
    response = ask(site, key, scheme)
    assert names(response, NameOID.COMMON_NAME) == [user_id]
    assert groups(response) == ["clustercert:members", "team:keystone/acme/team-blue"]
    [event] = site.events(user_id, "certificate.issued")
    caller = event["detail"]["caller"]
    assert (caller["auth_method"], caller["credential_id"]) == ("keystone_key", key[0])


def test_the_secret_is_in_no_log_line(site: Site) -> None:
    _, key = new_key(site, "member")
    with captured_logs(middleware) as said, captured_logs(module) as more:
        assert ask(site, key).status_code == 200
        assert ask(site, (key[0], "wrong")).status_code == 401
    assert key[1] not in f"{said}{more}"


def test_a_key_that_is_called_like_the_hash_of_a_token_gets_none_of_its_roles(tmp_path: Path) -> None:
    """Users choose the ids of their keys, and admins of a project see the hashes of tokens in its audit events."""
    with running(tmp_path) as site:
        token = site.token(site.user("admin"))
        assert groups(site.post(token)) == ["clustercert:admins"]
        user_id, chosen = site.user("member"), hashlib.sha256(token.encode()).hexdigest()
        access, secret = site.keystone.add_credential(user_id, site.world.project.id, access=chosen)
        credential = site.keystone.credentials.pop(site.keystone.credential_id(access))
        credential["id"] = site.keystone.credential_id(chosen)
        site.keystone.credentials[credential["id"]] = credential
        assert groups(ask(site, (chosen, secret))) == ["clustercert:members"]


def test_the_key_is_for_its_project_only(site: Site) -> None:
    user_id, key = new_key(site, "admin")
    site.keystone.roles[user_id, site.world.other_project.id] = ["admin"]
    path = site.world.path("foreign")
    assert post(site.client, path, key).status_code == 404
    other = site.keystone.add_credential(user_id, site.world.other_project.id)
    assert post(site.client, path, other).status_code == 404
    assert ask(site, other).status_code == 404


def test_a_change_in_keystone_counts_after_the_time_of_the_cache(site: Site) -> None:
    """Several users, so that the test waits for the cache once."""
    keystone, project = site.keystone, site.world.project.id
    disabled, removed, keyless, outsider, reader, grouped = [
        new_key(site, "member", groups=own) for own in ((), (), (), (), (), ("team-blue",))
    ]
    members = [key for _, key in (disabled, removed, keyless, outsider, reader)]
    assert [ask(site, key).status_code for key in members] == [200] * 5
    assert len(groups(ask(site, grouped[1]))) == 2

    keystone.users[disabled[0]]["enabled"] = False
    del keystone.users[removed[0]]
    del keystone.credentials[keystone.credential_id(keyless[1][0])]
    keystone.roles[outsider[0], project] = []
    keystone.roles[reader[0], project] = ["reader"]
    keystone.groups[grouped[0]] = []
    expected = [401, 401, 401, 404, 403]
    eventually(lambda: [ask(site, key).status_code for key in members] == expected)
    eventually(lambda: groups(ask(site, grouped[1])) == ["clustercert:members"])


@pytest.mark.parametrize("kind", ["projects", "domains"])
def test_a_key_of_a_disabled_project_or_domain_is_refused(site: Site, kind: str) -> None:
    own = {"id": "d" * 32, "name": "disabled", "enabled": False}
    site.keystone.domains[own["id"]] = own  # type: ignore[index]
    user_id, key = new_key(site, "member")
    if kind == "projects":
        site.keystone.add_project("e" * 32, enabled=False)
        site.keystone.roles[user_id, "e" * 32] = ["member"]
        key = site.keystone.add_credential(user_id, "e" * 32)
    else:
        site.keystone.users[user_id]["domain_id"] = own["id"]
    assert ask(site, key).status_code == 401


@pytest.mark.parametrize("delegation", ["trust_id", "app_cred_id", "access_token_id"])
def test_a_key_that_was_made_by_delegation_is_refused(site: Site, delegation: str) -> None:
    key = site.keystone.add_credential(site.user("member"), site.world.project.id, **{delegation: "0" * 32})
    with captured_logs(module) as said:
        assert ask(site, key).status_code == 401
    [line] = [line for line in said if line["event"] == "keystone access key refused"]
    assert (line["access_key_id"], "made under" in line["reason"]) == (key[0], True)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "cert"},
        {"project_id": None},
        {"blob": "not JSON"},
        {"blob": "[]"},
        {"blob": json.dumps({"access": "a", "secret": None})},
        {"blob": json.dumps({"access": "another", "secret": "s" * 32})},
    ],
)
def test_a_credential_that_is_no_access_key_is_a_mute_401(site: Site, change: dict[str, object]) -> None:
    _, key = new_key(site, "member")
    site.keystone.credentials[site.keystone.credential_id(key[0])] |= change
    response = ask(site, key)
    assert (response.status_code, response.json()["errorMessage"]) == (401, "Authorization failed.")


@pytest.mark.parametrize("secret", ["", "s" * 15])
def test_a_secret_that_can_be_guessed_is_refused(site: Site, secret: str) -> None:
    user_id = site.user("member")
    key = site.keystone.add_credential(user_id, site.world.project.id, secret=secret)
    assert ask(site, (key[0], secret)).status_code == 401


@pytest.mark.parametrize("kind", ["credential", "user", "project"])
def test_an_answer_about_another_object_is_not_used(site: Site, kind: str) -> None:
    admin_id, admin = new_key(site, "admin")
    user_id, key = new_key(site, "member")
    keystone, project = site.keystone, site.world.project.id
    asked, answered = {
        "credential": (
            keystone.credential_id(key[0]),
            keystone.credentials[keystone.credential_id(admin[0])],
        ),
        "user": (user_id, keystone.users[admin_id]),
        "project": (project, keystone.projects[site.world.other_project.id]),
    }[kind]
    keystone.overrides[f"/v3/{kind}s/{asked}"] = lambda _: Answer({kind: answered})
    try:
        assert ask(site, key).status_code == 401
        assert ask(site, (key[0], admin[1])).status_code == 401
    finally:
        keystone.overrides.clear()


def test_roles_of_others_in_the_answer_do_not_count(site: Site) -> None:
    user_id, key = new_key(site, "member")
    own, project = {"id": user_id}, {"id": site.world.project.id}
    found = [
        {"role": {"name": "admin"}, "user": {"id": "f" * 32}, "scope": {"project": project}},
        {"role": {"name": "admin"}, "user": own, "scope": {"project": {"id": "f" * 32}}},
        {"role": {"name": "admin"}, "user": own, "scope": {"domain": project}},
        {"role": {"name": "admin"}, "group": {"id": user_id}, "scope": {"project": project}},
        {"role": {"name": "member"}, "user": own, "scope": {"project": project}},
    ]
    site.keystone.overrides["/v3/role_assignments"] = lambda _: Answer({"role_assignments": found})
    try:
        assert groups(ask(site, key)) == ["clustercert:members"]
    finally:
        site.keystone.overrides.clear()


@pytest.mark.parametrize("path", ["/v3/credentials", "/v3/users", "/v3/role_assignments", "/v3/projects"])
def test_without_an_answer_the_signature_is_not_verified(site: Site, path: str) -> None:
    _, key = new_key(site, "member")
    site.keystone.overrides[path] = lambda _: problem(403)
    try:
        response = ask(site, key)
        assert (response.status_code, "Retry-After" in response.headers) == (503, True)
    finally:
        site.keystone.overrides.clear()
    assert ask(site, key).status_code == 200


def test_a_wrong_signature_asks_about_the_key_only(site: Site) -> None:
    user_id, key = new_key(site, "member")
    unknown = secrets.token_hex(16)
    for _ in range(3):
        assert ask(site, (key[0], "wrong")).status_code == 401
        assert ask(site, (unknown, "wrong")).status_code == 401
    asked = site.keystone.asked
    for access in (key[0], unknown):
        assert 1 <= asked(f"/v3/credentials/{site.keystone.credential_id(access)}") <= 3
    assert asked(f"/v3/users/{user_id}") == 0


def test_a_wrong_signature_costs_as_many_requests_to_keystone_as_an_unknown_key(site: Site) -> None:
    """Otherwise, a fast 401 would tell which access keys are in use."""
    _, key = new_key(site, "member")
    path = f"/v3/credentials/{site.keystone.credential_id(key[0])}"
    assert ask(site, key).status_code == 200
    assert site.keystone.asked(path) == 1
    assert ask(site, (key[0], "wrong")).status_code == 401
    assert site.keystone.asked(path) == 2


def test_five_wrong_signatures_lock_the_key(site: Site) -> None:
    _, key = new_key(site, "member")
    for _ in range(WRONG_SIGNATURES):
        assert ask(site, (key[0], "wrong")).status_code == 401
    assert ask(site, key).status_code == 401


def test_a_permanent_key_with_a_security_token_is_refused(site: Site) -> None:
    _, key = new_key(site, "member")
    assert ask(site, key, **{"X-Security-Token": "x"}).status_code == 401
    assert ask(site, key).status_code == 200


def test_a_blocked_user_is_out(site: Site) -> None:
    user_id, key = new_key(site, "member")
    assert ask(site, key).status_code == 200
    headers = site.world.people["operator"].headers
    path = f"/clustercert/v1/users/{user_id}/block"
    assert site.client.post(path, headers=headers).is_success
    eventually(lambda: ask(site, key).status_code == 401)


def test_many_requests_with_one_new_key_ask_once(site: Site) -> None:
    _, key = new_key(site, "member")
    released = threading.Event()

    def slowly(request: Any) -> Answer:
        released.wait(SECONDS)
        return site.keystone.known(request)

    site.keystone.overrides["/v3/credentials"] = slowly
    path = f"/v3/credentials/{site.keystone.credential_id(key[0])}"
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, site, key) for _ in range(8)]
            eventually(lambda: site.keystone.asked(path))
            released.set()
            assert {each.result().status_code for each in answers} == {200}
    finally:
        site.keystone.overrides.clear()


def test_the_form_of_an_access_key_tells_who_decides(site: Site) -> None:
    before = site.keystone.asked("/v3/credentials")
    assert ask(site, site.world.access_key).status_code == 200
    assert ask(site, ("A" * 20, "wrong")).status_code == 401
    assert site.keystone.asked("/v3/credentials") == before
    user_id = site.user("member")
    own = site.keystone.add_credential(user_id, site.world.project.id, access="B" * 20)
    assert ask(site, ("B" * 20, own[1])).status_code == 401
    assert site.keystone.asked("/v3/credentials") == before
    assert ask(site, ("b" * 20, "wrong")).status_code == 401
    assert site.keystone.asked("/v3/credentials") == before + 1


def test_settings_turn_keys_of_keystone_and_built_in_ones_off(
    service_with: Callable[..., Service], world: World
) -> None:
    with KeystoneDouble().running() as keystone:
        keystone.add_project(world.project.id)
        user_id = keystone.add_user("alice")
        keystone.roles[user_id, world.project.id] = ["member"]
        key = keystone.add_credential(user_id, world.project.id)

        def statuses(*, access_keys: bool, built_in: bool) -> list[int]:
            own = keystone.settings(projects=[world.project.id], access_keys=access_keys)
            identity = {"region": worlds.REGION, "keystone": own, "built_in": built_in}
            client = service_with(identity=identity, policy={"rules": RULES}).client
            return [post(client, world.path(), each).status_code for each in (key, world.access_key)]

        assert statuses(access_keys=True, built_in=True) == [200, 200]
        assert statuses(access_keys=False, built_in=True) == [401, 200]
        assert statuses(access_keys=True, built_in=False) == [200, 401]
        assert statuses(access_keys=False, built_in=False) == [401, 401]
