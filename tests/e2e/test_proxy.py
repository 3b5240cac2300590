"""deploy/haproxy.cfg in front of the service: whatever one address does, other clients are answered."""

import contextlib
import os
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support.demo_process import Demo, demo
from support.open_files import as_many_as_possible
from support.ports import port_of, reserve
from support.trace_collector import TraceCollector, trace_collector
from support.wait import SECONDS, eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SILENT, UNFINISHED, HANDSHAKES = 1100, 600, 15_000
MEGABYTE = 1_000_000
# Another address of this machine than the attacker's.
OTHER_CLIENT = "127.0.0.2"
GROWTH_BYTES = 300 * MEGABYTE
Stack = contextlib.ExitStack

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


@dataclass(frozen=True)
class Front:
    """HAProxy in front of a demo."""

    running: Demo
    process: "subprocess.Popen[bytes]"
    port: int
    context: ssl.SSLContext
    collector: TraceCollector

    def client(self) -> httpx2.Client:
        transport = httpx2.HTTPTransport(verify=self.context, local_address=OTHER_CLIENT)
        return httpx2.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"X-Auth-Token": self.running.said["token"]},
            transport=transport,
            timeout=SECONDS,
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def resident_bytes(self) -> int:
        """Of the proxy and the service."""
        pages = 0
        for process in (self.process, self.running.process):
            pages += int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("proxy")
    key, now = new_key("ec-p256"), datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    (folder / "server.pem").write_bytes(chain_pem((leaf,)) + key_pem(key))
    (folder / "ca.pem").write_bytes(chain_pem((ca,)))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        port, webhook_port = (port_of(stack.enter_context(reserve())) for _ in range(2))
        patch.setenv("CLUSTERCERT_SERVER__TRUSTED_PROXIES", '["127.0.0.1"]')
        collector = stack.enter_context(trace_collector())
        patch.setenv("CLUSTERCERT_TRACING__ENDPOINT", collector.url)
        patch.setenv("CLUSTERCERT_TRACING__SAMPLE_RATIO", "0")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        running = stack.enter_context(demo(folder / "data"))
        env = os.environ | {
            "CLUSTERCERT_LISTEN": f"127.0.0.1:{port}",
            "CLUSTERCERT_WEBHOOK_LISTEN": f"127.0.0.1:{webhook_port}",
            "CLUSTERCERT_CERTIFICATE": str(folder / "server.pem"),
            "CLUSTERCERT_SERVER": running.said["url"].removeprefix("http://"),
        }
        process = subprocess.Popen([str(HAPROXY), "-db", "-f", CONFIGURATION], env=env)
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        one = Front(running, process, port, context, collector)
        try:
            _wait_for(one)
            yield one
            assert process.poll() is None
        finally:
            process.kill()
            process.wait(SECONDS)


def _wait_for(front: Front) -> None:
    def accepts() -> bool:
        assert front.process.poll() is None, "haproxy did not start"
        with contextlib.suppress(OSError):
            front.connect().close()
            return True
        return False

    eventually(accepts)


@pytest.fixture
def open_files() -> Iterator[int]:
    """As many files as this process may open."""
    with as_many_as_possible() as count:
        yield count


def held(stack: Stack, front: Front, count: int, sent: bytes) -> None:
    """So many connections, on each of which this is sent and nothing more; the proxy may close any of them."""
    for _ in range(count):
        with contextlib.suppress(OSError):
            stack.enter_context(front.connect()).sendall(sent)


def silent(stack: Stack, front: Front) -> None:
    held(stack, front, SILENT, b"")


def unfinished_handshakes(stack: Stack, front: Front) -> None:
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        front.context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1").do_handshake()
    hello = out.read()
    held(stack, front, HANDSHAKES, hello)


def bodies_that_never_come(stack: Stack, front: Front) -> None:
    head = (
        f"POST {front.running.clustercert_path} HTTP/1.1\r\nHost: a\r\n"
        f"X-Auth-Token: {front.running.said['token']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    ).encode()
    for _ in range(UNFINISHED):
        with contextlib.suppress(OSError):
            secured = front.context.wrap_socket(front.connect(), server_hostname="127.0.0.1")
            stack.enter_context(secured).sendall(head)


def large_headers(stack: Stack, front: Front) -> None:
    for _ in range(20):
        with contextlib.suppress(OSError):
            secured = front.context.wrap_socket(front.connect(), server_hostname="127.0.0.1")
            stack.enter_context(secured).sendall(
                b"GET /healthz HTTP/1.1\r\nX-Large: " + b"a" * MEGABYTE + b"\r\n\r\n"
            )


@pytest.mark.parametrize(
    "attack",
    [
        silent,
        pytest.param(unfinished_handshakes, marks=pytest.mark.long),
        pytest.param(bodies_that_never_come, marks=pytest.mark.long),
        large_headers,
    ],
)
def test_other_clients_are_answered_while_one_address_attacks(
    front: Front, open_files: int, attack: Callable[[Stack, Front], None]
) -> None:
    if attack is unfinished_handshakes and open_files < HANDSHAKES + 1000:
        pytest.skip(f"this process may open no more than {open_files} files")
    before = front.resident_bytes()
    with Stack() as stack:
        attack(stack, front)
        for _ in range(5):
            with front.client() as client:
                answer = client.post(front.running.clustercert_path, json={"duration": 1})
                assert answer.status_code == 200
        assert front.resident_bytes() - before < GROWTH_BYTES


def test_a_header_block_that_is_too_large_is_refused_by_the_proxy(front: Front) -> None:
    with front.client() as client:
        answer = client.get("/healthz", headers={"X-Large": "a" * 40_000})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "text/html"


def test_a_request_with_an_offer_to_upgrade_keeps_its_body(front: Front) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
    with front.client() as client:
        answer = client.post(front.running.clustercert_path, json={"duration": 1}, headers=offer)
    assert answer.status_code == 200


def test_who_comes_through_the_proxy_is_not_taken_for_loopback(front: Front) -> None:
    with front.client() as client:
        assert client.get("/metrics").status_code == 403


def test_the_source_of_a_request_through_the_proxy_is_its_client(front: Front) -> None:
    claims = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    with front.client() as client:
        issued = client.post(front.running.clustercert_path, json={"duration": 1}, headers=claims)
        assert issued.status_code == 200
        path = f"/clustercert/v1/projects/{front.running.said['project_id']}/certificates"
        newest = client.get(path, params={"limit": "1"}).json()["certificates"][0]
    assert newest["fingerprint"] == issued.headers["X-Clustercert-Fingerprint"]
    assert newest["source_address"] == OTHER_CLIENT


def test_a_client_of_the_proxy_does_not_decide_what_is_traced(front: Front) -> None:
    client_trace, proxy_trace = "a" * 32, "b" * 32
    with front.client() as client:
        sent = {"traceparent": f"00-{client_trace}-{'1' * 16}-01"}
        assert client.get("/v3", headers=sent).status_code == 200
    # As the proxy sends it, from its own address.
    sent = {"traceparent": f"00-{proxy_trace}-{'1' * 16}-01"}
    url = f"{front.running.said['url']}/v3"
    assert httpx2.get(url, headers=sent, trust_env=False, timeout=SECONDS).status_code == 200
    eventually(lambda: front.collector.trace(proxy_trace))
    assert not front.collector.trace(client_trace)
