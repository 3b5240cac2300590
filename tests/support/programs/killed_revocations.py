"""Kills a process that revokes, at each of its steps. Arguments: WHAT URL FINGERPRINT USER.

Works on copies URL_1, URL_2, … (see `kill_points`). Prints the number of killed processes.
"""

import asyncio
import sys

from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from support.kill_points import Steps, kill_everywhere
from support.stores import Store, event, revocation


async def revoke(what: str, store: Store, fingerprint: bytes, user_id: str, kill_at: int) -> None:
    database = Database(store.url)
    Steps(kill_at).count(database)
    if what == "certificate":
        await RevocationQueries(database).revoke(
            revocation(fingerprint=fingerprint), event("certificate.revoked")
        )
    else:
        await DirectoryQueries(database).enable_user(user_id, False, event("user.disabled"))
    await database.close()


def main(what: str, url: str, fingerprint: str, user_id: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        asyncio.run(revoke(what, store, bytes.fromhex(fingerprint), user_id, kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
