"""A second process at the same store. Arguments: WHAT URL. Prints `ready`, then starts when it reads a line."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import update

from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from support.stores import certificate_record, event


@asynccontextmanager
async def started(url: str) -> AsyncIterator[Database]:
    """Print `ready`, and wait for a line from the parent."""
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
    """Change a row that other processes have cached, and print the time of the commit."""
    async with started(url) as database:
        async with database.transaction(event(), invalidate=True) as connection:
            await connection.execute(update(tables.domain).values(name="new"))
        print(time.monotonic(), flush=True)


async def write_and_wait(url: str) -> None:
    """Keep a transaction open until the process is killed."""
    async with started(url) as database, database.transaction(event()):
        print("inside", flush=True)
        await asyncio.Event().wait()


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
    """Record until standard input ends, and go on after `Unavailable`."""
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
    # Only after the commit, as a client would receive its certificate.
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
