"""Audit events: to a file of JSON lines, and in batches to a webhook, both at level Metadata."""

import json
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from support.apiserver.attributes import Attributes
from support.apiserver.authorization import Verdict
from support.apiserver.identity import Identity
from support.apiserver.kubeconfigs import KubeconfigCaller

LARGEST_BATCH = 400
TIMEOUT_S = 30.0


def event(
    who: Identity | None,
    wanted: Attributes,
    target: str,
    user_agent: str,
    status: int,
    verdict: Verdict | None,
    received: datetime,
) -> Mapping[str, Any]:
    """One audit.k8s.io/v1 Event as it stands when the answer is complete."""
    document: dict[str, Any] = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": str(uuid.uuid4()),
        "stage": "ResponseComplete",
        "requestURI": target,
        "verb": wanted.verb,
        "user": {} if who is None else who.user_info,
        "sourceIPs": ["127.0.0.1"],
        "userAgent": user_agent,
    }
    if wanted.resource:
        reference = {
            "resource": wanted.resource,
            "namespace": wanted.namespace,
            "name": wanted.name,
            "apiGroup": wanted.group,
            "apiVersion": wanted.version,
            "subresource": wanted.subresource,
        }
        document["objectRef"] = {name: text for name, text in reference.items() if text}
    document["responseStatus"] = {"metadata": {}, "code": status}
    document["requestReceivedTimestamp"] = _timestamp(received)
    document["stageTimestamp"] = _timestamp(datetime.now(UTC))
    if verdict is not None and verdict.decision.value:
        document["annotations"] = {
            "authorization.k8s.io/decision": verdict.decision.value,
            "authorization.k8s.io/reason": verdict.reason,
        }
    return document


def _timestamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class AuditLog:
    """`--audit-log-path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def __call__(self, happened: Mapping[str, Any]) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(happened, separators=(",", ":")) + "\n")


class AuditWebhook:
    """`--audit-webhook-config-file` in batch mode.

    Attributes:
        refused: error responses and connection errors of the sink.
    """

    def __init__(self, kubeconfig: Path, longest_wait_s: float = 0.2) -> None:
        self._caller = KubeconfigCaller(kubeconfig, TIMEOUT_S)
        self._longest_wait_s = longest_wait_s
        self._events: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, happened: Mapping[str, Any]) -> None:
        self._events.put(happened)

    def close(self) -> None:
        """Send the remaining events, and stop."""
        self._events.put(None)
        self._thread.join(TIMEOUT_S)
        self._caller.close()

    def _run(self) -> None:
        going = True
        while going:
            first = self._events.get()
            if first is None:
                return
            batch, until = [first], time.monotonic() + self._longest_wait_s
            while len(batch) < LARGEST_BATCH and (left := until - time.monotonic()) > 0:
                try:
                    happened = self._events.get(timeout=left)
                except queue.Empty:
                    break
                if happened is None:
                    going = False
                    break
                batch.append(happened)
            self._send(batch)

    def _send(self, batch: Sequence[Mapping[str, Any]]) -> None:
        body = {"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch}
        try:
            answer = self._caller.post(json.dumps(body, separators=(",", ":")).encode())
        except httpx2.HTTPError as error:
            self.refused.append(repr(error))
            return
        if not answer.is_success:
            self.refused.append(f"{answer.status_code} {answer.text[:200]}")
