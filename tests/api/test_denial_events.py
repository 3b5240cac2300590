"""A denied request for a certificate leaves an event with the reason, durable before the response."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from support.service import Service
from support.stores import blob, rows
from support.world import World


def event_of(world: World, response: httpx2.Response) -> dict[str, Any]:
    """Return the only event recorded for a request."""
    request_id = response.headers["X-Request-Id"]
    found = [
        json.loads(blob(body))
        for (body,) in rows(world.database, "SELECT body FROM audit_event ORDER BY id DESC LIMIT 20")
        if request_id.encode() in blob(body)
    ]
    [event] = found
    assert event["request_id"] == request_id
    return dict(event)


def ask(client: httpx2.Client, world: World, path: str, who: str, **sent: Any) -> httpx2.Response:
    sent.setdefault("json", {"duration": 30})
    return client.post(path, headers=world.people[who].headers, **sent)


def test_a_role_without_a_rule_is_recorded_with_the_skipped_rules(
    client: httpx2.Client, world: World
) -> None:
    response = ask(client, world, world.path(), "inspector")
    assert response.status_code == 403
    event = event_of(world, response)
    assert (event["kind"], event["project_id"]) == ("certificate.refused", world.project.id)
    assert (event["actor"], event["subject"]) == (
        world.people["inspector"].user.id,
        world.clusters["plain"].id,
    )
    assert event["source"] == "127.0.0.1"
    assert event["detail"]["error"] == "Forbidden"
    assert event["detail"]["message"] == response.json()["message"]
    rules = ["admin", "member", "reader"]
    assert event["detail"]["trace"].pop("decided_at") <= event["at"]
    assert event["detail"]["trace"] == {
        "roles": ["inspector"],
        "key_type": "ec-p256",
        "skipped_rules": rules,
        "unmet_conditions": {rule: f"role is {rule}" for rule in rules},
    }


def test_a_wish_beyond_the_ca_is_recorded_with_what_bounded_it(client: httpx2.Client, world: World) -> None:
    response = ask(client, world, world.path(), "admin", json={"expire_at": "2999-01-01 00:00:00 +0000 UTC"})
    assert response.status_code == 400
    detail = event_of(world, response)["detail"]
    assert detail["trace"]["rule"] == "admin"
    assert detail["trace"]["allowed_by"] == "policy"
    assert "requested_not_after" not in detail["trace"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"duration": "x"}',
        b'{"duration": 1, "csr": "-----BEGIN CERTIFICATE REQUEST-----\\n-----END CERTIFICATE REQUEST-----"}',
    ],
    ids=["empty", "no object", "no number", "bad csr"],
)
def test_a_request_that_says_nothing_sensible_is_recorded(
    client: httpx2.Client, world: World, body: bytes
) -> None:
    headers = world.people["admin"].headers | {"Content-Type": "application/json"}
    response = client.post(world.path(), headers=headers, content=body)
    assert response.status_code == 400
    event = event_of(world, response)
    assert (event["kind"], event["detail"]["error"]) == ("certificate.refused", "InvalidRequest")
    assert event["detail"]["message"] == response.json()["message"]
    assert event["detail"]["trace"] == {}


def test_another_projects_cluster_is_recorded_without_telling_that_project(
    client: httpx2.Client, world: World
) -> None:
    response = ask(client, world, world.path("foreign"), "admin")
    assert response.status_code == 404
    event = event_of(world, response)
    assert event["project_id"] is None
    assert event["detail"]["requested_project_id"] == world.other_project.id
    assert event["subject"] == world.clusters["foreign"].id


@pytest.mark.parametrize("made_up", ["%00", "%EF%BF%BD", "%E2%80%AEcod", "x" * 500])
def test_an_id_that_somebody_made_up_is_bounded_and_plain(
    client: httpx2.Client, world: World, made_up: str
) -> None:
    path = f"/api/v3/projects/{world.project.id}/clusters/{made_up}/clustercert"
    response = ask(client, world, path, "admin")
    assert response.status_code == 404
    subject = event_of(world, response)["subject"]
    assert subject.isprintable()
    assert 1 <= len(subject) <= 65


@pytest.mark.parametrize("form", ["POST", "GET", "Autopilot"])
def test_a_dry_run_that_is_refused_leaves_nothing(client: httpx2.Client, world: World, form: str) -> None:
    path = f"{world.path()}?dryRun=All"
    if form == "GET":
        response = client.get(path, headers=world.people["inspector"].headers)
    else:
        path = path.replace("/api/v3/", "/autopilot/v3/") if form == "Autopilot" else path
        response = ask(client, world, path, "inspector")
    assert response.status_code == 403
    bodies = rows(world.database, "SELECT body FROM audit_event ORDER BY id DESC LIMIT 20")
    assert not any(response.headers["X-Request-Id"].encode() in blob(body) for (body,) in bodies)


def test_what_is_issued_says_how_it_came_about(client: httpx2.Client, world: World) -> None:
    response = ask(client, world, world.path(), "member", json={"duration": -1})
    assert response.status_code == 200
    trace = event_of(world, response)["detail"]["trace"]
    assert (trace["roles"], trace["skipped_rules"]) == (["member"], ["admin", "reader"])
    assert trace["rule"] == "member"
    assert trace["groups"] == ["clustercert:editors"]
    assert trace["allowed_by"] == "policy"
    assert trace["shortened"] is False


def failed_from(address: str, world: World) -> list[bytes]:
    found = rows(world.database, "SELECT body FROM audit_event WHERE kind = 'authentication.failed'")
    return [blob(body) for (body,) in found if address.encode() in blob(body)]


def test_who_proves_nothing_is_counted_and_recorded_at_the_end(world: World) -> None:
    with Service(world.settings(), address="198.51.100.7").running() as service:
        ak, _sk = world.access_key
        signed = f"SDK-HMAC-SHA256 Access={ak}, SignedHeaders=host;x-sdk-date, Signature={'0' * 64}"
        date = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        for headers in ({}, {"X-Auth-Token": "x"}, {"Authorization": signed, "X-Sdk-Date": date}):
            assert service.client.post(world.path(), headers=headers, json={}).status_code == 401
        user = {"id": world.people["admin"].user.id, "password": "wrong"}
        identity = {"methods": ["password"], "password": {"user": user}}
        login = service.client.post("/v3/auth/tokens", json={"auth": {"identity": identity}})
        assert login.status_code == 401
        unknown = {"name": "hunter2", "domain": {"name": "default"}, "password": "wrong"}
        identity = {"methods": ["password"], "password": {"user": unknown}}
        login = service.client.post("/v3/auth/tokens", json={"auth": {"identity": identity}})
        assert login.status_code == 401
        assert not failed_from("198.51.100.7", world)
    [body] = failed_from("198.51.100.7", world)
    [source] = json.loads(body)["detail"]["sources"]
    assert (source["source"], source["count"]) == ("198.51.100.7", 5)
    assert source["known"] == sorted([ak, world.people["admin"].user.id])
    [hashed] = source["unknown"]
    assert re.fullmatch(r"[0-9a-f]{16}", hashed)
    assert b"hunter2" not in body


def test_who_may_not_revoke_what_others_have_leaves_an_event(client: httpx2.Client, world: World) -> None:
    path = world.path(tail="/clustercertrevoke")
    other = world.people["admin"].user.id
    response = client.post(path, headers=world.people["reader"].headers, json={"userId": other})
    assert response.status_code == 403
    event = event_of(world, response)
    assert (event["kind"], event["project_id"]) == ("request.refused", world.project.id)
    assert (event["actor"], event["subject"]) == (world.people["reader"].user.id, path)
    assert (event["detail"]["method"], event["detail"]["message"]) == ("POST", response.json()["message"])


def test_the_get_form_is_recorded_once(client: httpx2.Client, world: World) -> None:
    response = client.get(world.path(), headers=world.people["inspector"].headers)
    assert response.status_code == 403
    assert event_of(world, response)["kind"] == "certificate.refused"


def test_a_callers_refusals_after_the_first_few_are_one_event(world: World) -> None:
    with Service(world.settings(audit={"refusals_per_minute": 3})).running() as other:
        responses = [ask(other.client, world, world.path(), "inspector") for _ in range(20)]
        forbidden = other.client.get("/clustercert/v1/events", headers=world.people["inspector"].headers)
    assert {response.status_code for response in (*responses, forbidden)} == {403}
    bodies = [json.loads(blob(body)) for (body,) in rows(world.database, "SELECT body FROM audit_event")]
    requests = {response.headers["X-Request-Id"] for response in responses}
    assert len([body for body in bodies if body["request_id"] in requests]) == 3
    [event] = [
        body
        for body in bodies
        if body["kind"] == "refusals.repeated" and body["actor"] == world.people["inspector"].user.id
        if body["project_id"] == world.project.id
    ]
    assert event["detail"]["count"] == 17
    [counts] = event["detail"]["refusals"]
    assert (counts["kind"], counts["error"], counts["last_source"]) == (
        "certificate.refused",
        "Forbidden",
        "127.0.0.1",
    )
