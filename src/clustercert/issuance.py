"""THE use case: authenticate happened at the edge; here one certificate is decided, signed, checked and recorded."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from clustercert import metrics
from clustercert.certificate import (
    CheckedLeaf,
    check_leaf,
    der_fingerprint,
    new_signing_request,
    serial_text,
)
from clustercert.errors import (
    ClustercertError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
)
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
    credential_group,
)
from clustercert.policy import Policy, is_plain_text, member_roles
from clustercert.signers import Signer
from clustercert.store.clusters import ClusterLookup, existing

# An id that somebody made up has no bound of its own.
MAX_NAMED = 64
# In a preview, for the credential number that is not chosen yet.
NUMBER_TO_COME = "<number>"


class Recorder(Protocol):
    """The store's ledger."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Return when both are durable. Raises Unavailable."""

    async def note(self, event: AuditEvent) -> None:
        """Return when the event is durable. Raises Unavailable."""


class CredentialBindings(Protocol):
    """A binding for each certificate, in clusters whose options ask for that; `enforcement` fills it."""

    def granted(self, cluster: Cluster, grant: Grant) -> Grant:
        """The grant without groups of its own where the credential group takes their place. Raises Forbidden."""

    def bound(self, cluster: Cluster, record: CertificateRecord) -> AbstractAsyncContextManager[None]:
        """Bind the certificate's credential group before the block, and unbind it where the block fails.

        Raises RemoteFailed or Unavailable.
        """


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
    bindings: CredentialBindings
    now: Callable[[], datetime]

    async def issue(self, caller: Caller, project_id: str, cluster_id: str, ask: Ask) -> Issued:
        """A certificate that is durable in the ledger.

        Raises NotFound, InvalidRequest, Forbidden, SignerError, RemoteFailed or Unavailable; a refusal is durable
        in the ledger as well by then.
        """
        started = time.perf_counter()
        try:
            issued = await self._issue(caller, project_id, cluster_id, ask)
        except Exception as failure:
            metrics.issuance(started, type(failure).__name__)
            if isinstance(failure, ClustercertError):
                await self.record_refusal(caller, project_id, cluster_id, failure)
            raise
        metrics.issuance(started)
        return issued

    async def _issue(self, caller: Caller, project_id: str, cluster_id: str, ask: Ask) -> Issued:
        cluster = await self._cluster(caller, project_id, cluster_id)
        now = self.now()
        grant = self.bindings.granted(cluster, self.policy.decide(caller, cluster, ask, now))
        private_key = None if ask.public_key else await self.keys.new_key()
        public_key = ask.public_key or private_key.public_key()  # type: ignore[union-attr] # one of the two is there
        signer = self._signer(cluster)
        request = new_signing_request(grant, public_key, cluster.client_ca, takes_serial=signer.takes_serial)
        chain = await signer.sign(request)
        leaf = check_leaf(chain, request)
        record, event = _trace(caller, ask, request, cluster, leaf, now)
        async with self.bindings.bound(cluster, record):
            await self.ledger.record(record, event)
        return Issued(
            grant=request.grant,
            cluster=cluster,
            leaf_der=leaf.der,
            private_key=private_key,
            serial=record.serial,
            credential_number=record.credential_number or "",
            fingerprint=record.fingerprint.hex(),
        )

    async def record_refusal(
        self, caller: Caller, project_id: str, cluster_id: str, failure: ClustercertError
    ) -> None:
        """Record that the caller gets no certificate, if that is what the failure means. Raises Unavailable.

        The ids are as they came; they need not name anything.
        """
        if event := refusal(caller, project_id, cluster_id, failure, self.now()):
            await self.ledger.note(event)
            failure.recorded = True

    async def preview(self, caller: Caller, project_id: str, cluster_id: str, ask: Ask) -> Preview:
        """What `issue` would issue; signs and records nothing. Raises what `issue` raises before the signature."""
        cluster = await self._cluster(caller, project_id, cluster_id)
        grant = self.bindings.granted(cluster, self.policy.decide(caller, cluster, ask, self.now()))
        return Preview(
            grant=grant,
            organizations=(*grant.groups, credential_group(NUMBER_TO_COME)),
            issuer=cluster.client_ca.certificate.subject.rfc4514_string(),
            key_type=key_type_of(ask.public_key) if ask.public_key else self.keys.key_type,
        )

    async def _cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        member_roles(caller, project_id)
        return await existing(self.clusters, project_id, cluster_id)

    def _signer(self, cluster: Cluster) -> Signer:
        if signer := self.signers.get(cluster.signer):
            return signer
        raise SignerError(f"The signer {cluster.signer} of this cluster is not installed.")


def _trace(
    caller: Caller,
    ask: Ask,
    request: SigningRequest,
    cluster: Cluster,
    leaf: CheckedLeaf,
    now: datetime,
) -> tuple[CertificateRecord, AuditEvent]:
    """What the ledger keeps of a leaf, and what the audit says of it."""
    grant: Grant = request.grant
    record = CertificateRecord(
        fingerprint=der_fingerprint(leaf.der),
        serial=serial_text(leaf.serial),
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
        der=leaf.der,
        rule=grant.rule,
        credential_number=request.credential_number,
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
            "credential_number": record.credential_number,
            "common_name": grant.username,
            "organizations": list(record.organizations),
            "not_before": grant.not_before.isoformat(),
            "not_after": grant.not_after.isoformat(),
            "rule": grant.rule,
            "trace": dict(grant.trace),
            "key_type": record.key_type,
            "key_origin": record.key_origin,
            "auth_method": record.auth_method,
            "reason": ask.reason,
        },
    )
    return record, event


def refusal(
    caller: Caller, project_id: str, cluster_id: str, failure: ClustercertError, now: datetime
) -> AuditEvent | None:
    """What the audit says of a certificate that a caller didn't get; None where nobody refused it.

    A project that the caller has no role in isn't told of it: its id is the caller's word.
    """
    if isinstance(failure, SignerError | RemoteFailed):
        kind = "certificate.failed"
    elif isinstance(failure, InvalidRequest | Forbidden | NotFound) or failure.trace:
        kind = "certificate.refused"
    else:
        return None
    return AuditEvent(
        at=now,
        kind=kind,
        project_id=project_id if caller.roles_in(project_id) else None,
        actor=caller.user.id,
        subject=_bounded(cluster_id),
        origin=caller.origin,
        detail={
            "project_id": _bounded(project_id),
            "error": type(failure).__name__,
            "message": failure.message,
            "trace": dict(failure.trace),
            "auth_method": caller.method,
        },
    )


def _bounded(unverified_id: str) -> str:
    """An id from a path, such that it can stand anywhere; one that is none of ours is escaped and cut."""
    # Cut first: that function remembers what it was asked, and a path may be as long as a header block.
    start = unverified_id[: MAX_NAMED + 1]
    plain = start if is_plain_text(start) else ascii(start)
    return plain if len(plain) <= MAX_NAMED else f"{plain[:MAX_NAMED]}…"
