"""Three kills of PostgreSQL's primary under load. `make ha` causes all faults; see docs/failover.md."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from clustercert.store.engine.database import Database
from ha import nodes, programs, site
from ha.__main__ import HOSTS, cause_faults
from ha.nodes import Nodes
from support import postgres
from support.wait import eventually

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def where() -> Iterator[Nodes]:
    if reason := programs.missing():
        pytest.skip(reason)
    with nodes.running() as running:
        yield running


def _has_the_database(url: str) -> bool:
    with contextlib.suppress(asyncpg.PostgresError):
        return bool(postgres.look(url, "SELECT 1"))
    return False


async def test_nothing_is_read_from_a_standby_that_lags(where: Nodes) -> None:
    leader = where.leader()
    standbys = [node for node in where.members if node is not leader]
    for node in standbys:
        eventually(partial(_has_the_database, where.url_at(node)))
        postgres.look(where.url_at(node, "postgres"), "SELECT pg_wal_replay_pause()")
    database = Database(where.url([*standbys, leader]))
    try:
        async with database.transaction() as transaction:
            await transaction.execute(text("CREATE TABLE new (id integer)"))
        async with database.read() as connection:
            assert (await connection.execute(text("SELECT to_regclass('new') IS NULL"))).scalar_one() is False
        for node in standbys:
            assert postgres.look(where.url_at(node), "SELECT to_regclass('new') IS NULL") == [(True,)]
    finally:
        await database.close()
        for node in standbys:
            postgres.look(where.url_at(node, "postgres"), "SELECT pg_wal_replay_resume()")


def test_three_kills_lose_nothing_that_was_answered(where: Nodes, tmp_path: Path) -> None:
    made = site.new(where, tmp_path)
    with made.served(where.url()) as load:
        outcomes = cause_faults(
            where, load, ("kill-postgres", "kill-node", "kill-postgres"), HOSTS, rest_seconds=4
        )
        findings = made.check(load)
    assert not findings.faults, str(findings)
    assert [each.elsewhere for each in outcomes] == [0, 0, 0]
    assert min(findings.certificates, findings.revocations) > 10
