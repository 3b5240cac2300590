"""Measures where a request spends its time: runs the application in this process, and times each step.

`measure` runs this module as a program, so that it starts as a worker does.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Scope

from bench.meter import Meter
from bench.traffic import BODY
from clustercert.http import middleware as edge
from clustercert.http.cce import clustercert
from clustercert.http.dependencies import Services
from clustercert.issuance import service as issuance
from clustercert.model import AuditEvent, CertificateRecord
from clustercert.server.application import create_app
from clustercert.settings import load

AT_ONCE = 64
WARM_UP = 200

# Functions to replace in their modules, each with the name of its step.
_FUNCTIONS: tuple[tuple[str, ModuleType, str], ...] = (
    ("parse the request", clustercert, "_issue_request"),
    ("check the leaf", issuance, "check_leaf"),
    ("row and audit event", issuance, "_record"),
    ("row and audit event", issuance, "_issued_event"),
    ("kubeconfig", clustercert, "kubeconfig"),
    ("kubeconfig", clustercert, "to_json"),
    ("log line and metrics", edge, "_account"),
)
_COROUTINES: tuple[tuple[str, ModuleType, str], ...] = (("read the body", clustercert, "received"),)


@dataclass(frozen=True, slots=True)
class Steps:
    """Processor time for each request in microseconds.

    Attributes:
        steps: by name, in the order in which they run.
        record: for the ledger, with the same number of concurrent requests.
        application: for the whole application, including the ledger.
    """

    steps: dict[str, float]
    record: float
    application: float


def measure(config: Path, project_id: str, cluster_id: str, token: str, requests: int) -> Steps:
    """Measure in a separate process, which writes metrics into files as a worker does."""
    with tempfile.TemporaryDirectory(prefix="clustercert-bench-") as folder:
        ended = subprocess.run(
            [sys.executable, "-m", "bench.steps", config, project_id, cluster_id, str(requests)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder},
            input=token,
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return Steps(**json.loads(ended.stdout))


async def _measure(config: Path, project_id: str, cluster_id: str, token: str, requests: int) -> Steps:
    app = create_app(load(config))
    meter = Meter()
    kept: list[tuple[CertificateRecord, AuditEvent]] = []
    path = f"/api/v3/projects/{project_id}/clusters/{cluster_id}/clustercert"
    scope = _scope(path, token)
    async with _lifespan(app):
        await _send(app, scope, WARM_UP)
        # Run twice, because the meters take time: the whole application is measured without them.
        application = await _used_by(app, scope, requests)
        api = _framework(app)
        plain: Services = api.state.services
        api.state.services = _metered(plain, meter, kept)
        with _replaced(meter):
            await _send(app, scope, requests)
        api.state.services = plain
        record = await _recording(plain, kept[0], requests)
    order = (
        *("read the body", "authenticate", "parse the request", "find the cluster", "decide", "make the key"),
        *("sign", "check the leaf", "row and audit event", "kubeconfig", "log line and metrics"),
    )
    return Steps(
        steps={step: meter.seconds[step] / requests * 1e6 for step in order},
        record=record,
        application=application,
    )


async def _used_by(app: ASGIApp, scope: Scope, requests: int) -> float:
    started = time.process_time()
    await _send(app, scope, requests)
    return (time.process_time() - started) / requests * 1e6


def _unlimited(services: Services) -> issuance.Issuance:
    """Return the issuance. The benchmark's settings have no limits, so nothing wraps it."""
    return cast("issuance.Issuance", services.issuance)


def _metered(services: Services, meter: Meter, kept: list[tuple[CertificateRecord, AuditEvent]]) -> Services:
    """Return the services with their parts metered."""
    use = _unlimited(services)

    async def record(row: CertificateRecord, event: AuditEvent) -> None:
        kept[:] = [(row, event)]
        await use.ledger.record(row, event)

    def part(**methods: object) -> Any:
        return SimpleNamespace(**methods)

    return replace(
        services,
        authenticator=part(authenticate=meter.coroutine("authenticate", services.authenticator.authenticate)),
        issuance=replace(
            use,
            clusters=part(cluster=meter.coroutine("find the cluster", use.clusters.cluster)),
            policy=part(decide=meter.function("decide", use.policy.decide)),
            keys=part(new_key=meter.coroutine("make the key", use.keys.new_key)),
            signers={
                name: part(
                    sign=meter.coroutine("sign", signer.sign),
                    takes_serial=signer.takes_serial,
                    profile=signer.profile,
                )
                for name, signer in use.signers.items()
            },
            ledger=part(record=record),
        ),
    )


@contextlib.contextmanager
def _replaced(meter: Meter) -> Iterator[None]:
    """Meter functions of modules during the block."""
    with contextlib.ExitStack() as stack:
        for step, module, name in (*_FUNCTIONS, *_COROUTINES):
            plain = getattr(module, name)
            wrap = meter.coroutine if (step, module, name) in _COROUTINES else meter.function
            setattr(module, name, wrap(step, plain))
            stack.callback(setattr, module, name, plain)
        yield


async def _recording(
    services: Services, kept: tuple[CertificateRecord, AuditEvent], certificates: int
) -> float:
    """Return the ledger's processor time for each certificate, including the database thread."""
    row, event = kept
    rows = iter(
        [
            replace(row, fingerprint=os.urandom(32), credential_number=os.urandom(20).hex())
            for _ in range(certificates)
        ]
    )

    ledger = _unlimited(services).ledger

    async def work() -> None:
        for each in rows:
            await ledger.record(each, event)

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return (time.process_time() - started) / certificates * 1e6


async def _send(app: ASGIApp, scope: Scope, requests: int) -> None:
    """Send this number of POST requests, several at once."""
    left = iter(range(requests))

    async def work() -> None:
        for _ in left:
            await _post(app, {**scope, "headers": list(scope["headers"])})

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _post(app: ASGIApp, scope: Scope) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        if message.get("status", 200) != 200:  # noqa: PLR2004 - the only successful status
            raise RuntimeError(f"the application responded {message['status']}")

    await app(scope, receive, send)


def _scope(path: str, token: str) -> Scope:
    headers = {"host": "127.0.0.1:8080", "content-type": "application/json", "x-auth-token": token}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            *((name.encode(), value.encode()) for name, value in headers.items()),
            (b"content-length", str(len(BODY)).encode()),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
    }


@contextlib.asynccontextmanager
async def _lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Start and stop the application through the ASGI lifespan protocol."""
    say: asyncio.Queue[Message] = asyncio.Queue()
    said: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.ensure_future(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, say.get, said.put)
    )
    await say.put({"type": "lifespan.startup"})
    answer = await said.get()
    if answer["type"] != "lifespan.startup.complete":
        raise RuntimeError(f"the application did not start: {answer}")
    yield
    await say.put({"type": "lifespan.shutdown"})
    await said.get()
    await task


def _framework(app: ASGIApp) -> FastAPI:
    """Return the FastAPI application, whose state holds the services. The middleware and a router wrap it."""
    return cast("FastAPI", cast("Any", app).app.default)


def main() -> None:
    """Measure, and print the result as JSON."""
    config, project_id, cluster_id, requests = sys.argv[1:]
    token = sys.stdin.read()
    measured = uvloop.run(_measure(Path(config), project_id, cluster_id, token, int(requests)))
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
