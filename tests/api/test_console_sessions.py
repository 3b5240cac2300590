"""Requests that the service sends to itself for a session of the console."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clustercert.authn.sessions import CONSOLE_SCHEME
from clustercert.identity.tokens import ByPassword
from clustercert.issuance.signers.ca_keys import KeySigner
from clustercert.model.errors import Unauthenticated
from clustercert.store.entities import Reference
from support import keystone_site
from support.accounts import ORIGIN
from support.console_sessions import ask, services_of
from support.keystone_site import Site
from support.service import Service
from support.wait import eventually
from support.world import World


def log_in(service: Service, world: World, name: str) -> str:
    person = world.people[name]
    login = ByPassword(Reference(id=person.user.id), person.password)
    return service.run(services_of(service).sessions.log_in(login, ORIGIN, None)).cookie


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
    service: Service, client: httpx.Client, world: World
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with keystone_site.running(tmp_path_factory.mktemp("site"), cache="1s") as running:
        yield running


def test_a_session_of_a_keystone_user_lasts_as_long_as_the_token(site: Site, tmp_path: Path) -> None:
    sessions = services_of(site.service).sessions
    token = site.token(site.user("member"))
    new = site.service.run(sessions.begin_by_keystone_token(token, ORIGIN, None))
    assert ask(site.service, new.cookie, "POST", site.world.path(), {"duration": 1}).status_code == 200
    session, caller = site.service.run(sessions.find(new.cookie, ORIGIN))
    assert (session.method, caller.method, caller.issuer) == ("keystone", "keystone", site.keystone.url)
    assert caller.credential_id == session.id
    del site.keystone.tokens[token]

    def is_refused() -> bool:
        try:
            site.service.run(sessions.find(new.cookie, ORIGIN))
        except Unauthenticated:
            return True
        return False

    assert eventually(is_refused)


def test_an_unknown_keystone_token_starts_no_session(site: Site) -> None:
    sessions = services_of(site.service).sessions
    with pytest.raises(Unauthenticated):
        site.service.run(sessions.begin_by_keystone_token(secrets.token_urlsafe(140), ORIGIN, None))
