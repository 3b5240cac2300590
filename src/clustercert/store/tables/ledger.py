"""Issued certificates and revocations."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, LargeBinary, String, Text

from clustercert.store.tables.columns import Hex, RowId, Utc, Uuid, table

# No foreign keys, because certificates outlive their cluster, user and project. `epoch` is the generation number when
# the row was recorded. The columns revoked_* repeat the revocation that names only this certificate, if there is one.
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
    # When an API server last reported another encoding of the certificate.
    Column("altered_at", Utc, nullable=True),
    # When an API server last allowed a request although the certificate was revoked.
    Column("revoked_used_at", Utc, nullable=True),
    # The common name if it is not the user id.
    Column("username", Text, nullable=True),
    Column("der", LargeBinary, nullable=False),
    # An index for lists, newest first.
    Index(None, "cluster_id", "id"),
    Index(None, "user_id", "id"),
    Index(None, "project_id", "id"),
    # An index for finding a cluster's unexpired certificates, and counting those of a user. An index that begins with
    # the user would be faster to count with, but would cost 6 % more for each insert.
    Index(None, "cluster_id", "not_after", "user_id"),
    # A covering index for counting live certificates.
    Index(None, "not_after", "revoked_at"),
    sqlite_autoincrement=True,
)

# A revocation of one certificate (`fingerprint` is set), or of all of a user's certificates for a cluster that have an
# older epoch. An empty user or cluster means all of them. `epoch` is the generation number that it created, or
# `revocations.NO_END`. `changed` is the generation number of the last change to the row: revoked, undone or ended.
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
    # An index for checking whether a certificate is revoked; skips rows about individual certificates.
    Index(None, "user_id", "cluster_id", "fingerprint", "epoch"),
    # An index for lists. No index begins with cluster_id, because a planner could prefer it to the one above.
    Index(None, "project_id", "id"),
    sqlite_autoincrement=True,
)

# Common names other than user ids. Rows are never changed or deleted, so that a name never gets another owner.
username = table(
    "username",
    Column("name", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
)
