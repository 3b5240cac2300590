import http.client
import itertools
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx2
import pytest

from clustercert.cli.lookup import reachable_clusters
from clustercert.client import Client, CurrentUser, IssueOptions, NamedRef, PasswordLogin, ProjectRef
from clustercert.client.auth import AccessKeyAuth, TokenAuth
from clustercert.client.connection import (
    MAX_RESPONSE_BYTES,
    ApiError,
    Auth,
    ClientError,
    HttpRequest,
    Reply,
    ServiceClient,
    Unreachable,
)
from clustercert.pki.request_signature import SignedParts, parse_authorization, payload_hash, verify

URL = "https://clustercert.test:8443"
NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
DOMAIN, PROJECT, CLUSTER = "d" * 32, "a" * 32, "6a3c2e2c-0000-4000-8000-000000000001"
TOKEN_BODY = {
    "token": {
        "expires_at": "2026-01-16T10:30:00.000000Z",
        "user": {"id": "u" * 32, "name": "alice", "domain": {"id": DOMAIN, "name": "Default"}},
        "project": {"id": PROJECT, "name": "eu-de", "domain": {"id": DOMAIN, "name": "acme"}},
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
    """A fake service that records requests and returns a fixed answer. It is the transport of its client."""

    def __init__(self, answer: Callable[[httpx2.Request], httpx2.Response] | httpx2.Response) -> None:
        self.requests: list[httpx2.Request] = []
        self._answer = answer

    def send(self, request: HttpRequest) -> Reply:
        url = httpx2.URL(URL).copy_with(raw_path=request.target.encode())
        received = httpx2.Request(request.method, url, headers=request.headers, content=request.content)
        self.requests.append(received)
        answer = self._answer if isinstance(self._answer, httpx2.Response) else self._answer(received)
        headers = http.client.HTTPMessage()
        for name, value in answer.headers.items():
            headers[name] = value
        chunks = answer.iter_bytes()
        return Reply(answer.status_code, headers, lambda _: next(chunks, b""))

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def client(self, auth: Auth | None = None) -> Client:
        return Client(URL, auth, transport=self)

    def sent(self) -> Any:
        return json.loads(self.requests[-1].content)


def test_a_login_by_password_returns_a_token_with_its_scope() -> None:
    service = Service(httpx2.Response(201, json=TOKEN_BODY, headers={"X-Subject-Token": "t0ken"}))
    with service.client() as client:
        session = client.log_in(
            PasswordLogin("alice", "Default", "pässword", project="eu-de", project_domain="other")
        )

    assert (session.token, session.user.name) == ("t0ken", "alice")
    assert session.user.shown_name == "Default/alice"
    assert session.project == NamedRef(PROJECT, "eu-de", "acme")
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
        (PasswordLogin("u" * 32, None, "p"), None),
        (PasswordLogin("u" * 32, None, "p", project_id=PROJECT), {"project": {"id": PROJECT}}),
        (PasswordLogin("u" * 32, None, "p", project="eu-de"), {"project": {"name": "eu-de"}}),
    ],
)
def test_a_user_is_named_by_id_and_a_scope_is_optional(login: PasswordLogin, scope: object) -> None:
    service = Service(httpx2.Response(201, json=TOKEN_BODY, headers={"X-Subject-Token": "t0ken"}))
    with service.client() as client:
        client.log_in(login)
    assert service.sent()["auth"]["identity"]["password"]["user"] == {"id": "u" * 32, "password": "p"}
    assert service.sent()["auth"].get("scope") == scope
    assert "'p'" not in repr(login)


def test_a_token_is_read_rescoped_and_revoked() -> None:
    service = Service(httpx2.Response(200, json=TOKEN_BODY, headers={"X-Subject-Token": "new"}))
    with service.client() as client:
        assert client.session("t0ken").user.id == "u" * 32
        assert service.requests[-1].headers["X-Subject-Token"] == "t0ken"
        assert client.rescope("t0ken", PROJECT).token == "new"
        assert service.sent()["auth"]["identity"] == {"methods": ["token"], "token": {"id": "t0ken"}}
    gone = Service(httpx2.Response(204))
    with gone.client() as client:
        client.revoke("t0ken")
    assert (gone.requests[0].method, gone.requests[0].headers["X-Auth-Token"]) == ("DELETE", "t0ken")


CALLER = {
    "id": "1",
    "name": "alice",
    "domain": "Default",
    "service_roles": ["operator"],
    "issuer": "built-in",
    "recommended_client": "0.2.0",
    "projects": [],
}


def test_projects_are_listed() -> None:
    project = {"id": PROJECT, "name": "eu-de", "domain": "acme", "domain_id": DOMAIN, "roles": ["member"]}
    with Service(httpx2.Response(200, json=CALLER | {"projects": [project]})).client() as client:
        assert client.projects() == (ProjectRef(PROJECT, "eu-de", "acme", DOMAIN, ("member",)),)


@pytest.mark.parametrize("status", [404, 405])
def test_another_cce_service_is_refused(status: int) -> None:
    service = Service(httpx2.Response(status, json={"error_code": "APIGW.0101", "error_msg": "No."}))
    with service.client() as client, pytest.raises(ClientError, match=f"{URL} is not a clustercert service"):
        client.projects()
    with Service(httpx2.Response(503, json={"error_msg": "No."})).client() as client, pytest.raises(ApiError):
        client.projects()


def test_the_caller_is_named_by_the_service() -> None:
    service = Service(httpx2.Response(200, json=CALLER))
    recommended: list[str] = []
    with service.client() as client:
        client.recommend = recommended.append
        assert client.caller() == CurrentUser("1", "alice", "Default", "built-in", ("operator",))
    assert service.requests[0].url.path == "/clustercert/v1/caller"
    assert recommended == ["0.2.0"]
    with Service(httpx2.Response(503, json={"error_msg": "No."})).client() as client, pytest.raises(ApiError):
        client.caller()


def test_a_kubeconfig_is_requested_with_the_contracts_fields() -> None:
    service = Service(httpx2.Response(200, json={"kind": "Config"}))
    with service.client(TokenAuth("t0ken")) as client:
        assert client.issue(PROJECT, CLUSTER, IssueOptions(expire_at=NOW, csr="CSR", reason="r")).body == {
            "kind": "Config"
        }

    (request,) = service.requests
    assert request.url == f"{URL}/api/v3/projects/{PROJECT}/clusters/{CLUSTER}/clustercert"
    assert request.headers["X-Auth-Token"] == "t0ken"
    assert request.headers["Content-Type"] == "application/json"
    assert service.sent() == {"expire_at": "2026-01-15 10:30:00 +0000 UTC", "csr": "CSR", "reason": "r"}


def test_ids_are_escaped_in_paths() -> None:
    service = Service(httpx2.Response(200, json={}))
    with service.client() as client:
        client.issue("../../v3", "a/b?c", IssueOptions(duration=1))
    path = b"/api/v3/projects/..%2F..%2Fv3/clusters/a%2Fb%3Fc/clustercert"
    assert service.requests[0].url.raw_path == path


def test_a_signed_request_verifies() -> None:
    service = Service(httpx2.Response(200, json={"kind": "Config", "not_after": "2026-01-16T10:30:00Z"}))
    with service.client(AccessKeyAuth("AKEXAMPLE", "s3cret", lambda: NOW)) as client:
        client.issue(PROJECT, CLUSTER, IssueOptions(duration=1))
        client.exchange("POST", "/api/v3/projects?dryRun=All", body={"duration": -1})

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
        ({}, "No message. (403, request def)"),
    ],
)
def test_an_api_error_has_the_services_message(answer: object, said: str) -> None:
    response = httpx2.Response(403, json=answer, headers={"X-Request-Id": "def"})
    with Service(response).client() as client, pytest.raises(ApiError) as refusal:
        client.projects()
    assert (refusal.value.message, refusal.value.http_status) == (said, 403)


@pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b"[]", b"", b"\xff", b"[" * 100_000])
def test_an_error_without_a_json_body_has_its_status(content: bytes) -> None:
    with (
        Service(httpx2.Response(502, content=content)).client() as client,
        pytest.raises(ApiError, match="status 502"),
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
def test_an_answer_of_another_format_is_refused(content: bytes) -> None:
    with (
        Service(httpx2.Response(200, content=content)).client() as client,
        pytest.raises(ClientError, match="not in this service's format"),
    ):
        client.projects()


def test_a_too_large_answer_is_refused() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1024 * 1024)

    with (
        Service(lambda _: httpx2.Response(200, content=endless())).client() as client,
        pytest.raises(ClientError, match=f"{MAX_RESPONSE_BYTES // 1024**2} MiB"),
    ):
        client.projects()


@pytest.mark.parametrize(("cursors", "pages"), [(itertools.repeat("x"), 2), (itertools.cycle("abc"), 4)])
def test_a_list_whose_cursor_repeats_is_refused(cursors: Iterator[str], pages: int) -> None:
    service = Service(lambda _: httpx2.Response(200, json={"clusters": [], "next": next(cursors)}))
    with service.client() as client, pytest.raises(ClientError, match=f"stopped after page {pages}\\."):
        list(client.list_all("/clusters", "clusters"))


def test_a_list_of_too_many_pages_is_refused() -> None:
    numbers = itertools.count()
    with (
        Service(httpx2.Response(200, json={})).client() as client,
        pytest.raises(ClientError, match="stopped after page 100"),
    ):
        list(client.follow(lambda _: {"next": next(numbers)}, 100))
    assert next(numbers) == 100


def test_a_huge_cursor_is_not_sent() -> None:
    service = Service(lambda _: httpx2.Response(200, json={"clusters": [], "next": "x" * 100_000}))
    with service.client() as client, pytest.raises(ClientError, match="stopped after page 1"):
        list(client.list_all("/clusters", "clusters"))


def test_a_clock_difference_is_reported() -> None:
    refusal = httpx2.Response(401, json={}, headers={"Date": "Thu, 15 Jan 2026 11:00:00 GMT"})
    with (
        Service(refusal).client(AccessKeyAuth("AK", "SK", lambda: NOW)) as client,
        pytest.raises(ApiError, match=r"30 min behind the service's\. Correct"),
    ):
        client.projects()


@pytest.mark.parametrize("date", ["Thu, 15 Jan 2026 10:31:00 GMT", "", "today"])
def test_no_clock_difference_is_not_reported(date: str) -> None:
    refusal = httpx2.Response(401, json={}, headers={"Date": date})
    with (
        Service(refusal).client(AccessKeyAuth("AK", "SK", lambda: NOW)) as client,
        pytest.raises(ApiError) as refused,
    ):
        client.projects()
    assert "clocks" not in refused.value.message


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (TimeoutError(), "in time"),
        (ConnectionRefusedError(111, "Connection refused"), r"Can't connect to .* \(Connection refused\)"),
        (socket.gaierror(-2, "Name or service not known"), r"\(Name or service not known\)"),
        (OSError("Tunnel connection failed: 407"), r"Can't connect to .* \(Tunnel connection failed: 407\)"),
        (http.client.BadStatusLine("x"), "https or http"),
        (http.client.RemoteDisconnected("closed"), "https or http"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "https or http"),
    ],
)
def test_network_errors_become_client_errors(failure: Exception, said: str) -> None:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise failure

    with Service(fail).client() as client, pytest.raises(Unreachable, match=said):
        client.projects()


def test_a_header_that_cannot_be_sent_is_not_shown() -> None:
    with (
        Client("http://127.0.0.1:9", TokenAuth("t0ken\nX: y")) as client,
        pytest.raises(ClientError) as refused,
    ):
        client.projects()
    assert "t0ken" not in refused.value.message


def test_requests_are_traced_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(ServiceClient, "trace", lines.append)
    service = Service(httpx2.Response(201, json=TOKEN_BODY, headers={"X-Subject-Token": "t0ken"}))
    with service.client(TokenAuth("t0ken")) as client:
        client.log_in(PasswordLogin("alice", "Default", "pässword"))
    (line,) = lines
    assert line.startswith(f"POST {URL}/v3/auth/tokens: 201, ")
    assert "t0ken" not in line
    assert "pässword" not in line


@pytest.mark.parametrize(
    "hostile", ["/../../victim/planted", "..", "", "a,b", "a/b", "a\x00b", "x" * 65, "ä", 7, None, ["a"]]
)
def test_an_id_that_is_not_safe_in_a_file_name_is_refused(hostile: object) -> None:
    projects = Service(
        httpx2.Response(
            200,
            json=CALLER
            | {
                "projects": [
                    {"id": hostile, "name": "eu-de", "domain": "acme", "domain_id": DOMAIN, "roles": []}
                ]
            },
        )
    )
    cluster = {"id": hostile, "name": "prod", "project_id": PROJECT}
    clusters = Service(httpx2.Response(200, json={"clusters": [cluster], "next": None}))
    scope = {
        "token": TOKEN_BODY["token"]
        | {"project": {"id": hostile, "name": "eu-de", "domain": {"name": "acme"}}}
    }
    session = Service(httpx2.Response(200, json=scope))

    for read in (
        projects.client().projects,
        partial(reachable_clusters, clusters.client()),
        partial(session.client().session, "t0ken"),
    ):
        with pytest.raises(ClientError, match="not in this service's format"):
            read()
