"""Events for changes to identities, clusters, revocations, keys and the audit log by operators, admins and users."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypedDict

from clustercert.model.choices import ProofOutcome, RevocationReason, RotationState
from clustercert.model.clusters import ClusterOptions
from clustercert.model.events import AuditEvent

DirectoryChange = Literal[
    "domain.created", "domain.enabled", "domain.disabled", "domain.removed",
    "project.created", "project.enabled", "project.disabled", "project.removed",
    "user.created", "user.enabled", "user.disabled", "user.removed", "user.password_changed",
    "group.created", "group.removed", "group.member_added", "group.member_removed",
]  # fmt: skip
DirectoryUpdate = Literal["project.updated", "user.updated", "group.updated"]
RoleChange = Literal["role.assigned", "role.unassigned"]
AccessKeyChange = Literal[
    "access_key.created", "access_key.enabled", "access_key.disabled", "access_key.removed"
]
WebhookTokenChange = Literal["webhook_token.created", "webhook_token.removed"]
ClusterChange = Literal["cluster.added", "cluster.updated", "cluster.removed"]
CaRotationChange = Literal[
    "ca_rotation.started", "ca_rotation.distributed", "ca_rotation.proof_lost", "ca_rotation.issuing_begun",
    "ca_rotation.draining_begun", "ca_rotation.completion_requested", "ca_rotation.completed",
    "ca_rotation.reversed", "ca_rotation.aborted",
]  # fmt: skip
RevocationChange = Literal["certificate.revoked", "user.revoked", "cluster.revoked", "revocation.undone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryChanged(AuditEvent):
    """A domain, project, user or group was created, changed or removed.

    Attributes:
        domain_id: the domain of a project, user or group.
        password: whether a new user has a password.
        user_id, user_name: the member added to or removed from a group.
    """

    kind: DirectoryChange
    name: str
    domain_id: str | None = None
    password: bool | None = None
    user_id: str | None = None
    user_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryUpdated(AuditEvent):
    """Labels of a project, user or group, or a project's description, were changed. Contains the new values."""

    kind: DirectoryUpdate
    name: str
    domain_id: str
    labels: Mapping[str, str]
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBlocked(AuditEvent):
    """A user of an OIDC issuer or of Keystone was blocked or unblocked. The subject is the user's id."""

    kind: Literal["user.blocked", "user.unblocked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginsEnded(AuditEvent):
    """A user ended all their own logins. The subject is the user's id.

    Attributes:
        issuer: the URL of the OIDC issuer or of Keystone, whose earlier tokens are now refused; or `built-in`.
        sessions: how many sessions of the console were deleted.
        tokens, temporary_keys: how many tokens and temporary access keys of the built-in identity service were deleted.
    """

    kind: Literal["user.logged_out"] = "user.logged_out"
    name: str
    issuer: str
    sessions: int = 0
    tokens: int = 0
    temporary_keys: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(AuditEvent):
    """A role was assigned to a user or group, or was removed from a user or group.

    Attributes:
        name: the user's or group's name.
        project: the project's name; None for a role in the whole service.
    """

    kind: RoleChange
    role: str
    assignee: Literal["user", "group"]
    name: str
    project: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleDefined(AuditEvent):
    """A role was created or deleted. The subject is the role's id."""

    kind: Literal["role.created", "role.removed"]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKeyChanged(AuditEvent):
    """An access key was created, changed or removed. The subject is the access key's id (AK)."""

    kind: AccessKeyChange
    user_id: str
    description: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked(AuditEvent):
    """A token was revoked. The subject is the token's SHA-256 in hex."""

    kind: Literal["token.revoked"] = "token.revoked"
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanged(AuditEvent):
    """A session of the console started or ended. The subject is the SHA-256 of the session's cookie in hex.

    Attributes:
        issuer: the URL of the OIDC issuer or of Keystone, or `built-in`.
    """

    kind: Literal["session.started", "session.ended"]
    user_id: str
    issuer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookTokenChanged(AuditEvent):
    """A webhook token of a cluster was created or removed."""

    kind: WebhookTokenChange
    cluster_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterChanged(AuditEvent):
    """A cluster was added, changed or removed. The fields contain the cluster's properties after the change.

    Attributes:
        version: the Kubernetes version.
    """

    kind: ClusterChange
    name: str
    internal_url: str
    external_url: str | None
    san_urls: tuple[str, ...]
    api_servers: tuple[str, ...]
    signer: str
    version: str
    labels: Mapping[str, str]
    options: ClusterOptions
    client_ca_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaRotationChanged(AuditEvent):
    """The rotation of a cluster's client CA reached another state. The subject is the cluster's id.

    Attributes:
        state: the state after the change.
        old_signer, new_signer: the signers that have the keys of the two CAs.
        addresses: the API servers that were proved, or whose proof was lost.
        forced: whether completion was requested while certificates of the old CA were valid.
        holders: the number of valid certificates: of the old CA when completion was requested, or of the new CA when
            the rotation was aborted.
        problem: why the proof was lost.
    """

    kind: CaRotationChange
    state: RotationState
    old_ca_id: str
    new_ca_id: str
    old_signer: str
    new_signer: str
    auto_complete: bool = False
    deny_old: bool = False
    reverses: bool = False
    forced: bool = False
    holders: int | None = None
    addresses: tuple[str, ...] = ()
    problem: str | None = None


class ReportedProof(TypedDict):
    """How an API server treated a temporary certificate of a client CA.

    Attributes:
        detail: why the attempt failed; empty if the API server accepted or refused the certificate.
    """

    client_ca_id: str
    address: str
    outcome: ProofOutcome
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaProofReported(AuditEvent):
    """An operator reported how API servers treat the client CAs of a rotation. The subject is the cluster's id."""

    kind: Literal["ca_rotation.proof_reported"] = "ca_rotation.proof_reported"
    proofs: tuple[ReportedProof, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaKeyDeleted(AuditEvent):
    """The key of a client CA that is not needed any more was deleted. The subject is the id of the client CA.

    Attributes:
        result: the signer's sentence about what happened to the key.
    """

    kind: Literal["client_ca.key_deleted"] = "client_ca.key_deleted"
    cluster_id: str
    signer: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationChanged(AuditEvent):
    """Certificates were revoked, or a revocation was undone.

    Attributes:
        user_id, cluster_id: None means all users, or all clusters.
        proved: whether proof of possession of the certificate's key authorized the revocation.
        serial: the serial of a single certificate, lower-case hex.
        revoked_at, revoked_by: when and by whom the undone revocation was made.
    """

    kind: RevocationChange
    user_id: str | None
    cluster_id: str | None
    reason: RevocationReason
    note: str | None
    proved: bool
    serial: str | None = None
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysChanged(AuditEvent):
    """Keys that encrypt stored secrets were created, rotated or retired.

    Attributes:
        kek_ids: the key-encryption keys that now wrap the data keys, or that were retired.
        data_key_id: the id of the new data key, if there is one.
        data_key_ids: the data keys that were rewrapped.
    """

    kind: Literal["keys.created", "keys.rotated", "keys.retired"]
    kek_ids: tuple[str, ...]
    data_key_id: int | None = None
    data_key_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatesPruned(AuditEvent):
    """Expired certificates were deleted from the ledger."""

    kind: Literal["certificates.pruned"] = "certificates.pruned"
    count: int
    ended_before: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationsPruned(AuditEvent):
    """Revocations of users and clusters were deleted, because no certificate that they revoked can be valid any more.

    Attributes:
        made_before: the deleted revocations were recorded before this time.
    """

    kind: Literal["revocations.pruned"] = "revocations.pruned"
    count: int
    made_before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDeleted(AuditEvent):
    """Audit events were deleted; the log keeps hashes of the events (commitments). This event is never deleted.

    Attributes:
        why: `retention`, or the reason that the operator gave.
        places: ranges of leaf indexes of the deleted events, as pairs of first and last index.
        before: the deleted events were older than this time.
    """

    kind: Literal["events.deleted"] = "events.deleted"
    why: str
    count: int
    places: tuple[tuple[int, int], ...]
    before: datetime | None = None
