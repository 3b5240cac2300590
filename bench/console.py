"""Measures the console's page of a cluster with many certificates, and other requests while somebody looks at it.

One worker serves everything, so a page that blocked its event loop would delay the other requests. Rounds without and
with the page take turns, so that other work on the machine changes both.
"""

import asyncio
import os
import secrets
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
from sqlalchemy import insert, select

from bench import bulk, processes, traffic, webhook, world, wrk
from bench.bulk import Reachable
from bench.peers import Peer
from bench.postgres import Postgres
from bench.webhook import Shown
from bench.world import Served, World, origin
from clustercert.http.console.visits import SESSION_COOKIE
from clustercert.identity.tokens import ByPassword
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import BATCH
from clustercert.store.identity.entities import Reference
from clustercert.wiring import open_components

CERTIFICATES = 10_000
USERS = 3_000
GROUPS = 40
PAGES = 200
CONNECTIONS = 16
ROUNDS = 3
WARM_UP_SECONDS = 2
# Requests per second, for the response times.
RATES = {"certificates": 150.0, "reviews": 400.0}
# Seconds from one page to the next, of one client.
PAUSES = {"one a second": 1.0, "without a pause": 0.0}


@dataclass(frozen=True, slots=True)
class Figures:
    """The page, loaded over one connection.

    Attributes:
        server_ms: the mean processor time of the service and its database.
        kilobytes: without compression.
    """

    database: str
    certificates: int
    users: int
    p50_ms: float
    p99_ms: float
    server_ms: float
    kilobytes: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """Other requests, without and with the page. Medians of rounds.

    Attributes:
        pages: how often one client loads the page.
        rate, with_page_rate: requests per second without a pause.
        p99_ms, with_page_p99_ms: response times at a steady rate.
    """

    database: str
    what: str
    pages: str
    rate: float
    with_page_rate: float
    ratio: float
    p99_ms: float
    with_page_p99_ms: float
    errors: int


def measure(folder: Path, seconds: float, postgres: Postgres | None) -> dict[str, list[dict[str, object]]]:
    """Measure with one database. Returns the page, and the loads without and with it."""
    url = postgres.create("console") if postgres else None
    store = world.prepare(folder, database_url=url, database=postgres.pid if postgres else None)
    with store.config.open("a") as config:
        config.write("[console]\nenabled = true\n")
    with world.served(store, workers=1) as served:
        # The certificate that is copied.
        served.taking(traffic.with_token(served.who)).load(1, 1)
    (cluster,) = asyncio.run(bulk.Filler(store, postgres, "console").add_reachable(0, 1))
    shown = asyncio.run(_fill(store, cluster))
    server = asyncio.run(webhook.api_server(store, cluster.project_id, cluster.cluster_id))
    database = "PostgreSQL" if postgres else "SQLite"
    cookie = asyncio.run(_log_in(store))
    with world.served(store, workers=1) as served:
        page = _Page(
            f"{served.url}/console/projects/{cluster.project_id}/clusters/{cluster.cluster_id}",
            {"Cookie": f"{SESSION_COOKIE}={cookie}", "Accept": "text/html"},
        )
        peers = {
            "certificates": served.taking(traffic.with_token(served.who)),
            "reviews": served.taking([webhook.review(served.who.host, server, each) for each in shown]),
        }
        figures = _figures(served, page, database)
        loads = [
            _loaded(peer, page, (database, what, pages), seconds)
            for what, peer in peers.items()
            for pages in PAUSES
        ]
    return {"page": [asdict(figures)], "loads": [asdict(each) for each in loads]}


async def _log_in(store: World) -> str:
    """Return the cookie of a new session."""
    async with open_components(store.settings) as components:
        login = ByPassword(Reference(id=store.user_id), store.password)
        return (await components.identity.sessions.log_in(login, origin(), None)).cookie


async def _fill(store: World, cluster: Reachable) -> list[Shown]:
    """Add certificates of many users for a cluster. Returns some of them."""
    database, certificate = Database(store.settings.store_url), tables.certificate
    try:
        async with database.read() as connection:
            found = (await connection.execute(select(certificate).limit(1))).mappings().one()
        template = {name: value for name, value in found.items() if name != "id"}
        rows = [
            {
                **template,
                "cluster_id": cluster.cluster_id,
                "project_id": cluster.project_id,
                "fingerprint": os.urandom(32),
                "serial": secrets.token_hex(16),
                "credential_number": secrets.token_hex(20),
                "user_id": f"{number % USERS:032x}",
                "user_name": f"person-{number % USERS:04}",
                "groups": ["clustercert:editors", f"team-{number % GROUPS}"],
                "not_after": template["not_after"] + timedelta(seconds=number),
            }
            for number in range(CERTIFICATES)
        ]
        for start in range(0, len(rows), BATCH):
            async with database.transaction() as transaction:
                await transaction.execute(insert(certificate), rows[start : start + BATCH])
        return [
            Shown(row["fingerprint"], row["credential_number"], row["user_id"])
            for row in rows[: webhook.IN_USE]
        ]
    finally:
        await database.close()


@dataclass(frozen=True, slots=True)
class _Page:
    """The page of the cluster, as one person's browser asks for it."""

    url: str
    headers: Mapping[str, str]

    def load_repeatedly(self, seconds: float, pause: float) -> None:
        end = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < end:
                started = time.monotonic()
                self.load(client)
                time.sleep(max(0.0, started + pause - time.monotonic()))

    def client(self) -> httpx2.Client:
        return httpx2.Client(headers=dict(self.headers), timeout=60, trust_env=False)

    def load(self, client: httpx2.Client) -> int:
        """Load the page once. Returns its length in bytes."""
        answer = client.get(self.url)
        if answer.status_code != httpx2.codes.OK or "people have access" not in answer.text:
            raise RuntimeError(f"the page is missing: {answer.status_code}")
        return len(answer.content)


def _figures(served: Served, page: _Page, database: str) -> Figures:
    times = []
    with page.client() as client:
        length = page.load(client)
        before = sum(map(processes.cpu_seconds, served.roots))
        for _ in range(PAGES):
            started = time.perf_counter()
            page.load(client)
            times.append((time.perf_counter() - started) * 1000)
        used = sum(map(processes.cpu_seconds, served.roots)) - before
    centiles = statistics.quantiles(times, n=100)
    return Figures(
        database=database,
        certificates=CERTIFICATES,
        users=USERS,
        p50_ms=centiles[49],
        p99_ms=centiles[98],
        server_ms=used / PAGES * 1000,
        kilobytes=length / 1000,
    )


def _loaded(peer: Peer, page: _Page, names: tuple[str, str, str], seconds: float) -> Loaded:
    """`names`: of the database, the other requests, and how often the page is loaded."""
    database, what, pages = names
    peer.load(CONNECTIONS, WARM_UP_SECONDS)
    steady_pause_ms = peer.pause_ms(RATES[what], CONNECTIONS)
    full, steady = list[tuple[wrk.Load, wrk.Load]](), list[tuple[wrk.Load, wrk.Load]]()
    for _ in range(ROUNDS):
        full.append(_pair(peer, page, PAUSES[pages], seconds, 0))
        steady.append(_pair(peer, page, PAUSES[pages], seconds, steady_pause_ms))
    rate, with_page_rate = (statistics.median(pair[with_page].rate for pair in full) for with_page in (0, 1))
    p99_ms, with_page_p99_ms = (
        statistics.median(pair[with_page].p99_ms for pair in steady) for with_page in (0, 1)
    )
    return Loaded(
        database=database,
        what=what,
        pages=pages,
        rate=rate,
        with_page_rate=with_page_rate,
        ratio=with_page_rate / rate,
        p99_ms=p99_ms,
        with_page_p99_ms=with_page_p99_ms,
        errors=sum(load.errors for pair in (*full, *steady) for load in pair),
    )


def _pair(
    peer: Peer, page: _Page, page_pause: float, seconds: float, pause_ms: float
) -> tuple[wrk.Load, wrk.Load]:
    """Run a load without the page, then the same load with it."""
    without = peer.load(CONNECTIONS, seconds, pause_ms)
    looking = threading.Thread(target=page.load_repeatedly, args=(seconds, page_pause))
    looking.start()
    with_page = peer.load(CONNECTIONS, seconds, pause_ms)
    looking.join()
    return without, with_page
