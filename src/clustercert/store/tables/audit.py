"""Audit events, and the log that contains them."""

from sqlalchemy import DDL, BigInteger, Column, Index, LargeBinary, SmallInteger, String, Text
from sqlalchemy.event import listen

from clustercert.store.tables.columns import Hex, RowId, Utc, table

# body: canonical JSON; commitment: SHA-256 of salt and body. Leaf indexes are in audit_place, so that rows are never
# updated.
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

# The leaf indexes of events. Leaf indexes follow the order of commits, but ids need not.
audit_place = table(
    "audit_place",
    Column("leaf_index", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False),
    Column("project_id", Hex, nullable=True),
    Index("uq_audit_place_event_id", "event_id", unique=True),
    Index(None, "project_id", "leaf_index"),
)

# The events without a leaf index. A trigger adds each new event, and the sealer removes it.
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

# One row: the log. A sealing locks it while it writes.
audit_log = table(
    "audit_log",
    Column("id", String(16), primary_key=True),
    Column("origin", Text, nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("sealed_key", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
)

# The log's tree. The column `hashes` has up to 256 hashes of 32 bytes each; in level -1, the commitments.
audit_tile = table(
    "audit_tile",
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary(8192), nullable=False),
)

# Signed checkpoints of the log; most older ones are deleted. The column `note` has the text as published.
audit_checkpoint = table(
    "audit_checkpoint",
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Utc, nullable=False, index=True),
    Column("root", LargeBinary(32), nullable=False),
    Column("note", Text, nullable=False),
)
