"""The image at work: unprivileged, on a root file system that nobody can write, and stopped by SIGTERM."""

import base64
import contextlib
import json
import os
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
import yaml
from cryptography import x509

from support import ports, postgres
from support.certificate_authority import Authority, kubeconfig_document
from support.container import Podman, run
from support.demo_process import demo
from support.kubernetes_volumes import USER, project
from support.remote_user import RemoteUser
from support.wait import SECONDS, eventually

pytestmark = pytest.mark.full

SITE = """
{apiVersion: clustercert/v1, kind: Project, metadata: {name: eu-de}}
---
{apiVersion: clustercert/v1, kind: User, metadata: {name: alice}}
---
apiVersion: clustercert/v1
kind: RoleBinding
metadata: {name: admins}
spec: {project: eu-de, role: admin, users: [alice]}
---
apiVersion: clustercert/v1
kind: Cluster
metadata: {name: prod, project: eu-de}
spec: {kubeconfig: admin.conf}
"""
CONFIG = """
kek_file = "/etc/clustercert/secret/kek"
[server]
tls_certificate = "/etc/clustercert/secret/tls.crt"
tls_key = "/etc/clustercert/secret/tls.key"
[policy]
username = "{user.name}"
[[policy.rules]]
name = "expression"
when.cel = "user.name == 'alice'"
grant.groups = ["by-expression"]
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the image's user can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def owned(folder: Path, uid: int, gid: int, mode: int) -> Path:
    folder.mkdir(parents=True)
    os.chown(folder, uid, gid)
    folder.chmod(mode)
    return folder


def test_it_has_no_rights_and_can_write_nothing_but_its_volume(podman: Podman) -> None:
    code = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
writable = [name for name, _, _ in os.walk("/") if not name.startswith(("/proc", "/dev")) and os.access(name, os.W_OK)]
read_only = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
print(json.dumps([{name: value.split() for name, value in status.items()}, writable, read_only]))
"""
    done = run(podman.python(code))
    assert done.returncode == 0, done.stderr
    status, writable, read_only = json.loads(done.stdout)
    assert status["Uid"] == [str(USER)] * 4
    assert status["Gid"] == [str(USER)] * 4
    assert {int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert read_only
    assert writable == []


def test_every_library_in_it_loads(podman: Podman) -> None:
    code = """
import ctypes, pathlib, ssl
failed, count = [], 0
for path in pathlib.Path("/usr").rglob("*.so*"):
    if path.is_file() and not path.is_symlink():
        count += 1
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            if "undefined symbol: Py" not in str(error): failed.append(str(error))
print(count, failed, len(ssl.create_default_context().get_ca_certs()) > 100)
"""
    done = run(podman.python(code))
    count, rest = done.stdout.split(" ", 1)
    assert int(count) > 80
    assert rest == "[] True\n", done.stderr


def test_the_demo_issues_a_kubeconfig(podman: Podman, folder: Path) -> None:
    data = owned(folder / "volume", USER, USER, 0o700)
    command = podman.command(mounts={data: str(data)})
    with demo(data / "data", command=command) as running:
        kubeconfig = yaml.safe_load(Path(running.said["kubeconfig"]).read_text())
        certificate = base64.b64decode(kubeconfig["users"][0]["user"]["client-certificate-data"])
        leaf = x509.load_pem_x509_certificate(certificate)
        assert f"CN={running.said['user_id']}" in leaf.subject.rfc4514_string()
        with running.client() as client:
            issued = client.post(running.clustercert_path, json={"duration": 1})
        assert issued.status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0


@dataclass(frozen=True)
class Site:
    """Files and database of a service that runs in containers."""

    podman: Podman
    folder: Path
    database: str
    ca: Path

    def command(self, *arguments: str, options: Sequence[str] = ()) -> tuple[str, ...]:
        mounts = {
            self.folder / "clustercert.toml": "/etc/clustercert/clustercert.toml:ro",
            self.folder / "secret": "/etc/clustercert/secret:ro",
            self.folder / "files": "/files:ro",
        }
        variables = {"CLUSTERCERT_DATABASE_URL": self.database}
        return (*self.podman.command(mounts=mounts, variables=variables, options=options), *arguments)

    def run(self, *arguments: str) -> str:
        done = run(self.command(*arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self, *arguments: str, options: Sequence[str] = ()) -> Iterator[httpx2.Client]:
        """A process that answers requests. Then SIGTERM ends it with status 0."""
        with ports.reserve() as reserved:
            port = ports.port_of(reserved)
            command = self.command(
                "serve", "--host", "127.0.0.1", "--port", str(port), *arguments, options=options
            )
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as process:
                try:
                    url = f"https://127.0.0.1:{port}"
                    with httpx2.Client(
                        base_url=url, verify=self.tls, trust_env=False, timeout=SECONDS
                    ) as client:
                        eventually(lambda: process.poll() is not None or is_ready(client))
                        assert process.poll() is None, process.communicate()
                        yield client
                    process.send_signal(signal.SIGTERM)
                    _, said = process.communicate(timeout=SECONDS)
                    assert process.returncode == 0, said
                finally:
                    # A killed podman would leave its container running.
                    process.terminate()

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


def is_ready(client: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return client.get("/readyz").status_code == 200
    return False


@pytest.fixture
def site(podman: Podman, folder: Path, server: postgres.Server) -> Site:
    if os.geteuid() != 0:
        pytest.skip("only root can create a Secret as Kubernetes mounts it")
    authority = Authority("image")
    identity = authority.server_identity_pem("127.0.0.1", [x509.IPAddress(ip_address("127.0.0.1"))])
    key, certificate = identity.split(b"-----BEGIN CERTIFICATE-----", 1)
    chain = b"-----BEGIN CERTIFICATE-----" + certificate + authority.certificate_pem
    kek = base64.b64encode(os.urandom(32)) + b"\n"
    project(folder / "secret", {"kek": kek, "tls.crt": chain, "tls.key": key}, 0o400)
    (folder / "clustercert.toml").write_text(CONFIG)
    files = owned(folder / "files", 0, 0, 0o755)
    (files / "site.yaml").write_text(SITE)
    (files / "password").write_text("correct horse battery")
    (files / "ca.pem").write_bytes(authority.certificate_pem)
    admin = kubeconfig_document("https://10.0.0.1:6443", authority.certificate_pem, identity)
    (files / "admin.conf").write_bytes(admin)
    return Site(podman, folder, server.create(), files / "ca.pem")


def test_api_and_webhook_serve_with_a_database_and_a_kubernetes_secret(site: Site, tmp_path: Path) -> None:
    site.run("db", "upgrade")
    site.run("apply", "--local", "--yes", "-f", "/files/site.yaml")
    site.run("user", "set-password", "alice", "--local", "--password-file", "/files/password")
    alice = RemoteUser(tmp_path)
    with (
        site.serving("--role", "api", "--workers", "2", options=["--tmpfs=/tmp"]) as api,
        site.serving("--role", "webhook") as webhook,
    ):
        login = ("login", str(api.base_url), "--user", "alice", "--ca-file", site.ca)
        alice.output(*login, "--password-file", site.folder / "files" / "password")
        kubeconfig = yaml.safe_load(alice.output("kubeconfig", "get", "prod"))
        chain = base64.b64decode(kubeconfig["users"][0]["user"]["client-certificate-data"])
        leaf = x509.load_pem_x509_certificate(chain)
        assert "by-expression" in leaf.subject.rfc4514_string()
        assert webhook.get("/api/v3/projects").status_code == 404


def test_a_key_in_a_secret_is_changed_at_its_source(site: Site) -> None:
    site.run("db", "upgrade")
    done = run(site.command("keys", "rotate"))
    assert done.returncode == 1
    assert "Read-only file system. Change it at its source, such as a Secret." in done.stderr


def test_any_other_user_of_the_cluster_can_run_it(podman: Podman, folder: Path) -> None:
    """OpenShift chooses the user. The volume belongs to root, and the group of the pod may write."""
    volume = owned(folder / "volume", 0, 1000, 0o2775)
    options = ("--user=1000650000:0", "--group-add=1000")
    variables = {"CLUSTERCERT_KEK": base64.b64encode(os.urandom(32)).decode()}
    command = podman.command(mounts={volume: "/var/lib/clustercert"}, variables=variables, options=options)
    upgraded = run((*command, "db", "upgrade"))
    assert upgraded.returncode == 0, upgraded.stderr
    data = volume / "data"
    assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (1000650000, 0o700)


def test_several_workers_say_that_they_need_temporary_files(site: Site) -> None:
    site.run("db", "upgrade")
    done = run(site.command("serve", "--host", "127.0.0.1", "--port", "0", "--workers", "2"))
    assert done.returncode == 1
    assert "no such folder is writable. Make /tmp writable, such as with a tmpfs," in done.stderr
    assert "Traceback" not in done.stderr
