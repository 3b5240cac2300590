"""`clustercert db prune`."""

import json
from datetime import UTC, datetime, timedelta

from support.command_line import Operator
from support.stores import execute, rows

ROW = (
    "INSERT INTO certificate (fingerprint, credential_number, serial, epoch, cluster_id, project_id, ca_id, user_id,"
    " user_name, groups, not_before, not_after, key_type, key_origin, auth_method, source_address, request_id,"
    " issued_at, der) VALUES (?, ?, 's', 0, 'c', 'p', 'a', 'u', 'n', '[]', '2020-01-01 00:00:00.000000', ?, 'ec-p256',"
    " 'csr', 'token', '', '', '2020-01-01 00:00:00.000000', x'')"
)


def issue(operator: Operator, name: bytes, ended_ago: timedelta) -> None:
    end = datetime.now(UTC) - ended_ago
    execute(
        operator.folder / "data" / "clustercert.db", ROW, name, name.decode(), f"{end:%Y-%m-%d %H:%M:%S.%f}"
    )


def left(operator: Operator) -> list[tuple[object, ...]]:
    return rows(
        operator.folder / "data" / "clustercert.db", "SELECT fingerprint FROM certificate ORDER BY id"
    )


def test_certificates_past_the_age_are_pruned(operator: Operator) -> None:
    for name, days in ((b"old", 91), (b"older", 400), (b"ended", 89), (b"live", -1)):
        issue(operator, name, timedelta(days=days))
    done = operator.output_json("db", "prune", "--older-than", "90d", "--yes")
    assert done["pruned"] == 2
    assert left(operator) == [(b"ended",), (b"live",)]
    [(body,)] = rows(
        operator.folder / "data" / "clustercert.db",
        "SELECT body FROM audit_event WHERE kind = 'certificates.pruned'",
    )
    assert isinstance(body, bytes)
    assert json.loads(body)["detail"] == {"count": 2, "ended_before": done["ended_before"]}
    assert operator.output_json("db", "prune", "--older-than", "90d", "--yes")["pruned"] == 0


def test_prune_requires_confirmation_and_a_valid_age(operator: Operator) -> None:
    issue(operator, b"old", timedelta(days=400))
    refused = operator.error("db", "prune", "--older-than", "90d")
    assert "the 1 certificates" in refused
    assert "--yes" in refused
    assert "Write it like 90d" in operator.usage_error("db", "prune", "--older-than", "soon", "--yes")
    assert left(operator) == [(b"old",)]
