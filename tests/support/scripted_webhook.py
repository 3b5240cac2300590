"""A webhook whose answers a test sets and that records its requests; how an API server is configured to use it."""

import base64
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx2
import yaml
from cryptography import x509

from support.apiserver.files import replace_file
from support.certificate_authority import Authority

TOKEN = "ccw_of-the-tests"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
UNGUARDED = f"request.extra['{CREDENTIAL_ID}'].exists(c, c.startsWith('X509SHA256='))"
OURS = "request.groups.exists(g, g.startsWith('issuer:'))"

Answer = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    target: str
    headers: Mapping[str, str]
    body: bytes


def review(**status: object) -> Answer:
    """A SubjectAccessReview with this status, as our service answers it."""
    document = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}
    return 200, json.dumps(document).encode()


class ScriptedWebhook:
    """Listens on loopback from `with` to the end of the block; with TLS, since API servers send no token over http.

    Attributes:
        answer: replace it; takes the parsed body.
        asked: the requests so far.
    """

    def __init__(self, *, tls: bool = True) -> None:
        self.answer: Callable[[Mapping[str, Any]], Answer] = lambda _document: review(allowed=False)
        self.asked: list[Asked] = []
        self._authority = Authority("webhook")
        self._http = _Listener(self)
        if tls:
            context = _server_context(self._authority)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}/authorize"

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig file with its address and token."""
        path = folder / "webhook.kubeconfig"
        authority = base64.b64encode(self._authority.certificate_pem).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "service", "cluster": cluster}],
            "users": [{"name": "apiserver", "user": {"token": TOKEN}}],
            "contexts": [{"name": "webhook", "context": {"cluster": "service", "user": "apiserver"}}],
            "current-context": "webhook",
        }
        path.write_text(json.dumps(document))
        return path

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def configuration(folder: Path, webhook: ScriptedWebhook, *conditions: str, **changes: object) -> Path:
    """An AuthorizationConfiguration with this webhook; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "authorizedTTL": "5s",
        "unauthorizedTTL": "2s",
        # The longest that there is.
        "timeout": "30s",
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "NoOpinion",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(webhook.kubeconfig(folder))},
        "matchConditions": [{"expression": each} for each in conditions],
        **changes,
    }
    path = folder / "authorization.yaml"
    document = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "clustercert", "webhook": fields},
            {"type": "Node", "name": "node"},
            {"type": "RBAC", "name": "rbac"},
        ],
    }
    replace_file(path, yaml.safe_dump(document).encode())
    return path


def namespaces(client: httpx2.Client) -> httpx2.Response:
    return client.get("/api/v1/namespaces")


def _server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        address = x509.IPAddress(ip_address("127.0.0.1"))
        file.write(authority.server_identity_pem("webhook", [address]))
        file.flush()
        context.load_cert_chain(file.name)
    return context


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, webhook: ScriptedWebhook) -> None:
        self.webhook = webhook
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    # One connection a request, so that `stop` is felt at once.
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        webhook = cast("_Listener", self.server).webhook
        body = self.rfile.read(int(self.headers["Content-Length"]))
        webhook.asked.append(Asked(self.path, dict(self.headers.items()), body))
        status, answer = webhook.answer(json.loads(body))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own parameter name
        """Quiet: `asked` is the log."""
