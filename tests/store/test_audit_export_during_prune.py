"""An export that runs while events are deleted verifies, because it includes the events that record the deletions."""

import asyncio
import contextlib
import itertools
from datetime import timedelta
from pathlib import Path

import pytest

from clustercert.audit.export import ExportedLog, Exporter
from clustercert.audit.findings import VerificationReport
from clustercert.audit.retention import Retention
from clustercert.audit.verification import LEAVES_PER_READ, verify
from clustercert.model import Actor
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.audit.log import StoredEvent
from clustercert.store.engine.database import Database
from support.sealed_log import SealedLog, new_log
from support.stores import NOW, Store, patient

ACTOR = Actor.service()
# More than one file of events.
SIZE = LEAVES_PER_READ + 500


@pytest.fixture
async def log(database: Database) -> SealedLog:
    log = await new_log(database)
    await log.grow(SIZE - 1)
    return log


class PrunedBetweenReads(EvidenceQueries):
    """Deletes events between two queries of an export."""

    retention: Retention

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        # The events of one second each, from both files.
        before = NOW + timedelta(seconds=20 if first == 0 else LEAVES_PER_READ + 20)
        await self.retention.prune(before, actor=ACTOR)
        return await super().events(first, last)


async def verified(log: SealedLog, folder: Path) -> VerificationReport:
    return await verify(ExportedLog(folder), await log.key())


async def test_events_deleted_between_two_reads_are_explained(log: SealedLog, tmp_path: Path) -> None:
    queries = PrunedBetweenReads(log.database)
    queries.retention = Retention(log.queries, lambda: NOW)
    folder = tmp_path / "log"
    done = await Exporter(queries, log.reader, log.sealer.seal_all).export(folder)
    report = await verified(log, folder)
    assert report.findings == []
    assert report.size == done.size > SIZE
    assert report.deleted > 0
    again = await log.exporter.export(folder)
    assert again.size >= done.size
    assert (await verified(log, folder)).findings == []


async def test_an_export_of_a_log_with_a_removed_event_ends(
    log: SealedLog, store: Store, tmp_path: Path
) -> None:
    """No event records the deletion, so the export must not wait for one."""
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 7)"
    )
    await log.exporter.export(tmp_path / "log")
    [finding] = (await verified(log, tmp_path / "log")).findings
    assert (finding.kind.problem, finding.place) == ("removed", 7)


async def test_exports_during_a_prune_verify(log: SealedLog, store: Store, tmp_path: Path) -> None:
    """Two connections to the same database: one deletes events and records new ones, the other one exports."""
    other = patient(store.url)
    retention = Retention(EvidenceQueries(other), lambda: NOW)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def prune() -> None:
        for second in itertools.count(25, 25):
            if ended.is_set():
                return
            await retention.prune(NOW + timedelta(seconds=second), actor=ACTOR)
            begun.set()

    pruning = asyncio.create_task(prune())
    try:
        await begun.wait()
        for number in range(3):
            await log.exporter.export(tmp_path / f"log-{number}")
        # The same folder again.
        await log.exporter.export(tmp_path / "log-0")
    finally:
        ended.set()
        with contextlib.suppress(asyncio.CancelledError):
            await pruning
        await other.close()
    for number in range(3):
        report = await verified(log, tmp_path / f"log-{number}")
        assert report.findings == []
        assert report.deleted > 0
