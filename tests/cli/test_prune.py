"""`clustercert db prune`."""

import json
from datetime import UTC, datetime, timedelta

from support.command_line import Operator
from support.stores import execute, rows

ROW = (
    "INSERT INTO certificate (fingerprint, credential_number, serial, epoch, cluster_id, project_id, ca_id, user_id,"
    " user_name, groups, not_before, not_after, key_type, key_origin, auth_method, source_address, request_id,"
    " issued_at, kind, der) VALUES (?, ?, 's', 0, 'c', 'p', 'a', 'u', 'n', '[]', '2020-01-01 00:00:00.000000', ?,"
    " 'ec-p256', 'csr', 'token', '', '', '2020-01-01 00:00:00.000000', 'certificate', x'')"
)
REQUEST = (
    "INSERT INTO access_request (id, project_id, cluster_id, cluster_name, project_name, user_id, user_name, groups,"
    " rule, offered_groups, duration, reason, conditions, before_approval, claim_within, created_at, approve_by,"
    " state, closed_at) VALUES (?, 'p', 'c', 'prod', 'd/p', 'u', 'n', '[]', 'r', '[]', 60, 'why', '[]', 0, 60,"
    " '2020-01-01 00:00:00.000000', '2020-01-01 00:00:00.000000', ?, ?)"
)
REVOCATION = (
    "INSERT INTO revocation (epoch, changed, user_id, cluster_id, at, by, reason, proved)"
    " VALUES (1, 1, '', ?, ?, 'u', 'unspecified', 0)"
)
DECISION = (
    "INSERT INTO access_decision (request_id, part, by, by_name, at, approves, met) VALUES (?, 'access', 'u', 'n',"
    " '2020-01-01 00:00:00.000000', 0, '[]')"
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


def test_access_requests_that_were_closed_past_the_age_are_pruned_with_their_decisions(
    operator: Operator,
) -> None:
    database = operator.folder / "data" / "clustercert.db"
    for name, days in (("old", 91), ("new", 89), ("open", None)):
        closed_at = (
            None if days is None else f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d %H:%M:%S.%f}"
        )
        execute(database, REQUEST, name, "denied" if days else "active", closed_at)
        execute(database, DECISION, name)
    done = operator.output_json("db", "prune", "--older-than", "90d", "--yes")
    assert (done["pruned"], done["access_requests"]) == (0, 1)
    assert rows(database, "SELECT id FROM access_request ORDER BY id") == [("new",), ("open",)]
    assert rows(database, "SELECT request_id FROM access_decision ORDER BY 1") == [("new",), ("open",)]
    [(body,)] = rows(database, "SELECT body FROM audit_event WHERE kind = 'access_requests.pruned'")
    assert isinstance(body, bytes)
    assert json.loads(body)["detail"] == {"count": 1, "closed_before": done["ended_before"]}


def test_access_requests_that_may_limit_early_use_are_not_pruned(operator: Operator) -> None:
    database = operator.folder / "data" / "clustercert.db"
    for name, hours in (("counts", 23), ("old", 25)):
        closed_at = f"{datetime.now(UTC) - timedelta(hours=hours):%Y-%m-%d %H:%M:%S.%f}"
        execute(database, REQUEST, name, "ended", closed_at)
    assert "the 0 certificates and 1 access requests" in operator.error("db", "prune", "--older-than", "5m")
    done = operator.output_json("db", "prune", "--older-than", "5m", "--yes")
    assert done["access_requests"] == 1
    assert rows(database, "SELECT id FROM access_request") == [("counts",)]


def test_revocations_are_pruned_after_the_certificates_that_need_them(operator: Operator) -> None:
    database = operator.folder / "data" / "clustercert.db"
    for name, days in ((b"old", 91), (b"ended", 89)):
        issue(operator, name, timedelta(days=days))
    execute(database, "UPDATE certificate SET cluster_id = CAST(fingerprint AS TEXT)")
    # The service noted the longest lifetime of its policy.
    execute(database, "INSERT INTO progress (name, value) VALUES ('longest lifetime', '86400')")
    for cluster, days in (("old", 91), ("ended", 91), ("none", 89), ("none", 91)):
        at = f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d %H:%M:%S.%f}"
        execute(database, REVOCATION, cluster, at)
    done = operator.output_json("db", "prune", "--older-than", "90d", "--yes")
    assert (done["pruned"], done["revocations"]) == (1, 2)
    assert rows(database, "SELECT id, cluster_id FROM revocation ORDER BY id") == [(2, "ended"), (3, "none")]


def test_prune_requires_confirmation_and_a_valid_age(operator: Operator) -> None:
    issue(operator, b"old", timedelta(days=400))
    refused = operator.error("db", "prune", "--older-than", "90d")
    assert "the 1 certificates and 0 access requests" in refused
    assert "--yes" in refused
    assert "Write it like 90d" in operator.usage_error("db", "prune", "--older-than", "soon", "--yes")
    assert left(operator) == [(b"old",)]
