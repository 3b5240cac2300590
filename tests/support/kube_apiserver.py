"""A real kube-apiserver with its etcd, from the folder that KUBEBUILDER_ASSETS names.

The folder is an envtest archive with kube-apiserver, etcd and kubectl. Without controller manager and kubelet no pods
run, but authentication, authorization and admission are complete.
"""

import contextlib
import os
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.apiserver.files import replace_file
from support.certificate_authority import Authority, kubeconfig_document
from support.ports import port_of, reserve
from support.wait import SECONDS, eventually

ASSETS = "KUBEBUILDER_ASSETS"

NODE_AND_RBAC = """\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- {type: Node, name: node}
- {type: RBAC, name: rbac}
"""


def assets() -> Path | None:
    """The folder with all three programs, or None."""
    folder = Path(os.environ.get(ASSETS) or "/nonexistent")
    return (
        folder if all((folder / name).is_file() for name in ("kube-apiserver", "etcd", "kubectl")) else None
    )


class KubeApiServer:
    """Accepts files when constructed, and serves from `serve` to the end of the `with` block.

    Attributes:
        url: `https://127.0.0.1:port`.
        server_ca: the PEM file of the CA that signed its own certificate.
        folder: where it keeps its files and logs.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self.folder = folder
        self._running = contextlib.ExitStack()
        self._port, self._etcd_port, self._peer_port = (
            port_of(self._running.enter_context(reserve())) for _ in range(3)
        )
        self.url = f"https://127.0.0.1:{self._port}"
        serving = Authority("kube-apiserver-ca")
        self.server_ca = folder / "server-ca.pem"
        self.server_ca.write_bytes(serving.certificate_pem)
        names = (x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost"))
        # Key and certificate in one file: each of the two flags takes from it what it needs.
        self._identity = _private(folder / "server.pem", serving.server_identity_pem("kube-apiserver", names))
        self._own_ca = Authority("kubernetes")
        self._client_ca = folder / "client-ca.pem"
        self.trust(b"")
        self._authorization = folder / "authorization-config-in-use.yaml"
        self._authorization.write_text(NODE_AND_RBAC)
        self._audit_flags: Sequence[str] = ()

    def trust(self, client_cas_pem: bytes) -> None:
        """Replace the client-CA bundle by the cluster's own CA and these, by rename."""
        replace_file(self._client_ca, self._own_ca.certificate_pem + client_cas_pem)

    def authorize_with(self, configuration: Path) -> None:
        """Replace the file of --authorization-config, by rename."""
        replace_file(self._authorization, configuration.read_bytes())

    def send_audit_events(self, folder: Path) -> None:
        """To where the files of `clustercert kubernetes setup` say; before it serves."""
        self._audit_flags = (
            f"--audit-policy-file={folder / 'audit-policy.yaml'}",
            f"--audit-webhook-config-file={folder / 'audit-webhook.kubeconfig'}",
            "--audit-webhook-batch-max-wait=1s",
        )

    def admin_kubeconfig(self) -> Path:
        """A member of system:masters."""
        return self.kubeconfig("kubernetes-admin", ("system:masters",))

    def kubeconfig(self, username: str, groups: Sequence[str], name: str | None = None) -> Path:
        """A kubeconfig with a new certificate of the cluster's own CA."""
        identity_pem = self._own_ca.client_identity_pem(username, groups)
        document = kubeconfig_document(self.url, self.server_ca.read_bytes(), identity_pem)
        return _private(self.folder / f"{name or username}.kubeconfig", document)

    def serve(self) -> None:
        """Start etcd and kube-apiserver, and wait until they are ready."""
        self._start("etcd", self._etcd_flags())
        apiserver = self._start("kube-apiserver", self._apiserver_flags())
        context = ssl.create_default_context(cafile=str(self.server_ca))
        eventually(lambda: apiserver.poll() is not None or self._is_ready(context))
        log = (self.folder / "kube-apiserver.log").read_text(errors="replace")[-3000:]
        assert apiserver.poll() is None, f"kube-apiserver has ended:\n{log}"

    def sign_requests(self, duration: str = "24h") -> None:
        """Start kube-controller-manager, which signs certificate requests with the cluster's own CA; after `serve`."""
        ca = _private(self.folder / "signing-ca.crt", self._own_ca.certificate_pem)
        key = self._own_ca.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        controllers = (
            "certificatesigningrequest-signing-controller",
            "certificatesigningrequest-cleaner-controller",
            "serviceaccount-controller",
            "serviceaccount-token-controller",
            "namespace-controller",
        )
        flags = {
            "kubeconfig": self.admin_kubeconfig(),
            "bind-address": "127.0.0.1",
            "secure-port": 0,
            "leader-elect": "false",
            "use-service-account-credentials": "true",
            "controllers": ",".join(controllers),
            "cluster-signing-cert-file": ca,
            "cluster-signing-key-file": _private(self.folder / "signing-ca.key", key),
            "cluster-signing-duration": duration,
            "root-ca-file": self.server_ca,
            "service-account-private-key-file": self.folder / "sa.key",
        }
        self._start("kube-controller-manager", flags)

    @staticmethod
    def can_sign() -> bool:
        """Whether the folder also has kube-controller-manager."""
        folder = assets()
        return folder is not None and (folder / "kube-controller-manager").is_file()

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """The output of kubectl as a member of system:masters."""
        command = [str(self._programs / "kubectl"), "--kubeconfig", str(self.admin_kubeconfig()), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _is_ready(self, context: ssl.SSLContext) -> bool:
        try:
            return (
                httpx2.get(f"{self.url}/readyz", verify=context, trust_env=False).status_code
                == httpx2.codes.OK
            )
        except httpx2.HTTPError:
            return False

    def _start(self, name: str, flags: Mapping[str, object]) -> subprocess.Popen[bytes]:
        arguments = [f"--{flag}={value}" for flag, value in flags.items()]
        more = self._audit_flags if name == "kube-apiserver" else ()
        log = self._running.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [self._programs / name, *arguments, *more], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
        )
        self._running.callback(_end, process)
        return process

    def _etcd_flags(self) -> Mapping[str, object]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        return {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
        }

    def _apiserver_flags(self) -> Mapping[str, object]:
        signing_key, public_key = _service_account_keys(self.folder)
        return {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": self._port,
            "endpoint-reconciler-type": "none",
            "service-cluster-ip-range": "10.0.0.0/24",
            "cert-dir": self.folder / "certificates",
            "tls-cert-file": self._identity,
            "tls-private-key-file": self._identity,
            "client-ca-file": self._client_ca,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": public_key,
            "service-account-signing-key-file": signing_key,
            "authorization-config": self._authorization,
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(SECONDS)


def _private(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def _service_account_keys(folder: Path) -> tuple[Path, Path]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _private(folder / "sa.key", private_pem), _private(folder / "sa.pub", public_pem)
