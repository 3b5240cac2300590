"""A running service, an API server, and an operator who uses the command line and kubectl."""

import base64
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from support.apiserver import ApiServer
from support.installed_demo import Demo, operator
from support.kubectl import kubectl, written
from support.registered_cluster import RegisteredCluster, register

FORBIDDEN = "Error from server (Forbidden)"
# Without --raw, kubectl asks for the API groups first, and reports their refusal as a missing resource type.
LIST_NAMESPACES = ("get", "--raw", "/api/v1/namespaces")


class Cluster(Protocol):
    """An API server and the files of its control plane.

    Attributes:
        url, server_ca: address, and PEM file of the serving CA.
        folder: holds its files.
    """

    url: str
    server_ca: Path
    folder: Path

    def trust(self, client_cas_pem: bytes) -> None:
        """Replace the file of `--client-ca-file` by the cluster's own CA and these."""

    def authorize_with(self, configuration: Path) -> None:
        """Make this the file of `--authorization-config`."""

    def send_audit_events(self, folder: Path) -> None:
        """Send audit events as the files of `kubernetes setup` say."""

    def serve(self) -> None:
        """Start to answer requests. The control plane's files must be ready."""

    def admin_kubeconfig(self) -> Path:
        """A member of system:masters, by the cluster's own CA."""

    def kubeconfig(self, username: str, groups: Sequence[str], name: str | None = None) -> Path:
        """A user with a certificate of the cluster's own CA, unknown to the service."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A kubeconfig file, and fingerprint and serial of its certificate, lower-case hex."""

    kubeconfig: Path
    fingerprint: str
    serial: str = ""

    @property
    def credential_group(self) -> str:
        """The certificate's credential group, if the service issued it."""
        return f"clustercert:credential:{self.serial}"

    def kubectl(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and the output of both streams."""
        done = kubectl(self.kubeconfig, *arguments)
        return done.returncode, done.stdout + done.stderr

    def lists_namespaces(self) -> bool:
        """Whether the holder can list namespaces. Fails for errors other than Forbidden."""
        status, said = self.kubectl(*LIST_NAMESPACES)
        assert status == 0 or FORBIDDEN in said, said
        return status == 0


class Installation:
    """A cluster that is registered at a service.

    Attributes:
        setup_folder: where `kubernetes setup` writes and the control plane reads.
        service: options with the address of the service.
    """

    def __init__(self, demo: Demo, cluster: Cluster, folder: Path, name: str, *options: str) -> None:
        self.demo = demo
        self.cluster = cluster
        self.name = name
        self._folder = folder
        self._issued = 0
        self.registered: RegisteredCluster = register(demo, name, cluster, *options)
        self.setup_folder = folder / "control-plane"
        self.service: tuple[str | Path, ...] = ("--webhook-url", demo.own.url)

    @property
    def id(self) -> str:
        return self.registered.tenant.cluster_id

    def set_up(self, *options: str) -> None:
        """Run `kubernetes setup` into the folder that the control plane reads. It waits long for the webhook."""
        operator(
            self.demo, "kubernetes", "setup", self.id, "--out", self.setup_folder,
            "--control-plane-dir", self.setup_folder, *self.service, "--timeout", "30s", "--force", *options,
        )  # fmt: skip

    def join(self, *, webhook: bool) -> None:
        """Follow the README.md in that folder."""
        self.set_up()
        self.trust()
        if webhook:
            self.cluster.authorize_with(self.setup_folder / "authorization-config.yaml")
            self.cluster.send_audit_events(self.setup_folder)
        self.cluster.serve()
        for name in ("rbac.yaml", "admission.yaml", "certificate-requests.yaml", "service-access.yaml"):
            if (self.setup_folder / name).exists():
                self.as_admin("apply", "-f", self.setup_folder / name)

    def trust(self) -> None:
        self.cluster.trust(self.registered.ca_bundle_pem)

    def as_admin(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl as a member of system:masters. Fails if kubectl fails."""
        done = kubectl(self.cluster.admin_kubeconfig(), *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def guard(self, mode: str) -> None:
        """Switch the cluster and its control plane to a mode."""
        operator(self.demo, "cluster", "update", self.id, "--webhook-mode", mode)
        self.set_up("--mode", mode)
        self.cluster.authorize_with(self.setup_folder / "authorization-config.yaml")

    def issue(self) -> Holder:
        """A new certificate of the tenant's user."""
        answer = self.registered.issue()
        self._issued += 1
        path = written(self._folder, answer.json(), f"issued-{self._issued}.json")
        return Holder(
            path, answer.headers["X-Clustercert-Fingerprint"], answer.headers["X-Clustercert-Serial"]
        )

    def foreign(self, username: str, groups: Sequence[str]) -> Holder:
        """A holder whom the cluster knows and the service does not."""
        path = self.cluster.kubeconfig(username, groups, f"{username.replace(':', '-')}-{time.time_ns()}")
        document = json.loads(path.read_text())
        leaf = x509.load_pem_x509_certificate(
            base64.b64decode(document["users"][0]["user"]["client-certificate-data"])
        )
        return Holder(path, hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest())

    def revoke(self, holder: Holder) -> None:
        """Revoke this certificate as its owner."""
        tenant = self.registered.tenant
        answer = self.registered.post(
            f"/clustercert/v1/projects/{tenant.project_id}/clusters/{tenant.cluster_id}"
            f"/certificates/{holder.fingerprint}/revoke",
            {"reason": "superseded"},
        )
        assert answer.status_code == 200, answer.text

    def events(self, kind: str) -> Sequence[str]:
        """The bodies of the cluster's audit events of a kind, from the demo's store."""
        with closing(sqlite3.connect(self.demo.data_dir / "clustercert.db")) as store:
            rows = store.execute("SELECT body FROM audit_event WHERE kind = ?", (kind,)).fetchall()
        bodies = [body if isinstance(body, str) else bytes(body).decode() for (body,) in rows]
        return [body for body in bodies if self.id in body]


@contextmanager
def installation_with_webhook(demo: Demo, folder: Path, name: str) -> Iterator[Installation]:
    """An installation whose API server uses the webhook of a demo and accepts all its files."""
    with ApiServer(folder) as apiserver:
        installation = Installation(demo, apiserver, folder, name)
        installation.join(webhook=True)
        yield installation
        assert apiserver.complaints == []
