"""A service without requests whose periodic work runs often. Argument: FOLDER.

Prints by how many bytes it grows at least in each of two periods.

A separate process, because it replaces the pause between two runs before any module imports it.
"""

import asyncio
import contextlib
import gc
import itertools
import sys
import tracemalloc
from pathlib import Path

from clustercert import background

# Pauses are shorter by this factor.
FACTOR = 50
# In reality, a worker pauses 37 times a second.
WARM_UP, PAUSES = 4_000, 12_000
# A leak grows in both periods. Caches may grow in one.
PERIODS = 2

_pauses = 0


async def _short_pause(stop: asyncio.Event, seconds: float) -> None:
    global _pauses  # noqa: PLW0603 - the only state of this program
    _pauses += 1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds / FACTOR):
            await stop.wait()


async def _after(pauses: int) -> int:
    """The traced memory in bytes after so many pauses."""
    while _pauses < pauses:
        await asyncio.sleep(0.05)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _growth(folder: Path) -> int:
    from clustercert.server.application import create_app
    from support import world as worlds
    from support.service import lifespan

    settings = await asyncio.to_thread(lambda: worlds.make(folder).settings(log={"file": folder / "log"}))
    async with lifespan(create_app(settings)):
        tracemalloc.start()
        sizes = [await _after(WARM_UP + number * PAUSES) for number in range(PERIODS + 1)]
    return min(after - before for before, after in itertools.pairwise(sizes))


if __name__ == "__main__":
    background.wait_for_stop = _short_pause
    print(asyncio.run(_growth(Path(sys.argv[1]))))
