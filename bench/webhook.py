"""The authorization webhook at a steady rate, with many certificates and revocations in the store.

Reviews arrive over many connections with pauses, as from clients who don't know of each other, and each one's time
counts from its sending. A connection is busy for about a hundredth of the time, so that what is due is hardly ever kept
from being sent by an answer that is late: a server that stops for a moment is charged for all who come meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from sqlalchemy import func, select

from bench import bulk, traffic, world, wrk
from bench.bulk import Reachable
from bench.peers import CALIBRATING_SECONDS, Peer
from bench.postgres import Postgres
from bench.world import ACTOR, Served, World, origin
from clustercert.app.wiring import components
from clustercert.store import tables
from clustercert.store.database import Database

RATE = 2000
CONNECTIONS = 256
# Credentials that a cluster's people and machines use at one time.
IN_USE = 2000
# Reviews without pauses, until every worker has seen those.
WARM_UP_SECONDS = 5
# Arrivals are by chance; if more come than are due, they still have credentials that nobody has shown.
TO_SPARE = 1.2
REVOCATIONS_TIMED = 20
# The smallest has enough for that at the usual length.
SIZES = ((40_000, 1_000), (100_000, 100_000))
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
class Shown:
    """A certificate, as an API server tells of it."""

    fingerprint: bytes
    credential_number: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured at a size.

    Attributes:
        nothing: GET of a path that does nothing, at the same rate over as many connections: what the generator, the
            server's edge and the sharing of the cores take of the others' times.
        known: reviews of credentials that were seen before.
        first: each of another credential: a reading of the store each.
        revoked_ms: from the answer to a revocation to the first review that is denied, the longest of some.
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
    tried = int(RATE * TO_SPARE * CALIBRATING_SECONDS)
    needed = IN_USE + tried + int(RATE * TO_SPARE * seconds)
    if needed > size[0]:
        raise ValueError(f"{size[0]} certificates are too few for {seconds} seconds: {needed} are needed")
    certificates = asyncio.run(_certificates(store, server.cluster_id, needed))
    in_use, others = certificates[:IN_USE], certificates[IN_USE:]
    with world.served(store) as served:

        def reviews(shown: Sequence[Shown]) -> Peer:
            return served.taking([_review(served, server, each) for each in shown])

        reviews(in_use).load(CONNECTIONS, WARM_UP_SECONDS)
        nothing = served.taking([traffic.http("GET", "/healthz", served.who.host, {})])
        nothing_load = nothing.load_at(RATE, CONNECTIONS, seconds)
        known_load = reviews(in_use).load_at(RATE, CONNECTIONS, seconds)
        # Whom the trying has shown is known by then.
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
    """From all over the table, each once, in no order."""
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


def _review(served: Served, server: ApiServer, shown: Shown) -> bytes:
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
    return traffic.http("POST", path, served.who.host, headers, body)


def _revoked(served: Served, server: ApiServer, user_id: str) -> float:
    """Milliseconds until a revocation is felt, the longest of some."""
    path = served.who.path()
    headers = traffic.JSON | {"Authorization": f"Bearer {server.token}"}
    longest = 0.0
    with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
        for _ in range(REVOCATIONS_TIMED):
            caller = {"X-Auth-Token": served.who.token}
            issued = client.post(path, json={"duration": 1}, headers=caller).raise_for_status()
            shown = Shown(
                fingerprint=bytes.fromhex(issued.headers["X-Clustercert-Fingerprint"]),
                # The serial, since the signer takes ours.
                credential_number=issued.headers["X-Clustercert-Serial"],
                user_id=user_id,
            )
            body = _review(served, server, shown).partition(b"\r\n\r\n")[2]

            def denied(body: bytes = body) -> bool:
                answer = client.post(server.path, content=body, headers=headers).raise_for_status()
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
