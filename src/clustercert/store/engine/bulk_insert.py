"""INSERT statements for many rows, as SQL text for SQLite and for PostgreSQL. `database` runs these statements."""

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Connection, LargeBinary, String, Table

from clustercert.store.tables import Utc, as_json

Rows = Sequence[Mapping[str, Any]]
Inserts = Sequence[tuple["BulkInsert", Rows]]
"""Statements with at least one row each. All rows of a statement have the same columns."""

# These array types have no maximum lengths. A cast to a type with a length would truncate a longer value, but INSERT
# must reject such a value.
_ARRAYS: tuple[tuple[type, str], ...] = (
    (Utc, "TIMESTAMPTZ[]"),
    (JSON, "TEXT[]"),
    (LargeBinary, "BYTEA[]"),
    (String, "TEXT[]"),
    (BigInteger, "BIGINT[]"),
)


class BulkInsert:
    """Inserts rows into one table. `computed` maps additional columns to SQL expressions."""

    def __init__(self, table: Table, **computed: str) -> None:
        self._table = table
        self._computed = computed

    def sqlite(self, rows: Rows) -> tuple[str, list[object]]:
        """Return one statement for all rows, and its parameters.

        An error rolls back the whole transaction, so that SQLite needs no separate journal for the statement.
        """
        names = tuple(rows[0])
        row = f"({', '.join(['?'] * len(names) + [*self._computed.values()])})"
        # The SQL contains only names from our tables, and no values.
        text = f"INSERT OR ROLLBACK INTO {self._into(names)} VALUES {', '.join([row] * len(rows))}"  # noqa: S608
        values = [(name, self._conversion(name, _sqlite_time)) for name in names]
        return text, [
            row[name] if convert is None else convert(row[name]) for row in rows for name, convert in values
        ]

    def postgresql(self, rows: Rows, first: int) -> tuple[str, list[list[object]]]:
        """Return one statement for any number of rows, and an array for each parameter, numbered from `first`."""
        names = tuple(rows[0])
        arrays = ", ".join(f"${number}::{self._array(name)}" for number, name in enumerate(names, first))
        selected = ", ".join([*(self._given(name) for name in names), *self._computed.values()])
        given = ", ".join(map(_quoted, names))
        into = self._into(names)
        text = f"INSERT INTO {into} SELECT {selected} FROM unnest({arrays}) AS given ({given})"  # noqa: S608
        values = [(name, self._conversion(name, _aware)) for name in names]
        return text, [
            [row[name] if convert is None else convert(row[name]) for row in rows] for name, convert in values
        ]

    def _into(self, names: Sequence[str]) -> str:
        return f"{_quoted(self._table.name)} ({', '.join(map(_quoted, (*names, *self._computed)))})"

    def _given(self, name: str) -> str:
        column = f"given.{_quoted(name)}"
        return f"{column}::json" if isinstance(self._table.c[name].type, JSON) else column

    def _array(self, name: str) -> str:
        return next(array for kind, array in _ARRAYS if isinstance(self._table.c[name].type, kind))

    def _conversion(
        self, name: str, time: Callable[[datetime | None], object]
    ) -> Callable[[Any], object] | None:
        kind = self._table.c[name].type
        if isinstance(kind, Utc):
            return time
        return as_json if isinstance(kind, JSON) else None


def insert_into_sqlite(connection: Connection, inserts: Inserts) -> None:
    """Run the statements in the caller's transaction."""
    for insert, rows in inserts:
        text, values = insert.sqlite(rows)
        connection.exec_driver_sql(text, tuple(values))


def postgresql_statement(inserts: Inserts) -> tuple[str, tuple[list[object], ...]]:
    """Combine INSERTs into one statement, which is a transaction by itself. Returns the statement and its parameters.

    All INSERTs but the last become parts of a WITH clause. The INSERTs see the same snapshot, and not each other's
    changes.
    """
    texts: list[str] = []
    parameters: list[list[object]] = []
    for insert, rows in inserts:
        text, arrays = insert.postgresql(rows, len(parameters) + 1)
        texts.append(text)
        parameters += arrays
    *parts, last = texts
    # Some PostgreSQL-compatible engines require that each part of a WITH returns something.
    queries = ", ".join(f"part_{number} AS ({part} RETURNING 1)" for number, part in enumerate(parts))
    return f"WITH {queries} {last}" if parts else last, tuple(parameters)


def _quoted(name: str) -> str:
    return f'"{name}"'


# The text of a time is cached, because a certificate and its event have the same times, and certificates of the same
# second have the same times too.
@functools.lru_cache(maxsize=1024)
def _sqlite_time(time: datetime | None) -> str | None:
    """Format a time as SQLAlchemy writes a DateTime. The time must be in UTC."""
    return None if time is None else time.replace(tzinfo=None).isoformat(" ", "microseconds")


def _aware(time: datetime | None) -> datetime | None:
    """Return the time unchanged. Rejects a naive time, which the driver would treat as local time."""
    if time is not None and time.tzinfo is None:
        raise ValueError("naive datetime passed to the store")
    return time
