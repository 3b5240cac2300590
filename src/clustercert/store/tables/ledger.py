"""What was issued, and what of it is not to be honoured any more."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, LargeBinary, String, Table, Text, text

from clustercert.store.tables.columns import Hex, RowId, Utc, Uuid, metadata

# No foreign keys: what was issued outlives the cluster, the user and the project. `epoch` is the generation in the
# transaction that recorded the row; revoked_* are about this one certificate, `revocation` is about many.
certificate = Table(
    "certificate",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("fingerprint", LargeBinary(32), nullable=False, unique=True),
    Column("serial", String(40), nullable=False),
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
    # NULL where a program before schema 0005 recorded the row.
    Column("credential_number", String(40), nullable=True),
    # When an API server last reported another encoding of the certificate.
    Column("altered_at", Utc, nullable=True),
    Column("der", LargeBinary, nullable=False),
    # What an inventory walks, the newest first.
    Index(None, "cluster_id", "id"),
    Index(None, "user_id", "id"),
    Index(None, "project_id", "id"),
    # What still holds in a cluster, whatever else the ledger keeps of it.
    Index(None, "cluster_id", "not_after"),
    Index(None, "serial"),
    # An index, since SQLite adds no constraint to a table that exists. Without the rows of older programs, which SQLite
    # would otherwise read all of where a query asks for those without a number.
    Index(
        "uq_certificate_credential_number",
        "credential_number",
        unique=True,
        sqlite_where=text("credential_number IS NOT NULL"),
        postgresql_where=text("credential_number IS NOT NULL"),
    ),
    # Who has a certificate without a credential group; nothing is added once all replicas know of these groups.
    Index(
        "ix_certificate_user_id_not_after_unnumbered",
        "user_id",
        "not_after",
        sqlite_where=text("credential_number IS NULL"),
        postgresql_where=text("credential_number IS NULL"),
    ),
    # Counting what is live reads this and nothing else.
    Index(None, "not_after", "revoked_at"),
    sqlite_autoincrement=True,
)

# What is revoked: one certificate (fingerprint; user and cluster only say whose), or whatever of a user (or, where it
# is empty, of everybody) in a cluster (or, where it is empty, in all of them) was recorded in an older epoch. `epoch`
# is the generation that the revocation itself made (`revocations.NO_END` while it has no end), and `changed` the one
# of its last change: revoking, undoing or ending it.
revocation = Table(
    "revocation",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("epoch", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("fingerprint", LargeBinary(32), nullable=True),
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
    # Whether a certificate is revoked: the rows of single ones, however many, are not in the way.
    Index(None, "user_id", "cluster_id", "fingerprint", "epoch"),
    # For lists. None begins with cluster_id: a planner that knows of no empty ones would take it for the above.
    Index(None, "project_id", "id"),
    Index(None, "fingerprint"),
    Index(None, "changed"),
    sqlite_autoincrement=True,
)
