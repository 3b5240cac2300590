"""Compares this machine's clock with the database server's clock."""

import asyncio
from dataclasses import dataclass

import structlog

from clustercert.background import wait_for_stop
from clustercert.model.errors import Unavailable
from clustercert.store.engine.database import MAX_CLOCK_OFFSET, Database

logger = structlog.get_logger()

INTERVAL_SECONDS = 60.0


@dataclass(slots=True)
class ClockWatch:
    """Logs when the clocks of this machine and the database server differ too much, and when they agree again."""

    database: Database
    _is_wrong: bool = False

    async def watch(self, stop: asyncio.Event) -> None:
        """Measure now and every minute, until `stop` is set."""
        while not stop.is_set():
            try:
                await self.measure()
            except Unavailable as failure:
                write = logger.debug if self.database.outage.is_ongoing else logger.warning
                write("clock not compared with the database's", error=failure.message)
            await wait_for_stop(stop, INTERVAL_SECONDS)

    async def measure(self) -> None:
        """Measure once. Raises Unavailable."""
        offset = await self.database.clock_offset()
        was_wrong, self._is_wrong = self._is_wrong, abs(offset) > MAX_CLOCK_OFFSET
        if self._is_wrong and not was_wrong:
            logger.warning(
                "clock differs from the database's: no client CA is created",
                seconds_ahead=round(offset.total_seconds()),
                advice="synchronize both clocks",
            )
        elif was_wrong and not self._is_wrong:
            logger.info("clock agrees with the database's again")
