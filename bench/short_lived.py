"""Measures users whose certificates live 5 minutes: kubectl's plugin renews each one after half of its lifetime.

Each user renews over a new connection, with a signature by their own access key and a CSR, at times that are spread
evenly, as the plugins of many users do who work all the time.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from bench import processes, traffic, world
from bench.postgres import Postgres
from bench.world import ACTOR, Served, World, origin
from clustercert.cli.credential.certificate import due_time
from clustercert.model import Actor
from clustercert.policy.lifetime import MIN_LIFETIME
from clustercert.wiring import open_components

USERS = 1000
LIFETIME = int(MIN_LIFETIME.total_seconds())
RENEWAL_SECONDS = due_time(0, LIFETIME)
MOST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One run.

    Attributes:
        rate: renewals a second.
        p50_ms, p99_ms, max_ms: time of a renewal, with its connection, from the moment at which it was due.
        processors: processor time of the service and its database for each second.
        refused: renewals that got another answer than 200, or none within 30 seconds.
        kilobytes: growth of the database for each certificate, SQLite only.
    """

    database: str
    users: int
    renewals: int
    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    processors: float
    refused: int
    kilobytes: float | None


@dataclass(frozen=True, slots=True)
class _Renewal:
    user: traffic.Who
    body: bytes

    async def send(self, url: str, due: float) -> tuple[float, int]:
        """Renew once. Returns the seconds since the renewal was due, and the status; 0 without an answer."""
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        headers = traffic.signed_headers("POST", self.user, self.user.path(), datetime.now(UTC), self.body)
        status = 0
        async with httpx2.AsyncClient(base_url=url, timeout=MOST_SECONDS, trust_env=False) as client:
            with contextlib.suppress(httpx2.TransportError):
                answer = await client.post(self.user.path(), content=self.body, headers=headers)
                status = answer.status_code
        return time.monotonic() - due, status


def measure(folder: Path, seconds: float, users: int, postgres: Postgres | None) -> list[dict[str, object]]:
    """Return the figures for each database."""
    rows = [_measure(world.prepare(folder / "sqlite"), "SQLite", seconds, users)]
    if postgres:
        url = postgres.create("short_lived")
        store = world.prepare(folder / "postgres", database_url=url, database=postgres.pid)
        rows.append(_measure(store, "PostgreSQL", seconds, users))
    return [asdict(row) for row in rows]


def _measure(store: World, database: str, seconds: float, users: int) -> Figures:
    keys = asyncio.run(_users(store, users))
    size = _size(store)
    with world.served(store) as served:
        renewals = [
            _Renewal(replace(served.who, access_key=key, secret_key=secret), _body()) for key, secret in keys
        ]
        used = sum(map(processes.cpu_seconds, served.roots))
        taken = asyncio.run(_run(served, renewals, seconds))
        used = sum(map(processes.cpu_seconds, served.roots)) - used
    # The service has ended, so the write-ahead log is in the database.
    grown = _size(store) - size
    times = sorted(each * 1000 for each, status in taken if status == httpx2.codes.OK)
    if not times:
        raise RuntimeError(f"no renewal succeeded: {sorted({status for _, status in taken})}")
    return Figures(
        database=database,
        users=users,
        renewals=len(taken),
        rate=len(taken) / seconds,
        p50_ms=times[len(times) // 2],
        p99_ms=times[int(len(times) * 0.99)],
        max_ms=times[-1],
        processors=used / seconds,
        refused=len(taken) - len(times),
        kilobytes=grown / len(times) / 1000 if store.database is None else None,
    )


async def _run(served: Served, renewals: Sequence[_Renewal], seconds: float) -> list[tuple[float, int]]:
    """Let each user renew at a random time, and every `RENEWAL_SECONDS` after it."""
    start, due = time.monotonic(), []
    for renewal in renewals:
        at = random.uniform(0, RENEWAL_SECONDS)
        while at < seconds:
            due.append(renewal.send(served.url, start + at))
            at += RENEWAL_SECONDS
    return await asyncio.gather(*due)


def _body() -> bytes:
    return json.dumps({"expires_in": LIFETIME, "csr": traffic.csr_pem()}).encode()


def _size(store: World) -> int:
    return sum(each.stat().st_size for each in (store.folder / "data").rglob("*") if each.is_file())


async def _users(store: World, count: int) -> list[tuple[str, str]]:
    """Create users who are members of the project. Returns an access key of each."""
    keys = []
    async with open_components(store.settings) as components:
        identity = components.identity
        project = await identity.directory.find_project(store.project_id, None)
        domain = await identity.directory.find_domain("bench")
        for number in range(count):
            actor = Actor(ACTOR, origin())
            user = await identity.directory.create_user(f"user-{number}", domain, actor=actor)
            await identity.roles.assign("admin", user, project, actor=actor)
            issued = await identity.access_keys.create(user, actor=actor)
            keys.append((issued.key.id, issued.secret))
    return keys
