"""The tables, as SQLAlchemy Core sees them. Migrations make them; `tests/store` holds the two together.

Only types and clauses that SQLite and every PostgreSQL-compatible engine have alike.
"""

from datetime import UTC, datetime

from sqlalchemy import (
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


class Utc(TypeDecorator[datetime]):
    """An aware UTC time; SQLite keeps it without its zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time reached the store")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite makes a column the row id itself only if its type is spelled INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")
Hex = String(32)
Uuid = String(36)

# One row; its value rises with every change that a worker may have cached the opposite of.
generation = Table(
    "generation",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

# One row. Whoever migrates locks it. `oldest_program` is the revision that the oldest program needs which can still
# use this schema: a program can't know what the migrations after its own mean.
migration = Table(
    "migration",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("oldest_program", String(4), nullable=False),
)

# Who does the work that one process is to do for all. The time is the database's, in seconds since 1970, so that no
# clocks are compared.
lease = Table(
    "lease",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", Hex, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# Data keys, each wrapped by a key-encryption key that is kept elsewhere. One is active and seals.
data_key = Table(
    "data_key",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("kek_id", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
)

domain = Table(
    "domain",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
)

project = Table(
    "project",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

user = Table(
    "user",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("password_hash", String(255), nullable=True),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

# "group" is a Keystone user group; the Kubernetes groups of a certificate are only text.
group = Table(
    "group",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    UniqueConstraint("domain_id", "name"),
)

group_member = Table(
    "group_member",
    metadata,
    Column("group_id", ForeignKey("group.id"), primary_key=True),
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Index(None, "user_id"),
)

role = Table(
    "role",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# actor_id: a user's or a group's id.
role_assignment = Table(
    "role_assignment",
    metadata,
    Column("actor_id", Hex, primary_key=True),
    Column("project_id", ForeignKey("project.id"), primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
    Index(None, "project_id"),
)

# Roles that hold for the whole service, such as operator.
service_role = Table(
    "service_role",
    metadata,
    Column("actor_id", Hex, primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

token = Table(
    "token",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("project_id", ForeignKey("project.id"), nullable=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=True),
    Column("methods", JSON, nullable=False),
    Column("issued_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)

access_key = Table(
    "access_key",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("security_token_hash", LargeBinary(32), nullable=True),
    Column("expires_at", Utc, nullable=True),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)

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
    Column("der", LargeBinary, nullable=False),
    # What an inventory walks, the newest first.
    Index(None, "cluster_id", "id"),
    Index(None, "user_id", "id"),
    Index(None, "project_id", "id"),
    # What still holds in a cluster, whatever else the ledger keeps of it.
    Index(None, "cluster_id", "not_after"),
    Index(None, "serial"),
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

# Who may ask and tell for a cluster: its API server's webhooks. Two at once, so that one can be exchanged.
webhook_token = Table(
    "webhook_token",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("cluster_id", ForeignKey("cluster.id"), nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Utc, nullable=False),
    Index(None, "cluster_id"),
)

# Client certificates that an API server saw and the ledger doesn't know.
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

# body is the canonical JSON of the event, commitment SHA-256 over salt and body. leaf_index is the event's place in the
# log, and NULL until it has one. Ids are not in the order of commits everywhere, places are.
audit_event = Table(
    "audit_event",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("at", Utc, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("project_id", Hex, nullable=True),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("salt", LargeBinary(16), nullable=False),
    Column("commitment", LargeBinary(32), nullable=False),
    Column("leaf_index", BigInteger, nullable=True),
    # Recording an event touches neither of these.
    Index(
        None,
        "leaf_index",
        unique=True,
        sqlite_where=text("leaf_index IS NOT NULL"),
        postgresql_where=text("leaf_index IS NOT NULL"),
    ),
    Index(
        None,
        "project_id",
        "leaf_index",
        sqlite_where=text("leaf_index IS NOT NULL"),
        postgresql_where=text("leaf_index IS NOT NULL"),
    ),
    # What has no place yet, however much has one.
    Index(
        "ix_audit_event_unsealed",
        "id",
        sqlite_where=text("leaf_index IS NULL"),
        postgresql_where=text("leaf_index IS NULL"),
    ),
    sqlite_autoincrement=True,
)

# One row: the log that all events are put into. Whoever seals locks it.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("origin", Text, nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("sealed_key", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
)

# The log's tree. hashes: up to 256 of 32 bytes each; of level -1, the leaves themselves: commitments.
audit_tile = Table(
    "audit_tile",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary(8192), nullable=False),
)

# The log's signed heads; of older ones only some are kept. note is what is published.
audit_checkpoint = Table(
    "audit_checkpoint",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Utc, nullable=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("note", Text, nullable=False),
    Index(None, "at"),
)

# How far some work has come that goes on for as long as the service is there, and what it found last.
progress = Table(
    "progress",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
