"""Revocations that are killed, each at another step: `python revoking_killed.py WHAT URL FINGERPRINT USER`.

Copies the database to URL_1, URL_2 …, as `killing` says. Prints how many were killed.
"""

import asyncio
import sys

from clustercert.store.database import Database
from clustercert.store.directory import DirectoryRows
from clustercert.store.revocations import Revocations
from killing import Steps, kill_everywhere
from stores import Store, event, revocation


async def revoke(what: str, store: Store, fingerprint: bytes, user_id: str, kill_at: int) -> None:
    database = Database(store.url)
    Steps(kill_at).count(database)
    if what == "certificate":
        await Revocations(database).revoke(revocation(fingerprint=fingerprint), event("certificate.revoked"))
    else:
        await DirectoryRows(database).enable_user(user_id, False, event("user.disabled"))
    await database.close()


def main(what: str, url: str, fingerprint: str, user_id: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        asyncio.run(revoke(what, store, bytes.fromhex(fingerprint), user_id, kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
