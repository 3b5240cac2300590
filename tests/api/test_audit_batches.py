"""Batches of audit events over HTTP: large, slow and partly invalid ones."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clustercert.model import CREDENTIAL_PREFIX
from support import programs, stores
from support import world as worlds
from support.audit_api import EVERYWHERE, got, sealed
from support.audit_batches import MEBIBYTE, STALLS, Sender, is_alerted, master, webhook_token
from support.kubernetes_messages import audit_event, credential_id, event_list
from support.service import Service
from support.wait import eventually
from support.world import World


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("audit-batches"))


@pytest.fixture(scope="module")
def token(own: World) -> str:
    return asyncio.run(webhook_token(own))


@pytest.fixture
def started(own: World, token: str) -> Iterator[Callable[..., Sender]]:
    """Returns a function that starts the service and returns a sender for one cluster."""
    with contextlib.ExitStack() as stack:

        def start(**server: object) -> Sender:
            service = stack.enter_context(Service(own.settings(server=server)).running())
            return Sender(service, own, own.clusters["plain"].id, token)

        yield start


@pytest.fixture
def sender(started: Callable[..., Sender]) -> Sender:
    return started()


@pytest.mark.full
@pytest.mark.parametrize(("filler", "events"), [("x", 400), (r"\u0026", 100)])
def test_a_batch_of_hundreds_of_megabytes_is_read_completely(
    tmp_path: Path, filler: str, events: int
) -> None:
    """In a process without other tests, whose memory can be measured."""
    fingerprint = os.urandom(32)
    done = programs.run("large_batch", tmp_path, filler, events, fingerprint.hex())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == 200
    assert said["grown"] < 32 * MEBIBYTE
    assert said["kinds"] == ["credential.unknown", "credential.masters"]


def test_a_large_body_in_one_piece_is_read(sender: Sender) -> None:
    fingerprint = os.urandom(32)
    long = audit_event() | {"requestURI": "x" * MEBIBYTE}
    assert sender.post(event_list(*[long] * 70, master(fingerprint))).status_code == 200
    eventually(lambda: is_alerted(sender, fingerprint))


@pytest.mark.full
def test_a_slow_batch_is_read_while_it_keeps_arriving(started: Callable[..., Sender]) -> None:
    sender, fingerprint = started(request_timeout=6, body_timeout=5.9), os.urandom(32)
    raw = event_list(master(fingerprint))

    async def slow() -> AsyncIterator[bytes | None]:
        # Longer than the time limits together, and each pause is much shorter than they are.
        for start in range(12):
            yield raw[start * 25 : (start + 1) * 25]
            await asyncio.sleep(0.6)
        yield raw[300:]

    assert sender.stream_all(slow()).status_code == 200
    eventually(lambda: is_alerted(sender, fingerprint))


def test_unreadable_events_are_reported_and_hide_no_others(sender: Sender) -> None:
    fingerprint, before = os.urandom(32), sender.counted("unreadable_events")
    raw = event_list({}, master(fingerprint), audit_event(at="yesterday"))
    assert sender.post(raw).status_code == 200
    assert sender.counted("unreadable_events") == before + 1
    (event,) = [each for each in sender.events(sender.cluster_id) if each["kind"] == "audit_batch.refused"][
        -1:
    ]
    assert event["actor"] == f"cluster:{sender.cluster_id}"
    assert event["detail"] == {
        "cluster_id": sender.cluster_id,
        "reason": "unreadable_events",
        "bytes_read": len(raw),
        "events_taken": 1,
        "events_unreadable": 2,
    }
    eventually(lambda: is_alerted(sender, fingerprint))


def _flood(sender: Sender, name: str, count: int, *groups: str) -> None:
    for start in range(0, count, 400):
        users = [f"{name} {number}" for number in range(start, min(start + 400, count))]
        events = [audit_event(credential_id(os.urandom(32)), user=user, groups=groups) for user in users]
        assert sender.post(event_list(*events)).status_code == 200


def test_a_flood_with_one_token_hides_no_member_of_system_masters_reported_with_another(
    tmp_path: Path,
) -> None:
    world = worlds.make(tmp_path)
    stolen_token, other_token = (asyncio.run(webhook_token(world)) for _ in range(2))
    with Service(world.settings()).running() as service:
        stolen = Sender(service, world, world.clusters["plain"].id, stolen_token)
        _flood(stolen, "invented", 12_000)
        _flood(stolen, "master", 1_400, "system:masters")
        fingerprint = os.urandom(32)
        other = replace(stolen, token=other_token)
        assert other.post(event_list(master(fingerprint))).status_code == 200
        eventually(lambda: is_alerted(other, fingerprint))

        def counted() -> list[str]:
            said = stolen.events(stolen.cluster_id)
            return sorted(each["detail"]["alert"] for each in said if each["kind"] == "credential.counted")

        # Members that the events don't name are counted in another event.
        eventually(lambda: counted() == ["credential.masters", "credential.unknown"])


def test_a_list_of_events_names_the_cluster_that_reported_them(sender: Sender) -> None:
    fingerprint, world = os.urandom(32), sender.world
    assert sender.post(event_list(master(fingerprint))).status_code == 200
    client = sender.service.client
    assert sealed(client, world, fingerprint.hex())["actor"] == f"cluster:{sender.cluster_id}"
    names = got(client, world, EVERYWHERE, subject=fingerprint.hex())["names"]
    assert names == {sender.cluster_id: "tests/eu-de/plain", world.project.id: "tests/eu-de"}


def test_unreadable_batches_of_a_cluster_are_aggregated(own: World, token: str) -> None:
    """A project's admin has such a token, and could write a hundred events a second, which stay."""
    settings = own.settings(audit={"refusals_per_minute": 2})
    with Service(settings).running() as service:
        sender = Sender(service, own, own.clusters["plain"].id, token)
        before = len(sender.refusals())
        answers = [sender.post(raw).status_code for raw in (b"", b"not json", event_list({}), b"{}", b"[]")]
        assert answers == [400, 400, 200, 400, 400]
        assert len(sender.refusals()) == before + 2
    assert len(sender.refusals()) == before + 2
    [repeated] = [
        each["detail"]
        for each in sender.events(f"cluster:{sender.cluster_id}")
        if each["kind"] == "refusals.repeated"
    ]
    assert repeated["count"] == 3
    assert {(each["error"], each["count"]) for each in repeated["refusals"]} == {
        ("unreadable_events", 1),
        ("malformed", 2),
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        event_list().replace(b"audit.k8s.io/v1", b"audit.k8s.io/v1beta1"),
        event_list().replace(b"EventList", b"List"),
        event_list().replace(b"[]", b"{}"),
    ],
)
def test_other_documents_are_a_400_and_reported(sender: Sender, raw: bytes) -> None:
    before = len(sender.refusals())
    answer = sender.post(raw)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "CCE.01400001")
    (refusal,) = sender.refusals()[before:]
    assert (refusal["reason"], refusal["bytes_read"]) == ("malformed" if raw else "cut_off", len(raw))


@pytest.mark.parametrize("ending", [(), (STALLS,)])
def test_the_start_of_a_cut_off_batch_is_used_and_reported(
    started: Callable[..., Sender], ending: tuple[None, ...]
) -> None:
    sender, fingerprint = started(body_timeout=0.2), os.urandom(32)
    before, counted = len(sender.refusals()), sender.counted("cut_off")
    arrived = event_list(master(fingerprint))[:-2]
    answer = sender.stream(arrived[:100], b"", arrived[100:], *ending)
    assert answer.status_code == 408
    assert sender.counted("cut_off") == counted + 1
    (refusal,) = sender.refusals()[before:]
    assert (refusal["reason"], refusal["bytes_read"]) == ("cut_off", len(arrived))
    assert (refusal["events_taken"], refusal["events_unreadable"]) == (1, 0)
    eventually(lambda: is_alerted(sender, fingerprint))


def test_a_document_that_ends_early_is_reported_as_cut_off(sender: Sender) -> None:
    fingerprint, before = os.urandom(32), len(sender.refusals())
    assert sender.post(event_list(master(fingerprint))[:-1]).status_code == 400
    assert [each["reason"] for each in sender.refusals()[before:]] == ["cut_off"]
    eventually(lambda: is_alerted(sender, fingerprint))


def test_a_timed_out_request_is_reported_as_cut_off(started: Callable[..., Sender]) -> None:
    sender = started(request_timeout=2)
    # Its first request may take too long itself on a busy machine.
    eventually(lambda: sender.post(event_list()).status_code == 200)
    before = len(sender.refusals())
    assert sender.stream(event_list()[:20], STALLS).status_code == 503
    assert [each["reason"] for each in sender.refusals()[before:]] == ["cut_off"]


def test_without_a_token_nothing_is_reported(sender: Sender) -> None:
    before = len(sender.refusals()), sender.counted("malformed")
    assert sender.service.client.post(sender.path, content=b"not json").status_code == 401
    assert (len(sender.refusals()), sender.counted("malformed")) == before


def test_a_missing_database_is_not_reported_as_a_refusal(sender: Sender) -> None:
    before = [sender.counted(reason) for reason in ("malformed", "cut_off", "unreadable_events")]
    reported = len(sender.refusals())
    assert sender.post(event_list()).status_code == 200
    stores.execute(sender.world.database, "ALTER TABLE certificate RENAME TO certificate_elsewhere")
    try:
        answer = sender.post(event_list(audit_event(groups=[f"{CREDENTIAL_PREFIX}{'0' * 40}"])))
    finally:
        stores.execute(sender.world.database, "ALTER TABLE certificate_elsewhere RENAME TO certificate")
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, False)
    after = [sender.counted(reason) for reason in ("malformed", "cut_off", "unreadable_events")]
    assert (after, len(sender.refusals())) == (before, reported)


def test_a_refusal_without_database_is_counted_and_answered(sender: Sender) -> None:
    before = sender.counted("malformed")
    assert sender.post(event_list()).status_code == 200
    stores.execute(sender.world.database, "ALTER TABLE audit_event RENAME TO audit_event_elsewhere")
    try:
        assert sender.post(b"not json").status_code == 400
    finally:
        stores.execute(sender.world.database, "ALTER TABLE audit_event_elsewhere RENAME TO audit_event")
    assert sender.counted("malformed") == before + 1
