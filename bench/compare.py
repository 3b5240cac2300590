"""Compares this service with its peers, in turns, so that other work on the machine affects all of them."""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import tls, traffic, world, wrk
from bench.peers import Peer, cfssl, djangoca
from bench.postgres import Postgres
from bench.traffic import Who
from bench.world import Served

CONNECTIONS = (1, 16, 64)
WARM_UP_SECONDS = 1

OURS: dict[str, Callable[[Who], list[bytes]]] = {
    "token": traffic.with_token,
    "AK/SK": traffic.signed,
    "CSR": traffic.with_csr,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A row of the comparison."""

    name: str
    peer: Peer


def measure(
    folder: Path, seconds: float, rounds: int, postgres: Postgres | None, *, with_djangoca: bool
) -> dict[str, object]:
    """Start all servers, then measure them in turns for several rounds."""
    with contextlib.ExitStack() as stack:
        subjects: list[Subject] = []
        sqlite = stack.enter_context(world.served(world.prepare(folder / "sqlite")))
        subjects += _ours("SQLite", sqlite)
        if postgres:
            url = postgres.create("compare")
            store = world.prepare(folder / "postgres", database_url=url, database=postgres.pid)
            subjects += _ours("PostgreSQL", stack.enter_context(world.served(store)))
        for name, durable in (("cfssl, bare", False), ("cfssl, SQLite WAL and FULL", True)):
            running = cfssl.running(folder / ("cfssl-durable" if durable else "cfssl"), durable=durable)
            subjects.append(Subject(name, stack.enter_context(running)))
        subjects += _over_tls(folder, stack)
        if postgres and with_djangoca:
            subjects += _djangoca(folder, postgres, stack)
        for subject in subjects:
            subject.peer.load(16, WARM_UP_SECONDS)
        loads = [
            (subject.name, subject.peer.load(connections, seconds))
            for connections in CONNECTIONS
            for _ in range(rounds)
            for subject in subjects
        ]
        rows = medians(loads)
        half = _half(subjects, rows, seconds, rounds)
        return {"rounds": rounds, "seconds": seconds, "rows": rows, "half": half}


def _ours(database: str, served: Served) -> list[Subject]:
    return [
        Subject(f"clustercert, {database}, {mode}", served.taking(requests(served.who)))
        for mode, requests in OURS.items()
    ]


def _over_tls(folder: Path, stack: contextlib.ExitStack) -> list[Subject]:
    """Compare this service (token) and cfssl over TLS, with persistent connections and with one for each request."""
    store = world.prepare(folder / "tls")
    files = tls.new_files(folder / "tls")
    served = stack.enter_context(world.served(store, files=files))
    peers = {
        "clustercert, SQLite, token": served.taking(traffic.with_token(served.who)),
        "cfssl, bare": stack.enter_context(cfssl.running(folder / "cfssl-tls", durable=False, files=files)),
    }
    return [
        subject
        for name, peer in peers.items()
        for subject in (
            Subject(f"{name}, TLS, kept connections", peer),
            Subject(
                f"{name}, TLS, a connection for each request",
                replace(peer, requests=traffic.closing(peer.requests)),
            ),
        )
    ]


def _djangoca(folder: Path, postgres: Postgres, stack: contextlib.ExitStack) -> list[Subject]:
    cheap = stack.enter_context(djangoca.running(folder / "djangoca", postgres))
    shipped = djangoca.running(folder / "djangoca-shipped", postgres, cheap_passwords=False)
    return [
        Subject("django-ca, PostgreSQL, the order alone", cheap),
        Subject("django-ca, PostgreSQL, the whole order", djangoca.whole_order(cheap)),
        Subject(
            "django-ca, PostgreSQL, the order alone, its own password hash", stack.enter_context(shipped)
        ),
    ]


def medians(loads: Sequence[tuple[str, wrk.Load]]) -> list[dict[str, object]]:
    """Return a row for each subject and number of connections: medians, the sum of errors, and all rates."""
    grouped: dict[tuple[str, int], list[wrk.Load]] = {}
    for name, load in loads:
        grouped.setdefault((name, load.connections), []).append(load)
    return [
        {
            "subject": name,
            "connections": connections,
            **{
                figure: statistics.median(asdict(load)[figure] for load in group)
                for figure in ("rate", "p50_ms", "p99_ms", "max_ms", "cpu_us", "database_cpu_us")
            },
            "rates": [load.rate for load in group],
            "errors": sum(load.errors for load in group),
        }
        for (name, connections), group in grouped.items()
    ]


def _half(
    subjects: Sequence[Subject], rows: Sequence[dict[str, object]], seconds: float, rounds: int
) -> list[dict[str, object]]:
    """Measure this service (token) at half of the rate that 64 connections reached, as if from many clients."""
    connections = CONNECTIONS[-1]
    full = {str(row["subject"]): float(str(row["rate"])) for row in rows if row["connections"] == connections}
    ours = [
        each for each in subjects if each.name.startswith("clustercert") and each.name.endswith(", token")
    ]
    loads = [
        (subject.name, subject.peer.load_at(full[subject.name] / 2, connections, seconds))
        for _ in range(rounds)
        for subject in ours
    ]
    return [{**row, "full_rate": full[str(row["subject"])]} for row in medians(loads)]
