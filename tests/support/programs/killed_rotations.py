"""Kills a process that rotates keys, at each of its steps. Arguments: WHAT URL FOLDER.

Works on copies URL_1 and FOLDER_1, URL_2 and FOLDER_2, … (see `kill_points`); FOLDER holds the KEK. A change to a
file is a step too. Prints the number of killed processes.
"""

import asyncio
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from clustercert.custody import Custody
from clustercert.custody.keks import KekFile
from clustercert.model import Actor
from clustercert.store.engine.database import Database
from support.kill_points import Steps, kill_everywhere
from support.stores import ORIGIN, Store

FILE_STEPS = {"os.chmod", "os.chown", "os.remove", "os.rename"}


async def rotate(what: str, store: Store, folder: Path, kill_at: int) -> None:
    steps = Steps(kill_at)

    def on_audit(name: str, args: tuple[object, ...]) -> None:
        if name in FILE_STEPS or (name == "open" and str(args[0]).startswith(str(folder))):
            steps.one()

    database = Database(store.url)
    steps.count(database, after=True)
    sys.addaudithook(on_audit)
    rotation = replace(Custody(database, KekFile(folder / "kek")).rotation, propagation_seconds=0)
    work = {"kek": rotation.rotate_kek, "data-key": rotation.rotate_data_key, "retire": rotation.retire}[what]
    await work(actor=Actor("cli:test", ORIGIN))
    await database.close()


def main(what: str, url: str, folder: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        copy = Path(f"{folder}_{kill_at}")
        shutil.copytree(folder, copy)
        asyncio.run(rotate(what, store, copy, kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
