"""Query plans and counts of the statements that a database is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.store.engine.database import Database


class QueryPlans:
    """The query plans of the queries that are sent during the block."""

    def __init__(self, database: Database, of: str) -> None:
        """`of` names a table; only queries of it are noted."""
        self._database = database
        self._from = f"FROM {of}"
        self.sent: list[tuple[str, Any]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        engine = self._database.engine.sync_engine
        sqlalchemy_event.listen(engine, "before_cursor_execute", self._note)
        yield
        sqlalchemy_event.remove(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        if self._from in statement:
            self.sent.append((statement, values))

    async def all(self) -> list[str]:
        async with self._database.read() as connection:
            return [await self._plan(connection, *sent) for sent in self.sent]

    async def _plan(self, connection: AsyncConnection, statement: str, values: Any) -> str:
        if self._database.url.get_backend_name() == "sqlite":
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            return "\n".join(row.detail for row in rows)
        rows = await connection.exec_driver_sql(f"EXPLAIN {statement}", values)
        return "\n".join(str(row[0]) for row in rows)


class Statements:
    """Counts statements by the table that they read."""

    def __init__(self, database: Database) -> None:
        self.texts: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
            self.texts.append(statement)

        sqlalchemy_event.listen(database.engine.sync_engine, "before_cursor_execute", note)

    def reading(self, table: str) -> int:
        return sum(f"FROM {table}" in text for text in self.texts)
