"""A database whose transactions stay open until a test lets them go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clustercert.model import AuditEvent
from clustercert.store.engine.database import Database, raise_generation
from clustercert.store.engine.transaction import Transaction
from support.wait import SECONDS


class PausedDatabase(Database):
    """Keeps its next transaction open, with everything done, until `go_on` is set; `inside` tells that it is open."""

    def __init__(self, url: str) -> None:
        super().__init__(url, SECONDS, SECONDS)
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def transaction(self, *events: AuditEvent, invalidate: bool = False) -> AsyncIterator[Transaction]:
        async with super().transaction(*events) as connection:
            yield connection
            if invalidate:
                await raise_generation(connection)
            self.inside.set()
            await self.go_on.wait()
