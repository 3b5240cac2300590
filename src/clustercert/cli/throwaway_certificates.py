"""Short-lived certificates that `clustercert kubernetes verify` issues, uses and revokes."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from clustercert.certificates.recorder import Reason
from clustercert.cli.cluster_probe import CheckFailed, Probe
from clustercert.kubernetes.api_client import ClientIdentity, KubeApi
from clustercert.model import (
    Caller,
    Cluster,
    Domain,
    Grant,
    Issued,
    IssueRequest,
    SigningRequest,
    User,
)
from clustercert.model.errors import ClustercertError
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import check_leaf, der_pem, new_serial
from clustercert.pki.signer import missing_signer
from clustercert.policy.lifetime import BACKDATE

if TYPE_CHECKING:
    from clustercert.cli.session import Operator

USER = "clustercert:verify"
# Another name, because an API server may ask about every certificate with one of ours.
UNKNOWN_USER = "verify-unknown-certificate"
NOTE = "clustercert kubernetes verify"
NOT_ISSUED = "No certificate can be issued for this cluster."
# The lifetime is slightly longer than the shortest one that a policy can allow.
LIFETIME = timedelta(minutes=20)
SHORT_LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ThrowawayCertificates:
    """Issues certificates as for users. When the exit stack closes, revokes them and closes their connections."""

    operator: "Operator"
    cluster: Cluster
    address: str
    stack: AsyncExitStack

    async def issue(self, role: str | None) -> Issued:
        """Issue a certificate for a caller with a role, or without groups. Raises CheckFailed if it is denied."""
        if role is not None:
            return await self._issue_by_policy(role)
        try:
            return await self.issue_without_groups()
        except ClustercertError as error:
            raise CheckFailed(error.message, NOT_ISSUED) from error

    async def _issue_by_policy(self, role: str) -> Issued:
        project_id = self.cluster.project_id
        caller = self._caller((role,))
        request = IssueRequest(
            expire_at=datetime.now(UTC).replace(microsecond=0) + LIFETIME, truncate=True, reason=NOTE
        )
        parts = self.operator.parts
        try:
            issued = await parts.issuance.issue(caller, project_id, self.cluster.id, request)
        except ClustercertError as error:
            await parts.denials.certificate(caller, project_id, self.cluster.id, request, error)
            raise CheckFailed(error.message, NOT_ISSUED) from error
        self.stack.push_async_callback(self.revoke, issued)
        return issued

    async def issue_without_groups(self) -> Issued:
        """Issue a certificate with its credential group alone, to which nothing is bound. Raises ClustercertError."""
        request = IssueRequest(reason=NOTE)
        now = datetime.now(UTC).replace(microsecond=0)
        issued = await self.operator.parts.issuance.issue_granted(
            self._caller(()), self.cluster, _grant(USER, now, LIFETIME), request, now
        )
        self.stack.push_async_callback(self.revoke, issued)
        return issued

    async def open_without_number(self) -> Probe:
        """Connect with a certificate that is not in the ledger and has no groups. Raises ClustercertError.

        It can't be revoked, so it is valid for only a few minutes. Its user has no rights of its own.
        """
        issuance = self.operator.parts.issuance
        signer = issuance.signers.get(self.cluster.signer)
        if signer is None:
            raise missing_signer(self.cluster.signer)
        key = await issuance.keys.new_key()
        to_sign = SigningRequest(
            grant=_grant(UNKNOWN_USER, datetime.now(UTC).replace(microsecond=0), SHORT_LIFETIME),
            public_key=key.public_key(),
            ca=self.cluster.client_ca,
            serial=new_serial() if signer.takes_serial else None,
        )
        leaf = check_leaf(await signer.sign(to_sign), to_sign)
        return await self._open(leaf.der, key_pem(key))

    async def open(self, issued: Issued, leaf_der: bytes | None = None) -> Probe:
        """Connect to the API server with a certificate, or with `leaf_der`, an altered copy of it."""
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        return await self._open(leaf_der or issued.leaf_der, key_pem(issued.private_key))

    async def _open(self, leaf_der: bytes, private_key_pem: bytes) -> Probe:
        identity = ClientIdentity(der_pem(leaf_der), private_key_pem)
        api = KubeApi(self.address, self.cluster.server_ca_pem, identity)
        return Probe(await self.stack.enter_async_context(api))

    def _caller(self, roles: tuple[str, ...]) -> Caller:
        return Caller(
            user=User(id=USER, name=USER, domain=Domain(id="", name="")),
            roles={self.cluster.project_id: roles},
            method="cli",
            origin=self.operator.actor.origin,
        )

    async def revoke(self, issued: Issued) -> None:
        recorder = self.operator.parts.revocation.recorder
        certificate = await recorder.find_certificate(issued.fingerprint)
        reason = Reason("cessationOfOperation", NOTE)
        await recorder.revoke_certificate(certificate, reason, actor=self.operator.actor)


def _grant(username: str, now: datetime, lifetime: timedelta) -> Grant:
    return Grant(rule=None, username=username, groups=(), not_before=now - BACKDATE, not_after=now + lifetime)
