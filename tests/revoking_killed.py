"""Revocations that are killed, each at another step: `python revoking_killed.py WHAT URL FINGERPRINT USER`.

Copies the database to URL_1, URL_2 …, and revokes in the first copy until the first step, in the second one until the
second step, and so on until one comes to its end. A step is just before a statement that writes, or just before a
commit. Prints how many were killed.
"""

import asyncio
import os
import sys

from sqlalchemy import event as engine_events

from clustercert.store.database import Database
from clustercert.store.directory import DirectoryRows
from clustercert.store.revocations import Revocations
from stores import Store, event, revocation

KILLED = 9


async def revoke(what: str, store: Store, fingerprint: bytes, user_id: str, kill_at: int) -> None:
    steps = 0

    def step(*_args: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os._exit(KILLED)

    def on_statement(_connection: object, _cursor: object, statement: str, *_args: object) -> None:
        if statement.startswith(("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE")):
            step()

    database = Database(store.url)
    engine_events.listen(database.engine.sync_engine, "before_cursor_execute", on_statement)
    engine_events.listen(database.engine.sync_engine, "commit", step)
    if what == "certificate":
        await Revocations(database).revoke(revocation(fingerprint=fingerprint), event("certificate.revoked"))
    else:
        await DirectoryRows(database).enable_user(user_id, False, event("user.disabled"))
    await database.close()


def main(what: str, url: str, fingerprint: str, user_id: str) -> None:
    for kill_at in range(1, 1000):
        store = Store(url).copied(f"_{kill_at}")
        child = os.fork()
        if child == 0:
            asyncio.run(revoke(what, store, bytes.fromhex(fingerprint), user_id, kill_at))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != KILLED:
            print(kill_at - 1)
            sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
