"""Keyset pagination: reads a page of a list from an index. The cost of a page does not depend on the list's length."""

from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, FromClause, UnaryExpression, and_, tuple_

from clustercert.store.engine.database import Database

FIRST_ID, AFTER_LAST_ID = 0, 2**63 - 1


class KeysetPagination(NamedTuple):
    """A range of rows in the order of an index: the condition that selects them, and the columns to sort by."""

    condition: ColumnElement[bool]
    columns: tuple[str, ...]

    def order(self, table: FromClause, *, newest_first: bool) -> list[UnaryExpression[Any]]:
        """Return the ORDER BY for the table, or for a subquery with the table's columns."""
        columns = [table.c[name] for name in self.columns]
        return [column.desc() if newest_first else column.asc() for column in columns]


def compares_row_values(database: Database) -> bool:
    """Whether `keyset_range` should compare row values in this database."""
    return database.url.get_backend_name() != "sqlite"


def keyset_range(
    row_id: Column[int],
    first: ColumnElement[int],
    end: ColumnElement[int],
    owner: tuple[Column[Any], ColumnElement[Any]] | None = None,
    *,
    by_row_values: bool,
) -> KeysetPagination:
    """Return the range of rows with ids from `first` up to but excluding `end`.

    `owner` is a column and a value, and restricts the range to rows with this value. With `by_row_values`, the
    condition compares `(owner, id) >= (…)`, for which only the index on both columns can be used. If owner and id were
    compared separately, PostgreSQL might underestimate the range and scan the rows of all owners. SQLite plans separate
    comparisons well, but scans a range of row values from the end of the range.
    """
    if owner is None:
        return KeysetPagination(and_(row_id >= first, row_id < end), (row_id.name,))
    column, value = owner
    if not by_row_values:
        return KeysetPagination(and_(column == value, row_id >= first, row_id < end), (row_id.name,))
    row = tuple_(column, row_id)
    condition = and_(row >= tuple_(value, first), row < tuple_(value, end))
    return KeysetPagination(condition, (column.name, row_id.name))
