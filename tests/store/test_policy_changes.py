"""The comparison of the live certificates with a new policy."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from clustercert.server.policy_changes import PolicyChanges
from clustercert.store.audit.decision_events import DecisionEvents
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.engine.database import Database
from support import samples
from support.wait import SECONDS


async def test_a_newer_policy_and_the_end_of_the_service_stop_a_comparison(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = [], []

    async def endless(
        _self: DecisionEvents, _issued_at: Mapping[str, datetime]
    ) -> AsyncIterator[Mapping[str, bytes]]:
        started.append(1)
        try:
            while True:
                yield {}
        finally:
            ended.append(1)

    async def reach(begun: int, stopped: int) -> None:
        async with asyncio.timeout(SECONDS):
            while (len(started), len(ended)) != (begun, stopped):
                await asyncio.sleep(0.01)

    monkeypatch.setattr(DecisionEvents, "issuances", endless)
    changes = PolicyChanges(database)
    await changes.record(samples.POLICY)
    await reach(1, 0)
    await changes.record(replace(samples.POLICY, max_lifetime=timedelta(hours=1)))
    await reach(2, 1)
    async with asyncio.timeout(SECONDS):
        await changes.close()
    await reach(2, 2)


async def test_the_longest_lifetime_of_each_policy_is_noted(database: Database) -> None:
    changes = PolicyChanges(database)
    for days in (30, 90, 1):
        await changes.record(replace(samples.POLICY, max_lifetime=timedelta(days=days)))
    await changes.close()
    assert await RevocationPruningQueries(database).longest_lifetime() == timedelta(days=90)
