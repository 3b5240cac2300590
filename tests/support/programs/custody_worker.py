"""Seals, stores and opens secrets while a test rotates the keys. Arguments: KEK URL.

Runs until the end of its standard input, then prints the number of stored secrets, and the longest time in seconds from
the seal of one until it was stored.
"""

import asyncio
import sys
import time
import uuid
from pathlib import Path

from clustercert.custody import Custody
from clustercert.custody.keks import KekFile
from support.stores import Store, patient


async def main(kek: str, url: str) -> None:
    database, store = patient(url), Store(url)
    custody = Custody(database, KekFile(Path(kek)))
    async with database.generation.watching():
        await database.generation.refresh()
        await custody.open()
        print("ready", flush=True)
        stop = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        count, slowest = 0, 0.0
        while not stop.done():
            count += 1
            bound_to = f"access_key:{uuid.uuid4().hex}"
            begun = time.monotonic()
            sealed = await custody.seal(bound_to.encode(), bound_to)
            # A slow request: the row comes a while after the seal.
            await asyncio.sleep(0.02)
            store.store_secrets({bound_to: sealed})
            slowest = max(slowest, time.monotonic() - begun)
            for name, secret in store.stored_secrets().items():
                assert await custody.unseal(secret, name) == name.encode()
    await database.close()
    print(count, slowest)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
