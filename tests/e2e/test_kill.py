"""`kill -9` at any moment: every certificate that a client received is in the database after the restart."""

import random
import sqlite3
import threading
from pathlib import Path

import httpx2
import pytest

from support.demo_process import Demo, demo
from support.wait import SECONDS, eventually


def _receive_until_killed(running: Demo, received: list[str]) -> None:
    with running.client() as client:
        while True:
            try:
                answer = client.post(running.clustercert_path, json={"duration": 1})
            except httpx2.TransportError:
                return
            assert answer.status_code == 200, answer.text
            received.append(answer.headers["X-Clustercert-Fingerprint"])


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.long)])
def test_every_received_certificate_survives_sigkill(tmp_path: Path, rounds: int) -> None:
    received: list[str] = []
    for _ in range(rounds):
        enough = len(received) + random.randint(20, 60)
        with demo(tmp_path / "data", "--workers", "2") as running:
            clients = [
                threading.Thread(target=_receive_until_killed, args=(running, received)) for _ in range(4)
            ]
            for client in clients:
                client.start()
            eventually(lambda enough=enough: len(received) >= enough)  # type: ignore[misc] # the lambda has no types
            running.kill()
            for client in clients:
                client.join(SECONDS)

    # The demo's own certificate is issued at each start, beside these.
    with demo(tmp_path / "data"), sqlite3.connect(tmp_path / "data" / "clustercert.db") as database:
        recorded = [row[0].hex() for row in database.execute("SELECT fingerprint FROM certificate")]
        events = [
            row[0]
            for row in database.execute("SELECT subject FROM audit_event WHERE kind = 'certificate.issued'")
        ]
    assert len(received) >= 20 * rounds
    assert set(received) <= set(recorded)
    assert sorted(events) == sorted(recorded)


def test_a_killed_supervisor_takes_its_workers_along(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        running.process.kill()
        running.process.wait(SECONDS)

        def ended() -> bool:
            try:
                httpx2.get(f"{running.said['url']}/healthz", trust_env=False, timeout=SECONDS)
            except httpx2.TransportError:
                return True
            return False

        eventually(ended)
