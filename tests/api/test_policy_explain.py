"""GET /clustercert/v1/policy/explain: what it tells, to whom, and what it leaves alone."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.model import Actor, Origin
from clustercert.store.identity.entities import Reference
from clustercert.wiring import open_components
from support import world as worlds
from support.audit_api import got, of_project
from support.service import Service
from support.stores import execute, rows
from support.wait import eventually
from support.world import ACTOR, Person, World

_NEW_USERS = "select id from user where name in ('gone', 'taken') order by name"
VISITORS_PASSWORD = "correct horse battery staple"
PATH = "/clustercert/v1/policy/explain"
ENTITLEMENTS = "/clustercert/v1/policy/entitlements"
SECRETS = ("mallory", "acme", "hidden-group", "9" * 32, "203.0.113")
POLICY = {
    "rules": [
        {"name": "acme-1", "when": {"users": ["mallory"]}, "grant": {"groups": ["acme:admins"]}},
        {"name": "acme-2", "when": {"projects": ["9" * 32]}, "deny": "Not for acme."},
        {
            "name": "teams",
            "when": {"groups": ["team-*", "hidden-group"]},
            "grant": {"groups": ["team:{group}"], "max_lifetime": "8h"},
        },
        {"name": "runners", "when": {"sources": ["203.0.113.0/24"]}, "grant": {"groups": ["runners"]}},
        {
            "name": "by-csr",
            "when": {"roles": ["reader"]},
            "grant": {"groups": ["viewers"], "csr_required": True},
        },
        {"name": "frozen", "when": {"auth_methods": ["access_key"]}, "deny": "Keys are not allowed here."},
        {
            "name": "edit-on-request",
            "when": {"groups": ["team-a"]},
            "offer": {
                "groups": ["editors"],
                "max_lifetime": "4h",
                "approvals": [{"role": "admin"}],
            },
        },
        {
            "name": "acme-3",
            "when": {"groups": ["hidden-group"]},
            "offer": {"groups": ["acme:owners"], "max_lifetime": "1h", "approvals": []},
        },
    ],
    "username": "{user.name}",
}


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose member is in the group team-a, with a visitor: an admin here, and a reader in the other project.

    The visitor's token is for the other project.
    """
    world = worlds.make(tmp_path_factory.mktemp("explained"))
    return replace(world, people=world.people | {"visitor": asyncio.run(_join(world))})


async def _join(world: World) -> Person:
    actor = Actor(ACTOR, Origin("local", "f" * 32))
    async with open_components(world.settings()) as components:
        directory = components.identity.directory
        group = await directory.create_group("team-a", world.project.domain, actor=actor)
        await directory.add_member(group, world.people["member"].user, actor=actor)
        for name in ("gone", "taken"):
            user = await directory.create_user(name, world.project.domain, actor=actor)
            await components.identity.roles.assign("reader", user, world.project, actor=actor)
            await directory.enable_user(user, enabled=name != "gone", actor=actor)
        visitor = await directory.create_user(
            "visitor", world.project.domain, password=VISITORS_PASSWORD, actor=actor
        )
        for role, project in (("admin", world.project), ("reader", world.other_project)):
            await components.identity.roles.assign(role, visitor, project, actor=actor)
        issued = await components.identity.tokens.issue(
            ByPassword(Reference(id=visitor.id), VISITORS_PASSWORD),
            ProjectScope(Reference(id=world.other_project.id)),
        )
        await components.log_sealer.seal_all()
        return Person(visitor, VISITORS_PASSWORD, issued.text)


@pytest.fixture(scope="module")
def client(teams: World) -> Iterator[httpx2.Client]:
    with Service(teams.settings(policy=POLICY, metrics={})).running() as service:
        yield service.client


def ask(
    client: httpx2.Client, world: World, who: str, about: str | None = None, **query: str
) -> httpx2.Response:
    """Ask about the cluster `plain`."""
    if about is not None:
        query["user"] = world.people[about].user.id
    parameters = {"cluster": world.clusters["plain"].id} | query
    return client.get(PATH, params=parameters, headers=world.people[who].headers)


def test_what_would_be_signed_is_what_is_signed(client: httpx2.Client, teams: World) -> None:
    for days in ("-1", None):
        answer = ask(client, teams, "member", **({"duration": days} if days else {}))
        assert answer.status_code == 200, answer.text
        explained = answer.json()
        assert (explained["allowed"], explained["status"], explained["message"]) == (True, 200, None)
        assert explained["would_sign"]["shortened"] is False
    signed = explained["would_sign"]
    issued = client.post(
        teams.path(), json={"duration": -1}, headers=teams.people["member"].headers, params={"dryRun": "All"}
    ).json()
    for name in ("common_name", "organizations", "key_type"):
        assert signed[name] == issued[name]
    assert signed["organizations"] == ["team:team-a", "clustercert:credential:<number>"]
    assert [each["groups"] for each in explained["rules"] if each["outcome"] == "grants"] == [["team:team-a"]]
    assert signed["limit"] == {"until": signed["not_after"], "by": "rule", "rule": "teams"}
    ends = [datetime.fromisoformat(each["not_after"]) for each in (signed, issued)]
    assert abs((ends[0] - ends[1]).total_seconds()) < 600
    shorter = ask(client, teams, "member", expires_in="1h").json()["would_sign"]
    left = datetime.fromisoformat(shorter["not_after"]) - datetime.now(UTC)
    assert 0 < left.total_seconds() <= 3600
    assert shorter["shortened"] is False


def test_the_request_that_is_asked_about_counts(client: httpx2.Client, teams: World) -> None:
    refused = ask(client, teams, "reader").json()
    assert (refused["allowed"], refused["status"], refused["would_sign"]) == (False, 403, None)
    assert refused["nearest"] == {
        "rule": "by-csr",
        "changes": [{"wanted": "the request has a csr", "found": "no csr"}],
    }
    allowed = ask(client, teams, "reader", key_type="rsa-2048", reason="x").json()
    assert allowed["would_sign"]["organizations"][0] == "viewers"
    assert (allowed["would_sign"]["common_name"], allowed["would_sign"]["key_type"]) == ("reader", "rsa-2048")
    assert ask(client, teams, "reader", csr="true").json()["would_sign"]["key_type"] == "ec-p256"
    by_key = ask(client, teams, "reader", csr="true", auth_method="access_key").json()
    assert (by_key["message"], by_key["auth_method"]) == ("Keys are not allowed here.", "access_key")
    long = ask(client, teams, "member", duration="30").json()
    assert "limit of rule teams (8 hours)" in long["message"]
    assert long["nearest"]["changes"] == [{"wanted": "a lifetime of at most 8 hours", "found": "30 days"}]


def test_an_offer_is_shown_with_its_terms_to_those_who_can_request_it(
    client: httpx2.Client, teams: World
) -> None:
    offered = [each for each in ask(client, teams, "member").json()["rules"] if each["outcome"] == "offers"]
    assert [(each["name"], each["groups"]) for each in offered] == [("edit-on-request", ["editors"])]
    assert offered[0]["offer"] == {
        "rule": "edit-on-request",
        "groups": ["editors"],
        "max_lifetime": 4 * 3600,
        "min_reason_length": 1,
        "approvals": ["role is admin"],
        "before_approval": False,
        "uses_before_approval": 2,
        "approve_within": 8 * 3600,
        "claim_within": 8 * 3600,
    }
    others = ask(client, teams, "operator", "reader").json()["rules"]
    assert {each["name"]: each["offer"] for each in others if each["name"] == "edit-on-request"} == {
        "edit-on-request": None
    }


def test_a_request_with_an_access_request_is_explained(client: httpx2.Client, teams: World) -> None:
    requests = "/clustercert/v1/access-requests"
    asked = {
        "cluster_id": teams.clusters["plain"].id,
        "groups": ["editors"],
        "duration": 3600,
        "reason": "a fix",
    }
    request = client.post(requests, json=asked, headers=teams.people["member"].headers).json()["id"]
    pending = ask(client, teams, "member", access_request=request).json()
    assert (pending["allowed"], pending["status"], pending["would_sign"]) == (False, 409, None)
    assert pending["message"] == "The access request can't be used: it waits for approvals."
    assert (pending["access_request"], pending["nearest"]) == (request, None)
    assert ask(client, teams, "member").json()["access_request"] is None
    approved = client.post(
        f"{requests}/{request}/approve", json={"reason": "go"}, headers=teams.people["admin"].headers
    )
    assert approved.status_code == 200, approved.text
    for explained in (
        ask(client, teams, "member", access_request=request).json(),
        ask(client, teams, "admin", "member", access_request=request).json(),
    ):
        signed = explained["would_sign"]
        assert signed["organizations"][:2] == ["editors", "team:team-a"]
        assert (signed["limit"]["by"], signed["limit"]["until"]) == ("access_request", signed["not_after"])
        granting = {
            each["name"]: each["groups"] for each in explained["rules"] if each["outcome"] == "grants"
        }
        assert granting == {"teams": ["team:team-a"], "edit-on-request": ["editors"]}
    assert (
        client.post(f"{requests}/{request}/end", json={}, headers=teams.people["member"].headers).status_code
        == 200
    )
    ended = ask(client, teams, "member", access_request=request).json()
    assert (ended["status"], ended["message"]) == (409, "The access request can't be used: it is ended.")


def test_an_access_request_of_somebody_else_is_a_404(client: httpx2.Client, teams: World) -> None:
    requests = "/clustercert/v1/access-requests"
    asked = {
        "cluster_id": teams.clusters["plain"].id,
        "groups": ["editors"],
        "duration": 900,
        "reason": "a fix",
    }
    request = client.post(requests, json=asked, headers=teams.people["member"].headers).json()["id"]
    for other in (request, "0" * 32, "x"):
        answer = ask(client, teams, "reader", access_request=other)
        assert answer.status_code == 404
        assert answer.json()["message"].startswith("There is no such access request")


def test_an_operator_sees_every_rule_of_everybody(client: httpx2.Client, teams: World) -> None:
    explained = ask(client, teams, "operator", "reader").json()
    assert ask(client, teams, "auditor", "reader").json()["rules"] == explained["rules"]
    assert explained["complete"] is True
    assert [(each["name"], each["outcome"]) for each in explained["rules"]] == [
        (name, "does_not_match")
        for name in (
            *("acme-1", "acme-2", "teams", "runners", "by-csr", "frozen"),
            *("edit-on-request", "acme-3"),
        )
    ]
    assert explained["rules"][2] == {
        "name": "teams",
        "outcome": "does_not_match",
        "groups": [],
        "denies": False,
        "deny": None,
        "offer": None,
        "first_false": "group is team-* or hidden-group",
        "conditions": [{"wanted": "group is team-* or hidden-group", "found": "none", "met": False}],
    }
    assert explained["user"]["roles"] == ["reader"]
    from_runner = ask(client, teams, "operator", "reader", source="203.0.113.9").json()
    assert from_runner["would_sign"]["organizations"][0] == "runners"
    for who in ("operator", "stranger"):
        outside = ask(client, teams, "operator", who).json()
        assert (outside["allowed"], outside["status"], outside["rules"]) == (False, 404, [])


@pytest.mark.parametrize(("who", "about"), [("member", None), ("reader", None), ("admin", "reader")])
def test_others_see_no_rule_about_other_tenants(
    client: httpx2.Client, teams: World, who: str, about: str | None
) -> None:
    for query in ({}, {"csr": "true"}, {"auth_method": "access_key"}, {"duration": "30"}):
        answer = ask(client, teams, who, about, **query)
        assert answer.status_code == 200
        assert answer.json()["complete"] is False
        assert answer.headers["cache-control"] == "no-store"
        assert not [each for each in SECRETS if each in answer.text]


def test_what_a_caller_may_not_ask_about_does_not_exist(client: httpx2.Client, teams: World) -> None:
    missing = [
        ask(client, teams, "member", "reader"),
        ask(client, teams, "reader", "admin"),
        ask(client, teams, "member", user="0" * 32),
        ask(client, teams, "admin", "stranger"),
        ask(client, teams, "admin", user="0" * 32),
        ask(client, teams, "admin", user="nobody"),
        ask(client, teams, "operator", user="nobody"),
        ask(client, teams, "member", cluster=teams.clusters["foreign"].id),
        ask(client, teams, "admin", cluster=teams.clusters["foreign"].id),
        ask(client, teams, "admin", "admin", cluster="00000000-0000-0000-0000-000000000000"),
        ask(client, teams, "operator", cluster="none"),
        ask(client, teams, "stranger"),
    ]
    bodies = [answer.json() | {"request_id": ""} for answer in missing]
    assert [answer.status_code for answer in missing] == [404] * len(missing)
    assert bodies == [bodies[0]] * len(bodies)
    assert ask(client, teams, "stranger", cluster=teams.clusters["foreign"].id).status_code == 200


def test_callers_ask_about_themselves_in_all_their_projects_whatever_the_tokens_scope(
    client: httpx2.Client, teams: World
) -> None:
    for about in (None, "visitor"):
        for cluster, role in (("plain", "admin"), ("foreign", "reader")):
            answer = ask(client, teams, "visitor", about, cluster=teams.clusters[cluster].id)
            assert answer.status_code == 200, answer.text
            assert answer.json()["user"]["roles"] == [role]
    # The rights of an admin to ask about others end at the token's scope.
    assert ask(client, teams, "visitor", "reader").status_code == 404
    assert ask(client, teams, "visitor", source="203.0.113.9").status_code == 403


def test_only_administrators_ask_about_another_source(client: httpx2.Client, teams: World) -> None:
    refused = ask(client, teams, "reader", source="203.0.113.9")
    assert refused.status_code == 403
    assert refused.json()["message"].startswith("source: only operators, auditors and admins")
    found = ask(client, teams, "admin", "reader", source="203.0.113.9").json()
    assert found["source"] == "203.0.113.9"
    assert ask(client, teams, "stranger", source="203.0.113.9").status_code == 404


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"cluster": ""}, "cluster"),
        ({"cluster": "a\0"}, "cluster"),
        ({"cluster": "x" * 256}, "cluster"),
        ({"user": ""}, "user"),
        ({"user": "\u202e"}, "user"),
        ({"expires_in": "8"}, "expires_in"),
        ({"expires_in": "1m"}, "expires_in"),
        ({"expires_in": "1826d"}, "expires_in"),
        ({"expires_in": "999999999w"}, "expires_in"),
        ({"expires_in": "8h", "duration": "1"}, "expires_in, duration"),
        ({"duration": "0"}, "duration"),
        ({"duration": "-2"}, "duration"),
        ({"duration": "1826"}, "duration"),
        ({"duration": "\u0661"}, "duration"),
        ({"duration": "1e3"}, "duration"),
        ({"duration": "9" * 5000}, "duration"),
        ({"csr": "yes"}, "csr"),
        ({"key_type": "rsa-1024"}, "key_type"),
        ({"key_type": "ec-p256", "csr": "false"}, "key_type"),
        ({"reason": "a\u202eb"}, "reason"),
        ({"reason": "x" * 513}, "reason"),
        ({"auth_method": "service"}, "auth_method"),
        ({"source": "localhost"}, "source"),
        ({"source": "10.0.0.0/8"}, "source"),
        ({"limit": "1"}, "limit: unknown query parameter. Known: access_request, auth_method, cluster, "),
        ({"expire_in": "8h"}, "expire_in: unknown query parameter"),
    ],
)
def test_parameters_are_checked(
    client: httpx2.Client, teams: World, query: dict[str, str], named: str
) -> None:
    answer = ask(client, teams, "operator", **query)
    assert answer.status_code == 400
    body = answer.json()
    assert body["message"].startswith(named), body["message"]
    assert (body["errorCode"], body["request_id"]) == ("CCE.01400001", answer.headers["x-request-id"])


def test_the_cluster_is_required_and_parameters_are_sent_once(client: httpx2.Client, teams: World) -> None:
    headers = teams.people["operator"].headers
    without = client.get(PATH, headers=headers)
    assert (without.status_code, without.json()["message"]) == (400, "cluster: send the id of a cluster.")
    twice = client.get(f"{PATH}?cluster=a&cluster=b", headers=headers)
    assert (twice.status_code, twice.json()["message"]) == (
        400,
        "cluster: occurs more than once. Send it once.",
    )
    assert client.get(PATH).status_code == 401


def test_neither_previews_nor_events_name_rules_about_others(client: httpx2.Client, teams: World) -> None:
    """A project admin reads the events, and every caller gets the trace of a preview."""
    headers = {who: teams.people[who].headers for who in ("member", "admin")}
    preview = client.post(
        teams.path(), json={"duration": -1}, headers=headers["member"], params={"dryRun": "All"}
    )
    trace = preview.json()["trace"]
    assert (trace["skipped_rules"], trace["skipped_count"]) == (["by-csr", "frozen"], 6)
    sent = [
        client.post(teams.path(), json={"duration": -1}, headers=headers[who]) for who in ("member", "admin")
    ]
    assert [each.status_code for each in sent] == [200, 403]
    requests = [each.headers["x-request-id"] for each in sent]

    def events() -> list[str]:
        """The events of both requests, once they are sealed."""
        page = got(client, teams, of_project(teams), "admin", kind="certificate.*")["events"]
        found = [str(each) for each in page if each["request_id"] in requests]
        return found if len(found) == len(requests) else []

    for said in (preview.text, sent[1].text, *eventually(events)):
        assert not [each for each in SECRETS if each in said]


def test_an_explanation_signs_and_records_nothing(client: httpx2.Client, teams: World) -> None:
    def recorded() -> list[tuple[object, ...]]:
        # Failed logins of other tests are counted in the background.
        events = rows(teams.database, "select kind from audit_event where kind != 'authentication.failed'")
        return [*events, *rows(teams.database, "select id from certificate union select name from username")]

    before = recorded()
    for who, about in (("member", None), ("reader", None), ("operator", "reader"), ("admin", "member")):
        for query in ({}, {"csr": "true"}, {"duration": "30"}):
            assert ask(client, teams, who, about, **query).status_code == 200
    assert ask(client, teams, "member", "reader").status_code == 404
    assert recorded() == before


def test_a_disabled_user_and_a_name_of_another_user_are_refused(client: httpx2.Client, teams: World) -> None:
    gone, taken = (str(user_id) for (user_id,) in rows(teams.database, _NEW_USERS))
    disabled = ask(client, teams, "operator", user=gone, csr="true").json()
    assert (disabled["allowed"], disabled["status"], disabled["would_sign"]) == (False, 401, None)
    assert disabled["message"] == (
        "The user gone is disabled or blocked, or their domain is disabled, so they can't log in."
    )
    assert ask(client, teams, "operator", user=taken, csr="true").json()["allowed"] is True
    execute(teams.database, "insert into username (name, user_id) values ('taken', ?)", "0" * 32)
    refused = ask(client, teams, "operator", user=taken, csr="true").json()
    assert (refused["allowed"], refused["status"]) == (False, 403)
    assert refused["message"] == (
        "The user name taken belongs to another user. Ask the operator to set policy.username ="
        ' "{user.name}@{user.domain}", or to add {user.id} if the other user was deleted.'
    )


def test_a_refused_caller_gets_the_rules_message_and_the_request_id(
    client: httpx2.Client, teams: World
) -> None:
    for who, message in (("reader", "by-csr: the request has a csr."), ("admin", "Ask the operator")):
        refused = client.post(teams.path(), json={"duration": 1}, headers=teams.people[who].headers)
        body = refused.json()
        assert refused.status_code == 403
        assert message in body["message"]
        assert body["request_id"] == refused.headers["x-request-id"]
        with_id = "select kind from audit_event where instr(cast(body as text), ?) > 0"
        assert rows(teams.database, with_id, body["request_id"]) == [("certificate.refused",)]


def entitlements(client: httpx2.Client, world: World, who: str = "operator", **query: str) -> httpx2.Response:
    parameters = {"cluster": world.clusters["plain"].id, "group": "*"} | query
    return client.get(ENTITLEMENTS, params=parameters, headers=world.people[who].headers)


def all_entitled(client: httpx2.Client, world: World, group: str) -> list[dict[str, Any]]:
    """All pages, with one examined user each."""
    users: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = entitlements(client, world, group=group, limit="1", **cursor).json()
        assert len(page["users"]) <= 1
        users += page["users"]
        if page["next"] is None:
            return users
        cursor = {"cursor": page["next"]}


def test_operators_list_who_could_get_a_group_in_pages(client: httpx2.Client, teams: World) -> None:
    [member] = all_entitled(client, teams, "team:*")
    assert member == {
        "id": teams.people["member"].user.id,
        "name": f"{teams.project.domain.name}/member",
        "issuer": "built-in",
        "seen_at": None,
        "entitlements": [
            {
                "rule": "teams",
                "groups": ["team:team-a"],
                "longest_seconds": 8 * 3600,
                "needs": [],
                "unless": ["frozen"],
            }
        ],
    }
    # The user named gone is disabled.
    readers = all_entitled(client, teams, "viewers")
    assert {each["name"].rpartition("/")[2] for each in readers} == {"reader", "taken"}
    assert [each["needs"] for user in readers for each in user["entitlements"]] == [
        ["the request has a csr"]
    ] * 2


def test_a_search_without_a_cluster_or_group_is_refused(client: httpx2.Client, teams: World) -> None:
    unknown = entitlements(client, teams, cluster="00000000-0000-0000-0000-000000000000")
    assert (unknown.status_code, unknown.json()["message"]) == (
        404,
        "There is no such cluster. Check its id.",
    )
    without = client.get(ENTITLEMENTS, params={"cluster": "x"}, headers=teams.people["operator"].headers)
    assert (without.status_code, without.json()["message"].partition(":")[0]) == (400, "group")
    assert entitlements(client, teams, group="").status_code == 400
    assert entitlements(client, teams, "admin").status_code == 403


def test_certificates_with_a_binding_of_their_own_have_no_groups_to_search(
    client: httpx2.Client, teams: World
) -> None:
    sans = teams.clusters["sans"]
    options = "UPDATE cluster SET options = json_set(options, '$.credential_roles', json(?)) WHERE id = ?"
    execute(teams.database, options, '{"by-csr": "view"}', sans.id)
    refused = entitlements(client, teams, cluster=sans.id)
    assert refused.status_code == 409
    assert refused.json()["message"].startswith("Certificates for the cluster sans have no groups")
