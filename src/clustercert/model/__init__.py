"""Domain types: frozen dataclasses without I/O.

Times are timezone-aware, in UTC. Cluster ids are UUIDs in 8-4-4-4-12 form; all other ids are 32 lower-case hex digits.
The vendors' clients check the formats of ids. Ids of users and groups that Keystone reads from LDAP have 64 digits.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clustercert.model.choices import KeyOrigin, KeyType, RevocationReason
    from clustercert.model.clusters import ClientCA, Cluster, ClusterOptions
    from clustercert.model.credentials import (
        CREDENTIAL_PREFIX,
        credential_group,
        credential_groups,
        credential_number,
        is_credential_number,
        without_credential_group,
    )
    from clustercert.model.events import AuditEvent
    from clustercert.model.identity import (
        AccessKey,
        Caller,
        CallerAuthentication,
        Domain,
        FederatedDomain,
        Group,
        KnownUser,
        Project,
        Role,
        RoleAssignment,
        Token,
        User,
    )
    from clustercert.model.ids import new_cluster_id, new_id
    from clustercert.model.issuance import (
        CertificateRecord,
        Grant,
        Issued,
        IssueRequest,
        Preview,
        RecordedIssue,
        SigningRequest,
    )
    from clustercert.model.keys import PrivateKey, PublicKey
    from clustercert.model.requests import Actor, AuthMethod, Origin, UnverifiedRequest
    from clustercert.model.revocation import Revocation
    from clustercert.model.times import parse_rfc3339, rfc3339, utc_now

JsonObject = dict[str, object]

_MODULES = (
    "choices",
    "ids",
    "times",
    "clusters",
    "credentials",
    "events",
    "identity",
    "issuance",
    "keys",
    "requests",
    "revocation",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a type on first use, so that the command line starts faster."""
        for module in _MODULES:
            names = vars(import_module(f"{__name__}.{module}"))
            if name in names:
                globals()[name] = names[name]
                return names[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
