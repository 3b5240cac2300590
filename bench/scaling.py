"""Computes what a region, a cloud and the planet need from the cost of one certificate.

Checks docs/evidence/scaling.md. Needs only Python and the figures in measured.json:
`python -m bench.scaling` compares, `--write` writes.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import report

DOCUMENT = report.ROOT / "docs" / "evidence" / "scaling.md"

# Assumptions. Everything else is measured.
RENEWAL_HOURS = 8
PEAK = 3.0
UTILISATION = 0.5
RETENTION_DAYS = (7, 90)
# The limits of an ordinary database server: storage, cores, and write-ahead log per second.
CELL_TERABYTES = 8.0
CELL_CORES = 32
CELL_WAL_MEGABYTES = 100.0
HOUR, DAY = 3600, 86400
MEGA, TERA = 1e6, 1e12


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one certificate with PostgreSQL.

    Attributes:
        worker_us, database_us: microseconds on one core.
        cold_worker_us: the same if the worker has not cached the cluster.
        stored_bytes: row, audit event and indexes.
        wal_bytes: bytes of write-ahead log, which is flushed and sent to replicas.
    """

    worker_us: float
    cold_worker_us: float
    database_us: float
    stored_bytes: float
    wal_bytes: float


@dataclass(frozen=True, slots=True)
class Place:
    """The numbers of clusters and of live certificates in a place."""

    name: str
    clusters: int
    live: int


PLACES = (
    Place("a region", 10_000, 1_000_000),
    Place("a cloud", 100_000, 10_000_000),
    Place("the planet", 1_000_000, 100_000_000),
)


@dataclass(frozen=True, slots=True)
class Need:
    """The resources that a place needs.

    Attributes:
        rate, peak: certificates per second.
        worker_cores, cold_worker_cores, database_cores: at the peak, half idle.
        wal_megabytes: per second, at the peak.
        stored_terabytes: by days of retention.
        cells: installations with a database of their own, by days of retention.
    """

    rate: float
    peak: float
    worker_cores: int
    cold_worker_cores: int
    database_cores: int
    wal_megabytes: float
    stored_terabytes: tuple[float, ...]
    cells: tuple[int, ...]


def cost(measured: Mapping[str, Any]) -> Cost:
    """Take the cost from the comparison at 64 connections and the largest PostgreSQL store. Raises ValueError.

    Without a measurement of growth with PostgreSQL, the store is the one of a former build.
    """
    rows = [
        row
        for row in measured.get("compare", {}).get("rows", ())
        if (row["subject"], row["connections"]) == ("clustercert, PostgreSQL, token", 64)
    ]
    largest = _largest(measured)
    if not rows or not largest:
        raise ValueError("measured.json has no figures for PostgreSQL: run make bench ARGS='compare growth'.")
    return Cost(
        worker_us=rows[0]["cpu_us"] - rows[0]["database_cpu_us"],
        cold_worker_us=largest["spread_cpu_us"],
        database_us=rows[0]["database_cpu_us"],
        stored_bytes=largest["bytes_each"],
        wal_bytes=largest["wal_bytes_each"],
    )


def _largest(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    sizes = [row for row in measured.get("growth", ()) if row["database"] == "PostgreSQL"]
    return dict(sizes[-1] if sizes else measured.get("former_build", {}))


def need(place: Place, each: Cost) -> Need:
    """Compute the needs of a place."""
    rate = place.live / (RENEWAL_HOURS * HOUR)
    peak = rate * PEAK
    worker_cores, cold_worker_cores, database_cores = (
        math.ceil(peak * used / 1e6 / UTILISATION)
        for used in (each.worker_us, each.cold_worker_us, each.database_us)
    )
    wal = peak * each.wal_bytes / MEGA
    stored = tuple(rate * DAY * days * each.stored_bytes / TERA for days in RETENTION_DAYS)
    cells = tuple(
        math.ceil(max(terabytes / CELL_TERABYTES, database_cores / CELL_CORES, wal / CELL_WAL_MEGABYTES))
        for terabytes in stored
    )
    return Need(rate, peak, worker_cores, cold_worker_cores, database_cores, wal, stored, cells)


def tables(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables in docs/evidence/scaling.md."""
    each = cost(measured)
    measured_on = _largest(measured).get("measured")
    growth = f"a build of {measured_on}" if measured_on else "measured, bench `growth`"
    inputs: list[tuple[object, ...]] = [
        ("service, µs of a core", each.worker_us, "measured, bench `compare`"),
        ("service, cluster not in memory, µs of a core", each.cold_worker_us, growth),
        ("database, µs of a core", each.database_us, "measured, bench `compare`"),
        ("stored, bytes", each.stored_bytes, growth),
        ("write-ahead log, bytes", each.wal_bytes, growth),
        ("renewed after, hours", float(RENEWAL_HOURS), "assumed"),
        ("busiest moment, x the mean", PEAK, "assumed"),
        ("a core is used to", UTILISATION, "assumed"),
    ]
    rows: list[tuple[object, ...]] = []
    for place in PLACES:
        is_ = need(place, each)
        storage = [figure for pair in zip(is_.stored_terabytes, is_.cells, strict=True) for figure in pair]
        rows.append(
            (
                *(place.name, place.clusters, place.live, is_.rate, is_.peak, is_.worker_cores),
                *(is_.cold_worker_cores, is_.database_cores, is_.wal_megabytes, *storage),
            )
        )
    per_retention = [
        head for days in RETENTION_DAYS for head in (f"TB, {days} days kept", f"cells, {days} days")
    ]
    heads = (
        *("for", "clusters", "live certificates", "a second", "at the peak", "service cores"),
        *("with no cluster in memory", "database cores", "WAL MB/s", *per_retention),
    )
    return {
        "inputs": report.markdown(("one certificate", "figure", "from"), inputs),
        "places": report.markdown(heads, rows),
    }


def main(arguments: Sequence[str]) -> int:
    """Compare or write. Returns 1 if the document differs from the computed figures."""
    text = DOCUMENT.read_text(encoding="utf-8")
    try:
        right = report.filled(text, tables(report.load()))
    except ValueError as problem:
        print(problem)
        return 1
    if "--write" in arguments:
        DOCUMENT.write_text(right, encoding="utf-8")
    elif text != right:
        print("docs/evidence/scaling.md differs from the figures. Run python -m bench.scaling --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
