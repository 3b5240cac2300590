"""`clustercert serve` with client CAs in a network HSM, which is killed and stopped under load."""

import base64
import hashlib
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support import tokens
from support.administration import CLUSTER, OWN
from support.kubernetes_messages import review
from support.serve_process import Serving, serving
from support.wait import SECONDS, eventually
from support.world import World, make

if TYPE_CHECKING:
    import subprocess

pytestmark = tokens.needs_network_hsm
CLIENTS = 8


@dataclass
class Site:
    """A service, a cluster whose CA is in the HSM, and the answers that clients got."""

    world: World
    hsm: tokens.NetworkHsm
    serving: Serving
    client: httpx2.Client
    path: str = ""
    statuses: list[int] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.register("hsm")

    def register(self, name: str) -> None:
        """Register a cluster whose CA is in the HSM, for which certificates are requested from now on."""
        project = self.world.project.id
        made = self.client.put(
            f"{OWN}/projects/{project}/clusters/{name}",
            json=CLUSTER | {"signer": "pkcs11"},
            headers=self.world.people["operator"].headers,
        )
        assert made.status_code == 201, made.text
        self.path = f"/api/v3/projects/{project}/clusters/{made.json()['id']}/clustercert"

    def issue(self) -> httpx2.Response:
        answer = self.client.post(self.path, json={"duration": 1})
        self.statuses.append(answer.status_code)
        if answer.status_code == 200:
            self.fingerprints.append(fingerprint(answer))
        return answer

    def issue_locally(self) -> None:
        assert self.client.post(self.world.path(), json={"duration": 1}).status_code == 200

    def recorded(self) -> set[str]:
        """The fingerprints of the recorded certificates of the cluster."""
        with closing(sqlite3.connect(self.world.database)) as database:
            cluster_id = self.path.split("/")[-2]
            rows = database.execute("SELECT fingerprint FROM certificate WHERE cluster_id = ?", [cluster_id])
            return {row[0].hex() for row in rows}


def fingerprint(answer: httpx2.Response) -> str:
    pem = base64.b64decode(answer.json()["users"][0]["user"]["client-certificate-data"])
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).hexdigest()


@pytest.fixture
def hsm(tmp_path: Path) -> Iterator[tokens.NetworkHsm]:
    folder = tmp_path / "hsm"
    folder.mkdir()
    with tokens.NetworkHsm(tokens.new_token(folder)) as hsm:
        yield hsm


@contextmanager
def site(folder: Path, hsm: tokens.NetworkHsm, **settings: str) -> Iterator[Site]:
    world = make(folder)
    variables = {f"SIGNERS__PKCS11__{name.upper()}": str(each) for name, each in hsm.token.settings().items()}
    with (
        tokens.environment(hsm.token),
        serving(world, **(variables | settings)) as process,
        httpx2.Client(
            base_url=process.url,
            headers=world.people["admin"].headers,
            timeout=SECONDS,
            trust_env=False,
            limits=httpx2.Limits(max_connections=200),
        ) as client,
        drained(process.process),
    ):
        yield Site(world, hsm, process, client)


@contextmanager
def drained(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Read the service's standard error, and end the service.

    The proxy writes a warning for each failure, and would wait if nobody read them.
    """
    assert process.stderr is not None
    reader = threading.Thread(target=process.stderr.read)
    reader.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)
        reader.join(SECONDS)


@contextmanager
def under_load(site: Site) -> Iterator[None]:
    """Clients that request certificates all the time."""
    stop = threading.Event()

    def request() -> None:
        while not stop.is_set():
            site.issue()

    threads = [threading.Thread(target=request) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)


def wait_for(site: Site, status: int) -> None:
    """Wait until more clients have got this status."""
    before = site.statuses.count(status)
    eventually(lambda: site.statuses.count(status) > before + CLIENTS)


def test_a_killed_hsm_costs_answers_and_no_records(tmp_path: Path, hsm: tokens.NetworkHsm) -> None:
    with site(tmp_path, hsm) as service:
        with under_load(service):
            for _ in range(3):
                wait_for(service, 200)
                hsm.kill()
                wait_for(service, 503)
                service.issue_locally()
                hsm.start()
        service.issue()
        assert service.serving.process.poll() is None
        assert set(service.statuses) == {200, 503}
        assert service.statuses[-1] == 200
        assert service.recorded() == set(service.fingerprints)


def test_a_killed_hsm_is_said_to_come_back(tmp_path: Path, hsm: tokens.NetworkHsm) -> None:
    with site(tmp_path, hsm) as service:
        hsm.kill()
        answer = service.issue()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["errorCode"] == "CCE.01503001"
        hsm.start()
        assert service.issue().status_code == 200
        assert tokens.PIN not in (tmp_path / "log").read_text() + answer.text


def test_each_worker_finds_a_key_that_another_one_has_made(tmp_path: Path, hsm: tokens.NetworkHsm) -> None:
    with site(tmp_path, hsm, SERVER__WORKERS="2") as service:
        for cluster in ("second", "third"):
            for _ in range(10):
                # Each request has a connection of its own, and so some worker.
                answer = httpx2.post(
                    f"{service.serving.url}{service.path}",
                    json={"duration": 1},
                    headers=service.world.people["admin"].headers,
                    timeout=SECONDS,
                    trust_env=False,
                )
                assert answer.status_code == 200, answer.text
            # Now both workers have sessions, and the next key is new for one of them.
            service.register(cluster)
        assert service.issue().status_code == 200


def test_a_stopped_hsm_delays_nothing_else(tmp_path: Path, hsm: tokens.NetworkHsm) -> None:
    with site(tmp_path, hsm, SIGNERS__PKCS11__QUEUE="10") as service:
        service.issue()
        token = webhook_token(service)
        hsm.stop()
        threads = [threading.Thread(target=service.issue) for _ in range(40)]
        for thread in threads:
            thread.start()
        # 4 calls hang and 10 wait. The others are refused.
        eventually(lambda: service.statuses.count(503) >= 26)
        for _ in range(10):
            service.issue_locally()
            assert review_status(service, token) == 200
        hsm.resume()
        for thread in threads:
            thread.join(SECONDS)
        eventually(lambda: service.issue().status_code == 200)
        assert service.recorded() == set(service.fingerprints)


def test_sigterm_ends_the_service_while_calls_hang(tmp_path: Path, hsm: tokens.NetworkHsm) -> None:
    with site(tmp_path, hsm, SIGNERS__PKCS11__TIMEOUT="2") as service:
        service.issue()
        hsm.stop()
        threads = [threading.Thread(target=service.issue) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: service.statuses.count(503) > 0)
        process = service.serving.process
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        for thread in threads:
            thread.join(SECONDS)
        assert set(service.statuses[1:]) == {503}
        assert service.recorded() == set(service.fingerprints)


def webhook_token(site: Site) -> str:
    cluster = site.world.clusters["plain"]
    path = f"{OWN}/projects/{cluster.project_id}/clusters/{cluster.name}/webhook-tokens"
    token: str = site.client.post(path, json={}).raise_for_status().json()["token"]
    return token


def review_status(site: Site, token: str) -> int:
    """The status of an answer to an API server."""
    return httpx2.post(
        f"{site.serving.url}{OWN}/kubernetes/clusters/{site.world.clusters['plain'].id}/authorize",
        content=review(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        timeout=SECONDS,
        trust_env=False,
    ).status_code
