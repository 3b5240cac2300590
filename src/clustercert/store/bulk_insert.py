"""INSERTs of many rows, as SQL written by hand for each kind of database. Who runs them is `database`'s business."""

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, LargeBinary, String, Table

from clustercert.store.tables import Utc, as_json

Rows = Sequence[Mapping[str, Any]]
Inserts = Sequence[tuple["BulkInsert", Rows]]
"""Each with its rows, at least one; all rows of one have the same columns."""

# Without the lengths that columns have: a cast to a length cuts off what is too long, where an INSERT refuses it.
_ARRAYS: tuple[tuple[type, str], ...] = (
    (Utc, "TIMESTAMPTZ[]"),
    (JSON, "TEXT[]"),
    (LargeBinary, "BYTEA[]"),
    (String, "TEXT[]"),
    (BigInteger, "BIGINT[]"),
)


class BulkInsert:
    """Inserts rows into one table.

    Attributes:
        computed: further columns, and the SQL of the value that each row gets there.
    """

    def __init__(self, table: Table, **computed: str) -> None:
        self._table = table
        self._computed = computed

    def sqlite(self, rows: Rows) -> tuple[str, list[object]]:
        """One statement for all rows, and what stands for its question marks.

        What is refused ends the whole transaction, so that SQLite need not remember how to undo this alone.
        """
        names = tuple(rows[0])
        row = f"({', '.join(['?'] * len(names) + [*self._computed.values()])})"
        # Names come from our tables, and values stand in none of it.
        text = f"INSERT OR ROLLBACK INTO {self._into(names)} VALUES {', '.join([row] * len(rows))}"  # noqa: S608
        values = [(name, self._conversion(name, _sqlite_time)) for name in names]
        return text, [
            row[name] if convert is None else convert(row[name]) for row in rows for name, convert in values
        ]

    def postgresql(self, rows: Rows, first: int) -> tuple[str, list[list[object]]]:
        """One statement for any number of rows, and an array for each of its parameters, numbered from `first`."""
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


def postgresql_statement(inserts: Inserts) -> tuple[str, tuple[list[object], ...]]:
    """INSERTs as one statement, which alone is a transaction, and its parameters: arrays.

    Each but the last is a part of the last one's WITH. All of them see the database as it was at the start, and none
    sees what another one does.
    """
    texts: list[str] = []
    parameters: list[list[object]] = []
    for insert, rows in inserts:
        text, arrays = insert.postgresql(rows, len(parameters) + 1)
        texts.append(text)
        parameters += arrays
    *parts, last = texts
    # Some engines that speak PostgreSQL's language want a part of WITH to return something.
    queries = ", ".join(f"part_{number} AS ({part} RETURNING 1)" for number, part in enumerate(parts))
    return f"WITH {queries} {last}" if parts else last, tuple(parameters)


def _quoted(name: str) -> str:
    return f'"{name}"'


# Those of a certificate and its event are the same, and those of all certificates of a second alike.
@functools.lru_cache(maxsize=1024)
def _sqlite_time(time: datetime | None) -> str | None:
    """As SQLAlchemy writes a DateTime. Times are in UTC already."""
    return None if time is None else time.replace(tzinfo=None).isoformat(" ", "microseconds")


def _aware(time: datetime | None) -> datetime | None:
    """A time as it is; the driver would take one without a zone for this machine's."""
    if time is not None and time.tzinfo is None:
        raise ValueError("a naive time reached the store")
    return time
