"""Tables of the service itself: schema version, data keys, and state that its processes share."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, SmallInteger, String, Text

from clustercert.store.tables.columns import Hex, Utc, table

# One row. Its value increases with every change that may make a cache stale; see `engine.generation`.
generation = table(
    "generation",
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

# One row, which migrations lock. `oldest_program` is the revision of the oldest program that can use the schema
# `revision`.
migration = table(
    "migration",
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("oldest_program", String(4), nullable=False),
    Column("revision", String(4), nullable=False),
)

# Leases for leader election. Times are from the database's clock, in seconds since 1970, so no clocks are compared.
lease = table(
    "lease",
    Column("name", String(32), primary_key=True),
    Column("holder", Hex, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# Data keys, each wrapped by a key-encryption key that is not in the database. The active one seals new secrets.
data_key = table(
    "data_key",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("kek_id", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
)

# Cursors of background jobs, and the problems that they found.
progress = table(
    "progress",
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
