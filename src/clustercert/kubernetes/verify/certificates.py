"""Temporary certificates that `clustercert kubernetes verify` issues, uses and revokes, and altered copies of them."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from clustercert.kube_api import ClientIdentity, KubeApi
from clustercert.kubernetes.cluster_connections import CertificateIssuer
from clustercert.kubernetes.verify.probe import CheckFailed, Probe
from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model import (
    Caller,
    Cluster,
    Domain,
    Grant,
    Issued,
    IssueRequest,
    Origin,
    SigningRequest,
    User,
)
from clustercert.model.errors import ClustercertError
from clustercert.model.issuance import VERIFICATIONS
from clustercert.model.kubernetes import VERIFIER
from clustercert.pki.keys import CURVES, KeyGenerator, key_pem, new_key
from clustercert.pki.leaf import check_leaf, der_pem, encode_signed, new_serial, new_signing_request
from clustercert.pki.signer import LeafSigner, signer_named
from clustercert.policy.lifetime import BACKDATE, MAX_LIFETIME

# The name does not begin with `clustercert:`, because an API server may call the webhook for all names with this
# prefix.
UNKNOWN_USER = "verify-unknown-certificate"
NOTE = "clustercert kubernetes verify"
NOT_ISSUED = "No certificate can be issued for this cluster."
# A lifetime longer than the shortest one that a cluster with the signer csr_api accepts.
LIFETIME = timedelta(minutes=20)
SHORT_LIFETIME = timedelta(minutes=5)


class PolicyIssuer(CertificateIssuer, Protocol):
    """Issues certificates with or without the policy; implemented by `issuance.service.Issuance`."""

    @property
    def signers(self) -> Mapping[str, LeafSigner]: ...

    @property
    def keys(self) -> KeyGenerator: ...

    async def issue(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Issued: ...


@dataclass(frozen=True, slots=True)
class VerifiedService:
    """The parts of this service that a verification uses.

    Attributes:
        record_denial: records that a certificate was denied, or that it could not be signed.
        revoke: revokes a certificate that is no longer needed.
        webhook_url: the address at which API servers reach the webhook; `None` if the address is unknown, or if the
            webhook requires a client certificate.
        webhook_ca_pem: the CAs to trust at `webhook_url`; `None` for the CAs of the operating system.
        origin: where the verification runs, for audit events.
    """

    issuer: PolicyIssuer
    record_denial: Callable[[Caller, IssueRequest, ClustercertError], Awaitable[None]]
    revoke: Callable[[Issued], Awaitable[None]]
    tokens: WebhookTokens
    webhook_url: str | None
    webhook_ca_pem: str | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class TemporaryCertificates:
    """Issues certificates like those that users get.

    When `stack` closes, the certificates are revoked, and the connections are closed.
    """

    service: VerifiedService
    cluster: Cluster
    address: str
    stack: AsyncExitStack

    async def issue(self, role: str | None) -> Issued:
        """Issue a certificate for a caller with this role. Raises CheckFailed.

        If the role is `None`, the certificate has no groups except its credential group.
        """
        if role is not None:
            return await self._issue_by_policy(role)
        try:
            return await self.issue_without_groups()
        except ClustercertError as error:
            raise CheckFailed(error.message, NOT_ISSUED) from error

    async def _issue_by_policy(self, role: str) -> Issued:
        caller = verifier(self.cluster, (role,), self.service.origin)
        request = IssueRequest(expires_in=LIFETIME, shorten=True, reason=NOTE)
        try:
            issued = await self.service.issuer.issue(
                caller, self.cluster.project_id, self.cluster.id, request
            )
        except ClustercertError as error:
            await self.service.record_denial(caller, request, error)
            raise CheckFailed(error.message, NOT_ISSUED) from error
        self.stack.push_async_callback(self.service.revoke, issued)
        return issued

    async def issue_without_groups(self) -> Issued:
        """Issue a certificate that has only a credential group, and therefore no rights. Raises ClustercertError."""
        request = IssueRequest(reason=NOTE)
        now = datetime.now(UTC).replace(microsecond=0)
        issued = await self.service.issuer.issue_granted(
            verifier(self.cluster, (), self.service.origin),
            self.cluster,
            _grant(VERIFIER, now, LIFETIME),
            request,
            now,
        )
        self.stack.push_async_callback(self.service.revoke, issued)
        return issued

    @property
    def signer(self) -> LeafSigner:
        """The signer of the cluster's client CA."""
        return signer_named(self.service.issuer.signers, self.cluster.client_ca.signer)

    @property
    def signs_without_number(self) -> bool:
        """Whether `open_without_number` is possible. A cluster that signs itself requires a credential number."""
        return self.signer.profile == "own"

    async def longest_lifetime(self) -> timedelta:
        """Issue a certificate for the longest lifetime, and return its lifetime. Raises ClustercertError."""
        now = datetime.now(UTC).replace(microsecond=0)
        lifetime = min(MAX_LIFETIME, self.cluster.client_ca.not_after - now)
        issued = await self.service.issuer.issue_granted(
            verifier(self.cluster, (), self.service.origin),
            self.cluster,
            _grant(VERIFIER, now, lifetime),
            IssueRequest(reason=NOTE),
            now,
        )
        self.stack.push_async_callback(self.service.revoke, issued)
        return issued.grant.not_after - now

    async def sign_unrecorded(self, *groups: str) -> None:
        """Let the signer sign a certificate with these groups.

        Nobody can use the certificate. Raises ClustercertError.
        """
        key, signer = new_key("ec-p256"), self.signer
        grant = _grant(VERIFIER, datetime.now(UTC).replace(microsecond=0), LIFETIME)
        to_sign = new_signing_request(
            replace(grant, groups=groups),
            key.public_key(),
            self.cluster.client_ca,
            takes_serial=signer.takes_serial,
            profile=signer.profile,
            private_key=key,
        )
        check_leaf(await signer.sign(to_sign), to_sign)

    async def open_without_number(self) -> Probe:
        """Connect with a certificate that is not in the ledger and has no groups. Raises ClustercertError.

        The certificate can't be revoked, so it is valid for only a few minutes. The certificate's user has no rights of
        its own.
        """
        signer = self.signer
        key = await self.service.issuer.keys.new_key()
        to_sign = SigningRequest(
            grant=_grant(UNKNOWN_USER, datetime.now(UTC).replace(microsecond=0), SHORT_LIFETIME),
            public_key=key.public_key(),
            ca=self.cluster.client_ca,
            serial=new_serial() if signer.takes_serial else None,
        )
        leaf = check_leaf(await signer.sign(to_sign), to_sign)
        return await self._open(leaf.der, key_pem(key))

    async def open(self, issued: Issued, leaf_der: bytes | None = None) -> Probe:
        """Connect to the API server with a certificate, or with its altered copy `leaf_der`."""
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        return await self._open(leaf_der or issued.leaf_der, key_pem(issued.private_key))

    async def _open(self, leaf_der: bytes, private_key_pem: bytes) -> Probe:
        identity = ClientIdentity(der_pem(leaf_der), private_key_pem)
        api = KubeApi(self.address, self.cluster.server_ca_pem, identity)
        return Probe(await self.stack.enter_async_context(api))


def verifier(cluster: Cluster, roles: tuple[str, ...], origin: Origin) -> Caller:
    """Return the caller who gets the credentials of a verification."""
    return Caller(
        user=User(id=VERIFIER, name=VERIFIER, domain=Domain(id="", name="")),
        roles={cluster.project_id: roles},
        method=VERIFICATIONS[VERIFIER],
        origin=origin,
    )


def _grant(username: str, now: datetime, lifetime: timedelta) -> Grant:
    return Grant(rule=None, username=username, groups=(), not_before=now - BACKDATE, not_after=now + lifetime)


_CURVES = {each.signature_oid: each for each in CURVES.values()}


def altered_copy(der: bytes) -> bytes | None:
    """Copy a certificate (DER) with the signature (r, n - s) instead of (r, s); n is the order of the CA's curve.

    The copy is also valid, and has a different fingerprint. Returns `None` if the CA's signature is not ECDSA.
    """
    leaf = x509.load_der_x509_certificate(der)
    algorithm = _CURVES.get(leaf.signature_algorithm_oid)
    if algorithm is None:
        return None
    r, s = decode_dss_signature(leaf.signature)
    signature = encode_dss_signature(r, algorithm.curve.group_order - s)
    return encode_signed(leaf.tbs_certificate_bytes, algorithm.algorithm_der, signature)
