"""Rotations that are killed, each at another step: `python store_killed.py WHAT URL FOLDER`.

Copies the database and the folder of its key to URL_1 and FOLDER_1, URL_2 and FOLDER_2 …, and rotates in the first
copies until the first step, in the second ones until the second step, and so on until one comes to its end. A step is
a change to a file, or just before or after a statement that writes, or just before a commit. Prints how many were
killed.
"""

import asyncio
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from sqlalchemy import event as engine_events

from clustercert.custody import Custody, KekFile
from clustercert.store.database import Database
from stores import ORIGIN, Store

FILE_STEPS = {"os.chmod", "os.chown", "os.remove", "os.rename"}
KILLED = 9


async def rotate(what: str, store: Store, folder: Path, kill_at: int) -> None:
    steps = 0

    def step(*_args: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os._exit(KILLED)

    def on_audit(name: str, args: tuple[object, ...]) -> None:
        if name in FILE_STEPS or (name == "open" and str(args[0]).startswith(str(folder))):
            step()

    def on_statement(_connection: object, _cursor: object, statement: str, *_args: object) -> None:
        if statement.startswith(("BEGIN IMMEDIATE", "INSERT", "UPDATE")):
            step()

    database = Database(store.url)
    engine_events.listen(database.engine.sync_engine, "before_cursor_execute", on_statement)
    engine_events.listen(database.engine.sync_engine, "after_cursor_execute", on_statement)
    engine_events.listen(database.engine.sync_engine, "commit", step)
    sys.addaudithook(on_audit)
    rotation = replace(Custody(database, KekFile(folder / "kek")).rotation, settle=0)
    work = {"kek": rotation.rotate_kek, "data-key": rotation.rotate_data_key, "retire": rotation.retire}[what]
    await work(actor="cli:test", origin=ORIGIN)
    await database.close()


def main(what: str, url: str, folder: str) -> None:
    for kill_at in range(1, 1000):
        copy, store = Path(f"{folder}_{kill_at}"), Store(url).copied(f"_{kill_at}")
        shutil.copytree(folder, copy)
        child = os.fork()
        if child == 0:
            asyncio.run(rotate(what, store, copy, kill_at))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != KILLED:
            print(kill_at - 1)
            sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
