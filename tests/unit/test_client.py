import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from clustercert.certificate import chain_pem, new_client_ca
from clustercert.client import Client, Login, Named, Wish
from clustercert.client.auth import AccessKeyAuth, TokenAuth
from clustercert.client.wire import MAX_ANSWER_BYTES, ClientError, Refused, service_url
from clustercert.keypair import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from clustercert.signature import SignedParts, parse_authorization, payload_hash, verify

URL = "https://clustercert.test:8443"
NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
PROJECT, CLUSTER = "a" * 32, "6a3c2e2c-0000-4000-8000-000000000001"
TOKEN_BODY = {
    "token": {
        "expires_at": "2026-01-16T10:30:00.000000Z",
        "user": {"id": "u" * 32, "name": "alice"},
        "project": {"id": PROJECT, "name": "eu-de"},
        "catalog": [
            {"type": "identity", "endpoints": []},
            {
                "type": "ccev2.0",
                "endpoints": [
                    {"interface": "internal", "url": "https://internal"},
                    {"interface": "public", "url": "https://cce.test"},
                ],
            },
        ],
    }
}


class Service:
    """The network's far end: remembers the request, gives the answer."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | httpx.Response) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer if isinstance(self._answer, httpx.Response) else self._answer(request)

    def client(self, auth: httpx.Auth | None = None) -> Client:
        return Client(URL, auth, transport=httpx.MockTransport(self))

    def sent(self) -> Any:
        return json.loads(self.requests[-1].content)


def test_a_login_by_password_gives_a_token_and_what_it_is_worth() -> None:
    service = Service(httpx.Response(201, json=TOKEN_BODY, headers={"X-Subject-Token": "t0ken"}))
    with service.client() as client:
        session = client.log_in(
            Login("alice", "Default", "pässword", project="eu-de", project_domain="other")
        )

    assert (session.token, session.user.name) == ("t0ken", "alice")
    assert session.project == Named(PROJECT, "eu-de")
    assert session.expires_at == NOW + timedelta(days=1)
    assert session.service_url == "https://cce.test"
    assert service.sent()["auth"] == {
        "identity": {
            "methods": ["password"],
            "password": {"user": {"name": "alice", "domain": {"name": "Default"}, "password": "pässword"}},
        },
        "scope": {"project": {"name": "eu-de", "domain": {"name": "other"}}},
    }
    assert "t0ken" not in repr(session)


@pytest.mark.parametrize(
    ("login", "scope"),
    [
        (Login("u" * 32, None, "p"), None),
        (Login("u" * 32, None, "p", project_id=PROJECT), {"project": {"id": PROJECT}}),
        (Login("u" * 32, None, "p", project="eu-de"), {"project": {"name": "eu-de"}}),
    ],
)
def test_a_user_is_named_by_id_and_a_scope_is_optional(login: Login, scope: object) -> None:
    service = Service(httpx.Response(201, json=TOKEN_BODY, headers={"X-Subject-Token": "t0ken"}))
    with service.client() as client:
        client.log_in(login)
    assert service.sent()["auth"]["identity"]["password"]["user"] == {"id": "u" * 32, "password": "p"}
    assert service.sent()["auth"].get("scope") == scope
    assert "'p'" not in repr(login)


def test_a_token_is_looked_at_rescoped_and_revoked() -> None:
    service = Service(httpx.Response(200, json=TOKEN_BODY, headers={"X-Subject-Token": "new"}))
    with service.client() as client:
        assert client.session("t0ken").user.id == "u" * 32
        assert service.requests[-1].headers["X-Subject-Token"] == "t0ken"
        assert client.rescoped("t0ken", PROJECT).token == "new"
        assert service.sent()["auth"]["identity"] == {"methods": ["token"], "token": {"id": "t0ken"}}
    gone = Service(httpx.Response(204))
    with gone.client() as client:
        client.revoke("t0ken")
    assert (gone.requests[0].method, gone.requests[0].headers["X-Auth-Token"]) == ("DELETE", "t0ken")


def test_projects_and_clusters_are_listed() -> None:
    body = {
        "projects": [{"id": PROJECT, "name": "eu-de"}],
        "items": [{"metadata": {"uid": CLUSTER, "name": "prod"}}],
    }
    with Service(httpx.Response(200, json=body)).client() as client:
        assert client.projects() == (Named(PROJECT, "eu-de"),)
        assert client.clusters(PROJECT) == (Named(CLUSTER, "prod"),)
    with Service(httpx.Response(200, json={"items": None})).client() as client:
        assert client.clusters(PROJECT) == ()


@pytest.mark.parametrize(
    ("public", "contexts"),
    [
        ("https://203.0.113.5:6443", ("internal", "external", "externalTLSVerify")),
        ("", ("internal",)),
        (None, ("internal",)),
    ],
)
def test_the_contexts_follow_from_a_clusters_addresses(public: str | None, contexts: tuple[str, ...]) -> None:
    body = {"metadata": {}, "status": {"privateEndpoint": "https://10.0.0.5:6443", "publicEndpoint": public}}
    service = Service(httpx.Response(200, json=body))
    with service.client() as client:
        assert client.contexts(PROJECT, CLUSTER) == contexts
    assert service.requests[0].url.path == f"/api/v3/projects/{PROJECT}/clusters/{CLUSTER}/openapi"


def test_a_kubeconfig_is_asked_for_in_the_contracts_words() -> None:
    service = Service(httpx.Response(200, json={"kind": "Config"}))
    with service.client(TokenAuth("t0ken")) as client:
        assert client.kubeconfig(PROJECT, CLUSTER, Wish(expire_at=NOW, csr_pem="CSR", reason="r")) == {
            "kind": "Config"
        }

    (request,) = service.requests
    assert request.url == f"{URL}/api/v3/projects/{PROJECT}/clusters/{CLUSTER}/clustercert"
    assert request.headers["X-Auth-Token"] == "t0ken"
    assert request.headers["Content-Type"] == "application/json"
    assert service.sent() == {"expire_at": "2026-01-15 10:30:00 +0000 UTC", "csr": "CSR", "reason": "r"}


def test_an_id_from_outside_is_no_path() -> None:
    service = Service(httpx.Response(200, json={}))
    with service.client() as client:
        client.kubeconfig("../../v3", "a/b?c", Wish(duration=1))
    path = b"/api/v3/projects/..%2F..%2Fv3/clusters/a%2Fb%3Fc/clustercert"
    assert service.requests[0].url.raw_path == path


def test_the_longest_lifetime_is_asked_for_without_issuing() -> None:
    service = Service(httpx.Response(200, json={"not_after": "2026-01-16T10:30:00Z"}))
    with service.client() as client:
        assert client.longest(PROJECT, CLUSTER) == NOW + timedelta(days=1)
    assert service.requests[0].url.query == b"dryRun=All"
    assert service.sent() == {"duration": -1}


def test_a_signed_request_verifies() -> None:
    service = Service(httpx.Response(200, json={"kind": "Config", "not_after": "2026-01-16T10:30:00Z"}))
    with service.client(AccessKeyAuth("AKEXAMPLE", "s3cret", lambda: NOW)) as client:
        client.kubeconfig(PROJECT, CLUSTER, Wish(duration=1))
        client.longest(PROJECT, CLUSTER)

    for request in service.requests:
        unverified = parse_authorization(request.headers["Authorization"])
        headers = tuple((name.encode(), request.headers[name].encode()) for name in unverified.signed_headers)
        path, _, query = request.url.raw_path.decode().partition("?")
        parts = SignedParts(request.method, path, query, headers, payload_hash(request.content))
        assert verify(unverified, parts, b"s3cret")
        assert unverified.credential.access_key_id == "AKEXAMPLE"
        assert set(unverified.signed_headers) == {"content-type", "host", "x-sdk-date"}
        assert request.headers["Host"] == "clustercert.test:8443"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            {"error_code": "CCE.01403001", "error_msg": "Not\x1b\nyours.", "request_id": "abc"},
            "Not\x1b yours. (CCE.01403001, request abc)",
        ),
        ({"errorCode": "CCE.01403001", "errorMessage": "No."}, "No. (CCE.01403001, request def)"),
        ({"error": {"code": 403, "message": "No.", "title": "Forbidden"}}, "No. (403, request def)"),
        ({}, "no explanation (403, request def)"),
    ],
)
def test_a_refusal_is_told_in_the_services_words(answer: object, said: str) -> None:
    response = httpx.Response(403, json=answer, headers={"X-Request-Id": "def"})
    with Service(response).client() as client, pytest.raises(Refused) as refusal:
        client.projects()
    assert (refusal.value.message, refusal.value.http_status) == (said, 403)


@pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b"[]", b"", b"\xff", b"[" * 100_000])
def test_a_refusal_by_something_else_is_told_too(content: bytes) -> None:
    with (
        Service(httpx.Response(502, content=content)).client() as client,
        pytest.raises(Refused, match="status 502"),
    ):
        client.projects()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"projects": 1}',
        b'{"projects": [1]}',
        b'{"projects": [{}]}',
        b"[" * 100_000,
    ],
)
def test_an_answer_of_another_form_is_told(content: bytes) -> None:
    with (
        Service(httpx.Response(200, content=content)).client() as client,
        pytest.raises(ClientError, match="not as this service does"),
    ):
        client.projects()


def test_an_answer_without_end_is_not_read_to_it() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1024 * 1024)

    with (
        Service(lambda _: httpx.Response(200, content=endless())).client() as client,
        pytest.raises(ClientError, match=f"{MAX_ANSWER_BYTES // 1024**2} MiB"),
    ):
        client.projects()


def test_a_wrong_clock_is_named() -> None:
    refusal = httpx.Response(401, json={}, headers={"Date": "Thu, 15 Jan 2026 11:00:00 GMT"})
    with (
        Service(refusal).client(AccessKeyAuth("AK", "SK", lambda: NOW)) as client,
        pytest.raises(Refused, match="clock is 30 minutes off"),
    ):
        client.projects()


@pytest.mark.parametrize("date", ["Thu, 15 Jan 2026 10:31:00 GMT", "", "today"])
def test_a_right_clock_is_not_blamed(date: str) -> None:
    refusal = httpx.Response(401, json={}, headers={"Date": date})
    with (
        Service(refusal).client(AccessKeyAuth("AK", "SK", lambda: NOW)) as client,
        pytest.raises(Refused) as refused,
    ):
        client.projects()
    assert "clock" not in refused.value.message


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (httpx.ReadTimeout(""), "in time"),
        (httpx.ConnectTimeout(""), "in time"),
        (httpx.ConnectError("Connection refused"), "Can't connect to"),
        (httpx.RemoteProtocolError("illegal"), "https or http"),
        (httpx.ProxyError("no"), "https or http"),
    ],
)
def test_a_failing_network_is_a_sentence(failure: httpx.RequestError, said: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    with Service(fail).client() as client, pytest.raises(ClientError, match=said):
        client.projects()


def test_nothing_listening_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ClientError, match="Can't connect to"):
            client.projects()


@contextmanager
def tls_server(certificate_pem: bytes, private_key_pem: bytes, folder: Any) -> Iterator[str]:
    """Something that shows a certificate and then hangs up."""
    pem = folder / "pair.pem"
    pem.write_bytes(certificate_pem + private_key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"projects":[]}')
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_only_the_named_ca_is_trusted(tmp_path: Any) -> None:
    key = new_key("ec-p256")
    now = datetime.now(UTC) - timedelta(minutes=1)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    other = new_client_ca("other", key, now, timedelta(days=1))
    with tls_server(chain_pem((leaf,)), key_pem(key), tmp_path) as url:
        with Client(url, ca_pem=chain_pem((ca,)).decode()) as client:
            assert client.projects() == ()
        for ca_pem in (None, chain_pem((other,)).decode()):
            with Client(url, ca_pem=ca_pem) as client, pytest.raises(ClientError, match="--ca-file"):
                client.projects()


def test_a_ca_file_that_is_none_is_told() -> None:
    with pytest.raises(ClientError, match="not a PEM file"):
        Client(URL, ca_pem="nonsense")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://clustercert.example.com", "https://clustercert.example.com"),
        ("https://clustercert.example.com/", "https://clustercert.example.com"),
        ("https://clustercert.example.com:8443/v3/", "https://clustercert.example.com:8443"),
        ("http://127.0.0.1:8080/v3", "http://127.0.0.1:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_is_taken_as_people_say_it(text: str, url: str) -> None:
    assert service_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clustercert",
        "ftp://c",
        "https://",
        "https://u:p@c",
        "https://c/path",
        "https://c?q",
        "https://c:x",
        "https://[",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ClientError, match=r"like https://clustercert\.example\.com"):
        service_url(text)


def test_secrets_do_not_go_over_plain_http_unasked() -> None:
    with pytest.raises(ClientError, match="--plain-http"):
        service_url("http://clustercert.example.com")
    assert service_url("http://clustercert.example.com", plain_http=True) == "http://clustercert.example.com"
