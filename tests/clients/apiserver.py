"""A double of kube-apiserver for client certificates: TLS, X.509 identity, whoami and namespaces; no storage.

What it answers was seen on kube-apiserver 1.32 and 1.36. It differs where Python's TLS does: a certificate of
an unknown CA, an expired one or one for another purpose ends the handshake, where kube-apiserver answers 401.
"""

import hashlib
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from authority import Authority

JsonObject = Mapping[str, object]

AUTHENTICATED = "system:authenticated"
GROUPS_THAT_READ = frozenset({"clustercert:admins", "clustercert:editors", "clustercert:viewers"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom kube-apiserver takes a client certificate for."""

    username: str
    groups: tuple[str, ...]
    credential_id: str
    not_after: datetime

    @classmethod
    def of(cls, leaf_der: bytes) -> "Identity | None":
        """CN and O of the subject; None where there is no CN, as kube-apiserver has it."""
        leaf = x509.load_der_x509_certificate(leaf_der)
        names = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        groups = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        if not names:
            return None
        fingerprint = hashlib.sha256(leaf_der).hexdigest()
        return cls(names[-1], (*groups, AUTHENTICATED), f"X509SHA256={fingerprint}", leaf.not_valid_after_utc)

    @property
    def user_info(self) -> JsonObject:
        return {
            "username": self.username,
            "groups": list(self.groups),
            "extra": {"authentication.kubernetes.io/credential-id": [self.credential_id]},
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came through the handshake."""

    method: str
    path: str
    identity: Identity | None


Verdict = Callable[[Identity, str, str], str | None]
"""(who, method, path) -> why not, or None; stands where kube-apiserver asks its authorization webhook."""


class ApiServer:
    """Serves on loopback from `with` to the end of the block.

    Attributes:
        url: `https://127.0.0.1:port`.
        server_ca: the PEM file of the CA that signed its own certificate.
        seen: the requests so far.
        refused: why handshakes failed, in OpenSSL's words; a queue, as the client may know before us.
        verdict: replace it to deny somebody; the answer is then a 403 with that reason.
        now: replace it to see a certificate expire on an open connection.
    """

    def __init__(self, folder: Path) -> None:
        authority = Authority("apiserver-double-ca")
        self.server_ca = folder / "server-ca.pem"
        self.server_ca.write_bytes(authority.certificate_pem)
        self._identity_file = folder / "server.pem"
        self._identity_file.write_bytes(
            authority.server_identity_pem(
                "kube-apiserver", (x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost"))
            )
        )
        self.seen: list[Seen] = []
        self.refused: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.verdict: Verdict = lambda _who, _method, _path: None
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._context = self._new_context()
        self._http = _Listener(self)
        self.url = f"https://127.0.0.1:{self._http.server_address[1]}"

    def trust(self, client_ca_pem: bytes) -> None:
        """Replace the client-CA bundle, as a reload of `--client-ca-file` does; holds for new connections."""
        context = self._new_context()
        context.load_verify_locations(cadata=client_ca_pem.decode())
        self._context = context

    def handshake(self, connection: socket.socket) -> ssl.SSLSocket:
        return self._context.wrap_socket(connection, server_side=True)

    def answer(self, method: str, path: str, identity: Identity | None) -> tuple[int, JsonObject]:
        """Status and body, in kube-apiserver's order: who, whether, what."""
        self.seen.append(Seen(method, path, identity))
        if identity is None or identity.not_after < self.now():
            return 401, _failure(401, "Unauthorized", "Unauthorized")
        why_not = self.verdict(identity, method, path)
        if why_not is None and path.startswith("/api/v1/") and GROUPS_THAT_READ.isdisjoint(identity.groups):
            why_not = "no role of this user allows it"
        if why_not is not None:
            message = f'User "{identity.username}" cannot {method} path "{path}": {why_not}'
            return 403, _failure(403, "Forbidden", message)
        if (method, path) == ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews"):
            return 201, _self_subject_review(identity)
        if method == "GET" and path in _READABLE:
            return 200, _READABLE[path]
        return 404, _failure(404, "NotFound", "the server could not find the requested resource")

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._identity_file)
        # As kube-apiserver: a certificate is asked for and judged; without one the answer is a 401.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        # Without tickets there is no resumption, so each connection shows its certificate anew.
        context.num_tickets = 0
        return context


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, apiserver: ApiServer) -> None:
        self.apiserver = apiserver
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Shake hands here, in the connection's own thread, so that a slow peer holds up nobody else."""
        connection = cast("socket.socket", request)
        connection.settimeout(20)
        try:
            with self.apiserver.handshake(connection) as tls:
                _Handler(tls, client_address, self)
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            self.apiserver.refused.put(str(error))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own parameter name
        """Quiet: `seen` is the log."""

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        leaf_der = cast("ssl.SSLSocket", self.connection).getpeercert(binary_form=True)
        identity = Identity.of(leaf_der) if leaf_der else None
        apiserver = cast("_Listener", self.server).apiserver
        status, body = apiserver.answer(self.command, urlsplit(self.path).path.rstrip("/"), identity)
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


def _failure(code: int, reason: str, message: str) -> JsonObject:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _self_subject_review(identity: Identity) -> JsonObject:
    return {
        "kind": "SelfSubjectReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
        "status": {"userInfo": identity.user_info},
    }


def _namespace(name: str) -> JsonObject:
    created = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {"name": name, "uid": f"uid-of-{name}", "creationTimestamp": created},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


_AUTHENTICATION_V1 = {"groupVersion": "authentication.k8s.io/v1", "version": "v1"}

_READABLE: Mapping[str, JsonObject] = {
    "/version": {
        "major": "1",
        "minor": "32",
        "gitVersion": "v1.32.0",
        "gitCommit": "0" * 40,
        "gitTreeState": "clean",
        "buildDate": "2024-12-11T17:59:15Z",
        "goVersion": "go1.23.3",
        "compiler": "gc",
        "platform": "linux/amd64",
    },
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "authentication.k8s.io",
                "versions": [_AUTHENTICATION_V1],
                "preferredVersion": _AUTHENTICATION_V1,
            }
        ],
    },
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "namespaces",
                "singularName": "namespace",
                "namespaced": False,
                "kind": "Namespace",
                "verbs": ["get", "list"],
                "shortNames": ["ns"],
            }
        ],
    },
    "/apis/authentication.k8s.io/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "authentication.k8s.io/v1",
        "resources": [
            {
                "name": "selfsubjectreviews",
                "singularName": "selfsubjectreview",
                "namespaced": False,
                "kind": "SelfSubjectReview",
                "verbs": ["create"],
            }
        ],
    },
    "/api/v1/namespaces": {
        "kind": "NamespaceList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"},
        "items": [_namespace("default"), _namespace("kube-system")],
    },
}
