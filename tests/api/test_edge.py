"""The outermost layer around applications that misbehave."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clustercert.errors import Conflict
from clustercert.web.edge import Edge
from nouns import CLUSTER_ID


def client_of(app: ASGIApp, timeout: float = 5, max_in_flight: int = 100) -> httpx.AsyncClient:
    edge = Edge(app, timeout, max_in_flight)
    return httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://edge.test")


def is_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
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


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    given_up = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
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
    await Edge(app, 5)(scope, receive, send)
    assert said == ["http.response.start"]


@pytest.mark.parametrize("waiting", [1, 3])
async def test_more_requests_than_can_be_answered_are_told_so_at_once(waiting: int) -> None:
    """All but the check whether the process is alive: what restarts it must not take load for death."""
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


async def test_who_fills_a_worker_with_slow_requests_keeps_no_api_server_from_its_answer() -> None:
    """It would get an error, and may let in what is revoked then; its own requests have their bound too."""
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


@pytest.mark.parametrize("headers", [{"X-A": "a" * 66_000}, {f"X-{number}": "1" for number in range(100)}])
async def test_a_header_block_over_its_bound_is_refused(headers: dict[str, str]) -> None:
    async with client_of(PlainTextResponse("done")) as client:
        is_error(await client.get("/x", headers=headers), 431, "APIGW.0201")
