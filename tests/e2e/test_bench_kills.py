"""The short form of `make bench ARGS=kills`, for what test_kill.py and test_postgres.py don't test."""

from pathlib import Path

import pytest

from bench import kills, world
from support import postgres

pytestmark = pytest.mark.long


def test_every_received_certificate_survives_sigkill_on_postgresql(
    tmp_path: Path, server: postgres.Server
) -> None:
    store = world.prepare(tmp_path / "store", database_url=server.create())
    outcome = kills.kill_service("PostgreSQL", store, 2)
    assert outcome.certificates >= 2
    assert not outcome.faults, outcome


def test_a_locked_sqlite_database_costs_503_and_no_certificate(tmp_path: Path) -> None:
    store = world.prepare(tmp_path / "store")
    outcome = kills.stop_database("SQLite", store, 1, lambda: kills.locked(store))
    assert outcome.certificates > kills.ANSWERS
    assert outcome.unavailable >= kills.ANSWERS
    assert not outcome.faults, outcome
