"""`serve` with a key-encryption key in a real OpenBao: outages, restarts without it, and moves under load."""

import asyncio
import base64
import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clustercert.custody.keks import write_new_kek_file
from clustercert.wiring import open_components
from support import openbao
from support.demo_process import COMMAND
from support.kubernetes_messages import review
from support.openbao import KEK_POLICY, RealOpenBao
from support.samples import server_ca_pem
from support.serve_process import Serving, environment_of, serving
from support.stores import rows
from support.wait import SECONDS, eventually
from support.world import World, make, webhook_token

KEK = "transit/clustercert"


@dataclass(frozen=True)
class Site:
    """A service's store, and the OpenBao with its key-encryption key."""

    world: World
    server: RealOpenBao
    token: str

    @property
    def transit(self) -> dict[str, str | Path | None]:
        """Variables for the key in OpenBao alone."""
        return {"KEK_FILE": None, **self.both}

    @property
    def both(self) -> dict[str, str | Path | None]:
        """Variables for the key in OpenBao beside the file."""
        return {"KEK_TRANSIT__URL": self.server.url, "KEK_TRANSIT__TOKEN_FILE": self.world.folder / "token"}

    def run(self, *arguments: str, **more: str | Path | None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment_of(self.world, **more),
            capture_output=True,
            text=True,
            check=False,
        )

    def output(self, *arguments: str, **more: str | Path | None) -> Any:
        done = self.run(*arguments, "-o", "json", **more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def log(self) -> str:
        return (self.world.folder / "log").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    world = make(tmp_path)
    with openbao.running(tmp_path / "openbao") as server:
        token = server.token(KEK_POLICY)
        (tmp_path / "token").touch(0o600)
        (tmp_path / "token").write_text(token)
        yield Site(world, server, token)


@dataclass
class Load:
    """Requests for certificates from several threads, until `stop` is set."""

    url: str
    world: World
    stop: threading.Event = field(default_factory=threading.Event)
    statuses: list[int] = field(default_factory=list)

    def work(self) -> None:
        headers: Mapping[str, str] = self.world.people["admin"].headers
        with httpx2.Client(base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False) as client:
            while not self.stop.is_set():
                answer = client.post(self.world.path(), json={"duration": 1})
                self.statuses.append(answer.status_code)

    def wait_for_more(self) -> None:
        """Wait until requests that began after this call were answered."""
        seen = len(self.statuses)
        eventually(lambda: len(self.statuses) > seen + 4)


@contextlib.contextmanager
def load(running: Serving, world: World) -> Iterator[Load]:
    """Load on a service, which answers every request with a certificate."""
    requests = Load(running.url, world)
    threads = [threading.Thread(target=requests.work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        requests.wait_for_more()
        yield requests
        requests.wait_for_more()
    finally:
        requests.stop.set()
        for thread in threads:
            thread.join()
    assert set(requests.statuses) == {200}


def wrapped_by(site: Site, **more: str | Path | None) -> list[list[str]]:
    return [key["wrapped_by"] for key in site.output("keys", "list", **more) if key["kind"] == "data"]


def test_the_key_moves_from_a_file_to_the_server_and_back_under_load(site: Site, tmp_path: Path) -> None:
    world = site.world
    [old] = [key["id"] for key in site.output("keys", "list") if key["kind"] == "key-encryption"]
    with serving(world, "--workers", "2") as running, load(running, world) as requests:
        site.output("keys", "rotate", **site.both)
        assert wrapped_by(site, **site.both) == [[old, KEK]]
        requests.wait_for_more()
        site.output("keys", "rotate", "--data-key", **site.both)
        requests.wait_for_more()
        site.output("keys", "retire", old, "--yes", **site.transit)
        assert wrapped_by(site, **site.transit) == [[KEK], [KEK]]
        requests.wait_for_more()
        # The workers have the data keys, so neither key-encryption key is needed now.
        (world.folder / "kek").rename(world.folder / "old")
        site.server.kill()
        requests.wait_for_more()
    site.server.start()
    new_file = tmp_path / "new"
    new = write_new_kek_file(new_file).id
    with serving(world, **site.transit) as running, load(running, world) as requests:
        site.output("keys", "rotate", **site.both, KEK_FILE=new_file)
        site.output("keys", "retire", KEK, "--yes", KEK_FILE=new_file)
        assert wrapped_by(site, KEK_FILE=new_file) == [[new], [new]]
        requests.wait_for_more()
        # The database's write-ahead log exists while the service runs.
        assert_encrypted(site, new_file)
    site.server.kill()
    with serving(world, KEK_FILE=new_file) as running, load(running, world):
        pass
    assert_encrypted(site, new_file)
    written = site.log().encode() + (site.server.folder / "log").read_bytes()
    assert site.token.encode() not in written + world.database.read_bytes()


def assert_encrypted(site: Site, kek_file: Path) -> None:
    """Check that no file has a data key or a CA key in plain form: data, logs, settings, OpenBao's storage."""
    secrets = asyncio.run(secrets_of(site.world, kek_file))
    files = [file for file in site.world.folder.rglob("*") if file.is_file()]
    assert site.world.database in files
    found = []
    for file in files:
        # A file of the database may be deleted meanwhile.
        with contextlib.suppress(FileNotFoundError):
            content = file.read_bytes()
            found += [file for secret in secrets for form in forms(secret) if form in content]
    assert found == []


async def secrets_of(world: World, kek_file: Path) -> list[bytes]:
    """The data keys and the CA keys in plain form."""
    async with open_components(world.settings(kek_file=kek_file)) as components:
        secrets = [data_key.key for data_key in components.custody._ring.data_keys]
        assert len(secrets) == 2
        for cluster in world.clusters.values():
            ca = cluster.client_ca
            assert ca.sealed_key is not None
            der = await components.custody.unseal(ca.sealed_key, f"client_ca:{ca.id}")
            # The private scalar of a P-256 key in PKCS #8.
            secrets.append(der[36:68])
        return secrets


def forms(secret: bytes) -> tuple[bytes, ...]:
    return secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret)[2:-1].encode()


def test_a_restart_without_the_server_serves_the_webhook_and_goes_on_when_it_is_back(site: Site) -> None:
    world = site.world
    token = asyncio.run(webhook_token(world))
    site.output("keys", "rotate", **site.both)
    site.server.kill()
    with (
        serving(world, **site.transit) as running,
        httpx2.Client(base_url=running.url, timeout=SECONDS, trust_env=False) as client,
    ):
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "waiting for its key management service" in ready.json()["errorMessage"]
        assert site.server.url not in ready.text
        assert client.get("/healthz").status_code == 200
        assert "data keys not usable" in site.log()
        assert f"the key-encryption key {KEK} at {site.server.url} can't be used" in site.log()
        webhook = f"/clustercert/v1/kubernetes/clusters/{world.clusters['plain'].id}/authorize"
        asked = client.post(
            webhook,
            content=review(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        assert asked.status_code == 200, asked.text
        headers = world.people["admin"].headers
        refused = client.post(world.path(), json={"duration": 1}, headers=headers)
        assert (refused.status_code, refused.json()["errorCode"]) == (503, "CCE.01503001")
        assert int(refused.headers["Retry-After"]) >= 1
        assert "waiting for its key management service" in refused.json()["errorMessage"]
        # What needs no key works.
        assert client.get(world.path(tail=""), headers=headers).status_code == 200
        checked = site.run("db", "check", **site.transit)
        assert checked.returncode != 0
        assert f"Key-encryption key {KEK}, the transit engine" in checked.stderr
        assert "wraps data keys 1; the key-encryption key transit/clustercert at" in checked.stderr
        assert "can't be used: ConnectError" in checked.stderr
        site.server.start()
        eventually(lambda: client.get("/readyz").status_code == 200)
        issued = client.post(world.path(), json={"duration": 1}, headers=headers)
        assert issued.status_code == 200
        assert "data keys usable again" in site.log()
        assert running.process.poll() is None
    checked = site.run("db", "check", **site.transit)
    assert checked.returncode == 0, checked.stderr
    assert (
        f"Key-encryption key {KEK}, the transit engine transit of {site.server.url}: wraps data keys 1; can be used."
        in (checked.stderr)
    )
    assert "no source in the settings has this key" in checked.stderr


def test_a_signer_in_openbao_that_fails_under_load_delays_nobody_else(site: Site) -> None:
    world, server = site.world, site.server
    settings = server.new_signer()
    more = {
        "SIGNERS__TRANSIT__URL": server.url,
        "SIGNERS__TRANSIT__TOKEN_FILE": str(settings["token_file"]),
        "SIGNERS__TRANSIT__TIMEOUT": "2",
    }
    ca_file = world.folder / "api-ca.pem"
    ca_file.write_bytes(server_ca_pem())
    address = ("--internal-url", "https://10.0.0.5:6443", "--server-ca", str(ca_file))
    added = (
        "cluster",
        "add",
        "sealed",
        "--project",
        world.project.id,
        *address,
        "--signer",
        "transit",
        "--local",
    )
    cluster = site.output(*added, **more)["id"]
    path = f"/api/v3/projects/{world.project.id}/clusters/{cluster}/clustercert"
    with (
        serving(world, **more) as running,
        load(running, world) as others,
        httpx2.Client(
            base_url=running.url, headers=world.people["admin"].headers, timeout=SECONDS, trust_env=False
        ) as client,
    ):
        issued = 0

        def status() -> int:
            nonlocal issued
            answer = client.post(path, json={"duration": 1})
            issued += answer.status_code == 200
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
            return answer.status_code

        for outage in ("killed", "suspended", "sealed"):
            # On a busy machine, the first answers may exceed the limit of two seconds.
            eventually(lambda: status() == 200)
            server.interrupt(outage)
            assert status() == 503
            others.wait_for_more()
            server.recover(outage)
            eventually(lambda: status() == 200)
        assert running.process.poll() is None
        found = rows(world.database, "SELECT count(*) FROM certificate WHERE cluster_id = ?", cluster)
        assert found == [(issued,)]
