"""Workers and scribes that die, and the main process that starts others."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from running import Demo, demo, uncovered

START_SECONDS = 15


def children(running: Demo) -> set[int]:
    """The process ids of the children that do something, and not of multiprocessing's own helper."""
    pid = running.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


def scribes(running: Demo) -> set[int]:
    """Those that listen where the scribe does."""
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    listening = {
        f"socket:[{line[6]}]" for line in unix if line[-1].endswith("/scribe") and line[3] != "00000000"
    }
    return {child for child in children(running) if not listening.isdisjoint(_open_in(child))}


def _open_in(process: int) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return {str(file.readlink()) for file in Path(f"/proc/{process}/fd").iterdir()}
    return set()


def workers(running: Demo) -> set[int]:
    """The others."""
    return children(running) - scribes(running)


def says(running: Demo) -> Iterator[str]:
    """What the main process says of its children, as it says it."""
    assert running.process.stderr is not None
    for line in running.process.stderr:
        if line.startswith(("Worker ", "The scribe ")):
            yield line


def fingerprints(running: Demo) -> list[str]:
    """Of all certificates, sorted."""
    answer = running.cli("certificate", "list", "--limit", "100000", "--output", "json")
    return sorted(certificate["fingerprint"] for certificate in json.loads(answer.stdout))


def asked(running: Demo, timeout: float = START_SECONDS) -> int:
    """The status of a request over a connection of its own."""
    return httpx.get(f"{running.said['url']}/healthz", trust_env=False, timeout=timeout).status_code


def test_a_worker_that_died_is_followed_and_who_comes_meanwhile_is_answered(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running:
        (before,) = workers(running)
        os.kill(before, signal.SIGKILL)
        assert asked(running) == 200
        (after,) = workers(running)
        assert after != before
        assert next(says(running)).startswith("Worker 1 was ended by SIGKILL; another one is started")


def test_a_worker_that_is_told_to_end_finishes_and_is_followed(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running:
        (before,) = workers(running)
        os.kill(before, signal.SIGTERM)
        assert next(says(running)).startswith("Worker 1 ended with code 0")
        assert asked(running) == 200
        assert workers(running).isdisjoint({before})


def test_one_that_can_not_start_is_tried_again_with_pauses_and_keeps_no_client_waiting(
    tmp_path: Path,
) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        (tmp_path / "data" / "kek").rename(tmp_path / "kek")
        os.kill(min(workers(running)), signal.SIGKILL)
        lines = says(running)
        dead = [next(lines)]
        times = []
        for _ in range(3):
            dead.append(next(lines))
            times.append(time.monotonic())
        # The other one answers them all.
        assert [asked(running, timeout=5) for _ in range(20)] == [200] * 20
        (tmp_path / "kek").rename(tmp_path / "data" / "kek")
        deadline = time.monotonic() + START_SECONDS
        while len(workers(running)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert asked(running) == 200
    assert "SIGKILL" in dead[0]
    assert all("ended with code 3" in line for line in dead[1:])
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))


def test_a_scribe_that_died_is_followed_and_certificates_are_issued_meanwhile(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running, running.client() as client:
        (before,) = scribes(running)
        held, issued = fingerprints(running), []

        def issue() -> None:
            answer = client.post(running.clustercert_path, json={"duration": 1}).raise_for_status()
            issued.append(answer.headers["X-Clustercert-Fingerprint"])

        issue()
        os.kill(before, signal.SIGKILL)
        issue()
        assert next(says(running)).startswith("The scribe was ended by SIGKILL; another one is started")
        deadline = time.monotonic() + START_SECONDS
        while not (after := scribes(running)):
            assert time.monotonic() < deadline
            issue()
        assert after != {before}
        issue()
        assert fingerprints(running) == sorted(held + issued)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0.0, 0.8, 1.6])
def test_a_signal_to_all_of_them_and_again_ends_them_without_a_traceback(
    tmp_path: Path, number: signal.Signals, moment: float
) -> None:
    """As a terminal and a supervisor of services do it."""
    with demo(tmp_path / "data", "--workers", "2", env=uncovered()) as running:
        told = threading.Event()
        os.kill(min(workers(running)), signal.SIGKILL)
        # Meanwhile another one starts.
        told.wait(moment)
        for _ in range(3):
            os.killpg(running.process.pid, number)
            told.wait(0.02)
        assert running.process.stderr is not None
        said = running.process.stderr.read()
        assert running.process.wait(20) == 0
    assert "Traceback" not in said
    assert said.endswith("Stopped.\n")
