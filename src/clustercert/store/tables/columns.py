"""The kinds of columns, and the metadata that all tables are in."""

import functools
import json
from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, String, TypeDecorator


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


def as_json(value: object) -> str:
    """A JSON value as text, for what is written without the engine's way through its types."""
    return _known_json(value) if isinstance(value, tuple) else json.dumps(value)


# The groups that a policy gives are few.
_known_json = functools.lru_cache(maxsize=1024)(json.dumps)


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
