"""A cluster at a running service, with issued, forged and old certificates, and reviews at its webhook."""

import asyncio
import base64
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.clusters.registration import Registration
from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.model import (
    CREDENTIAL_PREFIX,
    Actor,
    Cluster,
    ClusterOptions,
    Grant,
    KeyType,
    Origin,
    PrivateKey,
    SigningRequest,
    credential_groups,
)
from clustercert.pki.keys import key_pem, load_key_der, new_key
from clustercert.pki.leaf import LeafBuilder, der_fingerprint, new_serial
from clustercert.store.entities import Reference
from clustercert.wiring import Components, components
from support.altered_certificates import can_be_shifted
from support.apiserver.attributes import Attributes
from support.apiserver.identity import Identity
from support.apiserver.peer_certificate import read
from support.apiserver.webhook import Release, review_body, review_spec
from support.samples import server_ca_pem
from support.service import Service
from support.stores import Store, blob, event
from support.wait import eventually
from support.world import ACTOR, Person, World

T = TypeVar("T")

ORIGIN = Origin(address="local", request_id="e" * 32)
CAS: tuple[KeyType, ...] = ("ec-p256", "ec-p384", "rsa-2048", "ed25519")

Control = Literal["certificate", "user", "cluster", "disabled"]
"""By what a certificate is revoked."""
CONTROLS: tuple[Control, ...] = get_args(Control)

LISTS_NAMESPACES = Attributes("list", version="v1", resource="namespaces")
NO_OPINION: dict[str, object] = {"allowed": False}


@dataclass(frozen=True)
class HeldCertificate:
    """A certificate with its key.

    Attributes:
        number: its credential number; empty where it has none.
    """

    der: bytes
    key_pem: bytes
    number: str

    @property
    def fingerprint(self) -> str:
        return der_fingerprint(self.der).hex()

    @property
    def pem(self) -> bytes:
        """Certificate and key."""
        leaf = x509.load_der_x509_certificate(self.der)
        return leaf.public_bytes(Encoding.PEM) + self.key_pem


@dataclass(frozen=True)
class WebhookCluster:
    """A running service, its world, and one cluster with the token of its API server."""

    world: World
    service: Service
    cluster: Cluster
    token: str

    def operate(self, work: Callable[[Components], Awaitable[T]]) -> T:
        return run_as_operator(self.world, work)

    # Certificates

    def new_person(self, role: str = "admin") -> Person:
        """A new user with a role in the project and a token."""

        async def made(parts: Components) -> Person:
            return await _person(parts, self.world, role)

        return self.operate(made)

    def issue(self, person: Person) -> HeldCertificate:
        """A new certificate whose signature can be shifted."""
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercert"
        while True:
            answer = self.service.client.post(path, json={"duration": 1}, headers=person.headers)
            assert answer.status_code == 200, answer.text
            user = answer.json()["users"][0]["user"]
            pem = base64.b64decode(user["client-certificate-data"])
            der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
            if can_be_shifted(der):
                return HeldCertificate(der, base64.b64decode(user["client-key-data"]), _number(der))

    def sign(self, username: str, groups: tuple[str, ...], number: str = "", **more: Any) -> HeldCertificate:
        """An unrecorded certificate, signed with the client CA's key, whose signature can be shifted."""
        ca, key = self.cluster.client_ca, new_key("ec-p256")
        ca_key = self.operate(lambda parts: _ca_key(parts, self.cluster))
        now = datetime.now(UTC).replace(microsecond=0)
        grant = Grant(
            rule="admin",
            username=username,
            groups=groups,
            not_before=now - timedelta(minutes=5),
            not_after=more.get("not_after", now + timedelta(days=1)),
        )
        while True:
            serial = more.get("serial") or new_serial()
            request = SigningRequest(grant, key.public_key(), ca, number, serial=serial)
            der = LeafBuilder(ca.certificate, ca_key).build(request)
            if can_be_shifted(der):
                return HeldCertificate(der, key_pem(key), number)
            assert "serial" not in more, "another serial would have to be said"

    # Revocations

    def revoke(self, way: Control, held: HeldCertificate, person: Person) -> None:
        """Revoke as an administrator, or disable the user as the operator."""
        base = f"/clustercert/v1/projects/{self.cluster.project_id}/clusters/{self.cluster.id}"
        if way == "certificate":
            self._post(f"{base}/certificates/{held.fingerprint}/revoke", {})
        elif way == "user":
            path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercertrevoke"
            self._post(path, {"userId": person.user.id})
        elif way == "cluster":
            self._post(f"{base}/revoke", {})
        else:
            self.enable(person, enabled=False)

    def enable(self, person: Person, *, enabled: bool) -> None:
        async def done(parts: Components) -> None:
            await parts.identity.directory.enable_user(
                person.user, enabled=enabled, actor=Actor(ACTOR, ORIGIN)
            )

        self.operate(done)

    def still_good(self, way: Control, person: Person) -> HeldCertificate:
        """A new certificate of the same user, not covered by the revocation."""
        if way != "disabled":
            return self.issue(person)
        self.enable(person, enabled=True)
        again = self.operate(lambda parts: _with_token(parts, person, self.world))
        headers = again.headers
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters"
        # Whoever was disabled is known as such for a second more.
        eventually(lambda: self.service.client.get(path, headers=headers).status_code == 200)
        return self.issue(again)

    def _post(self, path: str, body: object) -> None:
        headers = self.world.people["admin"].headers
        answer = self.service.client.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text

    # What the API server asks

    def status(self, spec: object, release: Release = "1.32") -> dict[str, object]:
        """The webhook's status for a review with this spec."""
        answer = self.service.client.post(
            f"/clustercert/v1/kubernetes/clusters/{self.cluster.id}/authorize?timeout=3s",
            content=review_body(spec, release),  # type: ignore[arg-type] # a spec as `review` makes it
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        status: dict[str, object] = answer.json()["status"]
        assert status["allowed"] is False
        return status

    def answer(self, der: bytes) -> str:
        """The reason why presented bytes are denied; empty for no opinion."""
        return _said(self.status(review(der)))

    def answer_without_id(self, der: bytes) -> str:
        """The same for a review without credential id, as before Kubernetes 1.32."""
        return _said(self.status({name: said for name, said in review(der).items() if name != "extra"}))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The audit events of the cluster."""
        store = Store(self.world.settings().store_url)
        rows = store.rows("SELECT body FROM audit_event WHERE kind = ? ORDER BY id", kind)
        found: list[dict[str, Any]] = [json.loads(blob(body)) for (body,) in rows]
        return [said for said in found if said["detail"].get("cluster_id") == self.cluster.id]


def _said(status: dict[str, object]) -> str:
    if status == NO_OPINION:
        return ""
    assert status["denied"] is True
    return str(status["reason"])


def review(der: bytes) -> dict[str, object]:
    """The spec of kube-apiserver's SubjectAccessReview for these presented bytes."""
    who = Identity.of(read(der).certificate, der)
    return dict(review_spec(who, LISTS_NAMESPACES))


def new_webhook_cluster(
    world: World,
    service: Service,
    key_type: KeyType,
    options: ClusterOptions | None = None,
    registration: Registration | None = None,
) -> WebhookCluster:
    """A new cluster whose client CA has this key type; its options are not checked."""
    wanted = registration or Registration(
        name=f"c-{secrets.token_hex(4)}",
        internal_url="https://192.168.1.7:5443",
        server_ca_pem=server_ca_pem(),
    )

    async def added(parts: Components) -> tuple[Cluster, str]:
        clusters = replace(parts.clusters, ca_key_type=key_type)
        cluster = await clusters.add(world.project.id, wanted, actor=Actor(ACTOR, ORIGIN))
        if options is not None:
            cluster = replace(cluster, options=options)
            await parts.clusters.queries.replace(cluster, event("cluster.updated"))
        issued = await parts.webhook.tokens.create(cluster, actor=Actor(ACTOR, ORIGIN))
        return cluster, issued.text

    return WebhookCluster(world, service, *run_as_operator(world, added))


def run_as_operator(world: World, work: Callable[[Components], Awaitable[T]]) -> T:
    """Run work on the store as the operator, like another process."""

    async def opened() -> T:
        async with components(world.settings()) as parts:
            return await work(parts)

    return asyncio.run(opened())


async def _person(parts: Components, world: World, role: str) -> Person:
    password = secrets.token_urlsafe(12)
    user = await parts.identity.directory.create_user(
        f"user-{os.urandom(4).hex()}", world.project.domain, password=password, actor=Actor(ACTOR, ORIGIN)
    )
    await parts.identity.roles.assign(role, user, world.project, actor=Actor(ACTOR, ORIGIN))
    return await _with_token(parts, Person(user, password, ""), world)


async def _with_token(parts: Components, person: Person, world: World) -> Person:
    proof = ByPassword(Reference(id=person.user.id), person.password)
    issued = await parts.identity.tokens.issue(proof, ProjectScope(Reference(id=world.project.id)))
    return replace(person, token=issued.text)


async def _ca_key(parts: Components, cluster: Cluster) -> PrivateKey:
    ca = cluster.client_ca
    assert ca.sealed_key is not None
    return load_key_der(await parts.custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))


def _number(der: bytes) -> str:
    (group,) = credential_groups(Identity.of(x509.load_der_x509_certificate(der)).groups)
    return group.removeprefix(CREDENTIAL_PREFIX)
