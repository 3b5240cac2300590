"""Batches of audit events as an API server sends them: small, large, slow and cut off."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.types import Message, Scope

from clustercert.model import Actor, Origin
from clustercert.wiring import open_components
from support import stores
from support.kubernetes_messages import audit_event, credential_id, event_list
from support.service import Service
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

    def post(self, raw: bytes) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return self.service.client.post(f"{self.path}?timeout=30s", content=raw, headers=headers)

    def stream(self, *chunks: bytes | None) -> httpx2.Response:
        """Send chunks, and return the response."""

        async def body() -> AsyncIterator[bytes | None]:
            for chunk in chunks:
                yield chunk

        return self.stream_all(body(), ends=False)

    def stream_all(self, body: AsyncIterator[bytes | None], *, ends: bool = True) -> httpx2.Response:
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


async def _exchange(sender: Sender, body: AsyncIterator[bytes | None], ends: bool) -> httpx2.Response:
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
    return httpx2.Response(start["status"], headers=start["headers"], content=content)


async def webhook_token(own: World) -> str:
    """A new token of the cluster `plain`."""
    async with open_components(own.settings()) as components:
        issued = await components.webhook.tokens.create(own.clusters["plain"], actor=Actor(ACTOR, ORIGIN))
    return issued.text


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
