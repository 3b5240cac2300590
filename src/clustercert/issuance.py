"""THE use case: authenticate happened at the edge; here one certificate is decided, signed, checked and recorded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cryptography import x509

from clustercert import metrics
from clustercert.certificate import certificate_der, check_leaf, fingerprint, serial_hex
from clustercert.errors import NotFound, SignerError
from clustercert.keygen import KeyGenerator
from clustercert.keypair import key_type_of
from clustercert.model import (
    Ask,
    AuditEvent,
    Caller,
    CertificateRecord,
    Cluster,
    Grant,
    Issued,
    Preview,
    SigningRequest,
)
from clustercert.policy import Policy, member_roles
from clustercert.signers import Signer


class ClusterLookup(Protocol):
    """The store's clusters, cached."""

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None: ...


class Recorder(Protocol):
    """The store's ledger."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Return when both are durable. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Issuance:
    """Issues certificates.

    Attributes:
        signers: by the name that a cluster says.
        now: the time, aware, UTC.
    """

    clusters: ClusterLookup
    policy: Policy
    keys: KeyGenerator
    signers: Mapping[str, Signer]
    ledger: Recorder
    now: Callable[[], datetime]

    async def issue(self, caller: Caller, project_id: str, cluster_id: str, ask: Ask) -> Issued:
        """A certificate that is durable in the ledger.

        Raises NotFound, InvalidRequest, Forbidden, SignerError, RemoteFailed or Unavailable.
        """
        with metrics.issuance():
            cluster = await self._cluster(caller, project_id, cluster_id)
            now = self.now()
            grant = self.policy.decide(caller, cluster, ask, now)
            private_key = None if ask.public_key else await self.keys.new_key()
            public_key = ask.public_key or private_key.public_key()  # type: ignore[union-attr] # one of the two is there
            request = SigningRequest(grant=grant, public_key=public_key, ca=cluster.client_ca)
            chain = await self._signer(cluster).sign(request)
            check_leaf(chain, request)
            record, event = _trace(caller, ask, request, cluster, chain[0], now)
            await self.ledger.record(record, event)
            return Issued(
                grant=grant,
                cluster=cluster,
                chain=chain,
                private_key=private_key,
                serial=record.serial,
                fingerprint=record.fingerprint.hex(),
            )

    async def preview(self, caller: Caller, project_id: str, cluster_id: str, ask: Ask) -> Preview:
        """What `issue` would issue; signs and records nothing. Raises what `issue` raises before the signature."""
        cluster = await self._cluster(caller, project_id, cluster_id)
        return Preview(
            grant=self.policy.decide(caller, cluster, ask, self.now()),
            issuer=cluster.client_ca.certificate.subject.rfc4514_string(),
            key_type=key_type_of(ask.public_key) if ask.public_key else self.keys.key_type,
        )

    async def _cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        member_roles(caller, project_id)
        cluster = await self.clusters.cluster(project_id, cluster_id)
        if cluster is None:
            raise NotFound
        return cluster

    def _signer(self, cluster: Cluster) -> Signer:
        if signer := self.signers.get(cluster.signer):
            return signer
        raise SignerError(f"The signer {cluster.signer} of this cluster is not installed.")


def _trace(
    caller: Caller, ask: Ask, request: SigningRequest, cluster: Cluster, leaf: x509.Certificate, now: datetime
) -> tuple[CertificateRecord, AuditEvent]:
    """What the ledger keeps of a leaf, and what the audit says of it."""
    grant: Grant = request.grant
    record = CertificateRecord(
        fingerprint=fingerprint(leaf),
        serial=serial_hex(leaf),
        cluster_id=cluster.id,
        project_id=cluster.project_id,
        ca_id=request.ca.id,
        user_id=grant.username,
        user_name=caller.user.name,
        groups=grant.groups,
        not_before=grant.not_before,
        not_after=grant.not_after,
        key_type=key_type_of(request.public_key),
        key_origin="csr" if ask.public_key else "generated",
        auth_method=caller.method,
        source_address=caller.origin.address,
        request_id=caller.origin.request_id,
        reason=ask.reason,
        issued_at=now,
        der=certificate_der(leaf),
    )
    event = AuditEvent(
        at=now,
        kind="certificate.issued",
        project_id=cluster.project_id,
        actor=caller.user.id,
        subject=record.fingerprint.hex(),
        origin=caller.origin,
        detail={
            "cluster_id": cluster.id,
            "ca_id": record.ca_id,
            "serial": record.serial,
            "common_name": grant.username,
            "organizations": list(grant.groups),
            "not_before": grant.not_before.isoformat(),
            "not_after": grant.not_after.isoformat(),
            "rule": grant.rule,
            "key_type": record.key_type,
            "key_origin": record.key_origin,
            "auth_method": record.auth_method,
            "reason": ask.reason,
        },
    )
    return record, event
