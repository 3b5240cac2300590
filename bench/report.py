"""Writes the figures as tables into the documentation, between marks, or compares them with it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import targets

ROOT = Path(__file__).parent.parent
MEASURED = Path(__file__).with_name("measured.json")
DOCUMENT = ROOT / "docs" / "evidence" / "performance.md"

Measured = Mapping[str, Any]


def load() -> dict[str, Any]:
    """Load all stored figures. Some parts may be older than others."""
    return dict(json.loads(MEASURED.read_text())) if MEASURED.exists() else {}


def save(part: str, value: object) -> None:
    """Store one part, in place of its previous figures."""
    MEASURED.write_text(json.dumps(load() | {part: value}, indent=1) + "\n")


def filled(document: str, tables: Mapping[str, str]) -> str:
    """Insert the tables into a document, each between `<!-- bench:NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        mark, end = f"<!-- bench:{name} -->\n", "<!-- end -->"
        before, found, rest = document.partition(mark)
        if not found or end not in rest:
            raise ValueError(f"the document has no place for {name}: {mark.strip()} … {end}")
        document = f"{before}{mark}{table}\n{end}{rest.partition(end)[2]}"
    return document


def markdown(heads: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    """Format a table. Figures are aligned to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    figures = [bool(rows) and isinstance(rows[0][column], int | float) for column in range(len(heads))]
    ruler = ["---:" if figure else "---" for figure in figures]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), ruler, *cells])


def _cell(value: object) -> str:
    """Format a figure with three significant digits, or a mark if nothing was measured."""
    if isinstance(value, float):
        decimals = sum(abs(value) < limit for limit in (100, 10))
        return f"{value:,.{decimals}f}"
    if value is None:
        return targets.UNKNOWN
    return f"{value:,}" if isinstance(value, int) else str(value)


def performance(measured: Measured) -> dict[str, str]:
    """Return the tables in docs/evidence/performance.md for which there are figures."""
    makers = {
        "peers": _peers,
        "machine": _machine,
        "floor": _floor,
        "compare": _compare,
        "loads": _loads,
        "steps": _steps,
        "growth": _growth,
        "webhook": _webhook,
        "attacked": _attacked,
        "exposed": _exposed,
        "logins": _logins,
        "short_lived": _short_lived,
        "revoking": _revoking,
        "slow_postgres": _slow_postgres,
        "console": _console,
        "tracing": _tracing,
        "audit_log": _audit_log,
        "policy": _policy,
        "signers": _signers,
        "cli": _cli,
        "kills": _kills,
        "soak": _soak,
    }
    made = {part: make(measured) for part, make in makers.items() if part in measured}
    return made | {"targets": _targets(measured)}


def _machine(measured: Measured) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in measured["machine"].items())


def _peers(measured: Measured) -> str:
    peers = measured["peers"]
    ours = peers["rows"][0]["rate"]
    rows: list[tuple[object, ...]] = [
        (
            f"{row['subject']} {peers['versions'][row['subject']]}",
            f"{row['rate'] / ours:.0%}",
            row["errors"],
        )
        for row in peers["rows"]
    ]
    heads = ("server", "rate, compared with clustercert", "errors")
    conditions = (
        f"Measured on {peers['measured']}: medians of {peers['rounds']} alternating rounds of"
        f" {peers['seconds']:.0f} s. The load average before was {peers['load_average']:.1f}."
    )
    return f"{markdown(heads, rows)}\n\n{conditions}"


def _targets(measured: Measured) -> str:
    rows: list[tuple[object, ...]] = [
        (target.what, target.wanted, target.measured, target.verdict) for target in targets.judge(measured)
    ]
    return markdown(("what", "at least", "measured", "reached"), rows)


def _floor(measured: Measured) -> str:
    floor = measured["floor"]
    rows: list[tuple[object, ...]] = [
        ("P-256 key", floor["keygen_us"]),
        ("P-256 signature", floor["sign_us"]),
        ("P-256 signature, `openssl speed`", floor["openssl_sign_us"]),
        ("RSA-2048 key", floor["rsa_keygen_us"]),
    ]
    return markdown((f"{floor['openssl']}, one core", "µs"), rows)


def _compare(measured: Measured) -> str:
    bare = {
        row["connections"]: row["rate"]
        for row in measured["compare"]["rows"]
        if row["subject"] == "cfssl, bare"
    }
    rows: list[tuple[object, ...]] = [
        (
            row["subject"],
            row["connections"],
            row["rate"],
            row["rate"] / bare[row["connections"]],
            row["p50_ms"],
            row["p99_ms"],
            row["cpu_us"],
            row["errors"],
        )
        for row in sorted(measured["compare"]["rows"], key=lambda row: row["connections"])
    ]
    heads = ("server", "connections", "a second", "x cfssl, bare", "p50 ms", "p99 ms", "CPU µs", "errors")
    half: list[tuple[object, ...]] = [
        (row["subject"], row["rate"], row["rate"] / row["full_rate"], row["p50_ms"], row["p99_ms"])
        for row in measured["compare"]["half"]
    ]
    at_half = markdown(("at half of that rate", "a second", "of the full rate", "p50 ms", "p99 ms"), half)
    return f"{markdown(heads, rows)}\n\n{at_half}"


def _loads(measured: Measured) -> str:
    rows: list[tuple[object, ...]] = [
        (
            row["database"],
            row["mode"],
            row["connections"],
            row["rate"],
            row["p50_ms"],
            row["p99_ms"],
            row["cpu_us"],
            row["errors"],
        )
        for row in measured["loads"]
    ]
    heads = ("database", "request", "connections", "a second", "p50 ms", "p99 ms", "CPU µs", "errors")
    return markdown(heads, rows)


def _steps(measured: Measured) -> str:
    steps = measured["steps"]
    whole = steps["served"]
    rest = {
        "ledger: insert, commit, wait": steps["record"],
        "edge, routing, event loop": steps["application"] - steps["record"] - sum(steps["steps"].values()),
        "HTTP server, sockets, kernel": whole - steps["application"],
    }
    rows: list[tuple[object, ...]] = [
        (step, used, f"{100 * used / whole:.0f} %") for step, used in {**steps["steps"], **rest}.items()
    ]
    return markdown(("step", "CPU µs", "of all"), [*rows, ("all", whole, "100 %")])


# The figures for growth in two tables, for writing and for reading: heading and field of each column.
_WRITTEN = {
    "start ms": "start_ms",
    "first POST ms": "first_ms",
    "issued a second, at first": "rate",
    "issued a second, steady": "steady_rate",
    "over many clusters": "spread_rate",
    "CPU µs then": "spread_cpu_us",
    "revoke p99 ms": "revoke_p99_ms",
    "bytes each": "bytes_each",
    "WAL bytes each, at first": "wal_bytes_each",
    "WAL bytes each, steady": "steady_wal_bytes_each",
}
_READ = {
    "list p99 ms": "list_p99_ms",
    "show p99 ms": "show_p99_ms",
    "inventory p99 ms": "inventory_p99_ms",
    "page p99 ms": "page_p99_ms",
    "find p99 ms": "find_p99_ms",
    "/metrics ms": "metrics_ms",
    "errors": "errors",
}


def _growth(measured: Measured) -> str:
    return "\n\n".join(_of_sizes(measured["growth"], columns) for columns in (_WRITTEN, _READ))


def _of_sizes(sizes: Sequence[Measured], columns: Mapping[str, str]) -> str:
    named = {"database": "database", "certificates": "certificates", "clusters": "clusters", **columns}
    return markdown(tuple(named), [tuple(size[figure] for figure in named.values()) for size in sizes])


def _webhook(measured: Measured) -> str:
    asked = {
        "nothing, `/healthz`": "nothing",
        "reviews of known credentials": "known",
        "reviews of new ones each": "first",
    }
    rows: list[tuple[object, ...]] = [
        (
            *(size["database"], size["certificates"], size["revocations"], what),
            *(size[load][figure] for figure in ("rate", "p50_ms", "p99_ms", "max_ms", "cpu_us", "errors")),
            size["revoked_ms"],
        )
        for size in measured["webhook"]
        for what, load in asked.items()
    ]
    heads = ("database", "certificates", "revocations", "asked for", "a second", "p50 ms", "p99 ms", "max ms")
    return markdown((*heads, "CPU µs", "errors", "revoked after ms"), rows)


def _policy(measured: Measured) -> str:
    policy = measured["policy"]
    decisions: list[tuple[object, ...]] = [(row["what"], row["us"]) for row in policy["decisions"]]
    replay = policy["replay"]
    figures = ("decisions", "changed", "seconds", "memory_mb")
    replayed: tuple[object, ...] = tuple(replay[figure] for figure in figures)
    heads = ("decisions replayed", "changed", "seconds", "memory MB")
    return f"{markdown(('policy', 'a decision, µs'), decisions)}\n\n{markdown(heads, [replayed])}"


def _signers(measured: Measured) -> str:
    signers = measured["signers"]
    costs = [
        (row["signer"], row["p50_us"], row["cpu_us"], row["rate"], row["cpu_at_once_us"])
        for row in signers["costs"]
    ]
    tables = [markdown(("signer", "p50 µs", "CPU µs", "a second, 8 at once", "CPU µs, 8 at once"), costs)]
    if signers["endurance"]:
        figures = ("signer", "at_once", "signatures", "errors", "seconds")
        more = ("files_more", "threads_more", "memory_mb_more")
        endured = [tuple(row[figure] for figure in (*figures, *more)) for row in signers["endurance"]]
        heads = ("signer", "at once", "signatures", "errors", "seconds", "more files")
        tables.append(markdown((*heads, "more threads", "more MB"), endured))
    if "outage" in signers:
        outage = signers["outage"]
        kills = [(outage["kills"], outage["refused_ms"], outage["back_ms"])]
        tables.append(markdown(("kills", "refused after ms, at most", "back after ms, at most"), kills))
        stopped = [(row["state"], row["local_p50_us"], row["local_p99_us"]) for row in signers["stopped"]]
        tables.append(markdown(("daemon", "signer `local`, p50 µs", "p99 µs"), stopped))
    return "\n\n".join(tables)


def _audit_log(measured: Measured) -> str:
    heads = ("database", "events", "sealed a second", "written beside", "in the log after ms", "proof p50 ms")
    more = ("proof p99 ms", "consistency p99 ms", "page p99 ms", "bytes each")
    figures = (
        *("database", "events", "sealed_rate", "steady_rate", "lag_ms", "proof_p50_ms"),
        *("proof_p99_ms", "consistency_p99_ms", "page_p99_ms", "bytes_each"),
    )
    rows: list[tuple[object, ...]] = [
        tuple(size[figure] for figure in figures) for size in measured["audit_log"]
    ]
    return markdown((*heads, *more), rows)


def _attacked(measured: Measured) -> str:
    return _reviews("attack on the API", measured["attacked"])


def _exposed(measured: Measured) -> str:
    return _reviews("attack on both roles", measured["exposed"])


def _logins(measured: Measured) -> str:
    rows: list[tuple[object, ...]] = [
        (
            row["attackers"],
            f"one /{row['prefix']}" if row["prefix"] else "anywhere",
            row["networks"],
            row["logins"],
            f"{row['in_time']:.0%}",
            *(row[figure] for figure in ("p50_ms", "p90_ms", "refused")),
        )
        for row in measured["logins"]
    ]
    heads = ("attackers", "their addresses", "users' networks", "logins", "in 5 s", "p50 ms", "p90 ms")
    return markdown((*heads, "refused"), rows)


def _short_lived(measured: Measured) -> str:
    figures = {
        "database": "database",
        "users": "users",
        "renewals": "renewals",
        "a second": "rate",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "longest ms": "max_ms",
        "processors": "processors",
        "errors": "refused",
        "kB of database": "kilobytes",
    }
    rows = [tuple(row[name] for name in figures.values()) for row in measured["short_lived"]]
    return markdown(tuple(figures), rows)


def _revoking(measured: Measured) -> str:
    figures = (
        "review_p50_ms",
        "review_p99_ms",
        "review_ratio",
        "issue_p50_ms",
        "issue_p99_ms",
        "issue_ratio",
    )
    rows: list[tuple[object, ...]] = [
        (
            row["database"],
            "default" if row["limited"] else "none",
            row["attack"],
            row["rate"],
            ", ".join(f"{count:,} x {status}" for status, count in row["answers"].items()),
            row["stored"],
            *(row[figure] for figure in figures),
            row["failed"],
        )
        for row in measured["revoking"]["attacks"]
    ]
    heads = (
        "database",
        "limit",
        "attack",
        "a second",
        "answers",
        "stored",
        "review p50 ms",
        "p99 ms",
        "ratio",
    )
    more = ("issue p50 ms", "p99 ms", "ratio", "failed")
    lists: list[tuple[object, ...]] = [
        tuple(
            row[figure]
            for figure in ("database", "revocations", "clusters_ms", "certificates_ms", "access_ms")
        )
        for row in measured["revoking"]["lists"]
    ]
    of_lists = markdown(
        ("database", "revocations", "clusters ms", "certificates ms", "access report ms"), lists
    )
    return f"{markdown((*heads, *more), rows)}\n\n{of_lists}"


def _slow_postgres(measured: Measured) -> str:
    return _reviews("what is slow", measured["slow_postgres"])


def _console(measured: Measured) -> str:
    console = measured["console"]
    page = {
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "CPU ms": "server_ms",
        "kB": "kilobytes",
    }
    loads = {
        "other requests": "what",
        "pages": "pages",
        "a second": "rate",
        "with the page": "with_page_rate",
        "ratio": "ratio",
        "p99 ms": "p99_ms",
        "p99 ms with the page": "with_page_p99_ms",
        "errors": "errors",
    }
    first = {"database": "database", "certificates": "certificates", "users": "users"}
    return "\n\n".join(
        markdown(tuple(columns), [tuple(row[figure] for figure in columns.values()) for row in console[part]])
        for part, columns in (("page", first | page), ("loads", {"database": "database"} | loads))
    )


def _tracing(measured: Measured) -> str:
    off = measured["tracing"][0]
    rows: list[tuple[object, ...]] = [
        (
            row["traces"],
            row["rate"],
            row["rate"] / off["rate"],
            row["cpu_us"],
            row["cpu_us"] / off["cpu_us"],
            row["p99_ms"],
            row["errors"],
        )
        for row in measured["tracing"]
    ]
    heads = ("traces", "a second", "to off", "CPU µs", "to off", "p99 ms", "errors")
    return markdown(heads, rows)


def _reviews(what: str, measured: Sequence[Mapping[str, object]]) -> str:
    figures = ("attack", "reviews", "failed", "p50_ms", "p99_ms", "most_ms")
    rows: list[tuple[object, ...]] = [tuple(row[figure] for figure in figures) for row in measured]
    return markdown((what, "reviews", "failed", "p50 ms", "p99 ms", "most ms"), rows)


def _cli(measured: Measured) -> str:
    rows: list[tuple[object, ...]] = [
        (
            f"`{row['command']}`",
            row["ms"],
            row["ratio"],
            *(("", "") if row["limit"] is None else (f"{row['limit']} x", _reached(row))),
        )
        for row in measured["cli"]
    ]
    return markdown(("command", "ms", "times a bare Python", "at most", "reached"), rows)


def _reached(command: Measured) -> str:
    return "yes" if command["ratio"] <= command["limit"] else "**no**"


def _kills(measured: Measured) -> str:
    rows: list[tuple[object, ...]] = [
        (
            *(row[figure] for figure in ("database", "interruption", "times", "certificates", "unavailable")),
            *(len(row["others"]), row["not_in_ledger"], row["not_in_audit_log"]),
        )
        for row in measured["kills"]
    ]
    heads = ("database", "interruption", "times", "certificates received", "503 with Retry-After")
    return markdown((*heads, "other answers", "missing in the ledger", "missing in the audit log"), rows)


def _soak(measured: Measured) -> str:
    soak = measured["soak"]
    rows: list[tuple[object, ...]] = [
        ("seconds", soak["seconds"]),
        ("issued a second", soak["rate"]),
        ("errors", float(soak["errors"])),
        ("largest process at the start, MB", soak["start_mb"]),
        ("median in the first half, MB", soak["first_half_mb"]),
        ("median in the second half, MB", soak["second_half_mb"]),
        ("most, MB", soak["most_mb"]),
    ]
    return markdown(("soak", "measured"), rows)
