"""Several INSERTs of many rows each as one statement of PostgreSQL, which alone is a transaction.

A column of all rows travels as one array, so that the text, which is prepared once for each connection, is the same for
any number of rows. Who runs it, and what its failures mean, is `database`'s business.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Insert, LargeBinary, String, column, table
from sqlalchemy.sql.elements import ColumnElement

from clustercert.store.tables import Utc, as_json

# Without the lengths that columns have: a cast to a length cuts off what is too long, where an INSERT refuses it.
_ARRAYS: tuple[tuple[type, str], ...] = (
    (Utc, "TIMESTAMPTZ[]"),
    (JSON, "TEXT[]"),
    (LargeBinary, "BYTEA[]"),
    (String, "TEXT[]"),
    (BigInteger, "BIGINT[]"),
)
_GIVEN = "given"


class AtOnce:
    """INSERTs as one text: each but the last is a part of the last one's WITH.

    All of them see the database as it was at the start, and none sees what another one does.

    Attributes:
        text: to be run outside of a transaction; its parameters are what `of` gives.
    """

    def __init__(self, inserts: Iterable[tuple[Insert, Sequence[str]]], dialect: Dialect) -> None:
        """Take the statements, at least one, each with the names that all of its rows have."""
        self._values: list[list[tuple[str, Callable[[Any], object] | None]]] = []
        texts: list[str] = []
        number = 1
        for statement, names in inserts:
            texts.append(_text(statement, names, number, dialect))
            self._values.append([(name, _conversion(statement.table.c[name].type)) for name in names])
            number += len(names)
        *parts, last = texts
        # Some engines that speak PostgreSQL's language want a part of WITH to return something.
        queries = ", ".join(f"part_{number} AS ({part} RETURNING 1)" for number, part in enumerate(parts))
        self.text = f"WITH {queries} {last}" if parts else last

    def of(self, rows: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[list[object], ...]:
        """What stands for the parameters, given the rows of each statement: an array for each of their columns."""
        return tuple(
            [row[name] if convert is None else convert(row[name]) for row in each]
            for values, each in zip(self._values, rows, strict=True)
            for name, convert in values
        )


def _text(statement: Insert, names: Sequence[str], first: int, dialect: Dialect) -> str:
    """One INSERT … SELECT, whose parameters are numbered from `first`."""
    types = {name: statement.table.c[name].type for name in names}
    compiled = statement.values({name: _given(name, kind) for name, kind in types.items()}).inline()
    head, _, values = str(compiled.compile(dialect=dialect)).partition(" VALUES ")
    selected = values.removeprefix("(").removesuffix(")")
    arrays = ", ".join(f"${number}::{_array(kind)}" for number, kind in enumerate(types.values(), first))
    columns = ", ".join(map(dialect.identifier_preparer.quote, names))
    return f"{head} SELECT {selected} FROM unnest({arrays}) AS {_GIVEN} ({columns})"  # noqa: S608 - no value is in it


def _given(name: str, kind: object) -> ColumnElement[Any]:
    given: ColumnElement[Any] = column(name, _selectable=table(_GIVEN))
    return given.cast(JSON) if isinstance(kind, JSON) else given


def _array(kind: object) -> str:
    return next(array for each, array in _ARRAYS if isinstance(kind, each))


def _conversion(kind: object) -> Callable[[Any], object] | None:
    if isinstance(kind, Utc):
        return _aware
    return as_json if isinstance(kind, JSON) else None


def _aware(time: datetime | None) -> datetime | None:
    """A time as it is; the driver would take one without a zone for this machine's."""
    if time is not None and time.tzinfo is None:
        raise ValueError("a naive time reached the store")
    return time
