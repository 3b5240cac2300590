"""Sentences about audit events: every kind has one, with the names and not the ids."""

from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from clustercert.http.console.event_sentences import describe
from clustercert.model import AuditEvent, JsonObject
from scripts.generate_docs import event_types
from support.samples import CLUSTER_ID, NOW, PROJECT_ID, USER_ID

NAMES = {USER_ID: "Default/alice", CLUSTER_ID: "Default/eu-de/prod"}
KINDS = event_types()
VALUES: dict[object, object] = {str: "x", int: 3, bool: True, datetime: NOW.isoformat()}
FIXED = {"trace": {"groups": ["editors"]}, "user_id": USER_ID, "cluster_id": CLUSTER_ID}


def value(declared: Any) -> object:
    """A JSON value of a declared type. An optional value is null."""
    origin, arguments = get_origin(declared), get_args(declared)
    if type(None) in arguments:
        return None
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return [value(arguments[0])]
    if is_typeddict(declared):
        return {name: value(each) for name, each in get_type_hints(declared).items()}
    return VALUES.get(declared, {})


def recorded(kind: str) -> JsonObject:
    """An event of this kind, with a value in each field that its type declares."""
    own = {each.name for each in fields(KINDS[kind])} - {each.name for each in fields(AuditEvent)}
    types = get_type_hints(KINDS[kind])
    return example(
        kind, {name: value(types[name]) for name in own} | {name: FIXED[name] for name in own & FIXED.keys()}
    )


def text(event: JsonObject, names: dict[str, str]) -> str:
    return "".join(part.text for part in describe(event, names))


def example(kind: str, detail: dict[str, Any], actor: str = USER_ID, subject: str = CLUSTER_ID) -> JsonObject:
    return {"kind": kind, "detail": detail, "actor": actor, "subject": subject, "project_id": PROJECT_ID}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_event_has_a_sentence_with_names(kind: str) -> None:
    parts = describe(recorded(kind), NAMES)
    sentence = "".join(part.text for part in parts)
    assert kind not in sentence
    assert not set("{}[]") & set("".join(part.text for part in parts if not part.is_value))
    assert USER_ID not in sentence
    assert CLUSTER_ID not in sentence


@pytest.mark.parametrize(
    ("kind", "one"),
    [
        ("authentication.failed", "1 request failed to authenticate"),
        ("refusals.repeated", "1 more request of Default/eu-de/prod was refused"),
        ("certificates.pruned", "Default/alice deleted 1 expired certificate from the ledger"),
        ("revocations.pruned", "Default/alice deleted 1 old revocation of a user or cluster"),
        ("events.deleted", "Default/alice deleted 1 audit event: x"),
        ("access_requests.pruned", "Default/alice deleted 1 closed access request"),
    ],
)
def test_one_thing_is_counted_in_the_singular(kind: str, one: str) -> None:
    event = recorded(kind)
    detail: Any = event["detail"]
    assert "count" in detail
    assert text(event | {"detail": detail | {"count": 1, "why": "x"}}, NAMES) == one


@pytest.mark.parametrize(
    ("kind", "detail", "sentence"),
    [
        (
            "certificate.issued",
            {
                "cluster": {"id": CLUSTER_ID, "name": "prod", "project": None},
                "trace": {"groups": ["a", "b"]},
                "not_after": "2026-03-14T17:00:00+00:00",
            },
            (
                "Default/alice got a certificate for Default/eu-de/prod with the groups a, b, valid until"
                " 2026-03-14 17:00 UTC"
            ),
        ),
        (
            "certificate.issued",
            {
                "cluster": {"id": CLUSTER_ID, "name": "prod", "project": None},
                "trace": {},
                "not_after": "2026-03-14T17:00:00+00:00",
            },
            "Default/alice got a certificate for Default/eu-de/prod, valid until 2026-03-14 17:00 UTC",
        ),
        (
            "certificate.refused",
            {"cluster": None, "message": "No rule matches."},
            "Default/alice was refused a certificate: No rule matches.",
        ),
        (
            "user.revoked",
            {"user_id": USER_ID, "cluster_id": None, "reason": "keyCompromise"},
            "Default/alice revoked all certificates of Default/alice for all clusters (keyCompromise)",
        ),
        (
            "cluster.revoked",
            {"user_id": None, "cluster_id": CLUSTER_ID, "reason": "unspecified"},
            "Default/alice revoked all certificates for Default/eu-de/prod",
        ),
        ("user.updated", {"name": "prod"}, "Default/alice updated the user Default/eu-de/prod"),
        (
            "webhook_token.created",
            {"cluster_id": CLUSTER_ID},
            "Default/alice created a webhook token of Default/eu-de/prod",
        ),
        (
            "role.assigned",
            {"role": "auditor", "assignee": "user", "name": "bob", "project": None},
            "Default/alice gave the role auditor to the user bob",
        ),
        (
            "credential.counted",
            {
                "cluster_id": CLUSTER_ID,
                "alert": "credential.masters",
                "count": 1234,
                "first": "2026-03-14T15:09:26+00:00",
            },
            (
                "API servers of Default/eu-de/prod reported 1\u202f234 more suspicious certificates since"
                " 2026-03-14 15:09 UTC: credential.masters"
            ),
        ),
        (
            "credential.revoked_used",
            {"cluster_id": CLUSTER_ID, "username": "bob", "count": 40},
            "Default/eu-de/prod allowed 40 requests with a revoked certificate of bob",
        ),
        ("thing.happened", {}, "Default/alice happened the thing Default/eu-de/prod"),
        ("certificate.issued", {}, "Default/alice issued the certificate Default/eu-de/prod"),
    ],
)
def test_a_sentence_says_who_did_what(kind: str, detail: dict[str, Any], sentence: str) -> None:
    assert text(example(kind, detail), NAMES) == sentence


def test_without_names_an_event_is_told_with_the_names_in_it_and_short_ids() -> None:
    issued = example(
        "certificate.issued",
        {
            "caller": {"name": "alice", "domain_name": "acme"},
            "cluster": {
                "id": CLUSTER_ID,
                "name": "prod",
                "project": {"name": "eu-de", "domain_name": "acme"},
            },
            "trace": {"groups": ["editors"]},
            "not_after": "2026-03-14T17:00:00+00:00",
        },
    )
    assert text(issued, {}).startswith(
        "acme/alice got a certificate for acme/eu-de/prod with the group editors"
    )
    removed = example("user.removed", {}, subject="f" * 32)
    assert text(removed, {}) == f"{USER_ID[:8]} removed the user ffffffff"
    seen = example("credential.unknown", {"cluster_id": CLUSTER_ID, "username": "x"}, f"cluster:{CLUSTER_ID}")
    assert text(seen, {}).startswith(f"{CLUSTER_ID[:8]} was used with a certificate of x")


def test_a_cluster_in_a_sentence_is_a_link_to_the_people_who_can_get_in() -> None:
    [link] = [part for part in describe(example("ca_rotation.started", {}), NAMES) if part.href]
    assert link.href == f"/console/projects/{PROJECT_ID}/clusters/{CLUSTER_ID}"
