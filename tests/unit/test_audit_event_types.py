"""The declared audit events: every kind is declared, and stored events have the form of their version."""

import ast
import json
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import clustercert
from clustercert.audit.refusals import DenialAudit
from clustercert.http.audit import EventBody
from clustercert.model import Caller, Domain, Group, IssueRequest, User
from clustercert.model.errors import ClustercertError
from clustercert.model.events.administration import DirectoryChanged
from clustercert.store.audit.events import canonical, commitment
from clustercert.store.audit.log import StoredEvent
from scripts.generate_docs import event_types
from support.issuance_doubles import CA, CLUSTER, Clusters, MemoryLedger, issuance
from support.samples import CLUSTER_ID, NOW, POLICY, PROJECT_ID, USER_ID, caller

SOURCES = Path(clustercert.__file__).parent

# As version 1 is recorded. Another form needs another version, and a file of its own.
ISSUED_V1 = (Path(__file__).parents[1] / "golden" / "certificate_issued_v1.json").read_bytes()


def stored(body: bytes) -> StoredEvent:
    said, salt = json.loads(body), bytes(16)
    return StoredEvent(
        id=1,
        leaf_index=0,
        place_project_id=said["project_id"],
        at=datetime.fromisoformat(said["at"]),
        kind=said["kind"],
        project_id=said["project_id"],
        actor=said["actor"],
        subject=said["subject"],
        body=body,
        salt=salt,
        commitment=commitment(salt, body),
    )


@cache
def _calls() -> tuple[tuple[str, str], ...]:
    """What the service calls by a plain name, and where."""
    trees = ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES.rglob("*.py"))
    return tuple(
        (f"{path.relative_to(SOURCES)}:{node.lineno}", node.func.id)
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    )


def test_every_event_that_is_constructed_has_a_declared_type() -> None:
    """The type checker holds the kinds of a declared type against its Literal."""
    assert [place for place, name in _calls() if name == "AuditEvent"] == []


def test_every_declared_kind_is_constructed_somewhere() -> None:
    declarations = {declared.__name__ for declared in event_types().values()}
    assert declarations <= {name for _, name in _calls()}


async def test_an_issued_certificate_is_recorded_in_the_form_of_its_version() -> None:
    ledger = MemoryLedger()
    await issuance(ledger=ledger).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUESTS[0])
    [(_, event)] = ledger.entries
    assert event.event_version == 1
    assert form(json.loads(canonical(event))) == form(json.loads(ISSUED_V1))


def form(value: object) -> object:
    """The names in a JSON value, without other values."""
    return {name: form(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def test_an_event_is_shown_with_its_version_and_as_recorded() -> None:
    event = stored(ISSUED_V1)
    shown = EventBody.render(event)
    assert (shown["version"], shown["detail"]) == (1, json.loads(ISSUED_V1)["detail"])
    assert shown["canonical"] == ISSUED_V1.decode()


def test_an_event_has_one_canonical_form() -> None:
    event = DirectoryChanged(
        at=NOW,
        kind="user.created",
        project_id=None,
        actor=caller().actor,
        subject=USER_ID,
        name="bob",
        domain_id="d" * 32,
        password=False,
    )
    assert canonical(event) == (
        b'{"actor":"7116d09f88fa41908676fdd4b039e95b","at":"2026-03-14T15:09:26.535897+00:00","detail":{"domain_id":'
        b'"dddddddddddddddddddddddddddddddd","name":"bob","password":false},"kind":"user.created","project_id":null,'
        b'"request_id":"ffffffffffffffffffffffffffffffff","source":"192.0.2.1","subject":'
        b'"7116d09f88fa41908676fdd4b039e95b","version":1}'
    )


REQUESTS = [
    IssueRequest(duration=30, reason="incident 4711"),
    IssueRequest(duration=-1),
    IssueRequest(duration=1825, shorten=True),
    IssueRequest(duration=1825),
    IssueRequest(expire_at=NOW.replace(microsecond=0) + timedelta(hours=1)),
    IssueRequest(expires_in=timedelta(days=31)),
    IssueRequest(expires_in=timedelta(days=31), shorten=True),
    IssueRequest(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("role", ["admin", "member", "reader", "auditor"])
async def test_a_decision_is_computed_again_from_its_event(role: str, request_: IssueRequest) -> None:
    ledger = MemoryLedger()
    error = None
    try:
        await issuance(ledger=ledger).issue(caller(role), PROJECT_ID, CLUSTER_ID, request_)
    except ClustercertError as refusal:
        error = type(refusal).__name__
        audit = DenialAudit(ledger, Clusters(), lambda: NOW)
        await audit.certificate(caller(role), PROJECT_ID, CLUSTER_ID, request_, refusal)
    [event] = [*ledger.notes, *(event for _, event in ledger.entries)]
    said = json.loads(canonical(event))
    detail = said["detail"]
    assert (said["version"], detail.get("error")) == (1, error)
    trace, again = replay(said)
    assert trace == detail["trace"]
    if error is None:
        assert (again["not_before"], again["not_after"]) == (detail["not_before"], detail["not_after"])
        assert again["organizations"] == detail["organizations"][:-1]
    else:
        assert again["error"] == error


def replay(event: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The policy's decision on what an event says: its trace, and what it gives or refuses."""
    said, asked, cluster = (event["detail"][name] for name in ("caller", "request", "cluster"))
    assert (cluster["id"], cluster["ca_id"]) == (CLUSTER.id, CA.id)
    assert datetime.fromisoformat(cluster["ca_not_after"]) == CA.not_after
    assert cluster["labels"] == CLUSTER.labels
    who = Caller(
        user=User(event["actor"], said["name"], Domain(said["domain_id"], said["domain_name"])),
        roles={event["project_id"]: tuple(said["roles"])},
        method=said["auth_method"],
        origin=caller().origin,
        service_roles=tuple(said["service_roles"]),
        credential_id=said["credential_id"],
        issuer=said["issuer"],
        groups=tuple(
            Group(each["id"], each["name"], Domain(each["domain_id"], each["domain_name"]))
            for each in said["groups"]
        ),
    )
    assert (asked["csr"], asked["key_type"]) in {(False, None), (False, "ec-p256")}
    request = IssueRequest(
        duration=asked["duration"],
        expire_at=datetime.fromisoformat(asked["expire_at"]) if asked["expire_at"] else None,
        expires_in=timedelta(seconds=asked["expires_in"]) if asked["expires_in"] else None,
        shorten=asked["shorten"],
        reason=asked["reason"],
    )
    try:
        grant = POLICY.decide(who, CLUSTER, request, datetime.fromisoformat(event["at"]))
    except ClustercertError as refusal:
        return refusal.trace, {"error": type(refusal).__name__}
    return grant.trace, {
        "not_before": grant.not_before.isoformat(),
        "not_after": grant.not_after.isoformat(),
        "organizations": list(grant.groups),
    }
