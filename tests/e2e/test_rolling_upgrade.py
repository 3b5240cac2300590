"""Replicas are upgraded one by one under load, and no request fails."""

import asyncio
import contextlib
import itertools
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from clustercert.store.engine import migrate
from support import postgres
from support.balanced_replicas import HAPROXY, Proxy, replicas
from support.demo_process import COMMAND, uncovered
from support.kubernetes_messages import review_of
from support.leaf_checks import leaf_of
from support.migrations import NEXT, next_program
from support.serve_process import environment_of
from support.stores import Store
from support.wait import SECONDS, eventually
from support.world import World, make, webhook_token

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"),
]

CLIENTS = 3
PAUSE_SECONDS = 0.1
THIS_PROGRAM: Mapping[str, str] = {}


@dataclass
class Load:
    """Clients that issue, read, review and revoke certificates, and repeat no request."""

    world: World
    proxy: Proxy
    webhook_token: str
    stop: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    issued: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Use the service until `stop` is set. Raises an error at the first request that fails."""
        token, cluster = self.world.people["admin"].token, self.world.clusters["plain"]
        below = f"/clustercert/v1/projects/{cluster.project_id}/clusters/{cluster.id}/certificates"
        with (
            self.proxy.client(self.proxy.ports[0], **{"X-Auth-Token": token}) as client,
            self.proxy.client(
                self.proxy.ports[1], Authorization=f"Bearer {self.webhook_token}"
            ) as api_server,
        ):
            for number in itertools.count():
                # The pause leaves processor time for the replicas that start.
                if self.stop.wait(PAUSE_SECONDS):
                    return
                answer = self._expect(client.post(self.world.path(), json={"duration": 1}))
                fingerprint = answer.headers["X-Clustercert-Fingerprint"]
                self.issued.add(fingerprint)
                body = review_of(leaf_of(answer.json()), fingerprint)
                assert not self._is_denied(api_server, body)
                shown = self._expect(client.get(f"{below}/{fingerprint}")).json()
                assert shown["state"] == "live"
                self._expect(client.get(below, params={"limit": "5"}))
                if number % 4 == 0:
                    self._expect(client.post(f"{below}/{fingerprint}/revoke", json={"reason": "superseded"}))
                    self.revoked.add(fingerprint)
                    eventually(lambda body=body: self._is_denied(api_server, body))  # type: ignore[misc] # the lambda has no types
                self.counts["rounds"] += 1

    def _is_denied(self, api_server: httpx2.Client, body: bytes) -> bool:
        path = f"/clustercert/v1/kubernetes/clusters/{self.world.clusters['plain'].id}/authorize"
        answer = self._expect(
            api_server.post(path, content=body, headers={"Content-Type": "application/json"})
        )
        return bool(answer.json()["status"].get("denied", False))

    def _expect(self, answer: httpx2.Response) -> httpx2.Response:
        assert answer.status_code == 200, (answer.request.url, answer.status_code, answer.text)
        self.counts["requests"] += 1
        return answer


@contextlib.contextmanager
def under_load(load: Load) -> Iterator[Callable[[], None]]:
    """Run the clients during the block. Yields a function that waits for more requests of all clients."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        users: list[Future[None]] = [pool.submit(load.run) for _ in range(CLIENTS)]

        def go_on() -> None:
            before = load.counts["rounds"]
            eventually(lambda: any(user.done() for user in users) or load.counts["rounds"] > before + 20)
            for user in users:
                if user.done():
                    user.result()

        try:
            go_on()
            yield go_on
        finally:
            load.stop.set()
        for user in users:
            user.result()


def command(world: World, program: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=uncovered(environment_of(world) | dict(program)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def test_replicas_are_upgraded_one_by_one_without_a_failed_request(
    server: postgres.Server, tmp_path: Path
) -> None:
    world = make(tmp_path, database_url=server.create())
    store = Store(world.settings().store_url)
    newer = next_program(tmp_path / "newer", oldest_program=migrate.head())
    # The path of a socket must not be longer than 107 bytes.
    with (
        tempfile.TemporaryDirectory() as folder,
        replicas(world, Path(folder)) as running,
    ):
        for name in running.addresses:
            running.start(name, THIS_PROGRAM)
        load = Load(world, running.proxy, asyncio.run(webhook_token(world)))
        with under_load(load) as go_on:
            # Each replica's init container may run this command.
            for each in [command(world, newer, "db", "upgrade") for _ in range(3)]:
                output(each)
            assert store.rows("SELECT version_num FROM alembic_version") == [(NEXT,)]
            go_on()
            assert running.stop("one") == 0
            go_on()
            running.start("one", newer)
            go_on()
            # A replica that has not been upgraded yet may be restarted.
            assert running.stop("two") == 0
            output(command(world, THIS_PROGRAM, "db", "upgrade"))
            running.start("two", THIS_PROGRAM)
            go_on()
            assert running.stop("two") == 0
            running.start("two", newer)
            go_on()
    assert NEXT in output(command(world, newer, "db", "check"))
    recorded = store.rows("SELECT encode(fingerprint, 'hex'), revoked_at IS NOT NULL FROM certificate")
    assert {str(fingerprint) for fingerprint, _ in recorded} == load.issued
    assert {str(fingerprint) for fingerprint, is_revoked in recorded if is_revoked} == load.revoked
    assert load.revoked
    output(command(world, newer, "audit", "verify"))
