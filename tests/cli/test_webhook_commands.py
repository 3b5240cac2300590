"""`clustercert kubernetes token` and `import-audit-log`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.added_cluster import add_cluster, database
from support.command_line import Operator
from support.kubernetes_messages import audit_event, credential_id
from support.stores import blob, execute, rows

FINGERPRINT = os.urandom(32)
NUMBER = "5eed" * 10
OWN_GROUPS = ("clustercert:admins", f"clustercert:credential:{NUMBER}")


@pytest.fixture
def cluster(operator: Operator) -> dict[str, Any]:
    return add_cluster(operator)


def test_a_token_is_created_listed_replaced_and_removed(operator: Operator, cluster: dict[str, Any]) -> None:
    first = operator.output_json("kubernetes", "token", "create", "prod")
    assert first["token"].startswith("ccw_")
    assert first["cluster_id"] == cluster["id"]
    second = operator.output_json("kubernetes", "token", "create", cluster["id"])
    assert first["token"] != second["token"]
    assert "already has 2 webhook tokens" in operator.error("kubernetes", "token", "create", "prod")
    listed = operator.output_json("kubernetes", "token", "list", "prod")
    assert {token["id"] for token in listed} == {first["id"], second["id"]}
    assert "ccw_" not in json.dumps(listed)
    assert [token["last_asked_at"] for token in listed] == [None, None]
    execute(database(operator), "UPDATE webhook_token SET last_asked_at = ?", "2026-03-01 00:00:00.000000")
    lines = operator.output("kubernetes", "token", "list", "prod").splitlines()
    assert lines[0].split() == ["ID", "CREATED-AT", "LAST-ASKED-AT", "LAST-EVENTS-AT"]
    assert lines[1].split()[2:] == ["2026-03-01T00:00:00Z", "-"]
    done = operator.run("kubernetes", "token", "remove", "prod", first["id"], "--yes")
    assert (done.code, "within a second" in done.err) == (0, True)
    assert "no such webhook token" in operator.error(
        "kubernetes", "token", "remove", "prod", first["id"], "--yes"
    )
    assert operator.output("kubernetes", "token", "list", "prod", "-o", "name") == f"{second['id']}\n"


def test_a_token_is_not_created_without_showing_it(operator: Operator, cluster: dict[str, Any]) -> None:
    assert "would not show the token" in operator.usage_error(
        "kubernetes", "token", "create", "prod", "--output", "name"
    )
    assert operator.output_json("kubernetes", "token", "list", "prod") == []


def test_removing_a_token_needs_confirmation(operator: Operator, cluster: dict[str, Any]) -> None:
    made = operator.output_json("kubernetes", "token", "create", "prod")
    assert operator.run("kubernetes", "token", "remove", "prod", made["id"]).code != 0
    assert len(operator.output_json("kubernetes", "token", "list", "prod")) == 1


def test_a_cluster_with_tokens_can_be_removed(operator: Operator, cluster: dict[str, Any]) -> None:
    operator.output("kubernetes", "token", "create", "prod")
    operator.output("cluster", "remove", "prod", "--yes")
    assert rows(database(operator), "SELECT * FROM webhook_token") == []


def test_an_audit_log_is_imported(operator: Operator, cluster: dict[str, Any], tmp_path: Path) -> None:
    file = database(operator)
    columns = [str(name) for _, name, *_ in rows(file, "PRAGMA table_info(certificate)")]
    values = dict.fromkeys(columns, "x") | {
        "fingerprint": FINGERPRINT,
        "credential_number": NUMBER,
        "user_id": "bob",
        "epoch": 0,
        "cluster_id": cluster["id"],
        "groups": '["clustercert:admins"]',
        "first_seen_at": None,
        "last_seen_at": None,
        "revoked_at": None,
        "altered_at": None,
        "username": None,
        "kind": "certificate",
        **dict.fromkeys(("not_before", "not_after", "issued_at"), "2026-03-01 00:00:00.000000"),
    }
    del values["id"]
    names = ", ".join(f'"{name}"' for name in values)
    execute(
        file,
        f"INSERT INTO certificate ({names}) VALUES ({', '.join('?' * len(values))})",
        *values.values(),
    )
    unknown = bytes(range(32))
    lines = [
        json.dumps(audit_event()),
        # API servers before 1.32 tell no credential id.
        json.dumps(audit_event(at="2026-03-02T00:00:00.000001Z", groups=OWN_GROUPS)),
        "",
        json.dumps(
            audit_event(credential_id(FINGERPRINT), at="2026-03-04T00:00:00.000000Z", groups=OWN_GROUPS)
        ),
        # An altered copy.
        json.dumps(
            audit_event(credential_id(bytes(32)), at="2026-03-05T00:00:00.000000Z", groups=OWN_GROUPS)
        ),
        json.dumps(audit_event(credential_id(unknown), groups=["system:masters"])),
        '{"kind":"Event","apiVersion":"audit.k8s.io/v1","us',
    ]
    log = tmp_path / "audit.log"
    log.write_text("\n".join(lines))
    for _ in range(2):
        done = operator.run("kubernetes", "import-audit-log", "prod", log, "--output", "json")
        assert json.loads(done.out) == {"cluster": "prod", "lines": 6, "uses": 4, "skipped": 1}
        assert "Skipped 1 lines that are not audit events" in done.err
    query = "SELECT first_seen_at, last_seen_at FROM certificate"
    assert rows(file, query) == [("2026-03-02 00:00:00.000001", "2026-03-05 00:00:00.000000")]
    events = [json.loads(blob(body)) for (body,) in rows(file, "SELECT body FROM audit_event ORDER BY id")]
    alerts = [said["kind"] for said in events if said["subject"] == unknown.hex()]
    assert alerts == ["credential.unknown", "credential.masters"]
    (altered,) = [said for said in events if said["kind"] == "credential.altered"]
    assert (altered["subject"], altered["detail"]["presented"]) == (FINGERPRINT.hex(), bytes(32).hex())
    assert altered["detail"]["reported_by"] == "import-audit-log"


def test_lines_of_any_length_are_read(operator: Operator, cluster: dict[str, Any], tmp_path: Path) -> None:
    long = audit_event(credential_id(FINGERPRINT)) | {"requestURI": "x" * 20_000_000}
    short = audit_event(credential_id(FINGERPRINT))
    lines = [
        json.dumps(long),
        "[" * 1_000_000,
        "x" * 600_000,
        json.dumps(short),
        " " * 300_000 + json.dumps(short),
    ]
    (tmp_path / "audit.log").write_text("\n".join(lines))
    said = operator.output_json("kubernetes", "import-audit-log", cluster["name"], tmp_path / "audit.log")
    assert said == {"cluster": "prod", "lines": 5, "uses": 3, "skipped": 2}


def test_a_file_without_audit_events_is_refused(
    operator: Operator, cluster: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "other.log"
    other.write_bytes(b'not json\n\xff\n[]\n\n{"kind": "Pod"}\n')
    said = operator.error("kubernetes", "import-audit-log", cluster["name"], other)
    assert said.startswith(
        "None of the 4 lines is an event of audit.k8s.io/v1. Give the audit log of the API server"
    )
    assert operator.run("kubernetes", "import-audit-log", "prod", tmp_path / "missing.log").code == 2


def test_a_log_without_client_certificates_is_imported(
    operator: Operator, cluster: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "audit.log").write_text(f"{json.dumps(audit_event())}\nnot json\n")
    said = operator.output_json("kubernetes", "import-audit-log", cluster["name"], tmp_path / "audit.log")
    assert said == {"cluster": "prod", "lines": 2, "uses": 0, "skipped": 1}


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_log_prints_a_note(
    operator: Operator, cluster: dict[str, Any], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "empty.log").write_bytes(content)
    done = operator.run(
        "kubernetes", "import-audit-log", cluster["name"], tmp_path / "empty.log", "-o", "json"
    )
    assert json.loads(done.out) == {"cluster": "prod", "lines": 0, "uses": 0, "skipped": 0}
    assert (done.code, done.err) == (0, "The log is empty.\n")
