"""The interface of an open transaction: an engine connection, or a transaction in the SQLite writer thread."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from sqlalchemy import Connection, CursorResult, Executable
from sqlalchemy.sql.selectable import TypedReturnsRows

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]


_rolling_back: ContextVar[bool] = ContextVar("rolling_back", default=False)


class RolledBack(Exception):
    """Ends a transaction that must not be committed."""


@contextlib.contextmanager
def rolling_back() -> Iterator[None]:
    """Roll back the transactions that this task begins in the `with` block, instead of committing them.

    So a dry run makes the same checks as the real change, including the database's own checks.
    """
    token = _rolling_back.set(True)
    try:
        yield
    finally:
        _rolling_back.reset(token)


def is_rolling_back() -> bool:
    """Whether the caller runs in a `with rolling_back()` block."""
    return _rolling_back.get()


def roll_back_if_asked() -> None:
    """Raise RolledBack if the caller runs in a `with rolling_back()` block."""
    if is_rolling_back():
        raise RolledBack


class Transaction(Protocol):
    """An open transaction, with those methods of SQLAlchemy's AsyncConnection that the store uses.

    `execute` runs a statement and fetches all its rows.
    """

    @overload
    async def execute(
        self, statement: TypedReturnsRows[*Ts], parameters: Parameters | None = None
    ) -> CursorResult[*Ts]: ...

    @overload
    async def execute(
        self, statement: Executable, parameters: Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]: ...

    async def run_sync(self, fn: Callable[Concatenate[Connection, P], T], *arg: P.args, **kw: P.kwargs) -> T:
        """Call a function with the synchronous connection."""
