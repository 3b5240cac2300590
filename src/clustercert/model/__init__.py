"""The nouns, frozen. No behaviour beyond what their own fields say; no I/O.

Times are aware and in UTC. Ids of users, projects, domains, roles and groups are 32 lower-case hex digits,
cluster ids are UUIDs in their 8-4-4-4-12 form, because real clients check both.
"""

from datetime import UTC, datetime

from clustercert.model.clusters import ClientCA, Cluster, ClusterOptions
from clustercert.model.credentials import (
    CREDENTIAL_PREFIX,
    credential_group,
    credential_groups,
    credential_number,
    is_credential_number,
    number_of,
    without_credential_group,
)
from clustercert.model.events import AuditEvent
from clustercert.model.identity import (
    AccessKey,
    Caller,
    Domain,
    Group,
    Project,
    Role,
    RoleAssignment,
    Token,
    User,
)
from clustercert.model.issuance import (
    Ask,
    CertificateRecord,
    Grant,
    Issued,
    PolicyRule,
    Preview,
    SigningRequest,
)
from clustercert.model.keys import KeyOrigin, KeyType, PrivateKey, PublicKey
from clustercert.model.requests import AuthMethod, Origin, UnverifiedRequest, Who
from clustercert.model.revocation import Revocation, RevocationReason

__all__ = [
    "CREDENTIAL_PREFIX",
    "AccessKey",
    "Ask",
    "AuditEvent",
    "AuthMethod",
    "Caller",
    "CertificateRecord",
    "ClientCA",
    "Cluster",
    "ClusterOptions",
    "Domain",
    "Grant",
    "Group",
    "Issued",
    "JsonObject",
    "KeyOrigin",
    "KeyType",
    "Origin",
    "PolicyRule",
    "Preview",
    "PrivateKey",
    "Project",
    "PublicKey",
    "Revocation",
    "RevocationReason",
    "Role",
    "RoleAssignment",
    "SigningRequest",
    "Token",
    "UnverifiedRequest",
    "User",
    "Who",
    "credential_group",
    "credential_groups",
    "credential_number",
    "is_credential_number",
    "number_of",
    "utc_now",
    "without_credential_group",
]

JsonObject = dict[str, object]


def utc_now() -> datetime:
    """The time, aware, UTC. Whoever needs it takes it as an argument; this is what they are given in earnest."""
    return datetime.now(UTC)
