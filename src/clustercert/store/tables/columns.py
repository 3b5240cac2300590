"""Column types, and a function that creates tables."""

import functools
import json
from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, String, Table, TypeDecorator
from sqlalchemy.schema import SchemaItem


class Utc(TypeDecorator[datetime]):
    """A timezone-aware time in UTC. SQLite stores it without a zone, so the zone is added when it is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime passed to the store")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def as_json(value: object) -> str:
    """Serialize a JSON value, for statements that bypass SQLAlchemy's types."""
    return _known_json(value) if isinstance(value, tuple) else json.dumps(value)


# Cached, because policies grant only a few different lists of groups.
_known_json = functools.lru_cache(maxsize=1024)(json.dumps)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def table(name: str, *items: SchemaItem, sqlite_autoincrement: bool = False) -> Table:
    """Declare a table with its columns, constraints and indexes."""
    return Table(name, metadata, *items, sqlite_autoincrement=sqlite_autoincrement)


# In SQLite, only a column of type INTEGER can be the row id.
RowId = BigInteger().with_variant(Integer, "sqlite")
Hex = String(32)
Uuid = String(36)
