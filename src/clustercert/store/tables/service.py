"""The service's own: its schema, its keys, and what its processes tell one another."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, SmallInteger, String, Table, Text

from clustercert.store.tables.columns import Hex, Utc, metadata

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

# How far some work has come that goes on for as long as the service is there, and what it found last.
progress = Table(
    "progress",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
