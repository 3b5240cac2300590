"""Issues certificates: applies the policy, generates the key, and signs, checks and records the certificate."""

import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

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
from clustercert.model.choices import CredentialKind
from clustercert.model.credentials import credential_number
from clustercert.model.errors import ClustercertError, Conflict, InvalidRequest, Unavailable
from clustercert.model.events.issuance import (
    CertificateIssued,
    event_access_request,
    event_caller,
    event_cluster,
    event_request,
    event_trace,
)
from clustercert.model.issuance import IssuedToken
from clustercert.observability import metrics, tracing
from clustercert.pki.keys import KeyGenerator, key_type_of
from clustercert.pki.leaf import (
    NEEDS_GENERATED_KEY,
    CheckedLeaf,
    check_leaf,
    der_fingerprint,
    new_serial,
    new_signing_request,
    serial_hex,
)
from clustercert.pki.signer import LeafSigner, TokenIssuer, TokenOrder, signer_named, token_issuer
from clustercert.policy.cluster_grant import bound_roles, cluster_grant
from clustercert.policy.decision import Policy
from clustercert.store.clusters.registry import ClusterLookup, require_cluster

logger = structlog.get_logger()

# A placeholder for the credential number in a preview, because the number is not chosen yet.
NUMBER_PLACEHOLDER = "<number>"
# The maximum number of repeated decisions if rights keep changing, both before and after the certificate is recorded.
MAX_REPEATS = 5
# Advice for callers who ask for the wrong kind of credential, by the cluster's kind of credential.
_OTHER_KIND: Mapping[CredentialKind, str] = {
    "certificate": (
        "This cluster's credentials are certificates. Send the request without credential, or with credential"
        " certificate."
    ),
    "token": (
        "This cluster's credentials are tokens of service accounts, for which clients of the cloud have no field. Get"
        " a token with `clustercert kubeconfig get`, or send credential token in the body of POST."
    ),
}


async def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Issuance:
    """Issues all certificates, for users and for the service itself.

    Attributes:
        signers: the signers by name.
        now: returns the current time in UTC.
        bindings: creates the role binding of each certificate in clusters with per-credential RBAC. If `None`, no
            bindings are created.
        require_space: raises Unavailable if the disk space is not enough for further certificates.
        withdraw: revokes a recorded certificate if the caller lost the right to it meanwhile. The caller does not get
            this certificate.
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
            confirm: raises an error if the grant no longer holds, because signing and recording may take seconds.
        """
        signer = signer_named(self.signers, cluster.client_ca.signer)
        if signer.profile == "token":
            return await self._issue_token(
                token_issuer(signer), caller, cluster, grant, request, decided_at, confirm
            )
        private_key = None if request.public_key else await self.keys.new_key()
        public_key = request.public_key or private_key.public_key()  # type: ignore[union-attr] # one of the two is set
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
            event = _issued_event(record, caller, cluster, request, grant)
            await self._record_confirmed(record, event, grant, confirm)
        return Issued(
            grant=grant,
            cluster=cluster,
            leaf_der=leaf.der,
            private_key=private_key,
            serial=record.serial,
            credential_number=record.credential_number,
            fingerprint=record.fingerprint.hex(),
        )

    async def _issue_token(
        self,
        issuer: TokenIssuer,
        caller: Caller,
        cluster: Cluster,
        grant: Grant,
        request: IssueRequest,
        decided_at: datetime,
        confirm: Callable[[], Awaitable[None]],
    ) -> Issued:
        """Like `issue_granted`, for a cluster whose credentials are tokens. Also raises InvalidRequest for a CSR."""
        if request.public_key is not None:
            raise InvalidRequest(
                "csr: this cluster's credentials are tokens, which have no key. Send no CSR."
            )
        number = credential_number(new_serial())
        order = TokenOrder(
            cluster, number, caller.user.id, caller.user.name, bound_roles(grant, cluster), grant.not_after
        )
        with tracing.span("sign", signer=cluster.client_ca.signer):
            token = await issuer.issue_token(order)
        try:
            # The API server may have shortened the lifetime.
            grant = replace(grant, not_after=min(grant.not_after, token.expires_at))
            record = _token_record(caller, request, cluster, grant, number, token, decided_at)
            event = replace(
                _issued_event(record, caller, cluster, request, grant),
                credential_kind="token",
                account=token.account,
            )
            await self._record_confirmed(record, event, grant, confirm)
        except BaseException:
            await self._end_token(issuer, cluster, number)
            raise
        return Issued(
            grant=grant,
            cluster=cluster,
            leaf_der=b"",
            private_key=None,
            serial=record.serial,
            credential_number=number,
            fingerprint=record.fingerprint.hex(),
            token=token,
        )

    async def _end_token(self, issuer: TokenIssuer, cluster: Cluster, number: str) -> None:
        """Delete what was created for a token that its caller does not get.

        Only logs a failure, because the reconciler deletes the rest later.
        """
        try:
            await issuer.end_token(cluster, number)
        except ClustercertError as failure:
            logger.warning(
                "deleting a service account failed, will be retried",
                cluster=cluster.id,
                credential_number=number,
                cause=repr(failure),
            )

    async def _record_confirmed(
        self,
        record: CertificateRecord,
        event: CertificateIssued,
        grant: Grant,
        confirm: Callable[[], Awaitable[None]],
    ) -> None:
        """Record a credential durably, and confirm the caller's rights before and after."""
        await confirm()
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

    async def preview(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Preview:
        """Return what `issue` would issue, without signing or recording anything.

        Raises the same errors as `issue` if the request is denied.
        """
        cluster, grant = await self._decide(caller, project_id, cluster_id, request, self.now())
        if cluster.credential_kind == "token":
            return Preview(grant, grant.groups, issuer="", key_type="", credential="token")
        if request.public_key and _needs_generated_key(self.signers, cluster):
            raise InvalidRequest(NEEDS_GENERATED_KEY)
        return Preview(
            grant=grant,
            organizations=(*grant.groups, credential_group(NUMBER_PLACEHOLDER)),
            issuer=cluster.client_ca.ca_certificate.subject.rfc4514_string(),
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
        if request.credential != cluster.credential_kind:
            raise Conflict(_OTHER_KIND[cluster.credential_kind])
        access = None
        if request.access_request is not None:
            if self.requests is None:
                raise InvalidRequest("access_request: this service has no access requests.")
            access = await self.requests.access(caller, cluster, request.access_request, now)
        grant = self.policy.decide(caller, cluster, request, now, access)
        return cluster, cluster_grant(grant, cluster)

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
            # Ignore a new client CA: during a rotation, API servers also accept the previous CA.
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


def _token_record(
    caller: Caller,
    request: IssueRequest,
    cluster: Cluster,
    grant: Grant,
    number: str,
    token: IssuedToken,
    now: datetime,
) -> CertificateRecord:
    return CertificateRecord(
        fingerprint=token.fingerprint,
        serial=token.serial,
        cluster_id=cluster.id,
        project_id=cluster.project_id,
        ca_id=cluster.client_ca.id,
        user_id=caller.user.id,
        user_name=caller.user.name,
        groups=grant.groups,
        not_before=now.replace(microsecond=0),
        not_after=grant.not_after,
        key_type="",
        key_origin="none",
        auth_method=caller.method,
        source_address=caller.origin.address,
        request_id=caller.origin.request_id,
        reason=request.reason,
        issued_at=now,
        der=b"",
        rule=grant.rule,
        credential_number=number,
        username=grant.username if grant.username != caller.user.id else None,
        access_request_id=grant.access_request_id,
        kind="token",
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
