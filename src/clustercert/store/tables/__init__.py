"""The tables, as SQLAlchemy Core sees them. Migrations make them; `tests/store` holds the two together.

Only types and clauses that SQLite and every PostgreSQL-compatible engine have alike.
"""

from clustercert.store.tables.audit import (
    audit_checkpoint,
    audit_event,
    audit_log,
    audit_place,
    audit_tile,
    audit_unsealed,
)
from clustercert.store.tables.clusters import (
    client_ca,
    cluster,
    unknown_credential,
    unknown_identity,
    webhook_token,
)
from clustercert.store.tables.columns import Hex, RowId, Utc, Uuid, as_json, metadata
from clustercert.store.tables.identity import (
    access_key,
    domain,
    group,
    group_member,
    project,
    role,
    role_assignment,
    service_role,
    token,
    user,
)
from clustercert.store.tables.ledger import certificate, revocation
from clustercert.store.tables.service import data_key, generation, lease, migration, progress

__all__ = [
    "Hex",
    "RowId",
    "Utc",
    "Uuid",
    "access_key",
    "as_json",
    "audit_checkpoint",
    "audit_event",
    "audit_log",
    "audit_place",
    "audit_tile",
    "audit_unsealed",
    "certificate",
    "client_ca",
    "cluster",
    "data_key",
    "domain",
    "generation",
    "group",
    "group_member",
    "lease",
    "metadata",
    "migration",
    "progress",
    "project",
    "revocation",
    "role",
    "role_assignment",
    "service_role",
    "token",
    "unknown_credential",
    "unknown_identity",
    "user",
    "webhook_token",
]
