"""Measures what only one PostgreSQL primary can do: revocations, and indexes of a large table.

`python -m bench.primary` prints the figures of docs/scaling.md.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from bench import bulk, postgres, traffic, world
from clustercert.model import Actor, CertificateRecord, Revocation, new_id
from clustercert.model.events.administration import RevocationChanged
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database

DATABASE = "primary"
AT_ONCE = 64
SECONDS = 10.0
ROWS, CLUSTERS = 1_000_000, 1_000


def _event(user_id: str) -> RevocationChanged:
    return RevocationChanged(
        at=datetime.now(UTC),
        kind="user.revoked",
        actor=Actor(world.ACTOR, world.origin()),
        subject=user_id,
        user_id=user_id,
        cluster_id=None,
        reason="superseded",
        note=None,
        proved=False,
        serial=None,
    )


async def _rate(work: Callable[[], Awaitable[object]]) -> float:
    """Return how often a second the work is done, with `AT_ONCE` tasks."""
    count, end = 0, time.monotonic() + SECONDS

    async def repeat() -> None:
        nonlocal count
        while time.monotonic() < end:
            await work()
            count += 1

    began = time.monotonic()
    await asyncio.gather(*(repeat() for _ in range(AT_ONCE)))
    return count / (time.monotonic() - began)


async def _rates(database: Database) -> tuple[float, float]:
    """Return how many certificates are recorded, and how many users are revoked, a second."""
    ledger, revocations = Ledger(database), RevocationQueries(database)
    async with database.read() as connection:
        names = [each.name for each in fields(CertificateRecord) if each.name in tables.certificate.c]
        query = select(*(tables.certificate.c[name] for name in names)).limit(1)
        template = CertificateRecord(**dict((await connection.execute(query)).mappings().one()))

    async def record() -> None:
        fingerprint = os.urandom(32)
        number = f"{int.from_bytes(os.urandom(20)) >> 1:040x}"
        new = replace(template, fingerprint=fingerprint, serial=number, credential_number=number)
        await ledger.record(new, _event(template.user_id))

    async def revoke() -> None:
        user_id = new_id()
        now = datetime.now(UTC)
        revocation = Revocation(0, 0, None, user_id, "", now, world.ACTOR, "superseded")
        await revocations.revoke(revocation, _event(user_id))

    return await _rate(record), await _rate(revoke)


async def _measure(database: Database) -> tuple[float, float]:
    try:
        return await _rates(database)
    finally:
        await database.close()


def main() -> int:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="clustercert-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with postgres.running(folder / "postgres") as server:
            store = world.prepare(folder / "store", database_url=server.create(DATABASE))
            with world.served(store, workers=1) as served:
                # The certificate that is copied.
                served.taking(traffic.with_token(served.who)).load(1, 1)
            recorded, revoked = asyncio.run(_measure(Database(store.settings.store_url)))
            print(f"recorded a second: {recorded:,.0f}; revoked a second: {revoked:,.0f}")
            filler = bulk.Filler(store, server, DATABASE)
            asyncio.run(filler.add_reachable(0, CLUSTERS))
            filler.add_certificates(ROWS, CLUSTERS)
            began = time.monotonic()
            server.sql(DATABASE, "CREATE INDEX ix_new ON certificate (request_id)")
            print(f"index of {ROWS:,} certificates: {time.monotonic() - began:.1f} s")
            began = time.monotonic()
            server.sql(DATABASE, "ALTER TABLE certificate ADD COLUMN new text")
            print(f"column: {(time.monotonic() - began) * 1000:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
