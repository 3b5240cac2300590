"""The events, and the log that they are put into."""

from sqlalchemy import DDL, BigInteger, Column, Index, LargeBinary, SmallInteger, String, Table, Text
from sqlalchemy.event import listen

from clustercert.store.tables.columns import Hex, RowId, Utc, metadata

# body is the canonical JSON of the event, commitment SHA-256 over salt and body. Written once: see audit_place.
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
    sqlite_autoincrement=True,
)

# The places of events in the log. Ids are not in the order of commits everywhere, places are.
audit_place = Table(
    "audit_place",
    metadata,
    Column("leaf_index", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False),
    Column("project_id", Hex, nullable=True),
    Index("uq_audit_place_event_id", "event_id", unique=True),
    Index(None, "project_id", "leaf_index"),
)

# The events that have no place yet, and what the log needs of them. A trigger adds each new event, the sealer removes
# it.
audit_unsealed = Table(
    "audit_unsealed",
    metadata,
    Column("event_id", RowId, primary_key=True, autoincrement=False),
    Column("project_id", Hex, nullable=True),
    Column("commitment", LargeBinary(32), nullable=False),
)

_QUEUE_EVENTS = (
    (
        "sqlite",
        (
            "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event BEGIN"
            " INSERT INTO audit_unsealed (event_id, project_id, commitment)"
            " VALUES (NEW.id, NEW.project_id, NEW.commitment); END"
        ),
    ),
    (
        "postgresql",
        (
            "CREATE FUNCTION audit_event_unsealed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO audit_unsealed (event_id, project_id, commitment)"
            " VALUES (NEW.id, NEW.project_id, NEW.commitment); RETURN NULL; END $$"
        ),
    ),
    (
        "postgresql",
        (
            "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event"
            " FOR EACH ROW EXECUTE FUNCTION audit_event_unsealed()"
        ),
    ),
)
for _dialect, _statement in _QUEUE_EVENTS:
    _ddl = DDL(_statement)  # type: ignore[no-untyped-call] # untyped upstream
    listen(audit_event, "after_create", _ddl.execute_if(dialect=_dialect))

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
