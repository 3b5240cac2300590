"""The authorization webhook at a steady rate, with many certificates and revocations in the store.

Reviews are sent when they are due, whether those before are answered or not, and each one's time counts from when it
was due: a server that stops for a moment is charged for all who came meanwhile.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import httpx
import uvloop
from sqlalchemy import func, select

from bench import bulk, processes, traffic, world
from bench.bulk import Reachable
from bench.postgres import Postgres
from bench.world import ACTOR, Served, World, origin
from clustercert.app.wiring import components
from clustercert.store import tables
from clustercert.store.database import Database

RATE = 2000
CONNECTIONS = 64
# Credentials that a cluster's people and machines use at one time.
IN_USE = 2000
REVOCATIONS_TIMED = 20
SIZES = ((1_000, 1_000), (100_000, 100_000))
LARGEST = (10_000_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Who asks."""

    cluster_id: str
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.cluster_id}/authorize"


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of one run; times from when a review was due.

    Attributes:
        rate: answers a second.
        cpu_us: processor time of the service and its database for each.
        errors: answers of another status than 200, and broken connections.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    errors: int


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured at a size.

    Attributes:
        start_ms: from the start of the process to the first 200 of /readyz, 2 workers.
        known: reviews of credentials that were seen before.
        first: each of another credential, at the same rate: a reading of the store each.
        revoked_ms: from the answer to a revocation to the first review that is denied, the longest of some.
    """

    database: str
    certificates: int
    revocations: int
    start_ms: float
    known: Answers
    first: Answers
    revoked_ms: float


def measure(
    folder: Path, sizes: Sequence[tuple[int, int]], seconds: float, postgres: Postgres | None
) -> list[dict[str, object]]:
    """One store through all sizes."""
    name = "webhook"
    url = postgres.create(name) if postgres else None
    store = world.prepare(folder, database_url=url, database=postgres.pid if postgres else None)
    with world.served(store, workers=1) as served:
        # What the copies are made of.
        served.taking(traffic.with_token(served.who)).load(1, 1)
    filler = bulk.Filler(store, postgres, name)
    (cluster,) = asyncio.run(filler.add_reachable(0, 1))
    server = asyncio.run(_api_server(store, cluster))
    own = asyncio.run(_api_server(store, Reachable(store.project_id, store.cluster_id)))
    measured, done = [], (0, 0)
    for certificates, revocations in sizes:
        filler.add_certificates(certificates - done[0], 1)
        filler.add_revocations(revocations - done[1], 1)
        filler.settle()
        done = certificates, revocations
        database = "PostgreSQL" if postgres else "SQLite"
        measured.append(asdict(_measure(store, server, own, done, seconds, database)))
    return measured


async def _api_server(store: World, cluster: Reachable) -> ApiServer:
    async with components(store.settings) as parts:
        found = await parts.clusters.rows.cluster(cluster.project_id, cluster.cluster_id)
        if found is None:
            raise RuntimeError("the cluster is not there")
        issued = await parts.webhook.tokens.create(found, actor=ACTOR, origin=origin())
        return ApiServer(cluster.cluster_id, issued.text)


def _measure(
    store: World, server: ApiServer, own: ApiServer, size: tuple[int, int], seconds: float, database: str
) -> Size:
    count = min(size[0], IN_USE + int(RATE * seconds))
    fingerprints = asyncio.run(_fingerprints(store, server.cluster_id, count))
    in_use, others = fingerprints[: min(IN_USE, count // 2)], fingerprints[min(IN_USE, count // 2) :]
    with world.served(store) as served:

        def run(shown: Sequence[bytes], seconds: float) -> Answers:
            requests = [_review(served, server, each) for each in shown]
            before = [processes.cpu_seconds(root) for root in served.roots]
            times, errors = uvloop.run(_send(served, requests, seconds))
            used = sum(map(processes.cpu_seconds, served.roots)) - sum(before)
            ordered = statistics.quantiles(times, n=100)
            return Answers(
                rate=len(times) / seconds,
                p50_ms=ordered[49],
                p99_ms=ordered[98],
                max_ms=max(times),
                cpu_us=used / len(times) * 1e6,
                errors=errors,
            )

        run(in_use, max(1.0, 2 * len(in_use) / RATE))
        known = run(random.choices(in_use, k=int(RATE * seconds)), seconds)
        first = run(others, len(others) / RATE)
        return Size(
            database=database,
            certificates=size[0],
            revocations=size[1],
            start_ms=served.start_seconds * 1000,
            known=known,
            first=first,
            revoked_ms=_revoked(served, own, store.user_id),
        )


async def _fingerprints(store: World, cluster_id: str, count: int) -> list[bytes]:
    """From all over the table, each once, in no order."""
    certificate = tables.certificate
    database = Database(store.settings.store_url)
    found: dict[bytes, None] = {}
    here = certificate.c.cluster_id == cluster_id
    try:
        async with database.read() as connection:
            last = (await connection.execute(select(func.max(certificate.c.id)))).scalar_one()
            while len(found) < 0.95 * count:
                some = select(certificate.c.fingerprint).where(
                    here, certificate.c.id >= random.randint(1, last)
                )
                rows = await connection.execute(some.order_by(certificate.c.id).limit(1 + count // 50))
                found.update(dict.fromkeys(rows.scalars()))
    finally:
        await database.close()
    shuffled = list(found)[:count]
    random.shuffle(shuffled)
    return shuffled


def _review(served: Served, server: ApiServer, fingerprint: bytes) -> bytes:
    body = (
        b'{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{"creationTimestamp":null},'
        b'"spec":{"resourceAttributes":{"namespace":"default","verb":"list","version":"v1","resource":"pods"},'
        b'"user":"7116d09f88fa41908676fdd4b039e95b","groups":["clustercert:admins","system:authenticated"],"extra":'
        b'{"authentication.kubernetes.io/credential-id":["X509SHA256=%s"]}},"status":{"allowed":false}}'
    ) % fingerprint.hex().encode()
    path = f"{server.path}?timeout=3s"
    headers = traffic.JSON | {
        "Authorization": f"Bearer {server.token}",
        "User-Agent": "Go-http-client/1.1",
        "Accept": "application/json, */*",
    }
    return traffic.http("POST", path, served.who.host, headers, body)


class _Connection(asyncio.Protocol):
    """A kept connection with one request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._answered: asyncio.Future[bool] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its class.
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes) -> bool:
        """Whether the answer is one."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        if len(body) >= length:
            self._received = b""
            self._settle(good=head.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, _cause: Exception | None) -> None:
        self._settle(good=False)

    def _settle(self, *, good: bool) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(good)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _send(served: Served, requests: Sequence[bytes], seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each answer from when it was due, and how many were no answers."""
    loop = asyncio.get_running_loop()
    host, port = served.who.host.split(":")
    connections = [
        (await loop.create_connection(_Connection, host, int(port)))[1] for _ in range(CONNECTIONS)
    ]
    idle: asyncio.Queue[_Connection] = asyncio.Queue()
    for connection in connections:
        idle.put_nowait(connection)
    times: list[float] = []
    errors = 0

    async def ask(connection: _Connection, request: bytes, due: float) -> None:
        nonlocal errors
        good = await connection.ask(request)
        errors += not good
        times.append((loop.time() - due) * 1000)
        idle.put_nowait(connection)

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            due = began + number / RATE
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            connection = await idle.get()
            group.create_task(ask(connection, requests[number % len(requests)], due))
    for connection in connections:
        connection.close()
    return times, errors


def _revoked(served: Served, server: ApiServer, user_id: str) -> float:
    """Milliseconds until a revocation is felt, the longest of some."""
    path = served.who.path()
    shown = traffic.JSON | {"Authorization": f"Bearer {server.token}"}
    longest = 0.0
    with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
        for _ in range(REVOCATIONS_TIMED):
            caller = {"X-Auth-Token": served.who.token}
            issued = client.post(path, json={"duration": 1}, headers=caller).raise_for_status()
            fingerprint = bytes.fromhex(issued.headers["X-Clustercert-Fingerprint"])
            body = _review(served, server, fingerprint).partition(b"\r\n\r\n")[2]

            def denied(body: bytes = body) -> bool:
                answer = client.post(server.path, content=body, headers=shown).raise_for_status()
                return bool(answer.json()["status"].get("denied"))

            # Both workers have it in memory by then, whichever takes the connection.
            if any(denied() for _ in range(20)):
                raise RuntimeError("a new certificate is denied")
            client.post(f"{path}revoke", json={"userId": user_id}, headers=caller).raise_for_status()
            revoked_at = time.perf_counter()
            while not denied():
                time.sleep(0.005)
            longest = max(longest, (time.perf_counter() - revoked_at) * 1000)
    return longest
