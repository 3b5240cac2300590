"""Kills a process that seals, at each of its steps. Arguments: URL KEK.

Works on copies URL_1, URL_2, … (see `kill_points`). Prints the number of killed processes.
"""

import asyncio
import sys
from pathlib import Path

from support.kill_points import Steps, kill_everywhere
from support.sealer_process import opened
from support.stores import Store


async def seal(store: Store, kek: Path, kill_at: int) -> None:
    async with opened(store, kek) as log:
        Steps(kill_at).count(log.database, after=True)
        await log.sealer.seal_all()


def main(url: str, kek: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        asyncio.run(seal(store, Path(kek), kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
