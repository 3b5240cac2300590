"""Altered copies in clusters without the webhook: deletion of a binding, and the admission policy.

Service, TLS and requests are real. The API server is the tests' double, which parses certificates as Go does.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model import ClusterOptions, JsonObject, KeyType
from support import altered_certificates, managed_cluster
from support import world as worlds
from support.apiserver import ApiServer
from support.apiserver_clients import Presenter
from support.service import Service
from support.wait import eventually
from support.webhook_cluster import (
    CAS,
    CONTROLS,
    Control,
    HeldCertificate,
    WebhookCluster,
    new_webhook_cluster,
)
from support.world import World

pytestmark = pytest.mark.full

Means = Literal["binding", "admission"]
OPTIONS: dict[Means, ClusterOptions] = {
    "binding": ClusterOptions(credential_roles=managed_cluster.ROLES),
    "admission": ClusterOptions(admission=True),
}
ADMINS = "clustercert:admins"


@dataclass(frozen=True)
class Scene:
    """A cluster on the API server double, with one control."""

    site: WebhookCluster
    double: ApiServer
    means: Means
    key_type: KeyType

    def is_refused(self, held: HeldCertificate, copy: bytes | None = None) -> bool:
        """Whether the control refuses the certificate, or a copy that is presented instead of it."""
        with Presenter(self.double, held.pem) as presenter:
            if self.means == "binding":
                answer = presenter.get(managed_cluster.NAMESPACES, copy)
            else:
                new: JsonObject = {"metadata": {"name": f"n-{secrets.token_hex(4)}"}}
                answer = presenter.post(f"{managed_cluster.NAMESPACES}?dryRun=All", new, copy)
        assert answer.status_code in {200, 201, 403}, answer.text
        return answer.status_code == 403


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("in-clusters"))


@pytest.fixture(scope="module")
def service(own: World) -> Iterator[Service]:
    with Service(own.settings()).running() as running:
        yield running


def joined(own: World, service: Service, double: ApiServer, key_type: KeyType, means: Means) -> Scene:
    """A cluster that is set up with the manifests."""
    managed_cluster.set_up(double)
    if means == "admission":
        double.bind(ADMINS, "cluster-admin")
    options = OPTIONS[means]
    wanted = managed_cluster.registration(double, f"{means}-{key_type}-{secrets.token_hex(8)}", options)
    here = new_webhook_cluster(own, service, key_type, registration=wanted)
    double.trust(here.cluster.client_ca.certificate.public_bytes(Encoding.PEM))
    return Scene(here, double, means, key_type)


@pytest.fixture(
    scope="module", params=[(key_type, means) for key_type in CAS for means in OPTIONS], ids="-".join
)
def scene(
    request: pytest.FixtureRequest, own: World, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as double:
        yield joined(own, service, double, *request.param)


@pytest.fixture(params=OPTIONS)
def with_p256(
    request: pytest.FixtureRequest, own: World, service: Service, tmp_path: Path
) -> Iterator[Scene]:
    """One scene for each control."""
    with ApiServer(tmp_path) as double:
        yield joined(own, service, double, "ec-p256", request.param)


@pytest.mark.parametrize("way", CONTROLS)
def test_every_copy_of_a_revoked_certificate_is_refused(scene: Scene, way: Control) -> None:
    here = scene.site
    person = here.new_person()
    lost = here.issue(person)
    copies = altered_certificates.copies(lost.der)
    assert copies.keys() == altered_certificates.kinds_of(scene.key_type)
    assert not scene.is_refused(lost)

    here.revoke(way, lost, person)
    eventually(lambda: scene.is_refused(lost))

    for kind, copy in copies.items():
        assert scene.is_refused(lost, copy), kind
    assert not scene.is_refused(here.still_good(way, person))


def test_the_double_takes_copies_as_go_does(with_p256: Scene) -> None:
    """So the tests above fail on the revocation only: the double accepts the encoding of every copy."""
    here = with_p256.site
    held, other = (here.issue(here.new_person()) for _ in range(2))
    for copy in altered_certificates.copies(held.der).values():
        assert not with_p256.is_refused(held, copy)
    with Presenter(with_p256.double, held.pem) as presenter:
        for wrong in (
            other.der,
            held.der + altered_certificates.NULL,
            held.der[:-1] + bytes([held.der[-1] ^ 1]),
            b"\x30",
        ):
            assert presenter.get(managed_cluster.NAMESPACES, wrong).status_code == 401


def test_the_cluster_lists_credential_numbers(own: World, service: Service, tmp_path: Path) -> None:
    with ApiServer(tmp_path) as double:
        here = joined(own, service, double, "ec-p256", "admission").site
        person = here.new_person()
        lost = here.issue(person)
        here.revoke("user", lost, person)
        eventually(lambda: managed_cluster.revoked(double).keys() == {lost.number})
