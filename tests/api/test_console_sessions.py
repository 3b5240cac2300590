"""Requests that the service sends to itself for a session of the console."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from clustercert.authn.federated import KeystonePassword
from clustercert.authn.sessions import CONSOLE_SCHEME
from clustercert.identity.sessions import session_id
from clustercert.identity.tokens import ByPassword
from clustercert.issuance.signers.ca_keys import KeySigner
from clustercert.model.errors import Unauthenticated
from clustercert.store.identity.entities import Reference
from support import keystone_site
from support.accounts import ORIGIN
from support.console_sessions import ask, services_of
from support.keystone_double import DOMAIN
from support.keystone_site import Site
from support.service import Service
from support.wait import eventually
from support.world import World


def log_in(service: Service, world: World, name: str) -> str:
    person = world.people[name]
    return log_in_user(service, person.user.id, person.password)


def log_in_user(service: Service, user_id: str, password: str) -> str:
    login = ByPassword(Reference(id=user_id), password)
    return service.run(services_of(service).sessions.log_in(login, ORIGIN, None)).cookie


def is_refused(service: Service, cookie: str) -> bool:
    try:
        ask(service, cookie, "GET", "/clustercert/v1/caller")
    except Unauthenticated:
        return True
    return False


def test_a_session_gets_a_certificate_with_the_rights_of_its_user(service: Service, world: World) -> None:
    cookie = log_in(service, world, "member")
    answer = ask(service, cookie, "POST", world.path(), {"duration": 1})
    assert answer.status_code == 200
    assert answer.json()["kind"] == "Config"
    caller = ask(service, cookie, "GET", "/clustercert/v1/caller").json()
    assert (caller["id"], caller["method"]) == (world.people["member"].user.id, "token")


def test_no_certificate_is_issued_if_the_session_ends_meanwhile(
    service: Service, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie, sign = log_in(service, world, "member"), KeySigner.sign

    async def interrupted(*args: Any, **named: Any) -> Any:
        await services_of(service).sessions.end(cookie, ORIGIN)
        return await sign(*args, **named)

    monkeypatch.setattr(KeySigner, "sign", interrupted)
    with pytest.raises(Unauthenticated):
        ask(service, cookie, "POST", world.path(), {"duration": 1})


def test_neither_cookie_nor_header_authenticates_requests_from_outside(
    service: Service, client: httpx2.Client, world: World
) -> None:
    cookie = log_in(service, world, "admin")
    for headers in (
        {"Authorization": f"{CONSOLE_SCHEME} {cookie}"},
        {"Authorization": CONSOLE_SCHEME},
        {"Authorization": f"Bearer {cookie}"},
        {"X-Auth-Token": cookie},
        {"X-Auth-Token": f"{CONSOLE_SCHEME} {cookie}"},
        {"Cookie": f"__Host-clustercert={cookie}"},
    ):
        assert client.get("/clustercert/v1/caller", headers=headers).status_code == 401
        assert client.post(world.path(), json={"duration": 1}, headers=headers).status_code == 401


def test_users_list_and_end_their_own_sessions(service: Service, client: httpx2.Client, world: World) -> None:
    path, member = "/clustercert/v1/caller/sessions", world.people["member"].headers
    first, second = log_in(service, world, "member"), log_in(service, world, "member")
    foreign = log_in(service, world, "reader")
    listed = ask(service, second, "GET", path).json()["sessions"]
    newest, older = listed[:2]
    assert newest["id"] == session_id(second)
    assert (newest["current"], older["current"]) == (True, False)
    assert (older["id"], older["address"], older["method"]) == (session_id(first), ORIGIN.address, "token")
    assert older["created_at"] == older["seen_at"] < older["idle_at"] < older["expires_at"]
    assert session_id(foreign) not in {each["id"] for each in listed}
    # By any other login of the user, too.
    assert client.get(path, headers=member).json()["sessions"] == [
        {**each, "current": False} for each in listed
    ]
    for unknown in (session_id(foreign), session_id(first)[:7], "0" * 64, "%00"):
        answer = client.delete(f"{path}/{unknown}", headers=member)
        assert (answer.status_code, answer.json()["error_msg"]) == (
            404,
            "You have no such session. It may have ended already.",
        )
    assert client.delete(f"{path}/{session_id(first)[:8]}", headers=member).status_code == 204
    assert is_refused(service, first)
    assert ask(service, second, "DELETE", f"{path}/{session_id(second)}").status_code == 204
    assert is_refused(service, second)
    assert not is_refused(service, foreign)


@pytest.mark.usefixtures("quick_propagation")
@pytest.mark.parametrize("what", ["block", "new password", "own password", "logout everywhere"])
def test_sessions_end_on_all_workers(
    service: Service, world: World, service_with: Callable[..., Service], what: str
) -> None:
    operator, worker, password = world.people["operator"].headers, service_with(), "correct horse"
    path = f"/clustercert/v1/users/console-{what.replace(' ', '-')}"
    user_id = service.client.put(path, json={"password": password}, headers=operator).json()["id"]
    first, second = [log_in_user(each, user_id, password) for each in (service, worker)]
    for cookie in (first, second):
        for each in (service, worker):
            assert not is_refused(each, cookie)
    path = f"/clustercert/v1/users/{user_id}"
    if what == "block":
        worker.client.post(f"{path}/block", headers=operator).raise_for_status()
    elif what == "new password":
        body = {"password": "another horse"}
        worker.client.put(f"{path}/password", json=body, headers=operator).raise_for_status()
    elif what == "own password":
        changed = {"user": {"original_password": password, "password": "another horse"}}
        assert ask(worker, second, "POST", f"/v3/users/{user_id}/password", changed).status_code == 204
    else:
        done = ask(worker, second, "POST", "/clustercert/v1/caller/logout").json()
        assert (done["sessions"], done["tokens"]) == (2, 0)
    for each in (service, worker):
        assert eventually(lambda each=each: is_refused(each, first))  # type: ignore[misc] # a lambda's default
    if what == "own password":
        assert not is_refused(worker, second), (
            "only the session in which the user changed the password goes on"
        )
    else:
        # The worker caches each session for itself, so the second may outlive the first by a moment.
        assert eventually(lambda: is_refused(worker, second))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with keystone_site.running(tmp_path_factory.mktemp("site"), cache="1s") as running:
        yield running


def test_a_session_of_a_keystone_user_lasts_as_long_as_the_token(site: Site) -> None:
    sessions, user_id = services_of(site.service).sessions, site.user("member")
    site.keystone.passwords[user_id] = "correct horse"
    login = KeystonePassword(site.keystone.users[user_id]["name"], DOMAIN["name"], "correct horse")
    new = site.service.run(sessions.log_in_at_keystone(login, ORIGIN, None))
    assert ask(site.service, new.cookie, "POST", site.world.path(), {"duration": 1}).status_code == 200
    session, caller = site.service.run(sessions.find(new.cookie, ORIGIN))
    assert (session.method, caller.method, caller.issuer) == ("keystone", "keystone", site.keystone.url)
    assert caller.credential_id == session.id
    for token in [text for text, body in site.keystone.tokens.items() if body["user"]["id"] == user_id]:
        del site.keystone.tokens[token]
    assert eventually(lambda: is_refused(site.service, new.cookie))
