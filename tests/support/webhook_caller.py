"""An API server as a client of the webhooks, and a certificate as it describes one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.x509.oid import NameOID

from clustercert.model import Cluster, Origin
from clustercert.wiring import Components, components
from support.kubernetes_messages import audit_event, credential_id, review
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.world import World

ORIGIN = Origin(address="local", request_id="e" * 32)


@dataclass(frozen=True)
class Shown:
    """A certificate as an API server describes it."""

    fingerprint: bytes
    user: str
    groups: tuple[str, ...]

    @property
    def id(self) -> str:
        return credential_id(self.fingerprint)

    @property
    def identity(self) -> dict[str, Any]:
        """User name and groups."""
        return {"user": self.user, "groups": self.groups}

    @property
    def review(self) -> bytes:
        return review(self.id, **self.identity)

    def event(self, **said: Any) -> dict[str, object]:
        return audit_event(self.id, **(self.identity | said))


@dataclass(frozen=True)
class ApiServer:
    """The API server of a cluster, as a client of the webhooks."""

    service: Service
    world: World
    cluster: Cluster
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.cluster.id}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def post(self, raw: bytes, tail: str = "/authorize?timeout=3s", **headers: str) -> httpx.Response:
        return self.service.client.post(self.path + tail, content=raw, headers=self.headers | headers)

    def status(self, *credential_ids: str, **said: object) -> dict[str, object]:
        """The status in the answer."""
        answer = self.post(review(*credential_ids, **said))  # type: ignore[arg-type] # as a test says it
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document.keys() == {"apiVersion", "kind", "status"}
        assert (document["apiVersion"], document["kind"]) == (
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
        )
        status: dict[str, object] = document["status"]
        assert status["allowed"] is False
        return status

    def issue(self, person: str = "admin") -> Shown:
        """A new certificate."""
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercert"
        headers = self.world.people[person].headers
        answer = self.service.client.post(path, json={"duration": 1}, headers=headers)
        assert answer.status_code == 200, answer.text
        leaf = leaf_of(answer.json())
        assert credential_number_of(leaf) == answer.headers["X-Clustercert-Serial"]
        return Shown(
            fingerprint=bytes.fromhex(answer.headers["X-Clustercert-Fingerprint"]),
            user=self.world.people[person].user.id,
            groups=tuple(
                str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            ),
        )

    def judged(self, shown: Shown, **said: object) -> dict[str, object]:
        """The status in the answer for a certificate."""
        return self.status(shown.id, **(shown.identity | said))

    def revoke(self, shown: Shown) -> None:
        cluster = f"/projects/{self.cluster.project_id}/clusters/{self.cluster.id}"
        path = f"/clustercert/v1{cluster}/certificates/{shown.fingerprint.hex()}/revoke"
        answer = self.service.client.post(path, json={}, headers=self.world.people["admin"].headers)
        assert answer.is_success, answer.text

    def revoke_all_of(self, person: str) -> None:
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercertrevoke"
        user = self.world.people[person].user
        answer = self.service.client.post(
            path, json={"userId": user.id}, headers=self.world.people["admin"].headers
        )
        assert answer.status_code == 200, answer.text


def operated(own: World, work: Callable[[Components], Awaitable[None]]) -> None:
    """Run work of the operator, as in another process."""

    async def opened() -> None:
        async with components(own.settings()) as parts:
            await work(parts)

    asyncio.run(opened())
