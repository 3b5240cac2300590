"""The signer that asks the cluster to sign, at the double of kube-apiserver with the rights that an operator gives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.issuance.signers import account_connections, csr_api
from clustercert.issuance.signers.account_tokens import parse_token
from clustercert.issuance.signers.certificate_requests import CertificateRequests
from clustercert.issuance.signers.csr_api import CsrApiSigner, csr_api_signer
from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.model import ClientCA, SigningRequest
from clustercert.model.errors import InvalidRequest, RemoteFailed, SignerError, Unavailable
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, SignerContext
from support.apiserver import ApiServer, kinds
from support.certificate_authority import Authority, ca_of_key, slow_rsa_key
from support.log_capture import captured_lines
from support.ring_sealer import RingSealer
from support.samples import CLUSTER_ID, grant
from support.signing_cluster import (
    MemoryClusters,
    first_token,
    give_access,
    new_signer,
    registration_of,
    requests_in,
    restarted,
)

KEY = new_key("ec-p256")
NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
EDITORS = ("clustercert:editors",)


@dataclass
class Site:
    """A cluster, and a signer with a CA of it."""

    double: ApiServer
    clusters: MemoryClusters
    ring: RingSealer
    signer: CsrApiSigner
    ca: ClientCA

    def request(self, lifetime: timedelta = HOUR, groups: tuple[str, ...] = EDITORS) -> SigningRequest:
        now = self.double.now().replace(microsecond=0)
        wanted = replace(grant(groups=groups), not_before=now - 5 * MINUTE, not_after=now + lifetime)
        return new_signing_request(
            wanted, KEY.public_key(), self.ca, takes_serial=False, profile="kubernetes", private_key=KEY
        )

    def at(self, now: datetime) -> None:
        self.double.now = lambda: now

    async def deleted(self) -> bool:
        """Whether no request is in the cluster, once the deletions under way have ended."""
        for account in self.signer._connections:
            await account.tasks.close()
        return requests_in(self.double) == []

    @property
    def token(self) -> str:
        """The token that is stored."""
        return self.ring.ring.unseal(self.clusters.sealed[self.ca.id], f"client_ca:{self.ca.id}").decode()


def ca_request(double: ApiServer, secret: bytes | None) -> CaRequest:
    return CaRequest(CLUSTER_ID, registration_of(double), "ec-p256", NOW, HOUR, secret)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with ApiServer(tmp_path) as double:
        give_access(double)
        double.now = lambda: NOW
        clusters, ring = MemoryClusters(double), RingSealer()
        signer = new_signer(double, clusters, ring, 10 * HOUR)
        ca = clusters.store(await signer.create_ca(ca_request(double, first_token(double))))
        yield Site(double, clusters, ring, signer, ca)
        await signer.close()


# Signing


async def test_the_cluster_signs_and_the_request_is_deleted(site: Site) -> None:
    request = site.request()
    leaf = check_leaf(await site.signer.sign(request), request)
    assert leaf.not_after <= request.grant.not_after
    assert request.grant.not_after - leaf.not_after <= MINUTE
    assert await site.deleted()
    calls = [(each.method, each.path.rpartition("/")[2]) for each in site.double.seen[-5:]]
    assert [method for method, _ in calls] == ["POST", "GET", "PUT", "GET", "DELETE"]
    assert all(each.status in (200, 201) for each in site.double.seen)


async def test_a_lifetime_that_the_cluster_shortens_is_the_lifetime(site: Site) -> None:
    site.double.signing.duration = timedelta(minutes=20)
    request = site.request(timedelta(hours=20))
    leaf = check_leaf(await site.signer.sign(request), request)
    assert leaf.not_after == NOW + timedelta(minutes=20)


async def test_less_than_the_clusters_minimum_is_refused_with_advice(site: Site) -> None:
    before = len(site.double.seen)
    for minutes in (5, 10):
        with pytest.raises(
            InvalidRequest,
            match=rf"at least 10 minutes, but this certificate may last"
            rf" at most {minutes} minutes. Request at least 11 minutes",
        ):
            await site.signer.sign(site.request(minutes * MINUTE))
    assert len(site.double.seen) == before
    await site.signer.sign(site.request(11 * MINUTE))


async def test_a_clock_that_is_ahead_makes_no_certificate_longer(site: Site) -> None:
    request = site.request()
    ahead = NOW + timedelta(seconds=31)
    site.double.signing.now = lambda: ahead
    with pytest.raises(SignerError, match="clock is ahead"):
        check_leaf(await site.signer.sign(request), request)


async def test_a_request_that_somebody_changed_is_not_approved(site: Site) -> None:
    created = site.double.signing.created
    for changes in (
        {"username": "system:serviceaccount:clustercert:other"},
        {"uid": "another"},
        {"usages": ["client auth"]},
        {"expirationSeconds": 864000},
        {"signerName": "kubernetes.io/kubelet-serving"},
    ):

        def changed(who: Any, document: Any, changes: Any = changes) -> Any:
            stored = created(who, document)
            return {**stored, "spec": {**stored["spec"], **changes}}

        site.double.signing.created = changed  # type: ignore[method-assign]
        with pytest.raises(SignerError, match=f"{next(iter(changes))}. The request was not approved"):
            await site.signer.sign(site.request())
        assert await site.deleted()
    # Only the test request with which the CA was found.
    assert len([each for each in site.double.seen if each.path.endswith("/approval")]) == 1


async def test_a_request_about_which_another_program_decided_is_not_used(site: Site) -> None:
    created = site.double.signing.created
    approved = {"conditions": [{"type": "Approved", "status": "True"}]}
    site.double.signing.created = lambda who, document: {**created(who, document), "status": approved}  # type: ignore[method-assign]
    with pytest.raises(SignerError, match="Another program decided"):
        await site.signer.sign(site.request())
    assert await site.deleted()


async def test_system_groups_are_refused_by_the_admission_policy(site: Site) -> None:
    with pytest.raises(RemoteFailed, match="an admission policy refuses the certificate") as refused:
        await site.signer.sign(site.request(groups=("system:nodes",)))
    cause = refused.value.__cause__
    assert isinstance(cause, ApiServerRefused)
    assert "begins with system:" in cause.server_message
    assert await site.deleted()


async def test_a_cancelled_request_is_deleted(site: Site) -> None:
    site.double.signing.signs = False
    task = asyncio.create_task(site.signer.sign(site.request()))
    while not any(each.path.endswith("/approval") for each in site.double.seen[6:]):
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await site.deleted()


async def test_a_request_that_the_controller_fails_is_an_error_of_the_cluster(site: Site) -> None:
    site.double.signing.sign = _failing(site.double)  # type: ignore[method-assign]
    with pytest.raises(RemoteFailed, match=r"condition Failed \(SignerValidationFailure\)"):
        await site.signer.sign(site.request())
    assert await site.deleted()


def _failing(double: ApiServer, reason: str = "SignerValidationFailure") -> Any:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": "no"}

    def sign(name: str) -> None:
        def change(old: Any) -> Any:
            return {**old, "status": {"conditions": [*old["status"]["conditions"], condition]}}

        double.storage.replace(kinds.CERTIFICATE_REQUESTS, "", name, change)

    return sign


async def test_what_a_cluster_says_is_printable_and_short(site: Site) -> None:
    site.double.signing.sign = _failing(site.double, "\x1b[2J" + "x" * 1000)  # type: ignore[method-assign]
    with pytest.raises(RemoteFailed) as failed:
        await site.signer.sign(site.request())
    site.double.version = "\x1b[2J-eks-" + "x" * 1000
    with pytest.raises(InvalidRequest) as refused:
        await site.signer.create_ca(ca_request(site.double, first_token(site.double)))
    for message in (failed.value.message, refused.value.message):
        assert message.isprintable()
        assert len(message) < 300


async def test_an_outage_is_temporary(site: Site) -> None:
    await site.signer.sign(site.request())
    site.double.url = "https://127.0.0.1:1"
    with pytest.raises(Unavailable) as failure:
        await site.signer.sign(site.request())
    assert failure.value.retry_after


# The CA


async def test_another_ca_of_the_cluster_is_noticed(site: Site) -> None:
    other = Authority("kubernetes")
    site.double.trust(other.certificate_pem)
    site.double.signing.authority = other
    with pytest.raises(SignerError, match=r"now signs with the CA .* rotate") as failure:
        await site.signer.sign(site.request())
    assert "clustercert cluster ca rotate CLUSTER" in failure.value.message
    assert await site.deleted()
    # A rotation asks for a CA without a new token.
    renewed = await site.signer.create_ca(ca_request(site.double, None))
    assert renewed.certificate == other.certificate
    request = replace(site.request(), ca=site.clusters.store(renewed))
    check_leaf(await site.signer.sign(request), request)


async def test_a_ca_that_the_api_server_does_not_trust_is_noticed(site: Site) -> None:
    site.double.signing.authority = Authority("elsewhere")
    with pytest.raises(SignerError, match="does not trust for clients"):
        await site.signer.sign(site.request())
    with pytest.raises(InvalidRequest, match="--cluster-signing-cert-file"):
        await site.signer.create_ca(ca_request(site.double, first_token(site.double)))


async def test_a_cluster_cannot_make_the_service_verify_with_many_or_slow_cas(site: Site) -> None:
    other = Authority("kubernetes")
    site.double.signing.authority = other
    name = other.certificate.subject
    slow = ca_of_key(slow_rsa_key(), name).public_bytes(Encoding.PEM)
    many = [Authority("kubernetes").certificate_pem for _ in range(csr_api.MAX_BUNDLE_CAS - 1)]
    site.double.trust(b"".join(many))
    with pytest.raises(SignerError, match="does not trust for clients, or whose key"):
        await site.signer.sign(site.request())
    site.double.trust(b"".join([*many, slow]))
    with pytest.raises(RemoteFailed, match=r"65 CAs are more than 64\. Tell the operator"):
        await site.signer.sign(site.request())
    # A CA that did sign, but whose key is slow, is not used either.
    key = slow_rsa_key()
    site.double.trust(ca_of_key(key, name).public_bytes(Encoding.PEM))
    site.double.signing.change = lambda leaf: resigned_by(key, leaf)
    with pytest.raises(SignerError, match="does not trust for clients, or whose key"):
        await site.signer.sign(site.request())
    with pytest.raises(InvalidRequest, match="key of the cluster's client CA has a type"):
        await site.signer.create_ca(ca_request(site.double, first_token(site.double)))


def resigned_by(key: rsa.RSAPrivateKey, leaf_der: bytes) -> bytes:
    leaf = x509.load_der_x509_certificate(leaf_der)
    builder = x509.CertificateBuilder(
        leaf.issuer,
        leaf.subject,
        leaf.public_key(),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


async def test_a_bundle_that_is_no_text_is_an_error_of_the_cluster(site: Site) -> None:
    site.double.signing.authority = Authority("kubernetes")
    [name] = [key for key in site.double.storage._objects if key[2] == "extension-apiserver-authentication"]
    site.double.storage._objects[name]["data"] = {"client-ca-file": "\ud800"}
    with pytest.raises(RemoteFailed, match="list of client CAs can't be read"):
        await site.signer.sign(site.request())


async def test_of_a_long_list_of_leftovers_only_a_page_is_read(site: Site) -> None:
    old = {
        "metadata": {"name": "old", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"username": "system:serviceaccount:clustercert:clustercert-signer"},
    }

    class Endless(KubeApi):
        async def get(self, *_: object, **__: object) -> Any:
            return {"items": [old] * 1000}

    token = parse_token(site.token.encode())
    async with Endless(site.double.url, site.double.server_ca.read_bytes(), None) as api:
        api.use_token(token.text)
        deleted = await CertificateRequests(CLUSTER_ID).delete_leftovers(api, token, NOW)
    assert deleted == 50


async def test_without_the_right_to_read_the_bundle_the_registered_ca_is_tried(site: Site) -> None:
    for binding in site.double.storage.all(kinds.ROLE_BINDINGS, "kube-system"):
        site.double.storage.delete(kinds.ROLE_BINDINGS, "kube-system", binding["metadata"]["name"])
    token = first_token(site.double)
    with pytest.raises(InvalidRequest, match="add this CA to the cluster's server_ca"):
        await site.signer.create_ca(ca_request(site.double, token))
    wanted = ca_request(site.double, token)
    both = wanted.registration.server_ca_pem + site.double.own_ca_pem
    found = await site.signer.create_ca(
        replace(wanted, registration=replace(wanted.registration, server_ca_pem=both))
    )
    assert found.ca_certificate.public_bytes(Encoding.PEM) == site.double.own_ca_pem
    assert (await site.signer.custody(site.ca)).proof["ca_in_client_ca_file"] == "unknown"


async def test_a_cluster_that_never_signs_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csr_api, "TEST_SECONDS", 0.2)
    token = first_token(site.double)
    site.double.signing.signs = False
    with pytest.raises(RemoteFailed, match=r"did not sign a test request within 0.2 seconds"):
        await site.signer.create_ca(ca_request(site.double, token))
    assert await site.deleted()
    site.double.version = "v1.32.3-eks-bcf3d70"
    with pytest.raises(InvalidRequest, match=r"Amazon EKS \(v1.32.3-eks-bcf3d70\) never signs"):
        await site.signer.create_ca(ca_request(site.double, token))


async def test_custody_tells_what_the_cluster_says(site: Site) -> None:
    custody = await site.signer.custody(site.ca)
    assert "this service has no CA key" in custody.location
    assert custody.proof["account"] == "system:serviceaccount:clustercert:clustercert-signer"
    assert custody.proof["ca_in_client_ca_file"] == "true"
    assert site.token not in repr(custody)


# Tokens


async def test_the_first_token_is_exchanged_at_once(site: Site) -> None:
    token = parse_token(site.token.encode())
    assert token.expires_at - token.issued_at == 10 * HOUR
    assert site.token not in repr(site.ca) + repr(token) + repr(site.signer)


@pytest.mark.parametrize(
    "secret",
    [None, b"", b"password", b"a.b.c", b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln", b"\xff" * 20],
)
async def test_what_is_no_token_of_a_service_account_is_refused(site: Site, secret: bytes | None) -> None:
    site.clusters.sealed.clear()
    with pytest.raises(InvalidRequest, match="signer_token: ") as refused:
        await site.signer.create_ca(ca_request(site.double, secret))
    assert "password" not in refused.value.message


async def test_a_token_is_renewed_after_half_of_its_lifetime(site: Site) -> None:
    first = site.token
    site.at(NOW + 4 * HOUR)
    await site.signer.sign(site.request())
    assert site.token == first
    later = NOW + 6 * HOUR
    site.at(later)
    await site.signer.sign(site.request())
    assert parse_token(site.token.encode()).expires_at == later + 10 * HOUR
    # The new one is used, also by another process.
    site.at(NOW + 12 * HOUR)
    await site.signer.sign(site.request())
    other = restarted(site.signer)
    await other.sign(site.request())
    await other.close()


async def test_of_two_workers_that_renew_a_token_one_stores_it(site: Site) -> None:
    other = restarted(site.signer)
    site.at(NOW + 6 * HOUR)
    await asyncio.gather(site.signer.sign(site.request()), other.sign(site.request()))
    assert site.clusters.exchanges == 1
    for signer in (site.signer, other):
        await signer.sign(site.request())
    assert site.clusters.exchanges == 1
    await other.close()


async def test_simultaneous_requests_use_a_token_that_was_just_replaced(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseal = site.ring.unseal

    async def unseal_later(sealed: bytes, bound_to: str) -> bytes:
        await asyncio.sleep(0)
        return await unseal(sealed, bound_to)

    monkeypatch.setattr(site.ring, "unseal", unseal_later)
    for _ in range(3):
        await site.signer.sign(site.request())
        sealed = await site.ring.seal(site.token.encode(), f"client_ca:{site.ca.id}")
        site.clusters.sealed[site.ca.id] = sealed
        await asyncio.gather(*(site.signer.sign(site.request()) for _ in range(6)))


async def test_a_token_that_can_not_be_renewed_is_used_until_it_expires(site: Site) -> None:
    for binding in site.double.storage.all(kinds.ROLE_BINDINGS, "clustercert"):
        site.double.storage.delete(kinds.ROLE_BINDINGS, "clustercert", binding["metadata"]["name"])
    site.at(NOW + 6 * HOUR)
    with captured_lines(account_connections) as lines:
        await site.signer.sign(site.request())
    assert [each["event"] for each in lines] == ["token of signer not renewed"]
    assert site.token not in str(lines)
    site.at(NOW + 11 * HOUR)
    with pytest.raises(RemoteFailed, match=r"expired at .* --signer-token-file FILE"):
        await site.signer.sign(site.request())
    # A new one is accepted only for a CA that still signs, and only if it works.
    with pytest.raises(RemoteFailed, match="account lacks a right"):
        await site.signer.accept_secret(site.ca, registration_of(site.double), first_token(site.double))
    give_role = {
        "metadata": {"name": "again"},
        "roleRef": {"kind": "Role", "name": "clustercert-signer"},
        "subjects": [{"kind": "ServiceAccount", "name": "clustercert-signer", "namespace": "clustercert"}],
    }
    site.double.storage.create(kinds.ROLE_BINDINGS, "clustercert", give_role)
    sealed = await site.signer.accept_secret(site.ca, registration_of(site.double), first_token(site.double))
    site.clusters.sealed[site.ca.id] = sealed
    await site.signer.sign(site.request())


async def test_a_token_that_was_withdrawn_is_refused_with_advice(site: Site) -> None:
    site.double.storage.delete(kinds.SERVICE_ACCOUNTS, "clustercert", "clustercert-signer")
    with pytest.raises(RemoteFailed, match=r"does not accept the service's token.*--signer-token-file"):
        await site.signer.sign(site.request())


async def test_a_token_of_another_ca_is_refused(site: Site) -> None:
    other = Authority("kubernetes")
    site.double.trust(other.certificate_pem)
    site.double.signing.authority = other
    with pytest.raises(InvalidRequest, match="signer_token: The cluster now signs with the CA"):
        await site.signer.accept_secret(site.ca, registration_of(site.double), first_token(site.double))


# Maintenance


async def test_leftovers_of_killed_processes_are_deleted(site: Site) -> None:
    csr = x509.load_der_x509_csr(site.request().csr or b"")
    labels = {"app.kubernetes.io/managed-by": "clustercert", "clustercert/cluster": CLUSTER_ID}
    account = "system:serviceaccount:clustercert:clustercert-signer"
    old, new = NOW - timedelta(minutes=11), NOW - timedelta(minutes=9)
    for name, more in (
        ("old", {}),
        ("new", {"created": new}),
        ("of-another-service", {"labels": {**labels, "clustercert/cluster": "f" * 32}}),
        ("of-an-admin", {"username": "kubernetes-admin"}),
    ):
        made: dict[str, Any] = {"created": old, "labels": labels, "username": account, **more}
        site.double.storage.create(
            kinds.CERTIFICATE_REQUESTS,
            "",
            {
                "metadata": {"name": name, "labels": made["labels"]},
                "spec": {"request": csr.public_bytes(Encoding.PEM).decode(), "username": made["username"]},
            },
        )
        stored = site.double.storage._objects[kinds.CERTIFICATE_REQUESTS, "", name]
        stored["metadata"]["creationTimestamp"] = f"{made['created']:%Y-%m-%dT%H:%M:%SZ}"
    await site.signer.maintain(site.ca)
    assert [each["metadata"]["name"] for each in requests_in(site.double)] == [
        "new",
        "of-an-admin",
        "of-another-service",
    ]


async def test_maintenance_renews_a_token_that_nobody_uses(site: Site) -> None:
    first = site.token
    site.at(NOW + 6 * HOUR)
    await site.signer.maintain(site.ca)
    assert site.token != first


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_lifetime": "30m"}, "token_lifetime"),
        ({"timeout": 60}, "timeout"),
        ({"url": "https://10.0.0.5"}, "url"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        csr_api_signer(SignerContext(settings, RingSealer(), MemoryClusters(None)))  # type: ignore[arg-type] # not used
