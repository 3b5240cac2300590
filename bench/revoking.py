"""Measures reviews and issuing in one project while the admin of another project revokes without a pause.

The admin names made-up users, or known users one after another: the most that one caller can store. The same
connections also read the admin's own clusters, for comparison: any caller can do this.
"""

import asyncio
import collections
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import delete, func, insert, select

from bench import traffic, world
from bench.postgres import Postgres
from bench.report import ROOT
from bench.webhook import Shown, api_server, review
from bench.world import ACTOR, Served, World, origin
from clustercert.model import Actor
from clustercert.model.clusters import Registration
from clustercert.model.ids import new_id
from clustercert.pki.certificates import chain_pem
from clustercert.store import tables
from clustercert.wiring import open_components

NAME = "revoking"
CONNECTIONS = 6
REVIEWS, ISSUES = 50, 5
TRIES, MOST_TRIES = 10_000, 100_000
# Known users come first, because a caller has one limit for all revocations.
KINDS = ("reads", "known users", "made-up users")
NO_LIMIT = {f"CLUSTERCERT_LIMITS__{name}": '"1000000/1s"' for name in ("REVOCATIONS", "PROJECT_REVOCATIONS")}
INSERTED_AT_ONCE = 1000
LISTED = 50
LIMIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Other:
    """Another project with a cluster, its admin's token, and the ids of users whom the service knows."""

    project_id: str
    cluster_id: str
    token: str
    users: Sequence[str]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures during one attack.

    Attributes:
        limited: whether revoking has its default limit.
        rate: requests of the attack a second.
        answers: how many requests of the attack got each status.
        stored: revocations that the attack stored.
        failed: reviews and requests for certificates without a correct answer.
        review_p50_ms, review_p99_ms, issue_p50_ms, issue_p99_ms: in the attacked project's neighbor.
        review_ratio, issue_ratio: the medians, divided by those without an attack in the same run.
    """

    database: str
    limited: bool
    attack: str
    rate: float
    answers: dict[str, int]
    stored: int
    failed: int
    review_p50_ms: float
    review_p99_ms: float
    review_ratio: float
    issue_p50_ms: float
    issue_p99_ms: float
    issue_ratio: float


@dataclass(frozen=True, slots=True)
class Lists:
    """The shortest time of each list in the neighbor's project, with a number of revocations in the store."""

    database: str
    revocations: int
    clusters_ms: float
    certificates_ms: float
    access_ms: float


def measure(folder: Path, seconds: float, tries: int, server: Postgres | None) -> dict[str, Any]:
    """Return the figures with and without the limit, and those of lists with all revocations and without any."""
    url, pid = (server.create(NAME), server.pid) if server else (None, None)
    store = world.prepare(folder, database_url=url, database=pid)
    database = "PostgreSQL" if server else "SQLite"
    project_id, cluster_id, password = asyncio.run(_other_project(store))
    rows: list[Figures] = []
    lists: list[Lists] = []
    for limited, variables in ((True, {}), (False, NO_LIMIT)):
        users = asyncio.run(_known_users(store, tries))
        with world.served(store, variables=variables) as served:
            token = _token(served, project_id, password)
            other = Other(project_id, cluster_id, token, users)
            rows += _attacks(store, served, other, seconds, tries, (database, limited))
            if not limited:
                lists.append(_lists(store, served, database))
                asyncio.run(_forget(store))
                lists.append(_lists(store, served, database))
    return {"attacks": [asdict(row) for row in rows], "lists": [asdict(each) for each in lists]}


def _attacks(
    store: World, served: Served, other: Other, seconds: float, tries: int, run: tuple[str, bool]
) -> list[Figures]:
    server = asyncio.run(api_server(store, store.project_id, store.cluster_id))
    requests = review(served.who.host, server, _issue(store, served)), traffic.with_token(served.who)[0]
    rows: list[Figures] = []
    for attack in ("none", *KINDS):
        before = asyncio.run(_stored(store))
        taken, answers, duration = asyncio.run(_during(served, other, attack, tries, seconds, requests))
        stored = asyncio.run(_stored(store)) - before
        reviews, issues = (sorted(each for each in part if each is not None) for part in taken)
        base = rows[0] if rows else None
        review_p50, issue_p50 = _part(reviews, 0.5), _part(issues, 0.5)
        rows.append(
            Figures(
                *run,
                attack,
                rate=sum(answers.values()) / duration,
                answers=answers,
                stored=stored,
                failed=sum(each is None for part in taken for each in part),
                review_p50_ms=review_p50,
                review_p99_ms=_part(reviews, 0.99),
                review_ratio=review_p50 / (base.review_p50_ms if base else review_p50),
                issue_p50_ms=issue_p50,
                issue_p99_ms=_part(issues, 0.99),
                issue_ratio=issue_p50 / (base.issue_p50_ms if base else issue_p50),
            )
        )
    return rows


def _part(times: Sequence[float], part: float) -> float:
    return times[min(len(times) - 1, int(len(times) * part))] * 1000


Taken = tuple[list[float | None], list[float | None]]


async def _during(
    served: Served, other: Other, attack: str, tries: int, seconds: float, requests: tuple[bytes, bytes]
) -> tuple[Taken, dict[str, int], float]:
    """Send reviews and requests for certificates while the attack runs.

    Returns the times of both, the answers to the attack, and its duration. Without an attack, lasts `seconds`.
    """
    over = asyncio.Event()
    host, _, port = served.url.partition("://")[2].partition(":")
    # Start the attacker first: its imports take seconds.
    command = [sys.executable, "-m", "bench.revoking"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    if process.stdout is None or not await process.stdout.readline():
        raise RuntimeError("the attacker did not start")
    begun = time.perf_counter()

    async def run() -> dict[str, int]:
        users = other.users if attack == "known users" else [new_id() for _ in range(tries)]
        job = {"host": host, "port": int(port), "reads": attack == "reads", "users": users}
        job |= {"project": other.project_id, "cluster": other.cluster_id, "token": other.token}
        if attack == "none":
            await asyncio.sleep(seconds)
            job["users"] = []
        try:
            out, _ = await process.communicate(json.dumps(job).encode())
            return dict(json.loads(out))
        finally:
            over.set()

    reviews, issues, answers = await asyncio.gather(
        _at_rate(host, int(port), requests[0], REVIEWS, over, expected=b'"allowed": false'),
        _at_rate(host, int(port), requests[1], ISSUES, over, expected=b"client-certificate-data"),
        run(),
    )
    return (reviews, issues), answers, time.perf_counter() - begun


async def _at_rate(
    host: str, port: int, request: bytes, rate: int, over: asyncio.Event, *, expected: bytes
) -> list[float | None]:
    """Send a request at a rate until `over`. Returns the seconds that each took, from when it was due; None: failed."""
    taken: list[float | None] = []
    sent: list[asyncio.Task[None]] = []
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(due: float) -> None:
        streams = free.pop() if free else await asyncio.open_connection(host, port)
        correct = False
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(LIMIT_SECONDS):
                status, body = await _exchange(*streams, request)
            correct = status == httpx2.codes.OK and expected in body
            free.append(streams)
        taken.append(time.perf_counter() - due if correct else None)

    begin, number = time.perf_counter(), 0
    while not over.is_set():
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent.append(asyncio.create_task(send(due)))
        number += 1
    await asyncio.gather(*sent)
    for _, writer in free:
        writer.close()
    return taken


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    """Send a request, and return the status and the body of the response."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def _attack(job: dict[str, Any]) -> dict[str, int]:
    """Revoke the certificates of each user, or read the clusters as often. Returns how often each status came."""
    host, answers = f"{job['host']}:{job['port']}", collections.Counter[int]()
    headers = traffic.JSON | {"X-Auth-Token": job["token"]}
    clusters = f"/api/v3/projects/{job['project']}/clusters"
    users = iter(job["users"])

    async def send() -> None:
        streams = await asyncio.open_connection(job["host"], job["port"])
        for user in users:
            if job["reads"]:
                request = traffic.http("GET", clusters, host, headers)
            else:
                path, body = f"{clusters}/{job['cluster']}/clustercertrevoke", json.dumps({"userId": user})
                request = traffic.http("POST", path, host, headers, body.encode())
            status, _ = await _exchange(*streams, request)
            answers[status] += 1

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    return {str(status): count for status, count in sorted(answers.items())}


def _issue(store: World, served: Served) -> Shown:
    headers = {"X-Auth-Token": served.who.token}
    with httpx2.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        answer = client.post(served.who.path(), json={"duration": 1}, headers=headers).raise_for_status()
    return Shown(
        fingerprint=bytes.fromhex(answer.headers["X-Clustercert-Fingerprint"]),
        credential_number=answer.headers["X-Clustercert-Serial"],
        user_id=store.user_id,
    )


def _lists(store: World, served: Served, database: str) -> Lists:
    own = f"/clustercert/v1/projects/{store.project_id}/clusters/{store.cluster_id}"
    paths = (f"/api/v3/projects/{store.project_id}/clusters", f"{own}/certificates", f"{own}/access")
    shortest = []
    headers = {"X-Auth-Token": served.who.token}
    with httpx2.Client(base_url=served.url, timeout=60, trust_env=False, headers=headers) as client:
        for path in paths:
            times = []
            for _ in range(LISTED):
                begin = time.perf_counter()
                client.get(path).raise_for_status()
                times.append(time.perf_counter() - begin)
            shortest.append(min(times) * 1000)
    return Lists(database, asyncio.run(_stored(store)), *shortest)


def _token(served: Served, project_id: str, password: str) -> str:
    """Log in as the admin of the other project."""
    user = {"name": "eve", "domain": {"name": "bench"}, "password": password}
    identity = {"methods": ["password"], "password": {"user": user}}
    body = {"auth": {"identity": identity, "scope": {"project": {"id": project_id}}}}
    with httpx2.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        return client.post("/v3/auth/tokens", json=body).raise_for_status().headers["X-Subject-Token"]


async def _other_project(store: World) -> tuple[str, str, str]:
    """Create another project with a cluster, and its admin. Returns the ids of both, and the admin's password."""
    actor, password = Actor(ACTOR, origin()), new_id()
    async with open_components(store.settings) as components:
        directory = components.identity.directory
        domain = await directory.find_domain("bench")
        project = await directory.create_project("eu-nl", domain, actor=actor)
        eve = await directory.create_user("eve", domain, password=password, actor=actor)
        await components.identity.roles.assign("admin", eve, project, actor=actor)
        neighbor = await components.clusters.queries.cluster(store.project_id, store.cluster_id)
        if neighbor is None:
            raise RuntimeError("the cluster is not there")
        ca = chain_pem((neighbor.client_ca.ca_certificate,))
        registration = Registration(name="other", internal_url=world.INTERNAL_URL, server_ca_pem=ca)
        cluster = await components.clusters.add(project.id, registration, actor=actor)
    return project.id, cluster.id, password


async def _known_users(store: World, count: int) -> list[str]:
    """Add users to the domain. Returns their ids."""
    ids = [new_id() for _ in range(count)]
    async with open_components(store.settings) as components:
        domain = await components.identity.directory.find_domain("bench")
        others = {"domain_id": domain.id, "enabled": True, "created_at": datetime.now(UTC), "labels": {}}
        for start in range(0, count, INSERTED_AT_ONCE):
            rows = [{"id": each, "name": each, **others} for each in ids[start : start + INSERTED_AT_ONCE]]
            async with components.database.transaction() as connection:
                await connection.execute(insert(tables.user), rows)
    return ids


async def _forget(store: World) -> None:
    """Delete all revocations."""
    async with open_components(store.settings) as components, components.database.transaction() as connection:
        await connection.execute(delete(tables.revocation))


async def _stored(store: World) -> int:
    """Count the revocations in the store."""
    async with open_components(store.settings) as components, components.database.read() as connection:
        return int(
            (await connection.execute(select(func.count()).select_from(tables.revocation))).scalar_one()
        )


if __name__ == "__main__":
    print("ready", flush=True)
    print(json.dumps(asyncio.run(_attack(json.load(sys.stdin)))))
