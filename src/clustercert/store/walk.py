"""Walks along an index of one owner's rows, or along all rows, by their number: lists cost a page, however long."""

from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, FromClause, UnaryExpression, and_, tuple_

from clustercert.store.database import Database

# What rows are numbered from at least, and a number above that of any.
FIRST, BEHIND_ALL = 0, 2**63 - 1


class Walk(NamedTuple):
    """Rows in the order of an index.

    Attributes:
        condition: which ones.
        columns: names of what they are ordered by.
    """

    condition: ColumnElement[bool]
    columns: tuple[str, ...]

    def order(self, table: FromClause, *, newest_first: bool) -> list[UnaryExpression[Any]]:
        """What the table, or a selection of its columns, is to be ordered by."""
        columns = [table.c[name] for name in self.columns]
        return [column.desc() if newest_first else column.asc() for column in columns]


def compares_rows(database: Database) -> bool:
    """Whether walks in a database compare rows; see `walk`."""
    return database.url.get_backend_name() != "sqlite"


def walk(
    number: Column[int],
    first: ColumnElement[int],
    behind: ColumnElement[int],
    owned: tuple[Column[Any], ColumnElement[Any]] | None = None,
    *,
    by_rows: bool,
) -> Walk:
    """The rows from number `first` to below `behind`; `owned` is a column and the value that it has in all of them.

    `by_rows` compares rows of both columns, in whose order nothing but their index is. Given an equality and a range of
    numbers, PostgreSQL takes a range for short whose ends it doesn't know, or that lies behind what it last counted,
    and walks everybody's rows in it instead. SQLite has no such doubts, but walks a range of rows from its end.
    """
    if owned is None:
        return Walk(and_(number >= first, number < behind), (number.name,))
    column, owner = owned
    if not by_rows:
        return Walk(and_(column == owner, number >= first, number < behind), (number.name,))
    row = tuple_(column, number)
    return Walk(and_(row >= tuple_(owner, first), row < tuple_(owner, behind)), (column.name, number.name))
