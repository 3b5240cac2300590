"""Measures the webhook's response times under attacks: behind deploy/haproxy.cfg, and without a proxy.

Behind the proxy, the API is attacked; without one, both roles are, with TLS of their own.

Reviews arrive at a steady rate over a few kept connections, as from an API server. Each response time counts from the
moment at which its request was due, so a stall counts for all requests in that time.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

from bench import attacks, processes, tls, world
from bench.report import ROOT
from bench.webhook import Shown, api_server, review
from bench.world import World

RATE = 200
CONNECTIONS = 16
# Another address of this machine than the attacker's.
API_SERVER = "127.0.0.2"
# An API server waits for its webhook no longer. So a review that could not be sent by then has failed.
GIVEN_UP_SECONDS = 3.0
LOCKED_SECONDS, FREE_SECONDS = 2.5, 0.2
ISSUING = 16
# Between two attacks: unfinished handshakes have ended by then.
PAUSE_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Front:
    """Where clients reach the API and the webhook, with TLS.

    Attributes:
        attacked: the ports that are attacked.
    """

    api_port: int
    webhook_port: int
    files: tls.Files
    attacked: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both roles, and what their clients send.

    Attributes:
        headers: a token's, to request certificates.
        request: a review of an issued certificate.
    """

    store: World
    front: Front
    headers: dict[str, str]
    request: bytes


@dataclass(frozen=True, slots=True)
class Figures:
    """Response times during one attack, in milliseconds, and the number of reviews without a correct answer.

    The times are those of correct answers: None without any.
    """

    attack: str
    reviews: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    most_ms: float | None


def measure(folder: Path, seconds: float) -> list[dict[str, object]]:
    """Return the figures behind the proxy without an attack, and during each attack."""
    store = world.prepare(folder)
    with in_front(store) as front:
        return _rows(prepared(store, front), seconds)


def measure_without_proxy(folder: Path, seconds: float) -> list[dict[str, object]]:
    """Return the same figures without a proxy, while both roles are attacked."""
    store = world.prepare(folder)
    with exposed(store) as front:
        return _rows(prepared(store, front), seconds)


def _rows(to_attack: Prepared, seconds: float) -> list[dict[str, object]]:
    rows = []
    started: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "none": contextlib.nullcontext,
        **{name: _attack_of(name, to_attack.front) for name in attacks.ATTACKS},
        "slow database": lambda: _slow_database(to_attack),
    }
    for name, attack in started.items():
        with attack():
            rows.append(figures(to_attack, name, seconds))
        time.sleep(PAUSE_SECONDS)
    return rows


def prepared(store: World, front: Front) -> Prepared:
    """Log in, and issue the certificate that is reviewed."""
    server = asyncio.run(api_server(store, store.project_id, store.cluster_id))
    # While the API is attacked, or shortly afterwards, nobody can log in.
    with _client(front) as client:
        headers = {"X-Auth-Token": world.token(client, store)}
    request = review("localhost", server, _issue(store, front, headers))
    return Prepared(store, front, headers, request)


def figures(to_attack: Prepared, name: str, seconds: float) -> dict[str, object]:
    """Send reviews, and return the figures under the attack's name."""
    taken = asyncio.run(_review_at(to_attack.front, to_attack.request, seconds))
    return asdict(_figures(name, taken))


@contextlib.contextmanager
def in_front(store: World) -> Iterator[Front]:
    """Serve both roles behind HAProxy during the block."""
    files = tls.new_files(store.folder)
    pair = store.folder / "proxy.pem"
    pair.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    serve = [sys.executable, "-m", "clustercert", "--config", str(store.config), "serve", "--role"]
    proxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "haproxy"
    log = store.folder / "serve.log"
    with contextlib.ExitStack() as stack:
        api, webhook, api_port, webhook_port = (
            stack.enter_context(processes.reserved_port()) for _ in range(4)
        )
        proxy_env = {
            "CLUSTERCERT_LISTEN": f"127.0.0.1:{api_port}",
            "CLUSTERCERT_CERTIFICATE": str(pair),
            "CLUSTERCERT_SERVER": f"127.0.0.1:{api}",
            "CLUSTERCERT_WEBHOOK_LISTEN": f"127.0.0.1:{webhook_port}",
            "CLUSTERCERT_WEBHOOK_SERVER": f"127.0.0.1:{webhook}",
        }
        for role, port in (("api", api), ("webhook", webhook)):
            command = [*serve, role, "--port", str(port)]
            stack.enter_context(processes.running(command, log, _is_ready(port)))
        command = [proxy, "-db", "-f", str(ROOT / "deploy" / "haproxy.cfg")]
        stack.enter_context(
            processes.running(command, log, lambda: processes.listens(webhook_port), env=proxy_env)
        )
        yield Front(api_port, webhook_port, files, attacked=(api_port,))


@contextlib.contextmanager
def exposed(store: World) -> Iterator[Front]:
    """Serve both roles with TLS, and without a proxy, during the block."""
    files = tls.new_files(store.folder)
    serve = [sys.executable, "-m", "clustercert", "--config", str(store.config), "serve", "--role"]
    env = {
        f"CLUSTERCERT_{section}__TLS_{what}": str(path)
        for section in ("SERVER", "WEBHOOK")
        for what, path in (("CERTIFICATE", files.certificate), ("KEY", files.key))
    }
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(processes.reserved_port()) for _ in range(2)]
        for role, port in zip(("api", "webhook"), ports, strict=True):
            command = [*serve, role, "--port", str(port)]
            ready = _is_ready(port, files)
            stack.enter_context(processes.running(command, store.folder / "serve.log", ready, env=env))
        yield Front(ports[0], ports[1], files, attacked=tuple(ports))


def _is_ready(port: int, files: tls.Files | None = None) -> Callable[[], bool]:
    url = f"{'https' if files else 'http'}://127.0.0.1:{port}/readyz"
    verify = files.context() if files else True

    def ready() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(url, verify=verify, trust_env=False, timeout=10).is_success
        return False

    return ready


def _client(front: Front) -> httpx2.Client:
    transport = httpx2.HTTPTransport(verify=front.files.context(), local_address=API_SERVER)
    return httpx2.Client(base_url=f"https://127.0.0.1:{front.api_port}", transport=transport, timeout=60)


def _issue(store: World, front: Front, headers: dict[str, str]) -> Shown:
    with _client(front) as client:
        issued = client.post(_path(store), json={"duration": 1}, headers=headers).raise_for_status().headers
    return Shown(
        fingerprint=bytes.fromhex(issued["X-Clustercert-Fingerprint"]),
        credential_number=issued["X-Clustercert-Serial"],
        user_id=store.user_id,
    )


def _path(store: World) -> str:
    return f"/api/v3/projects/{store.project_id}/clusters/{store.cluster_id}/clustercert"


def _attack_of(name: str, front: Front) -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def attack() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for port in front.attacked:
                stack.enter_context(_attacker(name, port, front.files.ca))
            yield

    return attack


@contextlib.contextmanager
def _attacker(name: str, port: int, ca: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.attacks", name, str(port), str(ca)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as attacker:
        try:
            if attacker.stdout is None or not attacker.stdout.readline():
                raise RuntimeError(f"the attack {name} did not start")
            yield
        finally:
            attacker.kill()


@contextlib.contextmanager
def _slow_database(attacked: Prepared) -> Iterator[None]:
    """Hold SQLite's write lock most of the time, while clients request certificates."""

    def lock(over: threading.Event) -> None:
        path = attacked.store.settings.store_url.partition(":///")[2]
        connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        while not over.is_set():
            connection.execute("BEGIN IMMEDIATE")
            over.wait(LOCKED_SECONDS)
            connection.execute("ROLLBACK")
            over.wait(FREE_SECONDS)
        connection.close()

    with issuing(attacked, lock):
        yield


@contextlib.contextmanager
def issuing(attacked: Prepared, *more: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let clients request certificates, and `more` run, until the block ends and sets the event."""
    over = threading.Event()

    def issue() -> None:
        with _client(attacked.front) as client:
            while not over.is_set():
                with contextlib.suppress(httpx2.TransportError):
                    client.post(_path(attacked.store), json={"duration": 1}, headers=attacked.headers)

    threads = [threading.Thread(target=each, args=(over,)) for each in more]
    threads += [threading.Thread(target=issue) for _ in range(ISSUING)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


async def _review_at(front: Front, request: bytes, seconds: float) -> list[float | None]:
    """Send reviews at the rate. Returns the seconds that each one took; None for a failed one."""
    count = int(RATE * seconds)
    begin = time.perf_counter() + 0.5
    taken: list[float | None] = []

    async def send(due: list[float]) -> None:
        context, streams = front.files.context(), None
        for moment in due:
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            correct = False
            if time.perf_counter() - moment > GIVEN_UP_SECONDS:
                taken.append(None)
                continue
            try:
                streams = streams or await _connect(front, context)
                correct = await _exchange(streams, request)
            except (OSError, EOFError):
                await _close(streams)
                streams = None
            taken.append(time.perf_counter() - moment if correct else None)
        await _close(streams)

    moments = [begin + number / RATE for number in range(count)]
    await asyncio.gather(*(send(moments[number::CONNECTIONS]) for number in range(CONNECTIONS)))
    return taken


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connect(front: Front, context: ssl.SSLContext) -> Streams:
    return await asyncio.open_connection(
        "127.0.0.1",
        front.webhook_port,
        ssl=context,
        server_hostname="127.0.0.1",
        local_addr=(API_SERVER, 0),
    )


async def _close(streams: Streams | None) -> None:
    if streams is not None:
        streams[1].close()
        with contextlib.suppress(OSError):
            await streams[1].wait_closed()


async def _exchange(streams: Streams, request: bytes) -> bool:
    """Send one request on a kept connection. Returns whether the response is the expected one."""
    reader, writer = streams
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line[16:]) for line in lines if line.startswith(b"content-length: "))
    body = await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200 ") and b'"allowed": false' in body and b"denied" not in body


def _figures(attack: str, taken: list[float | None]) -> Figures:
    times = sorted(each for each in taken if each is not None)
    p50, p99, most = (
        (times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000, times[-1] * 1000)
        if times
        else (None, None, None)
    )
    return Figures(attack, len(taken), len(taken) - len(times), p50, p99, most)
