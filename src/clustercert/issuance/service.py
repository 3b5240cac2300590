"""Issues certificates: applies the policy, generates the key, and signs, checks and records the certificate."""

import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.issuance.ports import AccessSource, CredentialBindings, Recorder, Usernames
from clustercert.model import (
    Caller,
    CallerAuthentication,
    CertificateRecord,
    Cluster,
    Grant,
    Issued,
    IssueRequest,
    Preview,
    SigningRequest,
    credential_group,
)
from clustercert.model.errors import InvalidRequest, Unavailable
from clustercert.model.events.issuance import (
    CertificateIssued,
    event_access_request,
    event_caller,
    event_cluster,
    event_request,
    event_trace,
)
from clustercert.observability import metrics, tracing
from clustercert.pki.keys import KeyGenerator, key_type_of
from clustercert.pki.leaf import (
    NEEDS_GENERATED_KEY,
    CheckedLeaf,
    check_leaf,
    der_fingerprint,
    new_signing_request,
    serial_hex,
)
from clustercert.pki.signer import LeafSigner, signer_named
from clustercert.policy.decision import Policy
from clustercert.store.clusters.registry import ClusterLookup, require_cluster

# A placeholder for the credential number in a preview, because the number is not chosen yet.
NUMBER_PLACEHOLDER = "<number>"
# How often a decision is repeated, before and again after the certificate is recorded, if rights keep changing.
MAX_REPEATS = 5


async def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Issuance:
    """Issues all certificates, for users and for the service itself.

    Attributes:
        signers: the signers by name.
        now: returns the current time in UTC.
        bindings: applies per-credential RBAC: a role binding for each certificate, instead of groups. If `None`, all
            certificates have the groups that the policy grants.
        require_space: raises Unavailable if the disk space is not enough for further certificates.
        withdraw: revokes a recorded certificate that its caller may no longer have, and does not get.
        requests: the access that users have by access requests.
    """

    clusters: ClusterLookup
    policy: Policy
    keys: KeyGenerator
    signers: Mapping[str, LeafSigner]
    ledger: Recorder
    usernames: Usernames
    now: Callable[[], datetime]
    bindings: CredentialBindings | None = None
    require_space: Callable[[], None] = lambda: None
    withdraw: Callable[[CertificateRecord], Awaitable[object]] = _nothing
    requests: AccessSource | None = None

    async def issue(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest,
        authentication: CallerAuthentication | None = None,
    ) -> Issued:
        """Apply the policy, issue a certificate, and return it once it is recorded durably.

        Raises NotFound, InvalidRequest, Forbidden, SignerError, RemoteFailed or Unavailable. `audit.refusals` records
        denied requests. Also raises Unauthenticated if the caller's credential was revoked during the request.

        Args:
            authentication: authenticates the caller again if rights change during the request; `None` for a caller
                whose rights can't change.
        """
        started = time.perf_counter()
        try:
            decided_at = self.now()
            cluster, grant = await self._decide(caller, project_id, cluster_id, request, decided_at)
            self.require_space()
            if grant.username != caller.user.id:
                await self.usernames.claim(grant, caller.user.id)
            confirm = _nothing
            if authentication is not None:
                confirm = functools.partial(
                    self._confirm, authentication, cluster, grant, request, decided_at
                )
            issued = await self.issue_granted(caller, cluster, grant, request, decided_at, confirm)
        except Exception as failure:
            metrics.issuance(started, type(failure).__name__)
            raise
        metrics.issuance(started)
        return issued

    async def issue_granted(
        self,
        caller: Caller,
        cluster: Cluster,
        grant: Grant,
        request: IssueRequest,
        decided_at: datetime,
        confirm: Callable[[], Awaitable[None]] = _nothing,
    ) -> Issued:
        """Issue a certificate for a grant. Uses only the key and the reason from the request.

        Raises SignerError, RemoteFailed, Unavailable, or any error that `confirm` raises. Raises InvalidRequest if the
        signer can't sign for the caller's key.

        Args:
            decided_at: the time from which the grant's validity was computed, and which is recorded as the time of
                issue.
            confirm: raises an error if the grant no longer holds. Signing and recording may take seconds.
        """
        private_key = None if request.public_key else await self.keys.new_key()
        public_key = request.public_key or private_key.public_key()  # type: ignore[union-attr] # one of the two is set
        signer = signer_named(self.signers, cluster.client_ca.signer)
        to_sign = new_signing_request(
            grant,
            public_key,
            cluster.client_ca,
            takes_serial=signer.takes_serial,
            profile=signer.profile,
            private_key=private_key,
        )
        with tracing.span("sign", signer=cluster.client_ca.signer, key_type=key_type_of(public_key)):
            leaf = check_leaf(await signer.sign(to_sign), to_sign)
        if signer.profile != "own":
            # The signer may have chosen a shorter validity.
            grant = replace(grant, not_before=leaf.not_before, not_after=leaf.not_after)
        record = _record(caller, request, to_sign, cluster, leaf, decided_at)
        async with self.bindings.binding(cluster, record) if self.bindings else nullcontext():
            await confirm()
            event = _issued_event(record, caller, cluster, request, grant)
            with tracing.span("record"):
                if grant.access is not None and self.requests is not None:
                    await self.requests.record(record, event)
                else:
                    await self.ledger.record(record, event)
            try:
                await confirm()
            except BaseException:
                await self.withdraw(record)
                raise
        return Issued(
            grant=grant,
            cluster=cluster,
            leaf_der=leaf.der,
            private_key=private_key,
            serial=record.serial,
            credential_number=record.credential_number,
            fingerprint=record.fingerprint.hex(),
        )

    async def preview(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Preview:
        """Return what `issue` would issue, without signing or recording anything.

        Raises the same errors as `issue` if the request is denied.
        """
        cluster, grant = await self._decide(caller, project_id, cluster_id, request, self.now())
        if request.public_key and _needs_generated_key(self.signers, cluster):
            raise InvalidRequest(NEEDS_GENERATED_KEY)
        return Preview(
            grant=grant,
            organizations=(*grant.groups, credential_group(NUMBER_PLACEHOLDER)),
            issuer=cluster.client_ca.certificate.subject.rfc4514_string(),
            key_type=key_type_of(request.public_key) if request.public_key else self.keys.key_type,
        )

    async def _decide(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest, now: datetime
    ) -> tuple[Cluster, Grant]:
        with tracing.span("decide"):
            return await self._decision(caller, project_id, cluster_id, request, now)

    async def _decision(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest, now: datetime
    ) -> tuple[Cluster, Grant]:
        # Check the roles before the lookup, so that timing does not reveal clusters of other projects.
        caller.require_roles_in(project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        access = None
        if request.access_request is not None:
            if self.requests is None:
                raise InvalidRequest("access_request: this service has no access requests.")
            access = await self.requests.access(caller, cluster, request.access_request, now)
        grant = self.policy.decide(caller, cluster, request, now, access)
        if self.bindings:
            grant = self.bindings.apply_credential_group(cluster, grant)
        return cluster, grant

    async def _confirm(
        self,
        authentication: CallerAuthentication,
        cluster: Cluster,
        grant: Grant,
        request: IssueRequest,
        decided_at: datetime,
    ) -> None:
        """Authenticate and decide again if rights may have changed.

        Raises the same errors as `issue`: Unavailable if the new decision differs from `grant`, or if rights change
        again and again.
        """
        for _ in range(MAX_REPEATS):
            if authentication.is_current():
                return
            caller = await authentication.authenticate()
            now, granted = await self._decide(caller, cluster.project_id, cluster.id, request, decided_at)
            # While a client CA is rotated, API servers also accept the CA that signed until a moment ago.
            if (replace(now, client_ca=cluster.client_ca), granted) != (cluster, grant):
                break
        raise Unavailable(
            "Your rights or the cluster changed while the certificate was being issued. Try again."
        )


def _needs_generated_key(signers: Mapping[str, LeafSigner], cluster: Cluster) -> bool:
    return signer_named(signers, cluster.client_ca.signer).profile == "kubernetes"


def _record(
    caller: Caller,
    request: IssueRequest,
    signed: SigningRequest,
    cluster: Cluster,
    leaf: CheckedLeaf,
    now: datetime,
) -> CertificateRecord:
    grant = signed.grant
    return CertificateRecord(
        fingerprint=der_fingerprint(leaf.der),
        serial=serial_hex(leaf.serial),
        cluster_id=cluster.id,
        project_id=cluster.project_id,
        ca_id=signed.ca.id,
        user_id=caller.user.id,
        user_name=caller.user.name,
        groups=grant.groups,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        key_type=key_type_of(signed.public_key),
        key_origin="csr" if request.public_key else "generated",
        auth_method=caller.method,
        source_address=caller.origin.address,
        request_id=caller.origin.request_id,
        reason=request.reason,
        issued_at=now,
        der=leaf.der,
        rule=grant.rule,
        credential_number=signed.credential_number,
        username=grant.username if grant.username != caller.user.id else None,
        access_request_id=grant.access_request_id,
    )


def _issued_event(
    record: CertificateRecord, caller: Caller, cluster: Cluster, request: IssueRequest, grant: Grant
) -> CertificateIssued:
    return CertificateIssued(
        at=record.issued_at,
        project_id=record.project_id,
        actor=caller.actor,
        subject=record.fingerprint.hex(),
        caller=event_caller(caller, cluster.project_id),
        request=event_request(request, record.key_type),
        cluster=event_cluster(cluster),
        serial=record.serial,
        credential_number=record.credential_number,
        common_name=record.common_name,
        organizations=record.organizations,
        not_before=record.not_before,
        not_after=record.not_after,
        key_type=record.key_type,
        rule=record.rule,
        trace=event_trace(grant.trace),
        access_request=event_access_request(grant.access),
    )
