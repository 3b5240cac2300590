"""The middleware around applications that fail or hang."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clustercert.http import middleware
from clustercert.http.middleware import RequestMiddleware
from clustercert.model.errors import ClustercertError, Conflict, Forbidden, StoreFault, Unavailable
from support.log_capture import captured_lines
from support.samples import CLUSTER_ID
from support.wait import SECONDS


async def record_nothing(scope: Scope, failure: ClustercertError) -> None:
    pass


def count_nothing(scope: Scope, failure: ClustercertError) -> None:
    pass


def client_of(app: ASGIApp, timeout: float = SECONDS, max_in_flight: int = 100) -> httpx2.AsyncClient:
    edge = RequestMiddleware(app, timeout, record_nothing, count_nothing, max_in_flight)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(edge), base_url="http://edge.test")


def is_error(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    body: dict[str, Any] = response.json()
    assert (body["errorCode"], body["request_id"]) == (code, response.headers["X-Request-Id"])
    return body


async def test_an_exception_that_nobody_expected_is_a_500_without_its_words() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the password is hunter2")

    async with client_of(app) as client:
        response = await client.get("/x")
    assert is_error(response, 500, "CCE.01500001")["message"] == "Internal error."
    assert "hunter2" not in response.text


async def test_an_error_of_ours_is_rendered_wherever_it_comes_from() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Conflict("There is one already.")

    async with client_of(app) as client:
        body = is_error(await client.get("/x"), 409, "CCE.01409001")
        keystone = (await client.get("/v3/x")).json()
    assert body["message"] == keystone["error"]["message"] == "There is one already."


async def test_a_denial_that_cannot_be_recorded_is_not_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Forbidden("Not yours.")

    recorded: list[ClustercertError] = []

    async def record(scope: Scope, failure: ClustercertError) -> None:
        recorded.append(failure)
        raise Unavailable("The database does not answer.")

    edge = RequestMiddleware(app, SECONDS, record, count_nothing)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(edge), base_url="http://edge.test"
    ) as client:
        is_error(await client.get("/x"), 503, "CCE.01503001")
    assert [failure.message for failure in recorded] == ["Not yours."]


async def test_a_lasting_fault_of_the_database_is_explained_to_the_log_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise StoreFault("The file /data/clustercert.db is damaged. Restore a backup.")

    with captured_lines(middleware) as said:
        async with client_of(app) as client:
            response = await client.get("/x")
    is_error(response, 500, "CCE.01500001")
    assert "Retry-After" not in response.headers
    assert "clustercert.db" not in response.text
    assert said[-1]["reason"] == "The file /data/clustercert.db is damaged. Restore a backup."


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("user=a&user=b", "user: occurs more than once. Send it once."),
        ("user=a&u%73er=a", "user: occurs more than once. Send it once."),
        ("user&x=1&user=", "user: occurs more than once. Send it once."),
        ("limit=1&limit=1", "limit: occurs more than once. Send it once."),
        ("%0a=1&%0A=2", "A query parameter: occurs more than once. Send it once."),
    ],
)
async def test_a_repeated_query_parameter_is_refused(query: str, said: str) -> None:
    """The scheme of request signatures of one vendor's Go client signs only the first value."""
    async with client_of(PlainTextResponse("done")) as client:
        for path in ("/x", "/api/v3/x", "/clustercert/v1/x"):
            body = is_error(await client.get(f"{path}?{query}"), 400, "CCE.01400001")
            assert body["message"] == said
        assert (await client.get(f"/v3/x?{query}")).status_code == 400
        assert (await client.get("/x?user=a&group=a&User=a")).text == "done"


@pytest.mark.parametrize(("version", "status"), [("1.1", 400), ("1.0", 200), ("2", 200)])
async def test_http_1_1_without_a_host_is_refused(version: str, status: int) -> None:
    said = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: Scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    scope["http_version"] = version
    edge = RequestMiddleware(PlainTextResponse("done"), SECONDS, record_nothing, count_nothing)
    await edge(scope, receive, send)
    assert said[0]["status"] == status


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    given_up = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    async with client_of(app, timeout=0.02) as client:
        response = await client.get("/x")
    is_error(response, 503, "CCE.01503001")
    assert int(response.headers["Retry-After"]) >= 1
    assert given_up.is_set()


async def test_an_answer_that_has_begun_is_not_followed_by_another() -> None:
    said = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    async def send(message: Any) -> None:
        said.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: Scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    await RequestMiddleware(app, SECONDS, record_nothing, count_nothing)(scope, receive, send)
    assert said == ["http.response.start"]


@pytest.mark.parametrize("waiting", [1, 3])
async def test_more_requests_than_can_be_answered_are_told_so_at_once(waiting: int) -> None:
    """Except /healthz: a supervisor must not restart a process that is only busy."""
    arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            arrived.release()
            await go_on.wait()
        await PlainTextResponse("done")(scope, receive, send)

    async with client_of(app, max_in_flight=waiting) as client:
        slow = [asyncio.ensure_future(client.get("/slow")) for _ in range(waiting)]
        for _ in range(waiting):
            await arrived.acquire()
        response = await client.get("/x")
        is_error(response, 503, "CCE.01503001")
        assert int(response.headers["Retry-After"]) >= 1
        assert (await client.get("/healthz")).status_code == 200
        go_on.set()
        assert [(await answer).status_code for answer in slow] == [200] * waiting
        assert (await client.get("/x")).status_code == 200


async def test_slow_requests_keep_no_api_server_from_its_answer() -> None:
    """After an error, an API server may accept revoked certificates. Its requests have a higher limit of their own."""
    arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/slow"):
            arrived.release()
            await go_on.wait()
        await PlainTextResponse("done")(scope, receive, send)

    async with client_of(app, max_in_flight=2) as client:
        slow = [asyncio.ensure_future(client.get("/slow")) for _ in range(2)]
        for _ in slow:
            await arrived.acquire()
        is_error(await client.get("/x"), 503, "CCE.01503001")
        authorize = f"/clustercert/v1/kubernetes/clusters/{CLUSTER_ID}/authorize"
        assert (await client.get(authorize)).status_code == 200
        slow += [asyncio.ensure_future(client.get("/clustercert/v1/kubernetes/slow")) for _ in range(2)]
        for _ in range(2):
            await arrived.acquire()
        is_error(await client.get(authorize), 503, "CCE.01503001")
        go_on.set()
        assert [(await answer).status_code for answer in slow] == [200] * 4


async def test_a_request_whose_body_never_comes_takes_nobodys_place() -> None:
    arrived = asyncio.Semaphore(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.release()
        while (await receive()).get("more_body"):
            pass
        await PlainTextResponse("done")(scope, receive, send)

    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        await go_on.wait()
        yield b"late"

    async with client_of(app, max_in_flight=1) as client:
        slow = [asyncio.ensure_future(client.post("/x", content=body())) for _ in range(3)]
        for _ in slow:
            await arrived.acquire()
        assert (await client.post("/x", content=b"whole")).status_code == 200
        go_on.set()
        assert {(await answer).status_code for answer in slow} <= {200, 503}


async def test_a_request_counts_once_its_body_is_there() -> None:
    arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        arrived.release()
        await go_on.wait()
        await PlainTextResponse("done")(scope, receive, send)

    async with client_of(app, max_in_flight=2) as client:
        slow = [asyncio.ensure_future(client.post("/x", content=b"whole")) for _ in range(2)]
        for _ in slow:
            await arrived.acquire()
        is_error(await client.post("/x", content=b"whole"), 503, "CCE.01503001")
        go_on.set()
        assert [(await answer).status_code for answer in slow] == [200, 200]


@pytest.mark.parametrize("size", [0, 1, middleware.PIECE_BYTES, middleware.PIECE_BYTES + 1, 200_000])
async def test_a_long_body_is_sent_in_pieces(size: int) -> None:
    said = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    content = bytes(number % 251 for number in range(size))
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/x",
        "headers": [(b"host", b"a")],
        "query_string": b"",
    }
    edge = RequestMiddleware(Response(content), SECONDS, record_nothing, count_nothing)
    await edge(scope, receive, send)
    pieces = said[1:]
    assert b"".join(each["body"] for each in pieces) == content
    assert max(len(each["body"]) for each in pieces) <= middleware.PIECE_BYTES
    assert [each.get("more_body", False) for each in pieces] == [True] * (len(pieces) - 1) + [False]
