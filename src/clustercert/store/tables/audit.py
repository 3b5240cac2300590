"""The events, and the log that they are put into."""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, SmallInteger, String, Table, Text, text

from clustercert.store.tables.columns import Hex, RowId, Utc, metadata

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
