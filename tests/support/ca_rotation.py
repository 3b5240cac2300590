"""A client CA's rotation over the API, at API servers that are doubles."""

import asyncio
import base64
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert import wiring
from clustercert.clusters import ca_progress
from clustercert.jobs import ca_rotation
from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.pki.certificates import fingerprint
from support import world as worlds
from support.apiserver import ApiServer
from support.kubernetes_messages import credential_id, review
from support.service import Service
from support.stores import execute
from support.wait import SECONDS, eventually
from support.world import World


def set_draining(database: Path, cluster_id: str) -> None:
    """Let the rotation of a cluster's CA be where no worker issues from the old CA any more."""
    # The new version keeps a background step that is already running from writing the old state.
    change = "UPDATE ca_rotation SET state = 'draining', version = version + 1 WHERE cluster_id = ?"
    execute(database, change, cluster_id)


@dataclass(frozen=True)
class Holder:
    """A user's certificate and its key, in PEM."""

    certificate_pem: bytes
    key_pem: bytes

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem)

    def status_at(self, double: ApiServer) -> int:
        """The status of a request with the certificate at an API server."""
        return asyncio.run(self._status_at(double))

    async def _status_at(self, double: ApiServer) -> int:
        identity = ClientIdentity(self.certificate_pem, self.key_pem)
        async with KubeApi(double.url, double.server_ca.read_bytes(), identity, seconds=SECONDS) as api:
            try:
                await api.get("/version")
            except ApiServerRefused as refused:
                return refused.http_status
        return 200


@dataclass(frozen=True)
class Rotation:
    """The client of one cluster's rotation. The operator sends its requests unless another person is named."""

    world: World
    service: Service
    cluster_id: str
    doubles: Sequence[ApiServer]

    @property
    def path(self) -> str:
        return f"/clustercert/v1/projects/{self.world.project.id}/clusters/{self.cluster_id}"

    def send(
        self, method: str, tail: str, body: Mapping[str, object] | None = None, who: str = "operator"
    ) -> httpx2.Response:
        headers = self.world.people[who].headers
        return self.service.client.request(method, self.path + tail, json=body, headers=headers)

    def get(self, tail: str = "/client-ca-rotation", who: str = "operator") -> Any:
        answer = self.send("GET", tail, who=who)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, tail: str = "", body: Mapping[str, object] | None = None) -> Any:
        """Send a request that succeeds, to a path below the rotation's."""
        answer = self.send("POST", f"/client-ca-rotation{tail}", body or {})
        assert answer.is_success, answer.text
        return answer.json()

    def bundle(self) -> bytes:
        return self.send("GET", "/client-cas/bundle").content

    def trust(self, *doubles: ApiServer) -> None:
        """Write the bundle of now to API servers, by default to all."""
        for double in doubles or self.doubles:
            double.trust(self.bundle())

    def reach(self, state: str) -> Any:
        """The rotation, once it is in this state."""
        return eventually(lambda: found if (found := self.get())["state"] == state else None)

    def issue(self, who: str = "member") -> Holder:
        """Issue a certificate for a user."""
        answer = self.service.client.post(
            f"/api/v3/projects/{self.world.project.id}/clusters/{self.cluster_id}/clustercert",
            json={"duration": 1},
            headers=self.world.people[who].headers,
        )
        assert answer.status_code == 200, answer.text
        user = answer.json()["users"][0]["user"]
        return Holder(*(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))

    def certificate(self, holder: Holder) -> Any:
        """The holder's certificate in the answer of the API."""
        return self.get(f"/certificates/{fingerprint(holder.leaf).hex()}")

    def is_denied(self, holder: Holder, token: str) -> bool:
        """Whether the webhook denies a request with the certificate."""
        subject = holder.leaf.subject
        [name] = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        groups = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        answer = self.service.client.post(
            f"/clustercert/v1/kubernetes/clusters/{self.cluster_id}/authorize",
            content=review(credential_id(fingerprint(holder.leaf)), user=str(name.value), groups=groups),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["status"].get("denied", False))

    def issue_from(self, ca_id: str) -> Holder | None:
        """Issue a certificate. Returns it if this CA signed it."""
        holder = self.issue()
        return holder if self.ca_of(holder) == ca_id else None

    def ca_of(self, holder: Holder) -> str:
        """The id of the CA that signed a certificate."""
        return next(
            str(each["id"])
            for each in self.get("/client-cas")["client_cas"]
            if x509.load_pem_x509_certificate(each["certificate"].encode()).subject == holder.leaf.issuer
        )


def register(world: World, service: Service, name: str, *doubles: ApiServer) -> Rotation:
    """Register API servers as one cluster, which they trust."""
    path = f"/clustercert/v1/projects/{world.project.id}/clusters/{name}"
    body = {
        "internal_url": doubles[0].url,
        "server_ca": "".join(each.server_ca.read_text() for each in doubles),
        "api_servers": [each.url for each in doubles[1:] and doubles],
    }
    answer = service.client.put(path, json=body, headers=world.people["operator"].headers)
    assert answer.status_code == 201, answer.text
    rotation = Rotation(world, service, answer.json()["id"], doubles)
    rotation.trust()
    return rotation


@dataclass(frozen=True)
class RotatingService:
    """A running service whose rotations begin to drain soon."""

    world: World
    service: Service


@contextmanager
def rotating_service(folder: Path, **changed: object) -> Iterator[RotatingService]:
    """Run a service with some settings changed."""
    world = worlds.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        # A second is left for the propagation: no request of these tests takes long.
        patch.setattr(wiring, "RECORDING_SECONDS", -world.settings().server.request_timeout)
        # The API servers of the tests answer at once, so the service may ask them often.
        patch.setattr(ca_rotation, "INTERVAL", 0.2)
        patch.setattr(ca_progress, "SHORTEST_WAIT", timedelta(seconds=0.2))
        patch.setattr(ca_progress, "LONGEST_WAIT", timedelta(seconds=1))
        with Service(world.settings(**changed)).running() as running:
            yield RotatingService(world, running)


NewRotation = Callable[..., Rotation]


@contextmanager
def new_rotations(site: RotatingService, folder: Path) -> Iterator[NewRotation]:
    """Yield a function that starts a number of API servers, by default one, and registers them as a cluster."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(count: int = 1) -> Rotation:
            doubles = []
            for _ in range(count):
                of_server = folder / f"apiserver-{next(numbers)}"
                of_server.mkdir()
                doubles.append(stack.enter_context(ApiServer(of_server)))
            return register(site.world, site.service, f"cluster-{secrets.token_hex(4)}", *doubles)

        yield start
