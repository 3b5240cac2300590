"""Issues and revokes certificates over HTTP, and reads their state."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
from cryptography import x509

from clustercert.model import PrivateKey
from clustercert.pki.certificates import fingerprint
from clustercert.wiring import Components, open_components
from support.access_table import csr
from support.leaf_checks import leaf_of
from support.stores import Store
from support.world import World

OWN = "/clustercert/v1"


@dataclass(frozen=True)
class RevocationClient:
    """A client of a service in which tests revoke their own certificates."""

    world: World
    client: httpx2.Client

    def own(self, tail: str, cluster: str = "plain") -> str:
        known = self.world.clusters[cluster]
        return f"{OWN}/projects/{known.project_id}/clusters/{known.id}{tail}"

    def user(self, who: str) -> str:
        return self.world.people[who].user.id

    def issue(self, who: str, cluster: str = "plain", key: PrivateKey | None = None) -> x509.Certificate:
        body: dict[str, object] = {"duration": 30}
        if key is not None:
            body["csr"] = csr(key)
        answer = self.client.post(self.world.path(cluster), json=body, headers=self.world.people[who].headers)
        assert answer.status_code == 200, answer.text
        return leaf_of(answer.json())

    def post(self, who: str, path: str, body: object = None) -> httpx2.Response:
        headers = self.world.people[who].headers
        return self.client.post(path, json=body, headers=headers)

    def clustercertrevoke(self, who: str, whose: str, cluster: str = "plain") -> httpx2.Response:
        path = self.world.path(cluster, "/clustercertrevoke")
        return self.post(who, path, {"userId": self.user(whose)})

    def state(self, certificate: x509.Certificate) -> str:
        """The state in the inventory."""
        path = f"{OWN}/certificates/{fingerprint(certificate).hex()}"
        answer = self.client.get(path, headers=self.world.people["operator"].headers)
        return str(answer.json()["state"])

    def states(self, *certificates: x509.Certificate) -> list[str]:
        return [self.state(certificate) for certificate in certificates]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [said for said in Store(self.world.settings().store_url).events() if said["kind"] in kinds]

    def operate(self, work: Callable[[Components], Any]) -> None:
        """Work on the store directly, like the command line."""

        async def done() -> None:
            async with open_components(self.world.settings()) as components:
                await work(components)

        asyncio.run(done())
