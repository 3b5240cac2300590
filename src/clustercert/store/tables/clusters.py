"""Registered clusters, their CAs and webhook tokens, and unknown identities that their API servers report."""

from sqlalchemy import JSON, Column, ForeignKey, Integer, LargeBinary, String, Text, UniqueConstraint

from clustercert.store.tables.columns import Hex, Utc, Uuid, table

cluster = table(
    "cluster",
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
    Column("options", JSON, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    UniqueConstraint("project_id", "name"),
)

client_ca = table(
    "client_ca",
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False, index=True),
    Column("certificate_der", LargeBinary, nullable=False),
    Column("sealed_key", LargeBinary, nullable=True),
    Column("state", String(8), nullable=False),
    Column("not_after", Utc, nullable=False),
)

# Tokens with which a cluster's API server calls the webhooks. At most two: see `MAX_TOKENS`.
webhook_token = table(
    "webhook_token",
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False, index=True),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Utc, nullable=False),
    Column("last_asked_at", Utc, nullable=True),
    # When the cluster's webhook was last called with a wrong token.
    Column("refused_at", Utc, nullable=True),
    # When audit events of the cluster last arrived, and last told of a request that its webhook should have reviewed.
    Column("last_events_at", Utc, nullable=True),
    Column("last_use_at", Utc, nullable=True),
)

# Identities in client certificates that are not in the ledger. identity: SHA-256 of user name and groups; hashes:
# number of certificates; fingerprints: of the last certificates, newest last, in lower-case hex; last_alert_at: time of
# the last event.
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
)
