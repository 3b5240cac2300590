"""Replicas whose connections to PostgreSQL go through PgBouncer."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from support import pgbouncer, postgres
from support.page_steps import new_reader, steps_below
from support.replicas import issue, listening, started
from support.wait import SECONDS, eventually
from support.world import make

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="pgbouncer is not installed"),
]


def test_replicas_behind_session_pooling_issue_and_revoke_together(
    server: postgres.Server, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        through = stack.enter_context(pgbouncer.pooled(server, "session"))
        world = make(tmp_path, database_url=through(server.create()))
        processes = [stack.enter_context(started(world)) for _ in range(2)]
        one, other = (
            stack.enter_context(stack.enter_context(listening(process)).client(world.people["admin"].token))
            for process in processes
        )
        fingerprint = issue(one, world).raise_for_status().headers["X-Clustercert-Fingerprint"]
        cluster = world.clusters["plain"]
        path = (
            f"/clustercert/v1/projects/{cluster.project_id}/clusters/{cluster.id}/certificates/{fingerprint}"
        )
        assert other.get(path).json()["state"] == "live"
        other.post(f"{path}/revoke", json={"reason": "superseded"}).raise_for_status()
        eventually(lambda: one.get(path).json()["state"] == "revoked")


def test_serve_refuses_to_start_behind_pooling_of_transactions(
    server: postgres.Server, tmp_path: Path
) -> None:
    world = make(tmp_path, database_url=server.create())
    with pgbouncer.pooled(server, "transaction") as through:
        assert world.database_url is not None
        with started(replace(world, database_url=through(world.database_url))) as process:
            assert process.wait(SECONDS) == 1
            assert process.stderr is not None
            said = process.stderr.read()
        settings = {
            "CLUSTERCERT_DATABASE_URL": through(world.database_url),
            "CLUSTERCERT_DATA_DIR": str(tmp_path / "data"),
            "CLUSTERCERT_KEK_FILE": str(tmp_path / "kek"),
        }
        [check] = steps_below("docs/database.md", "Connection poolers")
        new_reader(tmp_path / "home", **settings).follow_steps(check)
    assert "Set the pooler to session pooling (PgBouncer: pool_mode = session)" in said
    assert "Traceback" not in said
