"""Compares the live certificates in the ledger with a policy."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from clustercert.policy.decision import Policy
from clustercert.policy.live_replay import NO_EVENT, LiveComparison
from clustercert.store.audit.decision_events import DecisionEvents
from clustercert.store.certificates.lists import InventoryQueries
from clustercert.store.engine.database import Database


@dataclass(frozen=True, slots=True)
class ComparedCertificates:
    """The result of a comparison.

    Attributes:
        examined: number of certificates, including those that can't be compared.
        is_complete: whether all live certificates were examined.
    """

    comparison: LiveComparison
    examined: int
    is_complete: bool


async def compare_live_certificates(
    database: Database, policy: Policy, now: datetime, stop: asyncio.Event, *, limit: int
) -> ComparedCertificates | None:
    """Compare live certificates with a policy: at most `limit`, latest expiry first.

    Returns None if `stop` was set. Raises Unavailable.
    """
    found = await InventoryQueries(database).live(now, limit=limit + 1)
    issued_at = {each.fingerprint.hex(): each.issued_at for each in found[:limit]}
    comparison, missing = LiveComparison(policy), len(issued_at)
    async for events in DecisionEvents(database).issuances(issued_at):
        # Use a thread, because the event loop must answer requests.
        await asyncio.to_thread(_add_all, comparison, events.values(), stop)
        if stop.is_set():
            return None
        missing -= len(events)
    if missing:
        comparison.not_replayable[NO_EVENT] += missing
    return ComparedCertificates(comparison, len(issued_at), len(found) <= limit)


def _add_all(comparison: LiveComparison, events: Iterable[bytes], stop: asyncio.Event) -> None:
    for event in events:
        if stop.is_set():
            return
        comparison.add(json.loads(event))
