"""Policies with groups, templates and rules that unite, over the whole application."""

import asyncio
import json

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.model import Actor, Origin
from clustercert.observability import log
from clustercert.server import application
from clustercert.wiring import open_components
from support import world as worlds
from support.log_capture import captured_logs
from support.service import Service
from support.stores import blob, rows
from support.world import ACTOR, World

POLICY = {
    "rules": [
        {"name": "teams", "when": {"groups": ["team-*"]}, "grant": {"groups": ["team:{group}"]}},
        {
            "name": "members",
            "when": {"roles": ["member"]},
            "grant": {"groups": ["members"], "max_lifetime": "8h"},
        },
        {"name": "no-readers", "when": {"roles": ["reader"]}, "deny": "Readers use the dashboard."},
    ]
}


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose member is in the groups team-a and team-b, and in another one."""
    world = worlds.make(tmp_path_factory.mktemp("teams"))
    asyncio.run(_join(world, "member", "team-b", "team-a", "others"))
    return world


async def _join(world: World, who: str, *names: str) -> None:
    actor = Actor(ACTOR, Origin("local", "f" * 32))
    async with open_components(world.settings()) as components:
        directory = components.identity.directory
        for name in names:
            group = await directory.create_group(name, world.project.domain, actor=actor)
            await directory.add_member(group, world.people[who].user, actor=actor)


def test_a_member_of_two_teams_gets_both(teams: World) -> None:
    with Service(teams.settings(policy=POLICY)).running() as service:
        member, admin, reader = (teams.people[who].headers for who in ("member", "admin", "reader"))
        issued = service.client.post(teams.path(), json={"duration": -1}, headers=member)
        assert issued.status_code == 200, issued.text
        body = service.client.post(
            teams.path(), json={"duration": -1}, headers=member, params={"dryRun": "All"}
        )
        assert body.json()["trace"]["rules"] == ["teams", "members"]
        denied = service.client.post(teams.path(), json={"duration": -1}, headers=reader)
        assert (denied.status_code, denied.json()["message"]) == (403, "Readers use the dashboard.")
        assert service.client.post(teams.path(), json={"duration": -1}, headers=admin).status_code == 403
    [(event,)] = rows(
        teams.database,
        "select body from audit_event where subject = ?",
        issued.headers["x-clustercert-fingerprint"],
    )
    detail = json.loads(blob(event))["detail"]
    assert detail["organizations"][:-1] == ["team:team-a", "team:team-b", "members"]
    assert [group["name"] for group in detail["caller"]["groups"]] == ["others", "team-a", "team-b"]
    assert (detail["rule"], detail["trace"]["rules"]) == ("teams", ["teams", "members"])
    request_id = issued.headers["x-request-id"]
    [(der,)] = rows(teams.database, "select der from certificate where request_id = ?", request_id)
    subject = x509.load_der_x509_certificate(blob(der)).subject
    names = [part.value for part in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert names[:-1] == ["team:team-a", "team:team-b", "members"]


def test_a_user_name_from_a_certificate_revokes_like_the_id(teams: World) -> None:
    rules = {"rules": [{"grant": {"groups": ["g"]}}], "username": "{user.name}"}
    with Service(teams.settings(policy=rules)).running() as service:
        member, admin = (teams.people[who] for who in ("member", "admin"))
        issued = service.client.post(teams.path(), json={"duration": 1}, headers=member.headers)
        assert issued.status_code == 200, issued.text
        listed = service.client.get(
            f"/clustercert/v1/projects/{teams.project.id}/certificates", headers=member.headers
        ).json()["certificates"][0]
        assert (listed["user_id"], listed["common_name"], listed["state"]) == (
            member.user.id,
            "member",
            "live",
        )
        revoked = service.client.post(
            teams.path(tail="/clustercertrevoke"), json={"userId": "member"}, headers=admin.headers
        )
        assert revoked.status_code == 200, revoked.text
        again = service.client.get(
            f"/clustercert/v1/projects/{teams.project.id}/certificates", headers=member.headers
        ).json()["certificates"][0]
        assert (again["fingerprint"], again["state"]) == (listed["fingerprint"], "revoked")


def test_a_service_that_allows_long_lifetimes_says_so_at_its_start(
    teams: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "configure", lambda *_: None)
    for policy, warns in (
        ({}, True),
        ({"role_groups": True}, True),
        ({"max_lifetime": "7d"}, False),
        (POLICY, True),
        (POLICY | {"max_lifetime": "7d"}, False),
    ):
        with captured_logs(application) as lines, Service(teams.settings(policy=policy)).running():
            pass
        events = [line["event"] for line in lines]
        assert ("policy allows certificates for more than 7 days" in events) is warns
