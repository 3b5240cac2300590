"""Credentials that are tokens, in the API: lists, one token, the access report, revocation."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx2
import pytest

from clustercert.model import CertificateRecord, utc_now
from clustercert.wiring import open_components
from support import world as worlds
from support.service import Service
from support.token_clusters import record_token, use_tokens
from support.world import World

OWN = "/clustercert/v1"
ROLES = {"clustercert:editors": ("clusterrole/view", "clusterrole/edit@blue")}


@dataclass(frozen=True)
class Place:
    """A service with a token of `member` in the cluster `eip`, and a certificate in `plain`."""

    world: World
    client: httpx2.Client
    token: CertificateRecord

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
    with Service(world.settings()).running() as service:
        headers = world.people["member"].headers
        answer = service.client.post(world.path("plain"), json={"duration": 1}, headers=headers)
        assert answer.status_code == 200, answer.text
        yield Place(world, service.client, token)


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
    assert (report["enforced_by"], report["sees_use_after_revocation"]) == (["account"], False)
    path = place.of_cluster(f"/certificates/{place.token.fingerprint.hex()}/revoke")
    made = place.client.post(OWN + path, headers=place.world.people["admin"].headers)
    assert made.status_code == 200, made.text
    answer = made.json()
    assert (answer["enforced_by"], answer["refuses"], answer["lacking"]) == (["account"], "all", None)
    assert "keep what the service accounts of that namespace can do" in answer["does_not_stop"]
    report = place.get("admin", place.of_cluster("/access")).json()
    [user] = report["users"]
    assert (user["credentials"][0]["state"], user["with_access"]) == ("revoked", 0)
