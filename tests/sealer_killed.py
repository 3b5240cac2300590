"""Sealing that is killed, each time at another step: `python sealer_killed.py URL KEK`.

Copies the database to URL_1, URL_2 …, and seals in the first copy until the first step, in the second one until the
second step, and so on until one comes to its end. A step is just before or after a statement that writes, or just
before a commit. Prints how many were killed.
"""

import asyncio
import os
import sys
from pathlib import Path

from sqlalchemy import event as engine_events

from sealing import opened
from stores import Store

KILLED = 9


async def seal(store: Store, kek: Path, kill_at: int) -> None:
    steps = 0

    def step(*_args: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os._exit(KILLED)

    def on_statement(_connection: object, _cursor: object, statement: str, *_args: object) -> None:
        if statement.startswith(("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE")):
            step()

    async with opened(store, kek) as log:
        engine_events.listen(log.database.engine.sync_engine, "before_cursor_execute", on_statement)
        engine_events.listen(log.database.engine.sync_engine, "after_cursor_execute", on_statement)
        engine_events.listen(log.database.engine.sync_engine, "commit", step)
        await log.sealer.seal_all()


def main(url: str, kek: str) -> None:
    for kill_at in range(1, 1000):
        store = Store(url).copied(f"_{kill_at}")
        child = os.fork()
        if child == 0:
            asyncio.run(seal(store, Path(kek), kill_at))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != KILLED:
            print(kill_at - 1)
            sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
