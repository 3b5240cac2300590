"""Measures the authorization webhook at a steady rate, with many certificates and revocations in the store.

Reviews arrive over many connections with pauses, as from independent clients. Each response time counts from the
sending of its request. A connection is busy for about a hundredth of the time, so a late response hardly ever delays
the next request. If the server stops for a moment, all requests in that time count as slow.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
from sqlalchemy import func, select

from bench import bulk, traffic, world, wrk
from bench.peers import CALIBRATING_SECONDS, Peer
from bench.postgres import Postgres
from bench.world import ACTOR, Served, World, origin
from clustercert.model import Actor
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.wiring import open_components

RATE = 2000
CONNECTIONS = 256
# Credentials that a cluster's users and machines use at the same time.
IN_USE = 2000
# Reviews without pauses, so that every worker caches those credentials.
WARM_UP_SECONDS = 5
# Arrivals are random. If there are more than expected, there are still enough unused credentials.
TO_SPARE = 1.2
REVOCATIONS_TIMED = 20
# The smallest store has enough for the usual duration.
SIZES = ((40_000, 1_000), (100_000, 100_000))
LARGEST = (10_000_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class ApiServer:
    """The API server that sends reviews."""

    cluster_id: str
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.cluster_id}/authorize"


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate as an API server describes it in a review."""

    fingerprint: bytes
    credential_number: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Size:
    """Figures for one size of the store.

    Attributes:
        nothing: GET for a path that does nothing, at the same rate over the same number of connections. This time for
            the load generator, HTTP and shared cores is part of the other figures, too.
        known: reviews for credentials that were seen before.
        first: reviews for credentials that were not seen before. Each one reads the store.
        revoked_ms: from the response to a revocation to the first denied review, the longest of several.
    """

    database: str
    certificates: int
    revocations: int
    nothing: wrk.Load
    known: wrk.Load
    first: wrk.Load
    revoked_ms: float


def measure(
    folder: Path, sizes: Sequence[tuple[int, int]], seconds: float, postgres: Postgres | None
) -> list[dict[str, object]]:
    """Grow one store through all sizes, and measure it at each."""
    name = "webhook"
    url = postgres.create(name) if postgres else None
    store = world.prepare(folder, database_url=url, database=postgres.pid if postgres else None)
    with world.served(store, workers=1) as served:
        # The certificate that is copied.
        served.taking(traffic.with_token(served.who)).load(1, 1)
    filler = bulk.Filler(store, postgres, name)
    (cluster,) = asyncio.run(filler.add_reachable(0, 1))
    server = asyncio.run(api_server(store, cluster.project_id, cluster.cluster_id))
    own = asyncio.run(api_server(store, store.project_id, store.cluster_id))
    measured, done = [], (0, 0)
    for certificates, revocations in sizes:
        filler.add_certificates(certificates - done[0], 1)
        filler.add_revocations(revocations - done[1], 1)
        filler.settle()
        done = certificates, revocations
        database = "PostgreSQL" if postgres else "SQLite"
        measured.append(asdict(_measure(store, server, own, done, seconds, database)))
    return measured


async def api_server(store: World, project_id: str, cluster_id: str) -> ApiServer:
    """Create a token for a cluster's API server."""
    async with open_components(store.settings) as components:
        found = await components.clusters.queries.cluster(project_id, cluster_id)
        if found is None:
            raise RuntimeError("the cluster is not there")
        issued = await components.webhook.tokens.create(found, actor=Actor(ACTOR, origin()))
        return ApiServer(cluster_id, issued.text)


def _measure(
    store: World, server: ApiServer, own: ApiServer, size: tuple[int, int], seconds: float, database: str
) -> Size:
    tried = int(RATE * TO_SPARE * CALIBRATING_SECONDS)
    needed = IN_USE + tried + int(RATE * TO_SPARE * seconds)
    if needed > size[0]:
        raise ValueError(f"{size[0]} certificates are too few for {seconds} seconds: {needed} are needed")
    certificates = asyncio.run(_certificates(store, server.cluster_id, needed))
    in_use, others = certificates[:IN_USE], certificates[IN_USE:]
    with world.served(store) as served:

        def reviews(shown: Sequence[Shown]) -> Peer:
            return served.taking([review(served.who.host, server, each) for each in shown])

        reviews(in_use).load(CONNECTIONS, WARM_UP_SECONDS)
        nothing = served.taking([traffic.http("GET", "/healthz", served.who.host, {})])
        nothing_load = nothing.load_at(RATE, CONNECTIONS, seconds)
        known_load = reviews(in_use).load_at(RATE, CONNECTIONS, seconds)
        # By then, the workers know the credentials from the trial runs.
        pause_ms = reviews(others[:tried]).pause_ms(RATE, CONNECTIONS)
        return Size(
            database=database,
            certificates=size[0],
            revocations=size[1],
            nothing=nothing_load,
            known=known_load,
            first=reviews(others[tried:]).load(CONNECTIONS, seconds, pause_ms),
            revoked_ms=_revoked(served, own, store.user_id),
        )


async def _certificates(store: World, cluster_id: str, count: int) -> list[Shown]:
    """Return certificates from all components of the table, each once, in random order."""
    certificate = tables.certificate
    database = Database(store.settings.store_url)
    found: dict[Shown, None] = {}
    columns = (certificate.c.fingerprint, certificate.c.credential_number, certificate.c.user_id)
    here = certificate.c.cluster_id == cluster_id
    try:
        async with database.read() as connection:
            last = (await connection.execute(select(func.max(certificate.c.id)))).scalar_one()
            while len(found) < 0.95 * count:
                some = select(*columns).where(here, certificate.c.id >= random.randint(1, last))
                rows = await connection.execute(some.order_by(certificate.c.id).limit(1 + count // 50))
                found.update(dict.fromkeys(Shown(*row) for row in rows))
    finally:
        await database.close()
    shuffled = list(found)[:count]
    random.shuffle(shuffled)
    return shuffled


def review(host: str, server: ApiServer, shown: Shown) -> bytes:
    """Return a review with its HTTP header, as kube-apiserver sends it."""
    body = (
        b'{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{"creationTimestamp":null},'
        b'"spec":{"resourceAttributes":{"namespace":"default","verb":"list","version":"v1","resource":"pods"},'
        b'"user":"%s","groups":["clustercert:admins","clustercert:credential:%s","system:authenticated"],"extra":'
        b'{"authentication.kubernetes.io/credential-id":["X509SHA256=%s"]}},"status":{"allowed":false}}'
    ) % (shown.user_id.encode(), shown.credential_number.encode(), shown.fingerprint.hex().encode())
    path = f"{server.path}?timeout=3s"
    headers = traffic.JSON | {
        "Authorization": f"Bearer {server.token}",
        "User-Agent": "Go-http-client/1.1",
        "Accept": "application/json, */*",
    }
    return traffic.http("POST", path, host, headers, body)


def _revoked(served: Served, server: ApiServer, user_id: str) -> float:
    """Return the milliseconds until a revocation has an effect, the longest of several."""
    path = served.who.path()
    headers = traffic.JSON | {"Authorization": f"Bearer {server.token}"}
    longest = 0.0
    with httpx2.Client(base_url=served.url, timeout=30, trust_env=False) as client:
        for _ in range(REVOCATIONS_TIMED):
            caller = {"X-Auth-Token": served.who.token}
            issued = client.post(path, json={"duration": 1}, headers=caller).raise_for_status()
            shown = Shown(
                fingerprint=bytes.fromhex(issued.headers["X-Clustercert-Fingerprint"]),
                # The credential number is the serial, because the signer uses the requested one.
                credential_number=issued.headers["X-Clustercert-Serial"],
                user_id=user_id,
            )
            body = review(served.who.host, server, shown).partition(b"\r\n\r\n")[2]

            def denied(body: bytes = body) -> bool:
                answer = client.post(server.path, content=body, headers=headers).raise_for_status()
                return bool(answer.json()["status"].get("denied"))

            # By then, both workers have cached it.
            if any(denied() for _ in range(20)):
                raise RuntimeError("a new certificate is denied")
            client.post(f"{path}revoke", json={"userId": user_id}, headers=caller).raise_for_status()
            revoked_at = time.perf_counter()
            while not denied():
                time.sleep(0.005)
            longest = max(longest, (time.perf_counter() - revoked_at) * 1000)
    return longest
