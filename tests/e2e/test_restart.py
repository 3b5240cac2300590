"""A restart loses no review: the listening socket is inherited, and the old process drains its connections."""

import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.demo_process import COMMAND
from support.kubernetes_messages import review
from support.serve_process import end, environment_of, serving
from support.wait import SECONDS, eventually
from support.world import World, make, webhook_token

CLIENTS = 4
ACTIVATE = shutil.which("systemd-socket-activate")
UNIT = Path(__file__).resolve().parents[2] / "deploy" / "clustercert-webhook@.service"
# As systemd starts a service: the socket is descriptor 3.
PASS_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Reviews:
    """Clients that send reviews over kept connections, and repeat nothing, until they are told to stop."""

    port: int
    path: str
    token: str
    stop: threading.Event = field(default_factory=threading.Event)
    # Of each client. Only its thread changes these two numbers.
    answers: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    closed: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    failed: list[str] = field(default_factory=list)

    def send(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        while not self.stop.is_set():
            # A connection that was closed is opened again, perhaps to another process.
            connection.port = self.port
            try:
                connection.request("POST", self.path, review(), headers)
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
                continue
            # On a slow machine a process may exceed its own limit of 2 s for a read: the restart did not cause this.
            if answer.status != 200 and b"did not answer in time" not in said:
                self.failed.append(f"{answer.status} {said!r}")
            self.closed[client] += answer.headers["Connection"] == "close"
            self.answers[client] += 1
        connection.close()

    def continue_on(self) -> None:
        """Wait for more answers to each client."""
        before = self.answers.copy()
        eventually(lambda: all(now > then + 10 for now, then in zip(self.answers, before, strict=True)))


@dataclass
class Service:
    """A socket, and the processes that inherit it."""

    world: World
    listening: socket.socket
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self) -> "subprocess.Popen[str]":
        """Start a process, and wait until it is ready as systemd does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.settimeout(SECONDS)
            path = self.world.folder / f"notify-{len(self.processes)}"
            notices.bind(str(path))
            descriptor = str(self.listening.fileno())
            process = subprocess.Popen(
                [sys.executable, "-c", PASS_ON, descriptor, *COMMAND, "serve", "--role", "webhook"],
                env=environment_of(self.world) | {"NOTIFY_SOCKET": str(path)},
                pass_fds=[self.listening.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.processes.append(process)
            assert notices.recv(100) == b"READY=1"
        return process


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = Service(make(tmp_path), listening)
        try:
            yield one
        finally:
            for process in one.processes:
                if process.poll() is None:
                    end(process)


@contextlib.contextmanager
def under_load(service: Service, port: int | None = None) -> Iterator[Reviews]:
    cluster = service.world.clusters["plain"].id
    path = f"/clustercert/v1/kubernetes/clusters/{cluster}/authorize?timeout=3s"
    token = asyncio.run(webhook_token(service.world))
    reviews = Reviews(port or service.listening.getsockname()[1], path, token)
    threads = [threading.Thread(target=reviews.send, args=(each,)) for each in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        reviews.continue_on()
        yield reviews
    finally:
        reviews.stop.set()
        for thread in threads:
            thread.join(SECONDS)


def test_two_instances_restarted_in_turn_fail_no_review(service: Service) -> None:
    first = service.start()
    with under_load(service) as reviews:
        second = service.start()
        first.terminate()
        assert first.wait(SECONDS) == 0
        reviews.continue_on()
        service.start()
        second.terminate()
        assert second.wait(SECONDS) == 0
        reviews.continue_on()
    assert reviews.failed == []
    assert sum(reviews.closed) >= CLIENTS


def test_a_single_instance_that_is_restarted_fails_no_review(service: Service) -> None:
    """New connections wait in the socket until the next process is ready."""
    first = service.start()
    with under_load(service) as reviews:
        first.terminate()
        assert first.wait(SECONDS) == 0
        service.start()
        reviews.continue_on()
    assert reviews.failed == []


def activated(service: Service) -> "subprocess.Popen[str]":
    """The command of the webhook's unit, which systemd's own tool starts when a client connects."""
    config = service.world.folder / "clustercert.toml"
    lines = (f"data_dir = '{service.world.settings().data_dir}'", "[webhook]", "plain_http = true")
    config.write_text("\n".join(lines), encoding="utf-8")
    [command] = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    _, option, _, *arguments = command.split()
    assert (option, arguments[0]) == ("--config", "serve")
    path = [f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}"] if "PYTHONPATH" in os.environ else []
    descriptor = service.listening.fileno()
    started = [*COMMAND, option, str(config), *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", PASS_ON, str(descriptor), str(ACTIVATE), *path, *started],
        pass_fds=[descriptor],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    service.processes.append(process)
    return process


def ready(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
    """The answer to `/readyz`, and its Connection header."""
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers["Connection"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_replica_that_drains_fails_no_review(service: Service, workers: str) -> None:
    """Behind a load balancer, which opens no connections to a replica that is about to end."""
    with (
        serving(service.world, "--role", "webhook", "--drain", "--workers", workers) as old,
        serving(service.world, "--role", "webhook") as new,
    ):
        with under_load(service, port=urlsplit(old.url).port) as reviews:
            reviews.port = urlsplit(new.url).port or 0
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(SECONDS) == 0
            reviews.continue_on()
        assert reviews.failed == []
        assert sum(reviews.closed) == CLIENTS


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
def test_the_units_command_is_started_by_a_connection_and_restarted(service: Service) -> None:
    host, port = service.listening.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    for _ in range(2):
        process = activated(service)
        # Waits in the socket until the service is there.
        assert ready(connection) == (200, None)
        first = connection.sock
        assert ready(connection) == (200, None)
        assert connection.sock is first
        process.terminate()
        # Until the process handles the signal, it answers as before.
        eventually(lambda: ready(connection) == (200, "close"))
        assert process.wait(SECONDS) == 0
    connection.close()


def test_an_idle_connection_does_not_hold_up_the_end(service: Service) -> None:
    process = service.start()
    with socket.create_connection(service.listening.getsockname(), timeout=SECONDS) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        process.terminate()
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_workers_that_drain_can_be_told_to_end_at_once(
    service: Service, numbers: list[signal.Signals]
) -> None:
    with serving(service.world, "--role", "webhook", "--drain", "--workers", "2") as serve:
        host, port = urlsplit(serve.url).hostname, urlsplit(serve.url).port
        connection = http.client.HTTPConnection(str(host), port, timeout=SECONDS)
        assert ready(connection) == (200, None)
        for number in numbers:
            serve.process.send_signal(number)
            if number != numbers[-1]:
                eventually(lambda: ready(connection) == (200, "close"))
        assert serve.process.wait(SECONDS) == 0
        connection.close()


def test_without_connections_it_ends_at_once(service: Service) -> None:
    process = service.start()
    process.terminate()
    assert process.wait(SECONDS) == 0
