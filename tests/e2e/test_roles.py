"""`serve --role`: the webhook and the API as two processes on one store."""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support.certificate_authority import Authority
from support.kubernetes_messages import credential_id, event_list, review
from support.leaf_checks import leaf_of
from support.serve_process import Serving, serving
from support.wait import SECONDS, eventually
from support.world import World, make, webhook_token


@dataclass(frozen=True)
class Roles:
    """Two processes, and the token of an API server."""

    world: World
    api: Serving
    webhook: Serving
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.world.clusters['plain'].id}"

    def client(self, serving: Serving) -> httpx2.Client:
        return httpx2.Client(base_url=serving.url, timeout=SECONDS, trust_env=False)

    def status(self, raw: bytes) -> object:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with self.client(self.webhook) as client:
            answer = client.post(f"{self.path}/authorize", content=raw, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["status"]


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    world = make(tmp_path_factory.mktemp("roles"))
    token = asyncio.run(webhook_token(world))
    # The webhook needs no key-encryption key.
    without = {"KEK_FILE": world.folder / "missing"}
    with serving(world, "--role", "api") as api, serving(world, "--role", "webhook", **without) as webhook:
        yield Roles(world, api, webhook, token)


def test_a_revocation_at_the_api_is_known_to_the_webhook(roles: Roles) -> None:
    admin = roles.world.people["admin"]
    with roles.client(roles.api) as client:
        client.headers.update(admin.headers)
        issued = client.post(roles.world.path(), json={"duration": 1}).raise_for_status()
        subject = leaf_of(issued.json()).subject
        groups = [str(each.value) for each in subject if each.oid.dotted_string == "2.5.4.10"]
        fingerprint = issued.headers["X-Clustercert-Fingerprint"]
        raw = review(credential_id(fingerprint), user=admin.user.id, groups=groups)
        assert roles.status(raw) == {"allowed": False}
        project, cluster = roles.world.project.id, roles.world.clusters["plain"].id
        base = f"/clustercert/v1/projects/{project}/clusters/{cluster}/certificates/{fingerprint}"
        client.post(f"{base}/revoke", json={}).raise_for_status()
        eventually(lambda: roles.status(raw) != {"allowed": False})
        # The last use, which the webhook's process writes.
        eventually(lambda: client.get(base).raise_for_status().json()["last_seen_at"])


def test_the_webhook_answers_api_servers_only(roles: Roles) -> None:
    with roles.client(roles.webhook) as client:
        client.headers.update(roles.world.people["admin"].headers)
        for method, path in (
            ("POST", roles.world.path()),
            ("GET", "/v3"),
            ("POST", "/v3/auth/tokens"),
            ("GET", "/"),
            ("GET", "/openapi.json"),
            ("GET", "/docs"),
            ("GET", "/clustercert/v1/certificates"),
        ):
            answer = client.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 404, path
            assert "/docs" not in answer.text
        refused = client.get(f"{roles.path}/authorize")
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        headers = {"Authorization": f"Bearer {roles.token}"}
        answer = client.post(f"{roles.path}/audit-events", content=event_list(), headers=headers)
        assert answer.status_code == 200


def test_the_webhook_refuses_large_headers(roles: Roles) -> None:
    with roles.client(roles.webhook) as client:
        assert client.get("/healthz", headers={"X-Large": "a" * 1_000_000}).status_code == 431


def test_the_api_does_not_answer_api_servers(roles: Roles) -> None:
    headers = {"Authorization": f"Bearer {roles.token}"}
    with roles.client(roles.api) as client:
        for tail in ("authorize", "audit-events"):
            answer = client.post(f"{roles.path}/{tail}", content=review(), headers=headers)
            assert answer.status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if "/kubernetes/" in path]


def test_the_webhook_requires_client_certificates_if_configured(roles: Roles, tmp_path: Path) -> None:
    key, now = new_key("ec-p256"), datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    trusted, other = Authority("api servers"), Authority("others")
    files = {
        "tls.pem": chain_pem((leaf,)),
        "tls.key": key_pem(key),
        "ca.pem": chain_pem((ca,)),
        "client-ca.pem": trusted.certificate_pem,
        "trusted.pem": trusted.client_identity_pem("kube-apiserver"),
        "other.pem": other.client_identity_pem("kube-apiserver"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    settings = {
        "WEBHOOK__TLS_CERTIFICATE": tmp_path / "tls.pem",
        "WEBHOOK__TLS_KEY": tmp_path / "tls.key",
        "WEBHOOK__CLIENT_CA": tmp_path / "client-ca.pem",
    }

    def connect(url: str, identity: str | None) -> int:
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        if identity is not None:
            context.load_cert_chain(tmp_path / identity)
        with httpx2.Client(verify=context, trust_env=False, timeout=SECONDS) as client:
            return client.get(f"{url}/healthz").status_code

    with serving(roles.world, "--role", "webhook", **settings) as webhook:
        assert webhook.url.startswith("https://")
        assert connect(webhook.url, "trusted.pem") == 200
        for identity in (None, "other.pem"):
            with pytest.raises(httpx2.TransportError):
                connect(webhook.url, identity)
