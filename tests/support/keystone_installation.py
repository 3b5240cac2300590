"""The installed service beside a real Keystone: a project with a cluster, and people in it.

The service runs in a process of its own, and is set up with the operator's commands alone.
"""

import base64
import hashlib
import ipaddress
import json
import os
import re
import secrets
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509

from support.certificate_authority import Authority
from support.go_clients import Answer, GoClient
from support.installed_demo import program
from support.kubeconfig_checks import assert_openssl_verifies
from support.real_keystone import RealKeystone
from support.real_keystone.people import Administrator, Key, Person, in_project
from support.store_commands import on_store
from support.wait import SECONDS, line_with

REGION = "eu-test"
# The shortest that there is, since tests wait for its end.
CACHE_SECONDS = 1
# For busy machines.
LONGEST_TIMEOUT = 20

# Tests send more wrong credentials than a service should endure.
SETTINGS = """\
data_dir = "{folder}/data"
kek_file = "{folder}/kek"
[server]
port = 0
tls_certificate = "{folder}/tls.pem"
tls_key = "{folder}/tls.pem"
[log]
file = "{log}"
[limits]
failures_per_minute = 0
[identity]
region = "{region}"
[identity.keystone]
url = "{keystone.url}"
ca_file = "{keystone.ca}"
projects = {projects}
cache = "{cache}s"
timeout = "{timeout}s"
{options}
[identity.keystone.service]
{service}
[[policy.rules]]
name = "teams"
when.groups = ["keystone/*/team-*"]
grant.groups = ["team:{{group}}"]
grant.max_lifetime = "30d"
[[policy.rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["members"]
grant.max_lifetime = "30d"
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A domain with two projects in Keystone.

    Attributes:
        project_id: has a cluster here.
        other_project_id: is not known here.
        reader: the service's user in Keystone, with the role `reader` in the scope `system` alone.
    """

    folder: Path
    keystone: RealKeystone
    admin: Administrator
    domain_id: str
    project_id: str
    other_project_id: str
    cluster_id: str
    reader: Person

    def person(self, role: str | None = "member") -> Person:
        """A new user in the project."""
        person = self.admin.new_person(self.domain_id)
        if role is not None:
            self.admin.grant(role, f"users/{person.id}", f"projects/{self.project_id}")
        return person

    def token(self, person: Person) -> str:
        """A token for the project."""
        return self.admin.log_in(person.identity, in_project(self.project_id))

    def settings(
        self,
        options: str = "",
        service: str | None = None,
        cache: int = CACHE_SECONDS,
        timeout: int = LONGEST_TIMEOUT,
    ) -> Path:
        """A settings file with further ones for Keystone, and the service's credential there."""
        path = self.folder / f"settings-{secrets.token_hex(4)}.toml"
        credential = service or f'user_id = "{self.reader.id}"\npassword = "{self.reader.password}"'
        known = json.dumps([self.project_id])
        text = SETTINGS.format(
            folder=self.folder,
            log=path.with_suffix(".log"),
            region=REGION,
            keystone=self.keystone,
            projects=known,
            cache=cache,
            timeout=timeout,
            options=options,
            service=credential,
        )
        path.write_text(text)
        path.chmod(0o600)
        return path

    @contextmanager
    def serving(self, settings: Path | None = None) -> Iterator["Service"]:
        """The service, for the length of the block. It ends without an error in its log."""
        settings = settings or self.settings()
        process = subprocess.Popen(
            [program(), "--config", settings, "serve"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        listening = re.search(r"https://\S+?:(\d+)", line_with(process.stderr, "Listening on"))
        assert process.stderr is not None
        # Else it might wait for somebody to read what it says.
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        rest.start()
        try:
            assert listening
            service = Service(self, f"https://127.0.0.1:{listening[1]}", settings.with_suffix(".log"))
            with service.http:
                yield service
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(SECONDS)
            rest.join(SECONDS)
            process.stderr.close()
        assert status == 0
        assert [line for line in service.log if line["level"] == "critical" or "exception" in line] == []


class Service:
    """A running service.

    Attributes:
        ca: of its certificate.
    """

    def __init__(self, site: Site, url: str, log: Path) -> None:
        self.site = site
        self.url = url
        self._log = log
        self.ca = site.folder / "tls-ca.pem"
        limits = httpx2.Limits(max_connections=200)
        self.http = httpx2.Client(
            base_url=url, verify=self.tls, timeout=SECONDS, limits=limits, trust_env=False
        )

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    @property
    def clustercert_path(self) -> str:
        return f"/api/v3/projects/{self.site.project_id}/clusters/{self.site.cluster_id}/clustercert"

    @property
    def clusters_path(self) -> str:
        return f"/api/v3/projects/{self.site.project_id}/clusters"

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def status(self, token: str) -> int:
        """The status of a request that reads clusters."""
        return self.http.get(self.clusters_path, headers={"X-Auth-Token": token}).status_code

    def issue(self, token: str) -> httpx2.Response:
        return self.http.post(self.clustercert_path, json={"duration": 1}, headers={"X-Auth-Token": token})

    def go_client(self, key: Key, *, scoped: bool = False) -> GoClient:
        """A client that signs with an access key."""
        unsigned = {"X-Project-Id": self.site.project_id}
        return GoClient(self.url, key.access_key, key.secret_key, scoped, unsigned, self.tls)

    def issue_signed(self, key: Key) -> Answer:
        return self.go_client(key).post(self.clustercert_path, {"duration": 1})

    def leaf(self, kubeconfig: Mapping[str, Any]) -> x509.Certificate:
        """The certificate of an issued kubeconfig. Asserts that the cluster's CA signed it."""
        (user,) = kubeconfig["users"]
        return self.checked(user["user"]["client-certificate-data"])

    def checked(self, certificate_b64: str) -> x509.Certificate:
        """An issued certificate. Asserts that the cluster's CA signed it."""
        pem = base64.b64decode(certificate_b64, validate=True)
        assert_openssl_verifies(pem, self.site.folder / "client-ca.pem")
        return x509.load_pem_x509_certificate(pem)

    def lookups(self, token: str) -> int:
        """How often it asked Keystone about a token."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        return sum(request.subject == digest for request in self.site.keystone.requests)


def make(folder: Path, keystone: RealKeystone) -> Site:
    """Set up people in Keystone, and a store with a cluster here."""
    admin = Administrator(keystone)
    domain_id = admin.new("domain")
    project_id = admin.new("project", name=REGION, domain_id=domain_id)
    other_project_id = admin.new("project", domain_id=domain_id)
    reader = admin.new_person("default")
    admin.grant("reader", f"users/{reader.id}", "system")
    site = Site(folder, keystone, admin, domain_id, project_id, other_project_id, "", reader)
    name = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    authority = Authority("service")
    (folder / "tls-ca.pem").write_bytes(authority.certificate_pem)
    (folder / "tls.pem").write_bytes(authority.server_identity_pem("service", [name]))
    (folder / "tls.pem").chmod(0o600)
    settings = site.settings()
    operator(settings, "keys", "generate", "--out", folder / "kek")
    operator(settings, "db", "upgrade")
    operator(settings, "project", "create", REGION, "--id", project_id)
    server_ca = folder / "server-ca.pem"
    server_ca.write_bytes(Authority("apiserver").certificate_pem)
    added = operator(
        settings, "cluster", "add", "prod", "--project", project_id, "--internal-url", "https://10.0.0.1:6443",
        "--server-ca", server_ca, "--output", "json",
    )  # fmt: skip
    (folder / "client-ca.pem").write_text(operator(settings, "cluster", "ca", "show", "prod", "--bundle"))
    return replace(site, cluster_id=json.loads(added)["id"])


def operator(settings: Path, *arguments: str | Path) -> str:
    """Run one of the operator's commands. Returns its standard output."""
    done = subprocess.run(
        [program(), "--config", settings, *on_store(map(str, arguments))],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
