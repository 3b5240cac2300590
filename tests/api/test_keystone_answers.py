"""Answers of Keystone that can't be used, or that allow nothing."""

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.keystone_double import Answer, problem
from support.keystone_site import Site, groups, running
from support.wait import SECONDS, eventually


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("keystone")) as found:
        yield found


def test_many_requests_with_one_new_token_ask_once(site: Site) -> None:
    token = site.token(site.user("member"))
    entered = threading.Event()

    def slowly(request: Any) -> Answer:
        entered.wait(SECONDS)
        return site.keystone.known(request)

    site.keystone.overrides["/v3/auth/tokens"] = slowly
    before = site.keystone.asked("/v3/auth/tokens")
    try:
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(site.post, token) for _ in range(16)]
            eventually(lambda: site.keystone.asked("/v3/auth/tokens") > before)
            entered.set()
            assert {each.result().status_code for each in answers} == {200}
    finally:
        site.keystone.overrides.clear()
    assert site.keystone.asked("/v3/auth/tokens") == before + 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>Sign in</html>", headers={"Content-Type": "text/html"}),
        Answer(b""),
        Answer(b"null"),
        Answer({"token": None}),
        Answer(b"x" * 1_000_000),
        Answer(b"{}", headers={"Content-Encoding": "gzip"}),
        Answer(b"", 302, {"Location": "https://evil.example/v3/auth/tokens"}),
        problem(403),
        problem(500),
        problem(503),
        problem(429),
    ],
)
def test_an_unusable_answer_is_a_503_with_retry_after(site: Site, answer: Answer) -> None:
    known = site.token(site.user("member"))
    assert site.post(known).status_code == 200
    site.keystone.overrides["/v3/auth/tokens"] = lambda _: answer
    try:
        response = site.post(site.token(site.user("member")))
        assert response.status_code == 503, response.text
        assert response.json()["error_code"] == "CCE.01503001"
        assert int(response.headers["Retry-After"]) >= 1
        assert site.post(known).status_code == 200
    finally:
        site.keystone.overrides.clear()


def test_an_answer_about_another_token_is_not_used(site: Site) -> None:
    admin = site.token(site.user("admin"))

    def mixed_up(request: Any) -> Answer:
        return site.keystone.known(dataclasses.replace(request, headers={"x-subject-token": admin}))

    site.keystone.overrides["/v3/auth/tokens"] = mixed_up
    try:
        assert site.post(site.token(site.user("member"))).status_code == 503
    finally:
        site.keystone.overrides.clear()


@pytest.mark.parametrize("lacking", ["name", "domain"])
def test_a_token_whose_user_is_not_described_is_a_401(site: Site, lacking: str) -> None:
    body = site.keystone.tokens[site.token(site.user("member"))]
    user = {name: value for name, value in body["user"].items() if name != lacking}
    site.keystone.overrides["/v3/auth/tokens"] = lambda request: Answer(
        {"token": body | {"user": user}}, headers={"X-Subject-Token": request.headers["x-subject-token"]}
    )
    try:
        response = site.post(site.token(site.user("member")))
    finally:
        site.keystone.overrides.clear()
    assert (response.status_code, "Retry-After" in response.headers) == (401, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "bad\u202ename"},
        {"name": "e\u0301"},
        {"name": "x" * 201},
        {"domain_id": "slash"},
    ],
)
def test_a_user_or_group_who_cannot_be_named_is_refused(site: Site, changed: dict[str, str]) -> None:
    keystone = site.keystone
    keystone.domains["slash"] = {"id": "slash", "name": "acme/x", "enabled": True}
    user_id = site.user("member")
    keystone.users[user_id] |= changed
    assert site.post(site.token(user_id)).status_code == 401
    user_id = site.user("member")
    keystone.groups[user_id] = [keystone.group("team-red") | changed]
    assert site.post(site.token(user_id)).status_code == 401


def test_groups_of_other_domains_have_the_name_of_their_domain(site: Site) -> None:
    site.keystone.domains["other"] = {"id": "other", "name": "other", "enabled": True}
    user_id = site.user("member", groups=("team-blue",))
    site.keystone.groups[user_id].append(site.keystone.group("team-blue", "other"))
    assert groups(site.post(site.token(user_id))) == ["clustercert:members", "team:keystone/acme/team-blue"]


@pytest.mark.parametrize("answer", [{"groups": [], "truncated": True}, {"groups": None}, {}])
def test_a_list_of_groups_that_is_cut_off_is_not_used(site: Site, answer: dict[str, object]) -> None:
    user_id = site.user("member")
    site.keystone.overrides[f"/v3/users/{user_id}/groups"] = lambda _: Answer(answer)
    try:
        assert site.post(site.token(user_id)).status_code == 503
    finally:
        site.keystone.overrides.clear()


def test_a_user_in_too_many_groups_is_refused(site: Site) -> None:
    token = site.token(site.user("member", groups=tuple(f"g{number}" for number in range(501))))
    assert site.post(token).status_code == 401
