"""Measures the service with a growing store: the same measurements at each size."""

import asyncio
import math
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx2
from sqlalchemy import func, select

from bench import bulk, traffic, world, wrk
from bench.bulk import Filler, Reachable
from bench.peers import Peer
from bench.postgres import Postgres
from bench.world import Served, World
from clustercert.store import tables
from clustercert.store.engine.database import Database

# Numbers of certificates, and of the clusters over which they are spread.
SIZES = ((1_000, 10), (100_000, 10_000))
LARGEST = (10_000_000, 1_000_000)

QUERIES = 300
WARM_UP_QUERIES = 20
PAGE = 50
CONNECTIONS = 64
STARTS = 5
# Rounds of sequential GETs. A single 99th percentile over a few seconds depends on other work on the machine.
ROUNDS = 3
# The rate counts as steady after this many times the length of a measurement: usually 72 seconds.
UNTIL_STEADY = 18
WARM_UP_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Size:
    """Figures for one size of the store. Times are in milliseconds.

    Attributes:
        start_ms: from the start of the process to the first status 200 from /readyz, with 2 workers; the median of
            several starts, without the first.
        first_ms: the first POST after that.
        rate: certificates per second for one cluster, 64 connections, right after a checkpoint of the database.
        steady_rate: the same after about a minute of load.
        spread_rate: the same with requests for all clusters that a user with 12 projects can use.
        spread_cpu_us: processor time of the service alone for each of those requests.
        list_p99_ms, show_p99_ms: GET for the 10 clusters in a project, and for one of many clusters, over HTTP; the
            median of three rounds.
        inventory_p99_ms: GET for the newest 50 certificates in a project, over HTTP; the median of three rounds.
        page_p99_ms: a query in the store for the newest 50 certificates of a cluster.
        find_p99_ms: a query in the store for one certificate by its fingerprint.
        revoke_p99_ms: POST clustercertrevoke for all certificates of a user on the cluster.
        metrics_ms: the first GET /metrics, which counts live certificates.
        bytes_each: disk space for each certificate, including its audit event and all indexes.
        wal_bytes_each, steady_wal_bytes_each: bytes of write-ahead log for each certificate while `rate` and
            `steady_rate` are measured; 0 for SQLite.
    """

    database: str
    certificates: int
    clusters: int
    start_ms: float
    first_ms: float
    rate: float
    steady_rate: float
    spread_rate: float
    spread_cpu_us: float
    list_p99_ms: float
    show_p99_ms: float
    inventory_p99_ms: float
    page_p99_ms: float
    find_p99_ms: float
    revoke_p99_ms: float
    metrics_ms: float
    bytes_each: float
    wal_bytes_each: float
    steady_wal_bytes_each: float
    errors: int


def measure(
    folder: Path, sizes: Sequence[tuple[int, int]], seconds: float, postgres: Postgres | None
) -> list[dict[str, object]]:
    """Grow one store through all sizes, and measure it at each."""
    name = "growth"
    url = postgres.create(name) if postgres else None
    store = world.prepare(folder, database_url=url, database=postgres.pid if postgres else None)
    _issue_one(store)
    reachable: list[Reachable] = []
    done, measured = (0, 0), []
    filler = Filler(store, postgres, name)
    for certificates, clusters in sizes:
        reachable += asyncio.run(filler.add_reachable(done[1], clusters))
        filler.add_others(done[1], clusters)
        before = _bytes(store, postgres, name)
        filler.add_certificates(certificates - done[0], clusters)
        filler.settle()
        each = (_bytes(store, postgres, name) - before) / (certificates - done[0])
        done = (certificates, clusters)
        measured.append(asdict(_measure(store, filler, reachable, done, each, seconds)))
    return measured


def _issue_one(store: World) -> None:
    """Issue the certificate that is copied."""
    with world.served(store, workers=1) as served:
        served.taking(traffic.with_token(served.who)).load(1, 1)


def _check_filled(served: Served, inventory: str) -> None:
    """Check that a page of the inventory is full: an empty page would be fast."""
    host, port = served.who.host.split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        (request,) = traffic.signed_gets(served.who, [inventory])
        connection.sendall(request)
        while answer.count(b'"fingerprint"') < PAGE:
            if not (more := connection.recv(65536)):
                raise RuntimeError(f"a page of the inventory is not full: {answer[:200]!r}")
            answer += more


def _bytes(store: World, postgres: Postgres | None, name: str) -> int:
    if postgres:
        return int(postgres.sql(name, f"SELECT pg_database_size('{name}')"))
    return sum(file.stat().st_size for file in store.settings.data_dir.glob("clustercert.db*"))


def _measure(
    store: World,
    filler: Filler,
    reachable: Sequence[Reachable],
    size: tuple[int, int],
    bytes_each: float,
    seconds: float,
) -> Size:
    postgres = filler.postgres
    page, find = asyncio.run(_queries(store, size[1]))
    start_ms = _start_ms(store)
    with world.served(store) as served:
        first_ms = _time(served, "POST", served.who.path())
        metrics_ms = _time(served, "GET", "/metrics")
        who = served.who
        paths = [who.path(each.cluster_id, each.project_id) for each in reachable]
        first_project = paths[0].rpartition("/clusters/")[0] + "/clusters"
        random.shuffle(paths)
        shows = [path.removesuffix("/clustercert") for path in paths]
        projects = dict.fromkeys(each.project_id for each in reachable)
        inventories = [f"/clustercert/v1/projects/{each}/certificates?limit={PAGE}" for each in projects]
        _check_filled(served, inventories[0])
        issuing = served.taking(traffic.with_token(who))
        issuing.load(CONNECTIONS, WARM_UP_SECONDS)
        filler.checkpoint()
        issue, wal_bytes = _issued(issuing, seconds, postgres)
        issuing.load(CONNECTIONS, UNTIL_STEADY * seconds)
        steady, steady_wal_bytes = _issued(issuing, seconds, postgres)
        spread = served.taking(traffic.signed(who, paths)).load(CONNECTIONS, seconds)
        listing = _one_by_one(served, [first_project], seconds)
        showing = _one_by_one(served, shows, seconds)
        inventory = _one_by_one(served, inventories, seconds)
        loads = (issue, steady, spread, listing, showing, inventory)
        return Size(
            database="PostgreSQL" if postgres else "SQLite",
            certificates=size[0],
            clusters=size[1],
            start_ms=start_ms,
            first_ms=first_ms,
            rate=issue.rate,
            steady_rate=steady.rate,
            spread_rate=spread.rate,
            spread_cpu_us=spread.cpu_us - spread.database_cpu_us,
            list_p99_ms=listing.p99_ms,
            show_p99_ms=showing.p99_ms,
            inventory_p99_ms=inventory.p99_ms,
            page_p99_ms=page,
            find_p99_ms=find,
            revoke_p99_ms=asyncio.run(_revoke_p99(served, store.user_id)),
            metrics_ms=metrics_ms,
            bytes_each=bytes_each,
            wal_bytes_each=wal_bytes,
            steady_wal_bytes_each=steady_wal_bytes,
            errors=sum(load.errors for load in loads),
        )


def _start_ms(store: World) -> float:
    seconds = []
    for _ in range(1 + STARTS):
        with world.served(store) as served:
            seconds.append(served.start_seconds)
    return statistics.median(seconds[1:]) * 1000


def _issued(peer: Peer, seconds: float, postgres: Postgres | None) -> tuple[wrk.Load, float]:
    """Run a load. Returns it with the bytes of write-ahead log for each certificate."""
    before = _wal_position(postgres)
    load = peer.load(CONNECTIONS, seconds)
    return load, (_wal_position(postgres) - before) / max(1.0, load.rate * load.seconds)


def _wal_position(postgres: Postgres | None) -> int:
    return int(postgres.sql("postgres", "SELECT pg_current_wal_lsn() - '0/0'")) if postgres else 0


def _one_by_one(served: Served, paths: Sequence[str], seconds: float) -> wrk.Load:
    """Send enough GETs for a 99th percentile over one connection, in rounds. Returns the round with the median."""
    peer = served.taking(traffic.signed_gets(served.who, paths))
    warm = peer.load(1, WARM_UP_SECONDS)
    enough = math.ceil(max(seconds, 2 * QUERIES / max(1.0, warm.rate)))
    loads = sorted((peer.load(1, enough) for _ in range(ROUNDS)), key=lambda load: load.p99_ms)
    slowest = min(load.rate * load.seconds for load in loads)
    if warm.rate * warm.seconds < WARM_UP_QUERIES or slowest < QUERIES:
        raise RuntimeError(f"{slowest:.0f} answers are too few for a 99th percentile: {paths[0]}")
    return replace(loads[ROUNDS // 2], errors=sum(load.errors for load in loads))


def _time(served: Served, method: str, path: str) -> float:
    headers = {"X-Auth-Token": served.who.token}
    body = {"duration": 1} if method == "POST" else None
    with httpx2.Client(base_url=served.url, headers=headers, timeout=120, trust_env=False) as client:
        started = time.perf_counter()
        client.request(method, path, json=body).raise_for_status()
        return (time.perf_counter() - started) * 1000


async def _revoke_p99(served: Served, user_id: str) -> float:
    headers = {"X-Auth-Token": served.who.token}
    async with httpx2.AsyncClient(
        base_url=served.url, headers=headers, timeout=120, trust_env=False
    ) as client:

        async def revoke() -> None:
            answer = await client.post(f"{served.who.path()}revoke", json={"userId": user_id})
            answer.raise_for_status()

        return await _p99(revoke)


async def _queries(store: World, clusters: int) -> tuple[float, float]:
    """Return the 99th percentiles of (a page of a cluster's certificates, one certificate by fingerprint)."""
    database = Database(store.settings.store_url)
    certificate = tables.certificate
    try:
        fingerprints = await _some_fingerprints(database)

        async def page() -> None:
            chosen = bulk.cluster_id(random.randrange(clusters))
            query = select(certificate).where(certificate.c.cluster_id == chosen)
            async with database.read() as connection:
                (await connection.execute(query.order_by(certificate.c.id.desc()).limit(PAGE))).all()

        async def find() -> None:
            query = select(certificate).where(certificate.c.fingerprint == random.choice(fingerprints))
            async with database.read() as connection:
                (await connection.execute(query)).one()

        return await _p99(page), await _p99(find)
    finally:
        await database.close()


async def _some_fingerprints(database: Database) -> list[bytes]:
    """Return fingerprints from all parts of the table."""
    certificate = tables.certificate
    found: list[bytes] = []
    async with database.read() as connection:
        last = (await connection.execute(select(func.max(certificate.c.id)))).scalar_one()
        for _ in range(QUERIES):
            query = select(certificate.c.fingerprint).where(certificate.c.id >= random.randint(1, last))
            found.append((await connection.execute(query.order_by(certificate.c.id).limit(1))).scalar_one())
    return found


async def _p99(query: Callable[[], Awaitable[None]]) -> float:
    for _ in range(WARM_UP_QUERIES):
        await query()
    times = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        await query()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.quantiles(times, n=100)[98]
