"""Batches of audit events over HTTP: large, slow and partly invalid ones."""

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from clustercert.model import Actor, Origin
from clustercert.wiring import components
from support import stores
from support import world as worlds
from support.kubernetes_messages import audit_event, credential_id, event_list
from support.service import Service
from support.wait import eventually
from support.world import ACTOR, World

ORIGIN = Origin(address="local", request_id="e" * 32)
MEBIBYTE = 1024 * 1024
CHUNK = 64 * 1024
STALLS = None
"""Marks the place in a body after which nothing arrives, while the connection stays open."""


@dataclass(frozen=True)
class Sender:
    """An API server that sends audit events."""

    service: Service
    world: World
    cluster_id: str
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.cluster_id}/audit-events"

    def post(self, raw: bytes) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return self.service.client.post(f"{self.path}?timeout=30s", content=raw, headers=headers)

    def stream(self, *chunks: bytes | None) -> httpx.Response:
        """Send chunks, and return the response."""

        async def body() -> AsyncIterator[bytes | None]:
            for chunk in chunks:
                yield chunk

        return self.stream_all(body(), ends=False)

    def stream_all(self, body: AsyncIterator[bytes | None], *, ends: bool = True) -> httpx.Response:
        return self.service.run(_exchange(self, body, ends))

    def counted(self, reason: str) -> float:
        name = f'clustercert_audit_batches_refused_total{{reason="{reason}"}} '
        lines = self.service.client.get("/metrics").text.splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    def events(self, subject: str) -> list[dict[str, Any]]:
        query = "SELECT body FROM audit_event ORDER BY id"
        said = [json.loads(stores.blob(body)) for (body,) in stores.rows(self.world.database, query)]
        return [event for event in said if event["subject"] == subject]

    def refusals(self) -> list[dict[str, Any]]:
        """Return the details of this cluster's `audit_batch.refused` events."""
        return [
            event["detail"]
            for event in self.events(self.cluster_id)
            if event["kind"] == "audit_batch.refused"
        ]


async def _exchange(sender: Sender, body: AsyncIterator[bytes | None], ends: bool) -> httpx.Response:
    said: list[Message] = []

    async def receive() -> Message:
        try:
            chunk = await anext(body)
        except StopAsyncIteration:
            return {"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"}
        if chunk is STALLS:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Message) -> None:
        said.append(message)

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": sender.path,
        "raw_path": sender.path.encode(),
        "query_string": b"timeout=30s",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {sender.token}".encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
    }
    await sender.service.app(scope, receive, send)
    start, *rest = said
    content = b"".join(message.get("body", b"") for message in rest)
    return httpx.Response(start["status"], headers=start["headers"], content=content)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("audit-batches"))


@pytest.fixture(scope="module")
def token(own: World) -> str:
    return asyncio.run(_token(own))


@pytest.fixture
def started(own: World, token: str) -> Iterator[Callable[..., Sender]]:
    """Returns a function that starts the service and returns a sender for one cluster."""
    with contextlib.ExitStack() as stack:

        def start(**server: object) -> Sender:
            service = stack.enter_context(Service(own.settings(server=server)).running())
            return Sender(service, own, own.clusters["plain"].id, token)

        yield start


async def _token(own: World) -> str:
    async with components(own.settings()) as parts:
        issued = await parts.webhook.tokens.create(own.clusters["plain"], actor=Actor(ACTOR, ORIGIN))
    return issued.text


@pytest.fixture
def sender(started: Callable[..., Sender]) -> Sender:
    return started()


def master(fingerprint: bytes) -> dict[str, object]:
    # Alerts are per user name and groups, so each certificate needs a name of its own.
    user = f"kubernetes-admin-{fingerprint.hex()}"
    return audit_event(credential_id(fingerprint), user=user, groups=["system:masters"])


def is_alerted(sender: Sender, fingerprint: bytes) -> bool:
    kinds = [event["kind"] for event in sender.events(fingerprint.hex())]
    return kinds == ["credential.unknown", "credential.masters"]


async def batch(events: int, filler: bytes, last: dict[str, object]) -> AsyncIterator[bytes | None]:
    """The chunks of a batch: this number of events with a request URI of 1 MiB, and one more event."""
    start, end = json.dumps(audit_event() | {"requestURI": "HERE"}).encode().split(b"HERE")
    yield event_list()[:-2]
    for _ in range(events):
        yield start
        for _ in range(MEBIBYTE // CHUNK):
            yield filler * (CHUNK // len(filler))
        yield end + b","
    yield json.dumps(last).encode() + b"]}"


@pytest.mark.parametrize(("filler", "events"), [(b"x", 400), (rb"\u0026", 100)])
def test_a_batch_of_hundreds_of_megabytes_is_read_completely(
    sender: Sender, filler: bytes, events: int
) -> None:
    fingerprint = os.urandom(32)
    sender.post(event_list(audit_event(credential_id(os.urandom(32)))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = sender.stream_all(batch(events, filler, master(fingerprint)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert answer.status_code == 200
    assert grown * 1024 < 32 * MEBIBYTE
    eventually(lambda: is_alerted(sender, fingerprint))


def test_a_large_body_in_one_piece_is_read(sender: Sender) -> None:
    fingerprint = os.urandom(32)
    long = audit_event() | {"requestURI": "x" * MEBIBYTE}
    assert sender.post(event_list(*[long] * 70, master(fingerprint))).status_code == 200
    eventually(lambda: is_alerted(sender, fingerprint))


def test_a_slow_batch_is_read_while_it_keeps_arriving(started: Callable[..., Sender]) -> None:
    sender, fingerprint = started(request_timeout=2, body_timeout=1.9), os.urandom(32)
    raw = event_list(master(fingerprint))

    async def slow() -> AsyncIterator[bytes | None]:
        for start in range(6):
            yield raw[start * 50 : (start + 1) * 50]
            await asyncio.sleep(0.5)
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
    assert sender.post(event_list()).status_code == 200
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
        answer = sender.post(event_list(master(os.urandom(32))))
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
