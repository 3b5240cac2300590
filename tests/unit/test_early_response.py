"""Responses that are sent before the request's body has arrived."""

import asyncio
from collections.abc import Iterator

from starlette.types import Message

from clustercert.http.responses import JSON, MAX_DISCARDED, EarlyResponse
from clustercert.model.errors import Unavailable

MEGABYTE = b"x" * (1 << 20)


def sent(parts: Iterator[Message], seconds: float = 60) -> list[tuple[str, int]]:
    """The types of the sent messages, with the number of parts received before each."""
    received, log = 0, []

    async def receive() -> Message:
        nonlocal received
        message = next(parts, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        received += 1
        return message

    async def send(message: Message) -> None:
        log.append((f"{message['type']} {message.get('body', b'').decode()}".strip(), received))

    asyncio.run(EarlyResponse(b"{}", JSON, seconds)({"type": "http"}, receive, send))
    assert [each for each, _ in log] == ["http.response.start", "http.response.body {}", "http.response.body"]
    return log


def part(body: bytes, *, more_body: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


def test_the_rest_of_the_body_is_received_after_the_response() -> None:
    log = sent(iter([part(b"a"), part(b""), part(b"b", more_body=False), part(b"next request")]))
    assert [received for _, received in log] == [0, 0, 3]


def test_no_more_than_a_limit_is_received() -> None:
    log = sent(part(MEGABYTE) for _ in range(10_000))
    assert log[-1][1] == MAX_DISCARDED // len(MEGABYTE) + 1


def test_a_body_that_stops_arriving_is_given_up() -> None:
    assert sent(iter([part(b"a")]), seconds=0.01)[-1][1] == 1


def test_a_closed_connection_ends_it() -> None:
    assert sent(iter([part(b"a"), {"type": "http.disconnect"}]))[-1][1] == 2


def test_the_response_is_complete_when_too_many_requests_are_in_progress() -> None:
    async def receive() -> Message:
        raise Unavailable("busy")

    messages = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(EarlyResponse(b"{}", JSON, 60)({"type": "http"}, receive, send))
    assert [message.get("more_body", False) for message in messages] == [False, True, False]
    assert (b"connection", b"close") in messages[0]["headers"]
