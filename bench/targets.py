"""Compares the figures with the performance targets for two cores, including the load generator."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONNECTIONS = 64
SQLITE, POSTGRES = "clustercert, SQLite", "clustercert, PostgreSQL"
BARE, DURABLE = "cfssl, bare", "cfssl, SQLite WAL and FULL"
ORDER, WHOLE_ORDER = (f"django-ca, PostgreSQL, the {which}" for which in ("order alone", "whole order"))
TEN_MILLION = 10_000_000
QUERIES = ("list_p99_ms", "show_p99_ms", "inventory_p99_ms", "page_p99_ms", "find_p99_ms")
HALF_RATE_MS, QUERY_MS, REVIEW_MS, START_SECONDS, MEMORY_MB = 25, 10, 5, 2, 150
KEPT_RATE = 0.8
TRACED_RATE = 0.95
# Growth between the halves of a soak, in MB, that does not count as a leak.
FLAT = 0.05
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Target:
    """A target and the figure that was reached.

    Attributes:
        wanted: the target; empty for a figure that is only shown next to one with a target.
        reached: None if there is no target, or if it was not measured.
    """

    what: str
    wanted: str
    measured: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """Return the result in a word."""
        if self.measured == UNKNOWN:
            return "not measured"
        return {True: "yes", False: "**no**", None: "not promised"}[self.reached]


def judge(measured: Mapping[str, Any]) -> list[Target]:
    """Compare every target with its figure."""
    return [
        *_against_peers(measured),
        *_growing(measured),
        *_reviewing(measured),
        _tracing(measured),
        _memory(measured),
        *_commands(measured),
    ]


def _against_peers(measured: Mapping[str, Any]) -> Iterator[Target]:
    rows = {
        row["subject"]: row
        for row in measured.get("compare", {}).get("rows", ())
        if row["connections"] == CONNECTIONS
    }

    def ratio(what: str, ours: str, theirs: str, wanted: float | None, figure: str = "rate") -> Target:
        at_most = figure == "p99_ms"
        text = "" if wanted is None else f"{'at most ' if at_most else ''}{wanted} x"
        if ours not in rows or theirs not in rows:
            return Target(what, text, UNKNOWN, None)
        is_ = rows[ours][figure] / rows[theirs][figure]
        reached = None if wanted is None else is_ <= wanted if at_most else is_ >= wanted
        return Target(what, text, f"{is_:.2f} x", reached)

    yield ratio("SQLite, token, against cfssl bare", f"{SQLITE}, token", BARE, 1.1)
    yield ratio("SQLite, AK/SK, against cfssl bare", f"{SQLITE}, AK/SK", BARE, 1.1)
    yield ratio("SQLite, token, against cfssl with a durable SQLite", f"{SQLITE}, token", DURABLE, 2.5)
    yield ratio("the same, p99", f"{SQLITE}, token", DURABLE, 0.1, "p99_ms")
    for connections, least in (("a connection for each request", 1.0), ("kept connections", 1.1)):
        ours, theirs = (f"{name}, TLS, {connections}" for name in (f"{SQLITE}, token", BARE))
        yield ratio(f"TLS, {connections}, against cfssl with TLS", ours, theirs, least)
    yield ratio("PostgreSQL, token, against cfssl bare", f"{POSTGRES}, token", BARE, 1.1)
    in_hand = "PostgreSQL, token, against django-ca, the certificate in the client's hands"
    yield ratio(in_hand, f"{POSTGRES}, token", WHOLE_ORDER, 20)
    yield ratio("the same, against django-ca's order alone", f"{POSTGRES}, token", ORDER, None)
    yield ratio("SQLite, CSR against generated keys", f"{SQLITE}, CSR", f"{SQLITE}, token", 0.6)
    half = {row["subject"]: row["p99_ms"] for row in measured.get("compare", {}).get("half", ())}
    for name in (SQLITE, POSTGRES):
        what, wanted = f"{name.partition(', ')[2]}, p99 at half of its rate", f"under {HALF_RATE_MS} ms"
        yield _below(what, wanted, half.get(f"{name}, token"), HALF_RATE_MS, "ms")


def _growing(measured: Mapping[str, Any]) -> Iterator[Target]:
    for database in ("SQLite", "PostgreSQL"):
        sizes = [row for row in measured.get("growth", ()) if row["database"] == database]
        full = bool(sizes) and sizes[-1]["certificates"] >= TEN_MILLION
        last = sizes[-1] if full else None
        kept = last["steady_rate"] / sizes[0]["steady_rate"] if last and last["steady_rate"] else None
        yield Target(
            f"{database}, steady rate at 10^7 certificates against an empty store",
            f"{KEPT_RATE} x",
            UNKNOWN if kept is None else f"{kept:.2f} x",
            None if kept is None else kept >= KEPT_RATE,
        )
        slowest = max(last[figure] for figure in QUERIES) if last else None
        what = f"{database}, list, show, inventory, page, find at 10^7: the slowest p99"
        yield _below(what, f"under {QUERY_MS} ms", slowest, QUERY_MS, "ms")
        start = last["start_ms"] / 1000 if last else None
        what = f"{database}, start to ready at 10^7 certificates and 10^6 clusters"
        yield _below(what, f"under {START_SECONDS} s", start, START_SECONDS, "s")


def _reviewing(measured: Mapping[str, Any]) -> Iterator[Target]:
    for database in ("SQLite", "PostgreSQL"):
        sizes = [row for row in measured.get("webhook", ()) if row["database"] == database]
        p99 = sizes[-1]["known"]["p99_ms"] if sizes else None
        what = f"{database}, 2,000 reviews a second of known credentials, p99 in the largest store measured"
        yield _below(what, f"under {REVIEW_MS} ms", p99, REVIEW_MS, "ms")


def _tracing(measured: Mapping[str, Any]) -> Target:
    what, wanted = "1 % of the requests traced, rate against none traced", f"{TRACED_RATE} x"
    rows = measured.get("tracing")
    if rows is None:
        return Target(what, wanted, UNKNOWN, None)
    kept = rows[1]["rate"] / rows[0]["rate"]
    return Target(what, wanted, f"{kept:.2f} x", kept >= TRACED_RATE)


def _memory(measured: Mapping[str, Any]) -> Target:
    what, wanted = "memory of a worker, a soak at 64 connections", f"under {MEMORY_MB} MB, flat"
    soak = measured.get("soak")
    if soak is None:
        return Target(what, wanted, UNKNOWN, None)
    growth = soak["second_half_mb"] - soak["first_half_mb"]
    reached = soak["most_mb"] < MEMORY_MB and growth < FLAT * soak["first_half_mb"]
    return Target(what, wanted, f"{soak['most_mb']:.0f} MB, {growth:+.1f} MB from half to half", reached)


def _commands(measured: Mapping[str, Any]) -> Iterator[Target]:
    for row in measured.get("cli", ()):
        if row["limit"] is not None:
            what, wanted = (
                f"the command `{row['command']}`, against a bare Python",
                f"at most {row['limit']} x",
            )
            yield Target(what, wanted, f"{row['ratio']:.1f} x", row["ratio"] <= row["limit"])


def _below(what: str, wanted: str, value: float | None, limit: float, unit: str) -> Target:
    if value is None:
        return Target(what, wanted, UNKNOWN, None)
    return Target(what, wanted, f"{value:.1f} {unit}", value < limit)
