"""Declares the database tables for SQLAlchemy Core.

Migrations create the tables, and a changed declaration needs a new migration: a test in `tests/store` compares the
schema that all migrations create with these declarations. The tables use only types and clauses that SQLite and every
PostgreSQL-compatible engine support.
"""

import functools
import json
from datetime import UTC, datetime

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.event import listen
from sqlalchemy.schema import SchemaItem


class Utc(TypeDecorator[datetime]):
    """A timezone-aware time in UTC. SQLite stores the time without a zone, so reading adds the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime passed to the store")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def as_json(value: object) -> str:
    """Serialize a JSON value, for statements that bypass SQLAlchemy's types."""
    return _known_json(value) if isinstance(value, tuple) else json.dumps(value)


# The JSON text of a tuple is cached, because policies grant only a few different lists of groups.
_known_json = functools.lru_cache(maxsize=1024)(json.dumps)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def table(name: str, *items: SchemaItem, sqlite_autoincrement: bool = False) -> Table:
    """Declare a table with its columns, constraints and indexes."""
    return Table(name, metadata, *items, sqlite_autoincrement=sqlite_autoincrement)


# In SQLite, only a column of type INTEGER can be the row id.
RowId = BigInteger().with_variant(Integer, "sqlite")
Hex = String(32)
Uuid = String(36)


# A table with one row. `value` increases with every change that may make a cache stale; see `engine.generation`.
generation = table(
    "generation",
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

# A table with one row, which migrations lock. `revision` is the schema's revision, and `oldest_program` is the revision
# of the oldest program that can use this schema. No migration may change this table, because `db upgrade` creates it
# before the first one.
migration = table(
    "migration",
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("oldest_program", String(4), nullable=False),
    Column("revision", String(4), nullable=False),
)

# Leases for leader election. Times are in seconds since 1970, from the database's clock, so that clocks of different
# processes are never compared.
lease = table(
    "lease",
    Column("name", String(32), primary_key=True),
    Column("holder", Hex, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# Data keys, each wrapped by a key-encryption key that is not in the database. The active key seals new secrets.
data_key = table(
    "data_key",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
)

# Each data key, wrapped by one or more key-encryption keys.
data_key_wrapping = table(
    "data_key_wrapping",
    Column("data_key_id", ForeignKey("data_key.id"), primary_key=True),
    Column("kek_id", String(160), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

# Cursors of background jobs, and the problems that the jobs found.
progress = table(
    "progress",
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)


domain = table(
    "domain",
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
)

project = table(
    "project",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
    Index(None, "name"),
)

user = table(
    "user",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("password_hash", String(255), nullable=True),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

# Users of OIDC issuers and Keystone who have logged in, with the name from their last login. The ids have 32 or 64 hex
# digits. `issuer` is the URL of the issuer or Keystone, and `domain` is the name of the issuer or Keystone in the
# settings. Logins from before `logins_ended_at` are refused.
federated_user = table(
    "federated_user",
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("domain", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("logins_ended_at", Utc, nullable=True),
    Column("last_login_at", Utc, nullable=True),
)

# Groups of users in the built-in identity service. The Kubernetes groups in a certificate are plain strings, without a
# table.
group = table(
    "group",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

group_member = table(
    "group_member",
    Column("group_id", ForeignKey("group.id"), primary_key=True),
    Column("user_id", ForeignKey("user.id"), primary_key=True, index=True),
)

role = table(
    "role",
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# `actor_id` is the id of a user or group.
role_assignment = table(
    "role_assignment",
    Column("actor_id", Hex, primary_key=True),
    Column("project_id", ForeignKey("project.id"), primary_key=True, index=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

# Assignments of roles in the whole service, such as the role `operator`.
service_role = table(
    "service_role",
    Column("actor_id", Hex, primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

token = table(
    "token",
    Column("hash", LargeBinary(32), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False, index=True),
    Column("project_id", ForeignKey("project.id"), nullable=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=True),
    Column("methods", JSON, nullable=False),
    Column("issued_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False, index=True),
)

# Sessions of the console. `id` is the SHA-256 of the cookie in hex. `user_id` is the id of a user of any identity
# system, and `issuer` is the URL of the OIDC issuer or of Keystone, or `built-in`. `sealed_credential` has the claims
# of the ID token as JSON, or the Keystone token. `sid` and `sub` are the issuer's ids of the session and of the user.
console_session = table(
    "console_session",
    Column("id", String(64), primary_key=True),
    Column("user_id", Text, nullable=False, index=True),
    Column("issuer", Text, nullable=False),
    Column("method", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
    Column("authenticated_at", Utc, nullable=True),
    Column("sid", Text, nullable=True),
    Column("sub", Text, nullable=True),
    Column("sealed_credential", LargeBinary, nullable=True),
)

# The networks from which users have logged in by password. While many logins wait, the service handles logins from
# known networks first. `network` is an IPv4 address or an IPv6 /64.
login_network = table(
    "login_network",
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("network", String(64), primary_key=True),
    Column("last_login_at", Utc, nullable=False, index=True),
)

access_key = table(
    "access_key",
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False, index=True),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("security_token_hash", LargeBinary(32), nullable=True),
    Column("expires_at", Utc, nullable=True, index=True),
)


cluster = table(
    "cluster",
    Column("id", Uuid, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("internal_url", String(512), nullable=False),
    Column("external_url", String(512), nullable=True),
    Column("san_urls", JSON, nullable=False),
    Column("api_servers", JSON, nullable=False),
    Column("server_ca_pem", LargeBinary, nullable=False),
    Column("signer", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("options", JSON, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    # The time when `clustercert kubernetes verify` last found no fault in the cluster.
    Column("verified_at", Utc, nullable=True, index=True),
    UniqueConstraint("project_id", "name"),
)

# For the signer `token`, the row has no certificate, and `sealed_key` is the token of the service's own account.
client_ca = table(
    "client_ca",
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False, index=True),
    Column("certificate_der", LargeBinary, nullable=True),
    Column("sealed_key", LargeBinary, nullable=True),
    Column("state", String(8), nullable=False),
    Column("signer", String(64), nullable=False),
    Column("key_reference", String(512), nullable=True),
    Column("not_before", Utc, nullable=True),
    Column("not_after", Utc, nullable=True),
    # Why the cluster gets no tokens now, as the last look at the cluster found; NULL if nothing is wrong.
    Column("problem", Text, nullable=True),
    # When the token expires with which the signer logs in to the cluster; NULL if this is not known.
    Column("access_expires_at", Utc, nullable=True),
    # How many of the cluster's tokens are not in the ledger, and wait for an operator to confirm their deletion; and
    # for how many an operator has confirmed it.
    Column("unknown_tokens", Integer, nullable=True),
    Column("unknown_confirmed", Integer, nullable=True),
    # An index for the metric of the first CA that expires.
    Index(None, "state", "not_after"),
)

# The running rotation of a cluster's client CA, or else the last one; see `model.ca_rotation`. `proofs` has an object
# for each CA and API server.
ca_rotation = table(
    "ca_rotation",
    Column("cluster_id", ForeignKey("cluster.id"), primary_key=True),
    Column("old_ca_id", Hex, nullable=False, index=True),
    Column("new_ca_id", Hex, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("since", Utc, nullable=False),
    Column("started_at", Utc, nullable=False),
    Column("started_by", Text, nullable=False),
    Column("auto_complete", Boolean, nullable=False),
    Column("deny_old", Boolean, nullable=False),
    Column("reverses", Boolean, nullable=False),
    Column("completion_asked_at", Utc, nullable=True),
    Column("forced", Boolean, nullable=False),
    Column("addresses", JSON, nullable=False),
    Column("proofs", JSON, nullable=False),
    Column("problem", Text, nullable=True),
    Column("problem_at", Utc, nullable=True),
    # Increases with each change, so that two processes never change the same state.
    Column("version", BigInteger, nullable=False),
)

# Client CAs that are not needed any more, and whose keys the signers still have to delete. The table has no foreign
# keys, because the cluster may have been removed.
discarded_ca = table(
    "discarded_ca",
    Column("id", Hex, primary_key=True),
    Column("cluster_id", Uuid, nullable=False, index=True),
    Column("project_id", Hex, nullable=False),
    Column("certificate_der", LargeBinary, nullable=True),
    Column("signer", String(64), nullable=False),
    Column("key_reference", String(512), nullable=True),
)

# Tokens with which a cluster's API server calls the webhooks. A cluster has at most two such tokens: see `MAX_TOKENS`.
webhook_token = table(
    "webhook_token",
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False, index=True),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Utc, nullable=False),
    Column("last_asked_at", Utc, nullable=True),
    # The time when the cluster's webhook was last called with a wrong token.
    Column("refused_at", Utc, nullable=True),
    # The time when audit events of the cluster last arrived.
    Column("last_events_at", Utc, nullable=True),
    # The time when an audit event last reported a request that the webhook should have reviewed.
    Column("last_use_at", Utc, nullable=True),
)

# Identities in client certificates that are not in the ledger. `identity` is the SHA-256 of user name and groups.
# `hashes` is the approximate number of certificates with the identity. `fingerprints` has the fingerprints of the last
# certificates, newest last, in lower-case hex. `last_alert_at` is the time of the last audit event about the identity;
# `token_hash` is the webhook token with which it was reported then, or NULL for an imported audit log.
# `alerts_of_each`: each new certificate of the identity causes an alert.
unknown_identity = table(
    "unknown_identity",
    Column("cluster_id", Uuid, primary_key=True),
    Column("identity", LargeBinary(32), primary_key=True),
    Column("username", Text, nullable=False),
    Column("groups", JSON, nullable=False),
    Column("hashes", Integer, nullable=False),
    Column("fingerprints", JSON, nullable=False),
    Column("first_seen_at", Utc, nullable=False),
    Column("last_seen_at", Utc, nullable=False),
    Column("last_alert_at", Utc, nullable=False),
    Column("token_hash", LargeBinary(32), nullable=True),
    Column("alerts_of_each", Boolean, nullable=False),
    # An index for counting new identities.
    Index(None, "first_seen_at"),
    # An index for the limits of each token.
    Index("ix_unknown_identity_of_token", "cluster_id", "alerts_of_each", "token_hash", "last_alert_at"),
)

# Uses that no audit event contains yet: see `use_counts.py`. `event_at` is the time of the last event.
use_count = table(
    "use_count",
    Column("kind", String(64), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("project_id", Hex, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("first_at", Utc, nullable=True),
    Column("last_at", Utc, nullable=True),
    Column("reported_by", String(32), nullable=True),
    Column("event_at", Utc, nullable=False, index=True),
)


# The table has no foreign keys, because certificates outlive their cluster, user and project. `epoch` is the generation
# number when the row was recorded. The columns `revoked_*` are copied from the first revocation of this individual
# certificate that is in force, if there is one.
certificate = table(
    "certificate",
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("fingerprint", LargeBinary(32), nullable=False, unique=True),
    Column("serial", String(40), nullable=False, index=True),
    Column("epoch", BigInteger, nullable=False),
    Column("cluster_id", Uuid, nullable=False),
    Column("project_id", Hex, nullable=False),
    Column("ca_id", Hex, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("groups", JSON, nullable=False),
    Column("not_before", Utc, nullable=False),
    Column("not_after", Utc, nullable=False),
    Column("key_type", String(16), nullable=False),
    Column("key_origin", String(16), nullable=False),
    Column("auth_method", String(16), nullable=False),
    Column("source_address", String(64), nullable=False),
    Column("request_id", Hex, nullable=False),
    Column("reason", Text, nullable=True),
    Column("issued_at", Utc, nullable=False),
    Column("revoked_at", Utc, nullable=True),
    Column("revoked_by", Text, nullable=True),
    Column("revoked_why", Text, nullable=True),
    Column("first_seen_at", Utc, nullable=True),
    Column("last_seen_at", Utc, nullable=True),
    Column("rule", Text, nullable=True),
    Column("credential_number", String(40), nullable=False, unique=True),
    # The time when an API server last reported a different encoding of the certificate.
    Column("altered_at", Utc, nullable=True),
    # The time when an API server last allowed a request although the certificate was revoked.
    Column("revoked_used_at", Utc, nullable=True),
    # The time when the webhook last denied a request because the certificate was revoked.
    Column("refused_at", Utc, nullable=True),
    # The certificate's common name, or NULL if the common name is the user id.
    Column("username", Text, nullable=True),
    # The access request whose groups the certificate has, or NULL.
    Column("access_request_id", Hex, nullable=True),
    # Whether the row is a certificate or a token; see `choices.CredentialKind`.
    Column("kind", String(16), nullable=False),
    Column("der", LargeBinary, nullable=False),
    # These three indexes are for lists of certificates, newest first.
    Index(None, "cluster_id", "id"),
    Index(None, "user_id", "id"),
    Index(None, "project_id", "id"),
    # An index for finding a cluster's unexpired certificates, and for counting a user's certificates for the cluster.
    # An index that begins with the user would make counting faster, but each insert 6 % more expensive.
    Index(None, "cluster_id", "not_after", "user_id"),
    # A covering index for counting live certificates.
    Index(None, "not_after", "revoked_at"),
    # An index for the certificates of an access request. Other certificates are not in the index.
    Index(
        None,
        "access_request_id",
        sqlite_where=text("access_request_id IS NOT NULL"),
        postgresql_where=text("access_request_id IS NOT NULL"),
    ),
    # An index for the uses of revoked certificates. Other certificates are not in the index.
    Index(
        None,
        "revoked_used_at",
        sqlite_where=text("revoked_used_at IS NOT NULL"),
        postgresql_where=text("revoked_used_at IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# A revocation of one certificate (`fingerprint` is set), or of all certificates with an older epoch that a user has for
# a cluster. An empty user or cluster means all users or all clusters. `epoch` is the generation number that the
# revocation created, or `revocations.NO_END`. `changed` is the generation number when the row was last changed:
# recorded, undone or ended.
revocation = table(
    "revocation",
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("epoch", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False, index=True),
    Column("fingerprint", LargeBinary(32), nullable=True, index=True),
    Column("user_id", Text, nullable=False),
    Column("cluster_id", Uuid, nullable=False),
    Column("project_id", Hex, nullable=True),
    Column("at", Utc, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("note", Text, nullable=True),
    Column("proved", Boolean, nullable=False),
    Column("undone_at", Utc, nullable=True),
    Column("undone_by", Text, nullable=True),
    # An index for checking whether a certificate is revoked without reading rows about individual certificates.
    Index(None, "user_id", "cluster_id", "fingerprint", "epoch"),
    # An index for lists of a project's revocations. No index begins with `cluster_id`, because a planner could prefer
    # such an index to the index that begins with `user_id`.
    Index(None, "project_id", "id"),
    sqlite_autoincrement=True,
)

# Requests for access that others grant for a time; see `model.access_requests`. The table has no foreign keys, because
# requests outlive their cluster, user and project. Durations are in seconds. While a request is open, `open_for` is
# `USER_ID CLUSTER_ID`, so that a user has at most one open request for a cluster; then it is NULL. `due_at` is the time
# when an open request changes by itself.
access_request = table(
    "access_request",
    Column("id", Hex, primary_key=True),
    Column("project_id", Hex, nullable=False),
    Column("cluster_id", Uuid, nullable=False, index=True),
    Column("cluster_name", String(128), nullable=False),
    Column("project_name", Text, nullable=False),
    Column("user_id", Text, nullable=False, index=True),
    Column("user_name", Text, nullable=False),
    Column("groups", JSON, nullable=False),
    Column("rule", Text, nullable=False),
    Column("offered_groups", JSON, nullable=False),
    Column("duration", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("ticket", Text, nullable=True),
    Column("conditions", JSON, nullable=False),
    Column("before_approval", Boolean, nullable=False),
    Column("claim_within", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("approve_by", Utc, nullable=False),
    Column("state", String(8), nullable=False),
    Column("approved_at", Utc, nullable=True),
    Column("claim_by", Utc, nullable=True),
    Column("started_at", Utc, nullable=True),
    Column("ends_at", Utc, nullable=True),
    Column("extension", BigInteger, nullable=True),
    Column("extension_reason", Text, nullable=True),
    Column("extension_state", String(8), nullable=True),
    Column("closed_at", Utc, nullable=True),
    Column("closed_by", Text, nullable=True),
    Column("closed_why", Text, nullable=True),
    Column("open_for", Text, nullable=True, unique=True),
    Column("due_at", Utc, nullable=True, index=True),
    # Lists of requests, newest first. `id` makes the order of equal times definite.
    Index(None, "project_id", "created_at", "id"),
    # An index for counting uses without an approval. Other requests are not in the index.
    Index(
        None,
        "started_at",
        sqlite_where=text("approved_at IS NULL"),
        postgresql_where=text("approved_at IS NULL"),
    ),
)

# Decisions about access requests. A user decides at most once about each part of a request. `met` has the clauses of
# the approval conditions that the user met.
access_decision = table(
    "access_decision",
    Column("request_id", ForeignKey("access_request.id"), primary_key=True),
    Column("part", String(9), primary_key=True),
    Column("by", Text, primary_key=True),
    Column("by_name", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("approves", Boolean, nullable=False),
    Column("met", JSON, nullable=False),
    Column("reason", Text, nullable=True),
)

# Common names that are not user ids, and the users who own these names. Rows are never changed or deleted, so that a
# name never gets a different owner.
username = table(
    "username",
    Column("name", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
)


# `body` is canonical JSON, and `commitment` is the SHA-256 of salt and body. The table
# `audit_place` has the leaf indexes, so rows of this table are never updated.
audit_event = table(
    "audit_event",
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("at", Utc, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("project_id", Hex, nullable=True),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("salt", LargeBinary(16), nullable=False),
    Column("commitment", LargeBinary(32), nullable=False),
    sqlite_autoincrement=True,
)

# The leaf indexes of events. Leaf indexes follow the order of commits, but event ids need not.
audit_place = table(
    "audit_place",
    Column("leaf_index", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False),
    Column("project_id", Hex, nullable=True),
    Index("uq_audit_place_event_id", "event_id", unique=True),
    Index(None, "project_id", "leaf_index"),
)

# The events that have no leaf index yet. A trigger adds each new event, and the sealer removes the event.
audit_unsealed = table(
    "audit_unsealed",
    Column("event_id", RowId, primary_key=True, autoincrement=False),
    Column("project_id", Hex, nullable=True),
    Column("commitment", LargeBinary(32), nullable=False),
)

_TRIGGER = "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event"
_QUEUE = (
    "BEGIN INSERT INTO audit_unsealed (event_id, project_id, commitment)"
    " VALUES (NEW.id, NEW.project_id, NEW.commitment);"
)
_FUNCTION = "CREATE FUNCTION audit_event_unsealed() RETURNS trigger LANGUAGE plpgsql AS"
for _dialect, _statement in (
    ("sqlite", f"{_TRIGGER} {_QUEUE} END"),
    ("postgresql", f"{_FUNCTION} $$ {_QUEUE} RETURN NULL; END $$"),
    ("postgresql", f"{_TRIGGER} FOR EACH ROW EXECUTE FUNCTION audit_event_unsealed()"),
):
    _ddl = DDL(_statement)  # type: ignore[no-untyped-call] # untyped upstream
    listen(audit_event, "after_create", _ddl.execute_if(dialect=_dialect))

# A table with one row, which describes the audit log. The sealer locks this row while it writes.
audit_log = table(
    "audit_log",
    Column("id", String(16), primary_key=True),
    Column("origin", Text, nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("sealed_key", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
)

# The tiles of the log's Merkle tree. The column `hashes` has up to 256 hashes of 32 bytes each. At level -1, the column
# has the commitments of events.
audit_tile = table(
    "audit_tile",
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary(8192), nullable=False),
)

# Signed checkpoints of the log. Most older checkpoints are deleted. The column `note` has the signed text that is
# published.
audit_checkpoint = table(
    "audit_checkpoint",
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Utc, nullable=False, index=True),
    Column("root", LargeBinary(32), nullable=False),
    Column("note", Text, nullable=False),
)
