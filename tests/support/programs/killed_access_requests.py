"""Kills a process that makes a step of an access request, at each of its database steps. Arguments: STEP URL REQUEST.

Works on copies URL_1, URL_2, … (see `kill_points`). Prints the number of killed processes. The request is stored, and
is in the state for the step.
"""

import asyncio
import sys
from dataclasses import replace
from datetime import timedelta

from clustercert.model import Actor
from clustercert.model.access_requests import AccessDecision
from clustercert.requests import steps
from clustercert.store.access_requests import AccessRequestQueries
from clustercert.store.engine.database import Database
from support.access_requests import ONE, access_request, store_request
from support.kill_points import Steps, kill_everywhere
from support.samples import caller
from support.stores import NOW, ORIGIN, Store, certificate_record


async def make_step(step: str, store: Store, request_id: str, kill_at: int) -> None:
    database = Database(store.url)
    queries = AccessRequestQueries(database)
    Steps(kill_at).count(database)
    actor = Actor("anna", ORIGIN)
    if step == "create":
        await store_request(queries, access_request(id=request_id))
    elif step == "approve":
        decision = AccessDecision("access", "anna", "anna", NOW, True, frozenset({ONE}), "a reason")
        await queries.change(request_id, steps.decide(decision, (ONE,), actor))
    elif step == "issue":
        record, issued = certificate_record()
        record = replace(
            record, access_request_id=request_id, issued_at=NOW, not_after=NOW + timedelta(minutes=30)
        )
        await queries.record(record, issued, steps.claim(NOW, actor, lambda _: 2))
    else:
        await queries.change(request_id, steps.end(caller(), NOW, "over"))
    await database.close()


def main(step: str, url: str, request_id: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        asyncio.run(make_step(step, store, request_id, kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
