"""The CRL of a client CA over HTTP: public, up to date, and cached until something changes."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI

from clustercert.certificates.crls import LIFETIME, MIN_AGE, Crls
from clustercert.model import utc_now
from clustercert.model.errors import NotFound
from clustercert.pki.certificates import fingerprint
from clustercert.policy.lifetime import BACKDATE
from clustercert.policy.templates import is_plain_text
from clustercert.store.certificates.revocations import CrlQueries
from clustercert.wiring import open_components
from support import world as worlds
from support.leaf_checks import leaf_of, openssl
from support.service import Service
from support.stores import execute
from support.wait import SECONDS, eventually
from support.world import World


@dataclass
class Clock:
    time: datetime = field(default_factory=utc_now)

    def __call__(self) -> datetime:
        return self.time


@dataclass(frozen=True)
class Place:
    """A service, and the clock that its CRLs use."""

    world: World
    client: httpx2.Client
    clock: Clock

    def path(self, cluster: str = "plain", ca_id: str | None = None) -> str:
        known = self.world.clusters[cluster]
        return f"/clustercert/v1/clusters/{known.id}/client-cas/{ca_id or known.client_ca.id}/crl"

    def crl(self, cluster: str = "plain") -> x509.CertificateRevocationList:
        response = self.client.get(self.path(cluster))
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/pkix-crl"
        return x509.load_der_x509_crl(response.content)

    def issue(self, who: str, cluster: str = "plain") -> x509.Certificate:
        headers = self.world.people[who].headers
        response = self.client.post(self.world.path(cluster), json={"duration": 2}, headers=headers)
        return leaf_of(response.json())

    def revoke(self, certificate: x509.Certificate, **body: str) -> None:
        path = self.world.path("plain", f"/certificates/{fingerprint(certificate).hex()}/revoke")
        response = self.client.post(
            path.replace("/api/v3", "/clustercert/v1"), json=body, headers=self.world.people["admin"].headers
        )
        assert response.status_code == 200, response.text

    def revoke_user(self, who: str, cluster: str = "plain") -> None:
        response = self.client.post(
            self.world.path(cluster, "/clustercertrevoke"),
            json={"userId": self.world.people[who].user.id},
            headers=self.world.people["admin"].headers,
        )
        assert response.status_code == 200, response.text

    def soon(self, serials: set[int]) -> x509.CertificateRevocationList:
        """Wait for a CRL with exactly these serials. Cached CRLs are old enough to be replaced."""
        self.clock.time += MIN_AGE

        def current() -> list[x509.CertificateRevocationList]:
            """Wrap the CRL in a list, because an empty CRL is falsy."""
            crl = self.crl()
            return [crl] if {revoked.serial_number for revoked in crl} == serials else []

        return eventually(current)[0]


def innermost(app: Any) -> FastAPI:
    """Return the FastAPI application inside the middleware."""
    framework = app.app.default
    assert isinstance(framework, FastAPI)
    return framework


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        clock, state = Clock(), innermost(service.app).state
        given = state.services.crls
        state.services = replace(state.services, crls=Crls(given._queries, given._signers, clock))
        yield Place(world, service.client, clock)


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_a_list_has_single_and_mass_revocations_until_they_end(place: Place, tmp_path: Path) -> None:
    ca = place.world.client_ca("plain")
    one, members, admins = place.issue("admin"), place.issue("member"), place.issue("admin")
    place.issue("member", "eip")
    empty = place.crl()
    assert list(empty) == []
    assert empty.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # an EC key

    place.revoke(one, reason="keyCompromise")
    place.revoke_user("member")
    place.revoke_user("member", "eip")
    crl = place.soon({one.serial_number, members.serial_number})
    assert crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # an EC key
    assert number(crl) > number(empty)
    revoked = crl.get_revoked_certificate_by_serial_number(one.serial_number)
    assert revoked is not None
    reason = revoked.extensions.get_extension_for_class(x509.CRLReason).value
    assert reason == x509.CRLReason(x509.ReasonFlags.key_compromise)
    assert abs(revoked.revocation_date_utc - utc_now()) < timedelta(minutes=1)

    # A certificate issued after the revocation is valid.
    newer = place.issue("member")
    (tmp_path / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (tmp_path / "crl.pem").write_bytes(
        place.client.get(place.path(), headers={"Accept": "application/x-pem-file"}).content
    )
    check = ("verify", "-crl_check", "-CAfile", tmp_path / "ca.pem", "-CRLfile", tmp_path / "crl.pem")
    for certificate, good in ((one, False), (members, False), (admins, True), (newer, True)):
        (tmp_path / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        if good:
            assert b"OK" in openssl(*check, tmp_path / "leaf.pem")
        else:
            with pytest.raises(AssertionError, match="certificate revoked"):
                openssl(*check, tmp_path / "leaf.pem")

    # Expired certificates are left out once another revocation makes the service create a new CRL.
    execute(
        place.world.database,
        "UPDATE certificate SET not_after = '2020-01-01 00:00:00.000000' WHERE fingerprint = ?",
        fingerprint(one),
    )
    place.revoke(admins)
    place.soon({members.serial_number, admins.serial_number})


def test_what_is_undone_leaves_the_list(place: Place) -> None:
    one, operator = place.issue("admin"), place.world.people["operator"].headers
    place.revoke(one)
    place.soon({one.serial_number})
    response = place.client.post("/clustercert/v1/revocations/1/undo", headers=operator)
    assert response.status_code == 200, response.text
    place.soon(set())


def test_forms_and_what_does_not_exist(place: Place) -> None:
    response = place.client.get(place.path())
    assert response.headers["cache-control"] == "public, max-age=10"
    pem = place.client.get(place.path(), headers={"Accept": "application/x-pem-file"})
    assert pem.headers["content-type"].startswith("application/x-pem-file")
    assert x509.load_pem_x509_crl(pem.content).public_bytes(Encoding.DER) == response.content
    others = place.world.clusters["eip"].client_ca.id
    for path in (
        place.path(ca_id=others),
        place.path(ca_id="0" * 32),
        place.path(ca_id="%00"),
        place.path(ca_id="x"),
    ):
        assert place.client.get(path).status_code == 404
    kept = is_plain_text.cache_info().currsize
    for n in range(3):
        assert place.client.get(place.path(ca_id=f"{n}" * 3000)).status_code == 404
    assert is_plain_text.cache_info().currsize == kept, "what anybody may ask for is not remembered"
    execute(place.world.database, "UPDATE client_ca SET sealed_key = NULL WHERE id = ?", others)
    assert place.client.get(place.path("eip")).status_code == 404


async def test_a_request_for_an_unknown_crl_does_not_wait_for_a_signature(place: Place) -> None:
    cluster, retired = place.world.clusters["plain"], place.world.clusters["eip"]
    query = "UPDATE client_ca SET sealed_key = NULL, state = 'retired' WHERE id = ?"
    execute(place.world.database, query, retired.client_ca.id)
    async with open_components(place.world.settings()) as components:
        crls = Crls(CrlQueries(components.database), components.clusters.signers, utc_now)
        async with crls._signing:
            for cluster_id, ca_id in ((cluster.id, "0" * 32), (retired.id, retired.client_ca.id)):
                with pytest.raises(NotFound):
                    await asyncio.wait_for(crls.crl(cluster_id, ca_id), SECONDS)


async def test_a_crl_is_cached_until_a_change_or_half_its_validity(place: Place) -> None:
    one, cluster = place.issue("admin"), place.world.clusters["plain"]
    async with open_components(place.world.settings()) as components:
        clock = Clock()
        generation = components.database.generation
        crls = Crls(CrlQueries(components.database), components.clusters.signers, clock)
        await generation.refresh()
        first = await crls.crl(cluster.id, cluster.client_ca.id)
        assert await crls.crl(cluster.id, cluster.client_ca.id) is first
        # A change that is not a revocation.
        async with components.database.transaction(invalidate=True):
            pass
        await generation.refresh()
        assert await crls.crl(cluster.id, cluster.client_ca.id) is first

        clock.time += LIFETIME / 2 - timedelta(seconds=2)
        assert await crls.crl(cluster.id, cluster.client_ca.id) is first
        clock.time += timedelta(seconds=2)
        second = await crls.crl(cluster.id, cluster.client_ca.id)
        assert second.number > first.number
        parsed = x509.load_der_x509_crl(second.der)
        assert parsed.last_update_utc == clock.time.replace(microsecond=0) - BACKDATE
        assert parsed.next_update_utc == clock.time.replace(microsecond=0) + LIFETIME

        place.revoke(one)
        await generation.refresh()
        # A CRL is not replaced before its minimum age, so that callers can't force repeated signing.
        assert await crls.crl(cluster.id, cluster.client_ca.id) is second
        clock.time += MIN_AGE
        third = await crls.crl(cluster.id, cluster.client_ca.id)
        assert third.number > second.number
        assert [revoked.serial_number for revoked in x509.load_der_x509_crl(third.der)] == [one.serial_number]
