"""Jobs of the audit log in a running service: record policy changes, publish checkpoints, check certificates."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import world as worlds
from support.service import Service
from support.stores import blob, execute, rows
from support.wait import eventually
from support.world import World


def events(world: World, kind: str) -> list[dict[str, Any]]:
    found = rows(world.database, "SELECT body FROM audit_event WHERE kind = ? ORDER BY id", kind)
    return [json.loads(blob(body)) for (body,) in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Data of its own, since only one service leads, and since others' tests change rows of the ledger."""
    return worlds.make(tmp_path)


@pytest.mark.full
def test_a_service_looks_after_its_log_and_its_ledger(world: World, tmp_path: Path) -> None:
    execute(
        world.database,
        "INSERT INTO certificate (fingerprint, serial, credential_number, epoch, cluster_id, project_id, ca_id,"
        " user_id, user_name, groups, not_before, not_after, key_type, key_origin, auth_method, source_address,"
        " request_id, issued_at, kind, der)"
        " VALUES (x'77', 's', 'n', 0, 'c', 'p', 'a', 'u', 'n', '[]', '2020-01-01 00:00:00.000000',"
        " '2020-01-01 00:00:00.000000', 'ec-p256', 'csr', 'token', '', '', '2020-01-01 00:00:00.000000',"
        " 'certificate', x'00')",
    )
    execute(world.database, "DELETE FROM progress")
    kept = tmp_path / "checkpoints"
    rules = [
        {
            "name": "admin",
            "when": {"roles": ["admin"]},
            "grant": {"groups": ["clustercert:admins"], "max_lifetime": "1d"},
        }
    ]
    changed = world.settings(
        audit={"publish": [f"file:{kept}"], "publish_every": "1s"}, policy={"rules": rules}
    )
    try:
        with Service(changed).running():
            eventually(lambda: kept.exists() and kept.read_text().count("\n\n"))
            found = eventually(lambda: events(world, "certificate.mismatch"))
            assert [event["subject"] for event in found] == ["77"]
        newest = events(world, "policy.loaded")[-1]
        assert newest["detail"]["rules"] == [
            {
                "name": "admin",
                "when": {"roles": ["admin"]},
                "grant": {"groups": ["clustercert:admins"], "max_lifetime": 86400},
            }
        ]
        before = len(events(world, "policy.loaded"))
        with Service(changed).running():
            assert len(events(world, "policy.loaded")) == before
    finally:
        execute(world.database, "DELETE FROM certificate WHERE fingerprint = x'77'")
