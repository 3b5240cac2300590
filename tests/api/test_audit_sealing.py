"""Sealing: a log that was tampered with, and events just before the shutdown."""

import httpx2
import pytest

from support import world as worlds
from support.audit_api import LOG, head, issue, sealed
from support.service import Service
from support.stores import execute, rows
from support.wait import eventually

FAILURES = 'clustercert_audit_sealing_failures_total{reason="other"}'
UNSEALED = "clustercert_audit_unsealed_seconds "


def test_a_log_that_was_changed_is_not_signed_on_and_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    changed = worlds.make(tmp_path_factory.mktemp("changed"))
    with Service(changed.settings()).running() as service:
        sealed(service.client, changed, issue(service.client, changed))
        size = head(service.client).size
    execute(changed.database, "UPDATE audit_tile SET hashes = zeroblob(length(hashes)) WHERE level = 0")
    with Service(changed.settings(metrics={"public": True})).running() as service:
        before = failures(service.client)
        issue(service.client, changed)
        eventually(lambda: failures(service.client) != before)
        assert head(service.client).size == size
    assert rows(changed.database, "SELECT count(*) FROM audit_unsealed") != [(0,)]
    with Service(changed.settings(metrics={"public": True})).running() as service:
        [line] = [
            line for line in service.client.get("/metrics").text.split("\n") if line.startswith(UNSEALED)
        ]
    assert float(line.split()[1]) > 0


def failures(client: httpx2.Client) -> str:
    """Return the metric that counts failures of sealing that are not the database's."""
    lines = client.get("/metrics").text.split("\n")
    return next(line for line in lines if line.startswith(FAILURES))


def test_what_happens_last_is_sealed_before_the_service_ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ending = worlds.make(tmp_path_factory.mktemp("ending"))
    with Service(ending.settings()).running() as service:
        issue(service.client, ending)
        eventually(lambda: service.client.get(f"{LOG}/checkpoint").status_code == 200)
        fingerprint = issue(service.client, ending)
    [(place,)] = rows(
        ending.database,
        "SELECT leaf_index FROM audit_event JOIN audit_place ON event_id = id WHERE subject = ?",
        fingerprint,
    )
    assert place is not None
