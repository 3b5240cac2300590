"""How the webhook decides on altered copies and forged certificates."""

import asyncio
import base64
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.kubernetes.setup.authorization import match_conditions
from clustercert.model import (
    CREDENTIAL_PREFIX,
    Actor,
    Cluster,
    ClusterOptions,
    Grant,
    Origin,
    PrivateKey,
    SigningRequest,
    credential_group,
    credential_groups,
)
from clustercert.model.clusters import Registration
from clustercert.pki.keys import key_pem, load_key_der, new_key
from clustercert.pki.leaf import der_fingerprint, new_serial
from clustercert.store.identity.entities import Reference
from clustercert.wiring import Components, open_components
from support import altered_certificates
from support import world as worlds
from support.altered_certificates import can_be_shifted
from support.apiserver.attributes import Attributes
from support.apiserver.expressions import holds
from support.apiserver.identity import Identity
from support.apiserver.peer_certificate import read
from support.apiserver.webhook import Release, review_body, review_spec
from support.cluster_setup import cluster_setup
from support.leaf_builder import LeafBuilder
from support.samples import server_ca_pem
from support.service import Service
from support.stores import Store, blob, event
from support.wait import eventually
from support.world import ACTOR, Person, World

T = TypeVar("T")

ORIGIN = Origin(address="local", request_id="e" * 32)

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

        async def made(components: Components) -> Person:
            return await _person(components, self.world, role)

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
        ca_key = self.operate(lambda components: _ca_key(components, self.cluster))
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
            der = LeafBuilder(ca.ca_certificate, ca_key).build(request)
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
        async def done(components: Components) -> None:
            await components.identity.directory.enable_user(
                person.user, enabled=enabled, actor=Actor(ACTOR, ORIGIN)
            )

        self.operate(done)

    def still_good(self, way: Control, person: Person) -> HeldCertificate:
        """A new certificate of the same user, not covered by the revocation."""
        if way != "disabled":
            return self.issue(person)
        self.enable(person, enabled=True)
        again = self.operate(lambda components: _with_token(components, person, self.world))
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
    options: ClusterOptions,
) -> WebhookCluster:
    """A new cluster; its options are not checked."""
    wanted = Registration(
        name=f"c-{secrets.token_hex(4)}",
        internal_url="https://192.168.1.7:5443",
        server_ca_pem=server_ca_pem(),
    )

    async def added(components: Components) -> tuple[Cluster, str]:
        cluster = await components.clusters.add(world.project.id, wanted, actor=Actor(ACTOR, ORIGIN))
        cluster = replace(cluster, options=options)
        await components.clusters.queries.replace(cluster, event("cluster.updated"))
        issued = await components.webhook.tokens.create(cluster, actor=Actor(ACTOR, ORIGIN))
        return cluster, issued.text

    return WebhookCluster(world, service, *run_as_operator(world, added))


def run_as_operator(world: World, work: Callable[[Components], Awaitable[T]]) -> T:
    """Run work on the store as the operator, like another process."""

    async def opened() -> T:
        async with open_components(world.settings()) as components:
            return await work(components)

    return asyncio.run(opened())


async def _person(components: Components, world: World, role: str) -> Person:
    password = secrets.token_urlsafe(12)
    user = await components.identity.directory.create_user(
        f"user-{os.urandom(4).hex()}", world.project.domain, password=password, actor=Actor(ACTOR, ORIGIN)
    )
    await components.identity.roles.assign(role, user, world.project, actor=Actor(ACTOR, ORIGIN))
    return await _with_token(components, Person(user, password, ""), world)


async def _with_token(components: Components, person: Person, world: World) -> Person:
    proof = ByPassword(Reference(id=person.user.id), person.password)
    issued = await components.identity.tokens.issue(proof, ProjectScope(Reference(id=world.project.id)))
    return replace(person, token=issued.text)


async def _ca_key(components: Components, cluster: Cluster) -> PrivateKey:
    ca = cluster.client_ca
    assert ca.sealed_key is not None
    return load_key_der(await components.custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))


def _number(der: bytes) -> str:
    (group,) = credential_groups(Identity.of(x509.load_der_x509_certificate(der)).groups)
    return group.removeprefix(CREDENTIAL_PREFIX)


Guard = Literal["default", "known-only", "wide"]
# The widest possible exemptions. `cluster update` would reject the first.
EVERYTHING = ("*", "clustercert:*", "system:*")
OPTIONS: dict[Guard, ClusterOptions] = {
    "default": ClusterOptions(),
    "known-only": ClusterOptions(mode="known-only"),
    "wide": ClusterOptions(mode="known-only", exemptions=EVERYTHING),
}
ADMINS = "clustercert:admins"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("altered"))


@pytest.fixture(scope="module")
def service(own: World) -> Iterator[Service]:
    with Service(own.settings()).running() as running:
        yield running


@pytest.fixture(scope="module")
def sites(own: World, service: Service) -> dict[Guard, WebhookCluster]:
    """A cluster for each set of options."""
    return {guard: new_webhook_cluster(own, service, options) for guard, options in OPTIONS.items()}


@pytest.fixture(params=OPTIONS)
def guarded(request: pytest.FixtureRequest, sites: dict[Guard, WebhookCluster]) -> WebhookCluster:
    """Run the test with a cluster in each mode."""
    return sites[request.param]


@pytest.fixture
def default(sites: dict[Guard, WebhookCluster]) -> WebhookCluster:
    return sites["default"]


@pytest.fixture(scope="module")
def admin(sites: dict[Guard, WebhookCluster]) -> Person:
    """A user without revoked certificates."""
    return sites["default"].new_person()


def is_asked(cluster: Cluster, der: bytes, *, tells_hash: bool = True) -> bool:
    """Whether the API server calls the webhook, by the match conditions that `kubernetes setup` writes."""
    asking = cluster_setup(
        cluster.options,
        mode=cluster.options.mode,
        groups=(ADMINS, "clustercert:editors", "clustercert:viewers"),
    )
    spec = review(der)
    if not tells_hash:
        del spec["extra"]
    return all(holds(condition, {"request": spec}) for condition in match_conditions(asking))


@pytest.mark.parametrize("way", CONTROLS)
@pytest.mark.parametrize("guard", OPTIONS)
def test_every_copy_of_a_revoked_certificate_is_denied(
    sites: dict[Guard, WebhookCluster], guard: Guard, way: Control
) -> None:
    here = sites[guard]
    person = here.new_person()
    lost = here.issue(person)
    copies = altered_certificates.copies(lost.der)
    assert copies.keys() == set(altered_certificates.KINDS)
    assert here.answer(lost.der) == ""

    here.revoke(way, lost, person)
    eventually(lambda: "revoked" in here.answer(lost.der))

    for kind, copy in copies.items():
        assert "revoked" in here.answer(copy), kind
        assert is_asked(here.cluster, copy), kind
    # Without a hash, encodings can't be told apart, and the credential group identifies the certificate.
    assert "revoked" in here.answer_without_id(lost.der)
    assert is_asked(here.cluster, lost.der, tells_hash=False)
    good = here.still_good(way, person)
    assert (here.answer(good.der), here.answer_without_id(good.der)) == ("", "")
    assert "revoked" in here.answer(copies["shifted-kilobyte"])


def test_every_copy_of_a_good_certificate_is_denied_with_one_alert(
    default: WebhookCluster, admin: Person
) -> None:
    here = default
    held = here.issue(admin)
    for kind, copy in altered_certificates.copies(held.der).items():
        assert "altered copy" in here.answer(copy), kind
    assert here.answer(held.der) == ""

    def told() -> list[str]:
        events = here.events("credential.altered")
        return [said["subject"] for said in events if said["detail"]["credential_number"] == held.number]

    eventually(lambda: told() != [])
    assert told() == [held.fingerprint]


# Forged certificates


def is_told_of(here: WebhookCluster, held: HeldCertificate, fault: str) -> bool:
    return any(
        said["subject"] == held.fingerprint and said["detail"]["fault"] == fault
        for said in here.events("credential.unknown")
    )


def mallory() -> str:
    return f"system:mallory-{secrets.token_hex(4)}"


def test_a_strangers_number_is_denied_and_told(guarded: WebhookCluster, admin: Person) -> None:
    stranger = guarded.issue(admin)
    forged = guarded.sign(mallory(), (ADMINS,), stranger.number)
    same_name = guarded.sign(admin.user.id, (ADMINS, "more"), stranger.number)
    for held in (forged, same_name):
        assert "does not match its credential number" in guarded.answer(held.der)
        assert "does not match its credential number" in guarded.answer_without_id(held.der)
        eventually(lambda held=held: is_told_of(guarded, held, "forged"))  # type: ignore[misc] # the lambda has no types
    assert guarded.answer(stranger.der) == ""


def test_a_copy_of_everything_but_the_key_is_altered(guarded: WebhookCluster, admin: Person) -> None:
    """It has the same name, groups and credential number. Only its hash differs."""
    stranger = guarded.issue(admin)
    forged = guarded.sign(admin.user.id, (ADMINS,), stranger.number)
    assert "altered copy" in guarded.answer(forged.der)


def test_two_numbers_are_denied_and_told(guarded: WebhookCluster, admin: Person) -> None:
    first, second = guarded.issue(admin), guarded.issue(admin)
    forged = guarded.sign(admin.user.id, (ADMINS, credential_group(first.number)), second.number)
    assert "does not match its credential number" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


@pytest.mark.parametrize("number", ["", "0" * 39, "A" * 40, "g" * 40, "0" * 39 + "\u0660"])
def test_a_number_that_is_none_is_denied_and_told(guarded: WebhookCluster, number: str) -> None:
    forged = guarded.sign(mallory(), (ADMINS, f"clustercert:credential:{number}"))
    assert "does not match its credential number" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


def test_a_number_that_nobody_has_is_denied_and_told(guarded: WebhookCluster) -> None:
    forged = guarded.sign(mallory(), (ADMINS,), secrets.token_hex(20))
    assert "not in the ledger" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "unknown"))


def test_a_number_of_another_cluster_is_denied_and_told(
    guarded: WebhookCluster, sites: dict[Guard, WebhookCluster], admin: Person
) -> None:
    elsewhere = next(site for site in sites.values() if site is not guarded).issue(admin)
    assert "another cluster" in guarded.answer(elsewhere.der)
    eventually(lambda: is_told_of(guarded, elsewhere, "other_cluster"))


@pytest.mark.parametrize("guard", ["known-only", "wide"])
def test_our_group_without_a_number_is_denied_with_an_alert(
    sites: dict[Guard, WebhookCluster], guard: Guard
) -> None:
    here = sites[guard]
    for groups in ((ADMINS,), ("system:nodes", "clustercert:viewers"), ("clustercert:anything",)):
        forged = here.sign(mallory(), groups)
        assert "only certificates that clustercert issued" in here.answer(forged.der)
        assert is_asked(here.cluster, forged.der)
        eventually(lambda forged=forged: is_told_of(here, forged, "unknown"))  # type: ignore[misc] # the lambda has no types
    ours_by_name = here.sign("clustercert:service", ())
    assert here.answer(ours_by_name.der) != ""


def test_without_a_number_by_default_it_is_left_to_rbac_and_told(default: WebhookCluster) -> None:
    """Rule 4: it may be from another CA."""
    forged = default.sign(mallory(), (ADMINS,))
    assert default.answer(forged.der) == ""
    eventually(lambda: is_told_of(default, forged, "unknown"))


def test_a_recorded_certificate_without_its_group_is_unknown(guarded: WebhookCluster, admin: Person) -> None:
    """The ledger knows the hash, but the group is missing. Only a faulty API server can send this."""
    held = guarded.issue(admin)
    spec = review(held.der)
    spec["groups"] = [ADMINS, "system:authenticated"]
    is_denied = guarded.status(spec).get("denied", False)
    assert is_denied == (guarded.cluster.options.mode == "known-only")
    eventually(lambda: is_told_of(guarded, held, "unknown"))


def test_a_token_beside_the_group_is_denied(guarded: WebhookCluster, admin: Person) -> None:
    """The identity provider gave the user a group with our prefix."""
    spec = review(guarded.issue(admin).der)
    spec["extra"] = {"authentication.kubernetes.io/credential-id": ["JTI=7f3d1a52"]}
    assert guarded.status(spec)["denied"] is True
