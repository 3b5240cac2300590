"""Kills a process that disables a domain or project, at each of its steps. Arguments: KIND ID URL.

Works on copies URL_1, URL_2, … (see `kill_points`). Prints the number of killed processes.
"""

import asyncio
import sys
from dataclasses import replace

from clustercert.model import Project
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.entities import Reference
from support.kill_points import Steps, kill_everywhere
from support.stores import Store, event

BATCH = 2


async def disable(kind: str, entity_id: str, store: Store, kill_at: int) -> None:
    database = Database(store.url)
    queries = DirectoryQueries(database)
    if kind == "domain":
        (domain,) = await queries.domains(domain_id=entity_id)
        Steps(kill_at).count(database)
        await queries.replace(domain, replace(domain, enabled=False), event("domain.disabled"))
        await queries.end_logins(domain, batch=BATCH)
    else:
        (project,) = await queries.find(Project, Reference(id=entity_id))
        Steps(kill_at).count(database)
        await queries.replace(project, replace(project, enabled=False), event("project.disabled"))
        await queries.end_logins(project, batch=BATCH)
    await database.close()


def main(kind: str, entity_id: str, url: str) -> None:
    kill_everywhere(url, lambda store, kill_at: asyncio.run(disable(kind, entity_id, store, kill_at)))


if __name__ == "__main__":
    main(*sys.argv[1:])
