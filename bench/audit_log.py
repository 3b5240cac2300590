"""Measures audit logs of several sizes: how fast events are sealed, and how long a proof takes during writes."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import insert

from bench import world
from bench.postgres import Postgres
from bench.world import World
from clustercert.merkle.tiles import all_tiles
from clustercert.merkle.tree import leaf_hash, verify_consistency, verify_inclusion
from clustercert.model import Actor
from clustercert.model.events.administration import RevocationChanged
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.wiring import Components, open_components

# Sizes of the log, in events.
SIZES = (10_000, 100_000)
LARGEST = (1_000_000,)

AT_ONCE = 10_000
PROOFS = 300
# The event rate of the largest installation, per second. The log must keep up with it permanently.
STEADY_RATE = 5_000
STEADY_SECONDS = 10
TICKS = 20


@dataclass(frozen=True, slots=True)
class Size:
    """Figures for one size of the log. Times are in milliseconds.

    Attributes:
        sealed_rate: events per second that a sealer seals when many are waiting.
        steady_rate: events per second that were written while a sealer ran once per second.
        lag_ms: time from an event's commit to its sealing at that rate, 99th percentile.
        proof_p50_ms, proof_p99_ms: an inclusion proof for a random event, with the event and the newest head; verified.
        consistency_p99_ms: a consistency proof from a random size, verified against the log's older heads.
        page_p99_ms: a page of 100 events from a random index on.
        bytes_each: bytes that the tiles add to the store for each event.
    """

    database: str
    events: int
    sealed_rate: float
    steady_rate: float
    lag_ms: float
    proof_p50_ms: float
    proof_p99_ms: float
    consistency_p99_ms: float
    page_p99_ms: float
    bytes_each: float


def measure(folder: Path, sizes: Sequence[int], postgres: Postgres | None) -> list[dict[str, object]]:
    """Grow one log through all sizes, and measure it at each."""
    url = postgres.create("audit_log") if postgres else None
    store = world.prepare(folder, database_url=url, database=postgres.pid if postgres else None)
    return asyncio.run(_measure(store, sizes, "PostgreSQL" if postgres else "SQLite"))


async def _measure(store: World, sizes: Sequence[int], database: str) -> list[dict[str, object]]:
    measured = []
    async with open_components(store.settings) as components:
        for size in sizes:
            rate = await _filled(components, size)
            written, lag = await _steady(components)
            proofs = [await _proof_ms(components) for _ in range(PROOFS)]
            consistent = [await _consistency_ms(components) for _ in range(PROOFS)]
            pages = [await _page_ms(components) for _ in range(PROOFS)]
            measured.append(
                asdict(
                    Size(
                        database=database,
                        events=(await components.audit_log.log()).size,
                        sealed_rate=rate,
                        steady_rate=written,
                        lag_ms=lag,
                        proof_p50_ms=statistics.median(proofs),
                        proof_p99_ms=_p99(proofs),
                        consistency_p99_ms=_p99(consistent),
                        page_p99_ms=_p99(pages),
                        bytes_each=await _tile_bytes(components),
                    )
                )
            )
            print(measured[-1], flush=True)
    return measured


async def _filled(components: Components, size: int) -> float:
    """Grow the log to at least this size. Returns events sealed per second, without the time for writing."""
    missing = max(AT_ONCE, size - (await components.audit_log.log()).size)
    sealed, seconds = 0, 0.0
    while missing > 0:
        await _write(components, min(missing, AT_ONCE))
        started = time.perf_counter()
        count = await components.log_sealer.seal_all()
        seconds += time.perf_counter() - started
        sealed, missing = sealed + count, missing - count
    return sealed / seconds


async def _steady(components: Components) -> tuple[float, float]:
    """Write events at the steady rate, and seal them every second as the service does."""
    lags = list[float]()
    committed = list[tuple[float, int]]()
    done = asyncio.Event()

    async def write() -> None:
        started = time.perf_counter()
        for tick in range(STEADY_SECONDS * TICKS):
            await asyncio.sleep(max(0.0, started + tick / TICKS - time.perf_counter()))
            await _write(components, STEADY_RATE // TICKS)
            committed.append((time.perf_counter(), STEADY_RATE // TICKS))
        done.set()

    async def seal() -> None:
        while not done.is_set() or committed:
            waiting = list(committed)
            await components.log_sealer.seal_all()
            now = time.perf_counter()
            lags.extend((now - at) * 1000 for at, _ in waiting)
            del committed[: len(waiting)]
            await asyncio.sleep(1)

    started = time.perf_counter()
    writing = asyncio.create_task(write())
    sealing = asyncio.create_task(seal())
    await writing
    seconds = time.perf_counter() - started
    await sealing
    return STEADY_RATE * STEADY_SECONDS / seconds, _p99(lags)


async def _write(components: Components, count: int) -> None:
    """Write events of the usual length."""
    now, here = datetime.now(UTC), world.origin()
    rows = [
        event_row(
            RevocationChanged(
                at=now,
                kind="certificate.revoked",
                project_id="0" * 32,
                actor=Actor("bench", here),
                subject=f"{number:064x}",
                user_id="0" * 32,
                cluster_id="0" * 36,
                reason="superseded",
                note=None,
                proved=False,
                serial="00" * 20,
            )
        )
        for number in range(count)
    ]
    async with components.database.transaction() as connection:
        await connection.execute(insert(tables.audit_event), rows)


async def _proof_ms(components: Components) -> float:
    place = random.randrange((await components.audit_log.log()).size)
    started = time.perf_counter()
    [event] = await EvidenceQueries(components.database).events(place, place + 1)
    proof = await components.audit_log.inclusion(event)
    elapsed = (time.perf_counter() - started) * 1000
    head = proof.checkpoint
    verify_inclusion(leaf_hash(event.commitment), place, head.size, proof.hashes, head.root)
    return elapsed


async def _consistency_ms(components: Components) -> float:
    newest = await components.audit_log.checkpoint()
    [older] = await components.audit_log.queries.checkpoints(random.randrange(newest.size), 1)
    started = time.perf_counter()
    hashes = await components.audit_log.consistency(older.size, newest.size)
    elapsed = (time.perf_counter() - started) * 1000
    verify_consistency(older.size, older.root, newest.size, newest.root, hashes)
    return elapsed


async def _page_ms(components: Components) -> float:
    place = random.randrange((await components.audit_log.log()).size)
    started = time.perf_counter()
    await EvidenceQueries(components.database).events(place, place + 100)
    return (time.perf_counter() - started) * 1000


async def _tile_bytes(components: Components) -> float:
    size = (await components.audit_log.log()).size
    return sum(path.width * 32 for path in all_tiles(size)) / size


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
