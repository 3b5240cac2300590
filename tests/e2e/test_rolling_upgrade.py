"""Replicas serve on while a newer program migrates their database, and start beside it."""

import asyncio
import contextlib
import threading
from pathlib import Path

import httpx
import pytest

from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from support import postgres
from support.migrations import NEXT, with_the_next
from support.replicas import Replica, issue, listening, started
from support.stores import Store, blob
from support.wait import SECONDS
from support.world import World, make


@pytest.fixture
def world(tmp_path: Path, server: postgres.Server) -> World:
    return make(tmp_path, database_url=server.create())


def upgrade(world: World, folder: Path) -> None:
    """What the newer program's `db upgrade` does."""
    migrations = with_the_next(folder, oldest_program=migrate.head())

    async def run() -> None:
        database = Database(world.settings().store_url)
        await migrate.upgrade(database, migrations)
        await database.close()

    asyncio.run(run())


def test_a_migration_under_load_costs_no_certificate_and_no_restart(world: World, tmp_path: Path) -> None:
    stop, received, refused = threading.Event(), list[str](), list[httpx.Response]()

    def use(replica: Replica) -> None:
        with replica.client(world.people["admin"].token) as client:
            while not stop.is_set():
                answer = issue(client, world)
                if answer.status_code == 200:
                    received.append(answer.headers["X-Clustercert-Fingerprint"])
                else:
                    refused.append(answer)

    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(world)) for _ in range(2)]
        replicas = [stack.enter_context(listening(process)) for process in processes]
        users = [threading.Thread(target=use, args=(replica,)) for replica in replicas for _ in range(2)]
        for user in users:
            user.start()
        try:
            upgrade(world, tmp_path)
            before = len(received)
            # An older replica that is started again finds the newer schema.
            third = stack.enter_context(listening(stack.enter_context(started(world))))
            with third.client(world.people["admin"].token) as client:
                received += [issue(client, world).raise_for_status().headers["X-Clustercert-Fingerprint"]]
        finally:
            stop.set()
            for user in users:
                user.join(SECONDS)
    assert refused == []
    assert len(received) > before + 1, "they go on after the migration"
    store = Store(world.settings().store_url)
    assert store.rows("SELECT version_num FROM alembic_version") == [(NEXT,)]
    recorded = {blob(found).hex() for (found,) in store.rows("SELECT fingerprint FROM certificate")}
    assert sorted(received) == sorted(recorded)
