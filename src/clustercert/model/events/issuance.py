"""Events about issued and refused certificates, with all inputs that are needed to repeat the policy's decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NotRequired, TypedDict

from clustercert.model.access_requests import RequestedAccess
from clustercert.model.choices import CredentialKind
from clustercert.model.clusters import Cluster
from clustercert.model.events import AuditEvent
from clustercert.model.identity import Caller, Group, ProjectName
from clustercert.model.issuance import IssueRequest
from clustercert.model.requests import AuthMethod

# The name of the access request in a decision trace.
ACCESS_REQUEST = "access_request"


class EventGroup(TypedDict):
    """One of the caller's groups."""

    id: str
    name: str
    domain_id: str
    domain_name: str


class EventCaller(TypedDict):
    """The caller. The event's actor is the caller's user id.

    Attributes:
        issuer: the URL of an OIDC issuer or of Keystone, or `built-in`.
        roles: the caller's roles in the requested project.
        credential_id: the access key's id, or the SHA-256 in hex of the token or of a session's cookie; empty for other
            methods.
    """

    name: str
    domain_id: str
    domain_name: str
    groups: tuple[EventGroup, ...]
    roles: tuple[str, ...]
    service_roles: tuple[str, ...]
    auth_method: AuthMethod
    issuer: str
    credential_id: str


class EventRequest(TypedDict):
    """The request for a certificate.

    Attributes:
        duration: whole days, or -1 for the longest allowed; None if another field specifies the lifetime.
        expires_in: the requested lifetime in seconds, from the time of the request.
        shorten: whether to shorten a lifetime that exceeds the limit, instead of denying the request.
        key_type: the type of the CSR's key, or of the generated key; None if the request was refused and had no CSR.
    """

    duration: int | None
    expire_at: datetime | None
    expires_in: int | None
    shorten: bool
    csr: bool
    key_type: str | None
    reason: str | None


class EventAccessRequest(TypedDict):
    """The access request whose groups the caller asked for. See `RequestedAccess`.

    Attributes:
        until: the latest end of a certificate, at the time of the decision; RFC 3339.
        met: for each approver, the approval conditions that the approver met, sorted.
    """

    id: str
    rule: str
    groups: tuple[str, ...]
    until: str
    is_approved: bool
    met: tuple[tuple[str, ...], ...]


class EventProject(TypedDict):
    """The name of the cluster's project at the time of the event.

    Attributes:
        is_unique: whether no other domain had a project with this name.
    """

    name: str
    domain_id: str
    domain_name: str
    is_unique: bool


class EventCluster(TypedDict):
    """The cluster, as registered in the event's project at the time of the event.

    Attributes:
        ca_not_after: when the cluster's client CA expires; no certificate of this CA expires later. None for the signer
            `token`, which has no CA.
        credential_roles: maps names of rules to ClusterRoles. Each certificate that a rule grants is bound to the
            rule's ClusterRole; see `ClusterOptions`.
        group_roles: maps groups to roles in the cluster; see `ClusterOptions`. Absent for clusters with certificates.
        project: None if the project was deleted meanwhile.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    signer: str
    ca_id: str
    ca_not_after: datetime | None
    credential_roles: Mapping[str, str] | None
    group_roles: NotRequired[Mapping[str, tuple[str, ...]]]
    project: EventProject | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateIssued(AuditEvent):
    """A certificate or a token was issued. The subject is the credential's fingerprint; see `CertificateRecord`.

    Attributes:
        credential_number: 40 lower-case hex digits; `serial` is lower-case hex too.
        organizations: the O attributes of the subject, in order. For a token: the groups whose roles are bound.
        credential_kind: whether the credential is a certificate or a token.
        account: the service account of a token; None for a certificate.
        rule: the first matching policy rule or, with per-credential RBAC, the rule whose ClusterRole is bound to the
            certificate; None for the service's own certificates. The trace contains all matching rules.
        trace: the policy's decision trace. Rules that did not match are in the trace only if the caller may see them.
        access_request: the requested access that gives some of the groups; None without an access request.
    """

    kind: Literal["certificate.issued"] = "certificate.issued"
    caller: EventCaller
    request: EventRequest
    cluster: EventCluster
    serial: str
    credential_number: str
    common_name: str
    organizations: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key_type: str
    rule: str | None
    trace: Mapping[str, object]
    access_request: EventAccessRequest | None = None
    credential_kind: CredentialKind = "certificate"
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRefused(AuditEvent):
    """A request for a certificate was denied, or a signer failed. The subject is the requested cluster id.

    Attributes:
        requested_project_id: the project id in the request. The request can contain ids of projects and clusters that
            do not exist.
        request: the parsed request; None if the body was invalid.
        cluster: the requested cluster; None if it was not found.
        error: the error's class name.
        trace: the policy's decision trace up to the error. Rules that did not match are in the trace only if the caller
            may see them.
        access_request: the requested access, as input of the decision; None without an access request.
    """

    kind: Literal["certificate.refused", "certificate.failed"]
    caller: EventCaller
    requested_project_id: str
    request: EventRequest | None
    cluster: EventCluster | None
    error: str
    message: str
    trace: Mapping[str, object]
    access_request: EventAccessRequest | None = None


def event_caller(caller: Caller, project_id: str) -> EventCaller:
    return {
        "name": caller.user.name,
        "domain_id": caller.user.domain.id,
        "domain_name": caller.user.domain.name,
        "groups": tuple(map(_event_group, caller.groups)),
        "roles": caller.roles_in(project_id),
        "service_roles": caller.service_roles,
        "auth_method": caller.method,
        "issuer": caller.issuer,
        "credential_id": caller.credential_id,
    }


def _event_group(group: Group) -> EventGroup:
    return {
        "id": group.id,
        "name": group.name,
        "domain_id": group.domain.id,
        "domain_name": group.domain.name,
    }


def event_request(request: IssueRequest, key_type: str | None) -> EventRequest:
    return {
        "duration": request.duration,
        "expire_at": request.expire_at,
        "expires_in": None if request.expires_in is None else int(request.expires_in.total_seconds()),
        "shorten": request.shorten,
        "csr": request.public_key is not None,
        "key_type": key_type,
        "reason": request.reason,
    }


def event_trace(trace: Mapping[str, object]) -> Mapping[str, object]:
    """Return a decision trace without the access request, for which events have a field."""
    return {name: value for name, value in trace.items() if name != ACCESS_REQUEST}


def event_access_request(access: RequestedAccess | None) -> EventAccessRequest | None:
    if access is None:
        return None
    return {
        "id": access.request_id,
        "rule": access.rule,
        "groups": access.groups,
        "until": access.until.isoformat(),
        "is_approved": access.is_approved,
        "met": tuple(tuple(sorted(clauses)) for clauses in access.met),
    }


def event_cluster(cluster: Cluster) -> EventCluster:
    event: EventCluster = {
        "id": cluster.id,
        "name": cluster.name,
        "labels": cluster.labels,
        "signer": cluster.signer,
        "ca_id": cluster.client_ca.id,
        "ca_not_after": cluster.client_ca.ends_at,
        "credential_roles": cluster.options.credential_roles,
        "project": _event_project(cluster.project_name),
    }
    if cluster.credential_kind == "token":
        event["group_roles"] = cluster.options.group_roles
    return event


def _event_project(project: ProjectName | None) -> EventProject | None:
    if project is None:
        return None
    return {
        "name": project.name,
        "domain_id": project.domain.id,
        "domain_name": project.domain.name,
        "is_unique": project.is_unique,
    }
