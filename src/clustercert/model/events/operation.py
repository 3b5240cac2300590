"""Events that the service detects: denied requests, suspicious credentials, damaged data, a changed policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypedDict

from clustercert.model.events import AuditEvent
from clustercert.model.requests import AuthMethod

CredentialAlert = Literal["credential.unknown", "credential.masters", "credential.exempt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused(AuditEvent):
    """A request for anything but a certificate was denied (403) or exceeded a limit (429). The subject is the path.

    Attributes:
        method: the HTTP method.
        error: the error's class name.
    """

    kind: Literal["request.refused"] = "request.refused"
    method: str
    error: str
    message: str
    auth_method: AuthMethod


class RefusalCount(TypedDict):
    """Counts refused requests of one kind.

    Attributes:
        kind: the kind of event that records a single refusal, such as `request.refused`.
        error: the error's class name; for `audit_batch.refused`, the reason.
        last_subject: the subject of the last refusal: a path, or a cluster id.
        last_source: the source address of the last refusal.
    """

    kind: str
    error: str
    count: int
    first: datetime
    last: datetime
    last_subject: str
    last_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsRepeated(AuditEvent):
    """Further requests of a caller were refused, and were counted instead of recorded individually.

    The subject is the caller: a user id, or `cluster:ID` for batches of audit events. Each worker records at most one
    such event a minute for a caller and project.
    """

    kind: Literal["refusals.repeated"] = "refusals.repeated"
    count: int
    refusals: tuple[RefusalCount, ...]


class FailureSource(TypedDict):
    """Requests from one source that failed to authenticate.

    Attributes:
        source: an IP address, or `other` for addresses that were not counted separately.
        known: ids of existing users and access keys that the failed requests named.
        unknown: hashes of names that no account has, and of all names in logins at Keystone: 16 lower-case hex digits
            each. `Custody.name_hash` computes them.
    """

    source: str
    count: int
    first: datetime
    last: datetime
    known: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationsFailed(AuditEvent):
    """Requests failed to authenticate. Each worker records at most one such event a minute."""

    kind: Literal["authentication.failed"] = "authentication.failed"
    count: int
    sources: tuple[FailureSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoaded(AuditEvent):
    """At its start or on a reload, the service loaded a policy that differs from the last recorded policy.

    Attributes:
        rules: the policy's rules, in the order of the settings, then the rules of `role_groups`; lifetimes in seconds.
        allow_system: the names beginning with `system:` that certificates may contain.
        max_lifetime: the longest lifetime of any certificate, in seconds.
        username: the template of the user name in certificates.
        sha256: the policy's digest; `before` is the previous policy's digest.
    """

    kind: Literal["policy.loaded"] = "policy.loaded"
    rules: tuple[Mapping[str, object], ...]
    allow_system: tuple[str, ...]
    max_lifetime: int
    username: str
    sha256: str
    before: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuersLoaded(AuditEvent):
    """At its start or on a reload, the service loaded OIDC issuers that differ from the last recorded issuers.

    Attributes:
        issuers: as in the settings, without defaults and the proxy; durations are in seconds.
        sha256: the digest of the issuers; `before` is the digest of the previous issuers.
    """

    kind: Literal["issuers.loaded"] = "issuers.loaded"
    issuers: tuple[Mapping[str, object], ...]
    sha256: str
    before: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSeen(AuditEvent):
    """An API server saw a certificate that is not in the ledger, is in `system:masters`, or is new and exempt.

    Attributes:
        reported_by: `webhook`, `audit-events` or `import-audit-log`.
        fault: why the certificate was not recognized: `unknown`, `other_cluster` or `forged`; None if it was
            recognized.
    """

    kind: CredentialAlert
    cluster_id: str
    username: str
    groups: tuple[str, ...]
    first_seen_at: datetime
    reported_by: str
    fault: str | None
    known_for_another_cluster: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsCounted(AuditEvent):
    """API servers reported further suspicious certificates, which were counted instead of recorded individually.

    The subject is the cluster's id. Recorded at most once an hour for each cluster and kind of alert.

    Attributes:
        alert: the kind of event that records a single certificate, such as `credential.masters`.
        count: the number of reports. A certificate in use is reported about once a minute.
        first, last: when this service received the first and the last of these reports.
    """

    kind: Literal["credential.counted"] = "credential.counted"
    cluster_id: str
    alert: str
    count: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialAltered(AuditEvent):
    """An API server saw an altered copy of a certificate. Recorded at most once an hour for each certificate.

    Attributes:
        presented: the altered copy's fingerprint, lower-case hex; None if the API server did not send it.
    """

    kind: Literal["credential.altered"] = "credential.altered"
    cluster_id: str
    credential_number: str
    presented: str | None
    username: str
    first_seen_at: datetime
    reported_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedCredentialUsed(AuditEvent):
    """An API server allowed requests with a revoked certificate. Recorded at most once an hour for each revocation.

    Attributes:
        count: the number of allowed requests since the last such event. A lower bound: if a report begins before the
            revocation, only its last request counts.
        first_used_at, used_at: when the API server received the first and the last of these requests.
    """

    kind: Literal["credential.revoked_used"] = "credential.revoked_used"
    cluster_id: str
    credential_number: str
    username: str
    revoked_at: datetime
    count: int
    first_used_at: datetime
    used_at: datetime
    reported_by: str


class ApprovedRequest(TypedDict):
    """An approved CertificateSigningRequest.

    Attributes:
        signer: the name of the signer in the request; None if the audit event did not contain the name.
    """

    name: str
    signer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCertificatesApproved(AuditEvent):
    """The holder of a certificate approved requests for client certificates in the cluster's own API.

    The subject is the holder's certificate. Revoking this certificate does not revoke the certificates that the
    cluster's API issued. Each worker records at most one such event a minute for a certificate.

    Attributes:
        requests: the CertificateSigningRequests, at most 32.
    """

    kind: Literal["cluster_certificates.approved"] = "cluster_certificates.approved"
    cluster_id: str
    credential_number: str
    username: str
    requests: tuple[ApprovedRequest, ...]
    first_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBatchRefused(AuditEvent):
    """A batch of audit events from an API server was not read completely.

    Attributes:
        reason: `cut_off`, `malformed` or `unreadable_events`.
    """

    kind: Literal["audit_batch.refused"] = "audit_batch.refused"
    cluster_id: str
    reason: str
    bytes_read: int
    events_taken: int
    events_unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnforcementOverflowed(AuditEvent):
    """A cluster has more revoked certificates than its ConfigMap can hold."""

    kind: Literal["enforcement.overflowed"] = "enforcement.overflowed"
    left_out: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokensStopped(AuditEvent):
    """The service stopped issuing tokens for a cluster. Revocation still works. The subject is the cluster's id.

    Attributes:
        problem: what is wrong, and what the operator does.
    """

    kind: Literal["cluster_tokens.stopped"] = "cluster_tokens.stopped"
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokensResumed(AuditEvent):
    """The service issues tokens for a cluster again. The subject is the cluster's id."""

    kind: Literal["cluster_tokens.resumed"] = "cluster_tokens.resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokensForeign(AuditEvent):
    """A cluster has objects that this service did not create, but that affect the accounts of credentials.

    These objects lie in the namespace of the accounts, or give rights to the accounts. The service does not change
    these objects. Recorded once for each change. The subject is the cluster's id.

    Attributes:
        objects: kind, namespace and name of each object; at most 100.
    """

    kind: Literal["cluster_tokens.foreign"] = "cluster_tokens.foreign"
    objects: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokensUnknown(AuditEvent):
    """So many credentials of a cluster are not in the ledger that the database may be an old copy.

    The service deletes none of these credentials until an operator confirms the deletion. The subject is the cluster's
    id.

    Attributes:
        unknown: number of credentials in the cluster that are not in the ledger.
        known: number of credentials in the cluster that are in the ledger.
    """

    kind: Literal["cluster_tokens.unknown"] = "cluster_tokens.unknown"
    unknown: int
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokensDeletionConfirmed(AuditEvent):
    """An operator confirmed that the service may delete a cluster's credentials that are not in the ledger.

    The subject is the cluster's id.

    Attributes:
        unknown: number of these credentials.
    """

    kind: Literal["cluster_tokens.deletion_confirmed"] = "cluster_tokens.deletion_confirmed"
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateMismatch(AuditEvent):
    """A stored certificate does not match its row, its CA or the policy.

    Attributes:
        problems: one sentence for each problem.
    """

    kind: Literal["certificate.mismatch"] = "certificate.mismatch"
    cluster_id: str
    serial: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLogBegun(AuditEvent):
    """The first event of a log, recorded when the log's key is created. The subject is the log's name."""

    kind: Literal["audit_log.begun"] = "audit_log.begun"
    verifier_key: str
