"""Measures every way to call the service, from one connection to overload."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import traffic, world
from bench.peers import cfssl
from bench.postgres import Postgres
from bench.traffic import Who
from bench.world import Served
from bench.wrk import Load

CONNECTIONS = (1, 16, 64, 256)
RSA_CONNECTIONS = (1, 16)
# More connections than two workers accept at once, so some requests get a 503.
OVERLOAD = 3000
SIGNATURES = 5000
WARM_UP_SECONDS = 1

MODES: dict[str, Callable[[Who], list[bytes]]] = {
    "POST, token": traffic.with_token,
    "POST, AK/SK": traffic.signed,
    "POST, AK/SK, a new signature each time": lambda who: traffic.signed_at_many_times(who, SIGNATURES),
    "POST, CSR": traffic.with_csr,
    "GET list": traffic.listing,
    "GET show": traffic.showing,
}


def measure(folder: Path, seconds: float, postgres: Postgres | None) -> list[dict[str, object]]:
    """Return a row for each database, mode and number of connections."""
    rows: list[dict[str, object]] = []
    with world.served(world.prepare(folder / "sqlite")) as served:
        rows += _modes("SQLite", served, seconds)
        with_token = served.taking(traffic.with_token(served.who))
        rows.append(_row("SQLite", "POST, token, overload", with_token.load(OVERLOAD, seconds)))
    with world.served(world.prepare(folder / "rsa", key_type="rsa-2048")) as served:
        with_token = served.taking(traffic.with_token(served.who))
        for connections in RSA_CONNECTIONS:
            load = with_token.load(connections, seconds)
            rows.append(_row("SQLite", "POST, token, RSA-2048", load))
    with cfssl.running(folder / "cfssl", durable=False, rsa=True) as peer:
        for connections in RSA_CONNECTIONS:
            load = peer.load(connections, seconds)
            rows.append(_row("none", "cfssl newcert, RSA-2048", load))
    if postgres:
        url = postgres.create("loads")
        store = world.prepare(folder / "postgres", database_url=url, database=postgres.pid)
        with world.served(store) as served:
            rows += _modes("PostgreSQL", served, seconds)
    return rows


def _modes(database: str, served: Served, seconds: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for mode, requests_of in MODES.items():
        peer = served.taking(requests_of(served.who))
        peer.load(CONNECTIONS[1], WARM_UP_SECONDS)
        rows += [_row(database, mode, peer.load(connections, seconds)) for connections in CONNECTIONS]
    return rows


def _row(database: str, mode: str, load: Load) -> dict[str, object]:
    return {"database": database, "mode": mode, **asdict(load)}
