"""Sealing that is killed, each time at another step: `python sealer_killed.py URL KEK`.

Copies the database to URL_1, URL_2 …, as `killing` says. Prints how many were killed.
"""

import asyncio
import sys
from pathlib import Path

from killing import Steps, kill_everywhere
from sealing import opened
from stores import Store


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
