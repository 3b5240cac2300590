"""Credentials that are tokens, in the API and the console: lists, one token, the access report, revocation."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from pathlib import Path
from uuid import UUID

import httpx2
import pytest

from clustercert.model import CertificateRecord, utc_now
from clustercert.wiring import open_components
from support import world as worlds
from support.console import Browser
from support.service import Service
from support.token_clusters import record_token, use_tokens
from support.world import World

OWN = "/clustercert/v1"
ROLES = {"clustercert:editors": ("clusterrole/view", "clusterrole/edit@blue")}


@dataclass(frozen=True)
class Place:
    """A service with a token of `member` in the cluster `eip`, and a certificate in `plain`."""

    world: World
    service: Service
    token: CertificateRecord

    @property
    def client(self) -> httpx2.Client:
        return self.service.client

    def page(self, who: str, tail: str = "") -> str:
        """The text of a page of the console about the cluster `eip`, in one line."""
        answer = Browser.in_session(self.service, self.world.people[who]).get(
            f"/console{self.of_cluster(tail)}"
        )
        assert answer.status_code == 200, answer.text
        return unescape(" ".join(re.sub(r"<[^>]+>", " ", answer.text).split()))

    def get(self, who: str, path: str, **query: str) -> httpx2.Response:
        return self.client.get(OWN + path, params=query, headers=self.world.people[who].headers)

    def of_cluster(self, tail: str, name: str = "eip") -> str:
        known = self.world.clusters[name]
        return f"/projects/{known.project_id}/clusters/{known.id}{tail}"

    def listed(self, **query: str) -> list[tuple[str, str]]:
        answer = self.get("operator", "/certificates", **query)
        assert answer.status_code == 200, answer.text
        return [(each["kind"], each["cluster_name"]) for each in answer.json()["certificates"]]


async def _prepare(world: World) -> CertificateRecord:
    async with open_components(world.settings()) as components:
        cluster = await use_tokens(components.database, world.clusters["eip"], ROLES)
        user = world.people["member"].user
        return await record_token(
            components.database,
            cluster,
            user_id=user.id,
            user_name=user.name,
            groups=("clustercert:editors",),
            not_after=utc_now().replace(microsecond=0) + timedelta(hours=8),
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = worlds.make(tmp_path)
    token = asyncio.run(_prepare(world))
    with Service(world.settings(console={"enabled": True})).running() as service:
        headers = world.people["member"].headers
        answer = service.client.post(world.path("plain"), json={"duration": 1}, headers=headers)
        assert answer.status_code == 200, answer.text
        yield Place(world, service, token)


def test_lists_show_and_filter_the_kind(place: Place) -> None:
    assert place.listed() == [("certificate", "plain"), ("token", "eip")]
    assert place.listed(kind="token") == [("token", "eip")]
    assert place.listed(kind="certificate") == [("certificate", "plain")]
    assert place.get("operator", "/certificates", kind="password").status_code == 400


def test_a_token_is_found_by_its_id_in_audit_logs(place: Place) -> None:
    jti = str(UUID(hex=place.token.serial))
    number = place.token.credential_number
    for name in (
        f"JTI={jti}",
        f"jti={jti.upper()}",
        place.token.serial,
        number,
        place.token.fingerprint.hex(),
    ):
        for path in (f"/certificates/{name}", place.of_cluster(f"/certificates/{name}")):
            body = place.get("operator", path).json()
            assert body["credential_id"] == f"JTI={jti}", name
    assert (body["kind"], body["pem"], body["key_type"], body["key_origin"]) == ("token", None, "", "none")
    assert body["account"] == f"member-{number}"
    assert place.get("stranger", f"/certificates/JTI={jti}").status_code == 404


def test_nobody_revokes_a_token_with_a_key(place: Place) -> None:
    path = f"{OWN}/certificates/{place.token.fingerprint.hex()}/revoke-with-key"
    answer = place.client.post(path, json={"signature": "AAAA", "reason": "keyCompromise"})
    assert answer.status_code == 401
    assert place.listed(state="live", kind="token") == [("token", "eip")]


def test_a_revoked_token_has_no_access_without_a_webhook(place: Place) -> None:
    report = place.get("admin", place.of_cluster("/access")).json()
    [user] = report["users"]
    [credential] = user["credentials"]
    assert (credential["kind"], credential["has_access"], user["with_access"]) == ("token", True, 1)
    assert (credential["stopped_by"], credential["ends_by"]) == (["account", "expiry"], "account")
    assert (credential["refuses"], credential["within_seconds"]) == ("all", 12)
    assert [(each["name"], each["set_up"]) for each in report["controls"]] == [
        ("account", True),
        ("expiry", True),
    ]
    assert (report["enforced_by"], report["enforcement"]) == (["account"], "unverified")
    assert report["use_not_seen"] is not None
    path = place.of_cluster(f"/certificates/{place.token.fingerprint.hex()}/revoke")
    made = place.client.post(OWN + path, headers=place.world.people["admin"].headers)
    assert made.status_code == 200, made.text
    answer = made.json()
    assert (answer["enforced_by"], answer["refuses"], answer["lacking"]) == (["account"], "all", None)
    assert "keep the rights of the service accounts in that namespace" in answer["does_not_stop"]
    report = place.get("admin", place.of_cluster("/access")).json()
    [user] = report["users"]
    assert (user["credentials"][0]["state"], user["with_access"]) == ("revoked", 0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/client-ca", 409),
        ("GET", "/client-cas/bundle", 409),
        ("GET", "/client-ca-rotation", 409),
        ("POST", "/client-ca-rotation", 409),
        ("GET", "/client-cas", 200),
    ],
)
def test_a_cluster_with_tokens_has_no_client_ca(place: Place, method: str, path: str, status: int) -> None:
    headers = place.world.people["operator"].headers
    answer = place.client.request(method, OWN + place.of_cluster(path), headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json() == {"client_cas": []}
    else:
        assert "has no client CA" in answer.json()["error_msg"]


def test_no_rotation_leads_to_tokens(place: Place) -> None:
    path, headers = place.of_cluster("/client-ca-rotation", "plain"), place.world.people["operator"].headers
    answer = place.client.post(OWN + path, json={"signer": "token"}, headers=headers)
    assert (answer.status_code, "signer: " in answer.json()["error_msg"]) == (400, True)


def test_a_cluster_with_tokens_has_no_crl(place: Place) -> None:
    known = place.world.clusters["eip"]
    path = f"{OWN}/clusters/{known.id}/client-cas/{known.client_ca.id}/crl"
    assert place.client.get(path).status_code == 404


def test_the_fleet_lists_clusters_with_tokens(place: Place) -> None:
    [found] = place.get("operator", "/fleet/clusters", text="eip").json()["clusters"]
    assert (found["signer"], found["client_ca_not_after"]) == ("token", None)
    ordered = place.get("operator", "/fleet/clusters", order="ca_end").json()["clusters"]
    assert "eip" not in [each["name"] for each in ordered]
    assert place.get("operator", "/overview").status_code == 200
    assert place.client.get("/metrics").status_code == 200


def test_an_explanation_names_the_groups_that_are_left_out(place: Place) -> None:
    cluster = place.world.clusters["eip"].id
    admin = place.world.people["admin"].user.id
    refused = place.get("operator", "/policy/explain", cluster=cluster, user=admin).json()
    assert (refused["allowed"], refused["status"]) == (False, 403)
    assert "clustercert:admins" in refused["message"]
    member = place.world.people["member"].user.id
    allowed = place.get("operator", "/policy/explain", cluster=cluster, user=member).json()
    signed = allowed["would_sign"]
    assert allowed["cluster"]["credential"] == "token"
    assert (signed["organizations"], signed["left_out"], signed["key_type"]) == (
        ["clustercert:editors"],
        [],
        "",
    )
    with_csr = place.get("operator", "/policy/explain", cluster=cluster, user=member, csr="true")
    assert (with_csr.status_code, "csr: " in with_csr.json()["error_msg"]) == (400, True)


def test_only_groups_with_roles_are_given_to_users(place: Place) -> None:
    found = place.get(
        "operator", "/policy/entitlements", cluster=place.world.clusters["eip"].id, group="*"
    ).json()
    assert [
        (each["name"], [entitlement["groups"] for entitlement in each["entitlements"]])
        for each in found["users"]
    ] == [("tests/member", [["clustercert:editors"]])]


def test_the_console_shows_how_a_token_ends(place: Place) -> None:
    number = place.token.fingerprint.hex()[:12]
    shown = place.page("operator")
    assert f"token {number}" in shown
    assert "account, 12 s" in shown
    assert "not verified A control is set up" in shown
    assert "Client CA" not in shown
    assert "has no client CA" in place.page("operator", "/rotation")
    assert "loses its rights in about 2 seconds" in place.page(
        "operator", f"/certificates/{place.token.fingerprint.hex()}/revoke"
    )
    assert "You get a token for up to" in place.page("member", "/why")


def test_groups_without_a_role_can_not_be_requested(tmp_path: Path) -> None:
    offer = {"groups": ["clustercert:editors", "owners"], "max_lifetime": "1h", "approvals": []}
    rule = {"name": "on-request", "when": {"roles": ["member"]}, "offer": offer}
    world = worlds.make(tmp_path)
    asyncio.run(_prepare(world))
    with Service(world.settings(policy={"rules": [rule]})).running() as service:

        def ask(group: str) -> httpx2.Response:
            known = world.clusters["eip"]
            body: dict[str, object] = {
                "project_id": known.project_id,
                "cluster_id": known.id,
                "groups": [group],
            }
            body |= {"duration": 3600, "reason": "incident 4711"}
            headers = world.people["member"].headers
            return service.client.post(f"{OWN}/access-requests", json=body, headers=headers)

        refused = ask("owners")
        assert (refused.status_code, "no role in this cluster" in refused.json()["error_msg"]) == (403, True)
        assert ask("clustercert:editors").status_code == 201
