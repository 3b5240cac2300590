"""Registered clusters, their CAs, and what their API servers tell."""

from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from clustercert.store.tables.columns import Hex, Utc, Uuid, metadata

cluster = Table(
    "cluster",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("internal_url", String(512), nullable=False),
    Column("external_url", String(512), nullable=True),
    Column("san_urls", JSON, nullable=False),
    Column("server_ca_pem", LargeBinary, nullable=False),
    Column("signer", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("options", JSON(none_as_null=True), nullable=True),
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    UniqueConstraint("project_id", "name"),
)

client_ca = Table(
    "client_ca",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False),
    Column("certificate_der", LargeBinary, nullable=False),
    Column("sealed_key", LargeBinary, nullable=True),
    Column("state", String(8), nullable=False),
    Column("not_after", Utc, nullable=False),
    Index(None, "cluster_id"),
)

# Who may ask and tell for a cluster: its API server's webhooks. Two at once, so that one can be exchanged.
webhook_token = Table(
    "webhook_token",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Utc, nullable=False),
    Column("last_asked_at", Utc, nullable=True),
    Index(None, "cluster_id"),
)

# Who showed an API server client certificates that the ledger doesn't know. identity is the SHA-256 of user name and
# groups; hashes counts the certificates, and fingerprints has the last of them, lower-case hex, the newest last.
# last_alert_at is when an event last named it.
unknown_identity = Table(
    "unknown_identity",
    metadata,
    Column("cluster_id", Uuid, primary_key=True),
    Column("identity", LargeBinary(32), primary_key=True),
    Column("username", Text, nullable=False),
    Column("groups", JSON, nullable=False),
    Column("hashes", Integer, nullable=False),
    Column("fingerprints", JSON, nullable=False),
    Column("first_seen_at", Utc, nullable=False),
    Column("last_seen_at", Utc, nullable=False),
    Column("last_alert_at", Utc, nullable=False),
)

# What programs before schema 0005 write instead: it stays while replicas of them may still run.
unknown_credential = Table(
    "unknown_credential",
    metadata,
    Column("cluster_id", Uuid, primary_key=True),
    Column("fingerprint", LargeBinary(32), primary_key=True),
    Column("username", Text, nullable=False),
    Column("groups", JSON, nullable=False),
    Column("first_seen_at", Utc, nullable=False),
    Column("last_seen_at", Utc, nullable=False),
)
