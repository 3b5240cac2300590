"""Another process at the same store: `python store_child.py WHAT URL`, ready when it says so, started by a line."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import update

from clustercert.errors import Unavailable
from clustercert.store import migrate, tables
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from stores import certificate_record, event


@asynccontextmanager
async def started(url: str) -> AsyncIterator[Database]:
    """Tell the parent that everything is loaded, and wait for its word."""
    database = Database(url)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        yield database
    finally:
        await database.close()


async def upgrade(url: str) -> None:
    async with started(url) as database:
        await migrate.upgrade(database)
        await migrate.check(database)


async def rename_domain(url: str) -> None:
    """Change what others have cached, and say when that was durable."""
    async with started(url) as database:
        async with database.change(event()) as connection:
            await connection.execute(update(tables.domain).values(name="new"))
        print(time.monotonic(), flush=True)


async def write_and_wait(url: str) -> None:
    """Stay in a transaction until the end."""
    async with started(url) as database, database.write(event()):
        print("inside", flush=True)
        await asyncio.sleep(60)


async def record_some(url: str) -> None:
    async with started(url) as database:
        ledger = Ledger(database)
        await asyncio.gather(*(_record(ledger) for _ in range(25)))


async def record_for_ever(url: str) -> None:
    async with started(url) as database:
        ledger = Ledger(database)

        async def client() -> None:
            while True:
                await _record(ledger)

        await asyncio.gather(*(client() for _ in range(4)))


async def record_through_failures(url: str) -> None:
    """Until the input ends; a failure that says "try again" is tried again, by another request."""
    async with started(url) as database:
        ledger = Ledger(database)
        stop = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

        async def client() -> None:
            while not stop.done():
                try:
                    await _record(ledger)
                except Unavailable:
                    print("unavailable", flush=True)
                    await asyncio.sleep(0.02)

        async with database.generation.watching():
            await asyncio.gather(*(client() for _ in range(4)))


async def _record(ledger: Ledger) -> None:
    record, issued = certificate_record()
    await ledger.record(record, issued)
    # Only now: what the parent reads here is what a client would have received.
    print(record.fingerprint.hex(), flush=True)


WORK: dict[str, Callable[[str], Awaitable[None]]] = {
    "upgrade": upgrade,
    "rename-domain": rename_domain,
    "write-and-wait": write_and_wait,
    "record-some": record_some,
    "record-for-ever": record_for_ever,
    "record-through-failures": record_through_failures,
}


async def main(what: str, url: str) -> None:
    await WORK[what](url)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
