"""Requests to Keystone: the service's own token, outages, and answers that can't be used."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.authn.keystone import client as client_module
from clustercert.authn.keystone import connection as connection_module
from clustercert.authn.keystone import connection as token_module
from clustercert.authn.keystone.client import KeystoneClient
from clustercert.authn.keystone.connection import PAUSE_SECONDS, KeystoneConnection, ServiceToken
from clustercert.authn.keystone.settings import Keystone
from clustercert.model.errors import CredentialUnverified
from clustercert.observability.log import REDACTED, redact
from support.keystone_double import PASSWORD, Answer, KeystoneDouble, Request, problem
from support.log_capture import captured_lines
from support.wait import eventually_async


@pytest.fixture
def double() -> Iterator[KeystoneDouble]:
    with KeystoneDouble().running() as running:
        yield running


class Asking:
    """A client with a clock that the test moves; by itself, it goes on a microsecond at each look."""

    def __init__(self, keystone: Keystone) -> None:
        self.begun, self.ahead = time.monotonic(), 0.0
        self.connection = KeystoneConnection(keystone, self.clock)
        self.service_token = ServiceToken(self.connection, keystone.service, keystone.name, self.clock)
        self.client = KeystoneClient(self.connection, self.service_token, keystone.name)

    def clock(self) -> float:
        self.begun += 1e-6
        return self.begun + self.ahead

    async def name(self, text: str) -> str | None:
        """The name of a token's user, or None for an unknown token."""
        body = await self.client.token(text)
        return body.user.name if body is not None else None

    async def fails(self, text: str) -> int:
        """Ask about a token in vain. Returns the seconds of Retry-After."""
        with pytest.raises(CredentialUnverified) as refused:
            await self.client.token(text)
        assert PASSWORD not in str(refused.value)
        return refused.value.retry_after or 0


def settings(double: KeystoneDouble, **changed: object) -> Keystone:
    return Keystone.model_validate(double.settings(domain="tests", **changed))


@contextlib.asynccontextmanager
async def asking(double: KeystoneDouble, **changed: object) -> AsyncIterator[Asking]:
    found = Asking(settings(double, **changed))
    try:
        yield found
    finally:
        await found.connection.close()


async def test_one_log_in_serves_many_questions(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        token = double.add_token(double.add_user("alice"))
        names = await asyncio.gather(*(own.name(token) for _ in range(20)))
    assert set(names) == {"alice"}
    assert double.log_ins == 1
    [log_in] = [each for each in double.requests if each.method == "POST"]
    assert log_in.body["auth"]["scope"] == {"system": {"all": True}}
    assert "nocatalog" in log_in.query
    assert {each.headers["accept-encoding"] for each in double.requests} == {"identity"}


async def test_the_own_token_is_renewed_before_it_expires(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        own.ahead = 3600 * 0.79
        await own.client.token("x")
        assert double.log_ins == 1
        own.ahead = 3600 * 0.81
        await own.client.token("x")
        assert double.log_ins == 2


async def test_the_own_token_lives_on_if_its_renewal_fails(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        password, own.ahead = double.answer, 3600 * 0.9
        double.answer = lambda request: (  # type: ignore[method-assign]
            problem(500) if request.method == "POST" else password(request)
        )
        assert await own.client.token("x") is None
        own.ahead = 3600 * 1.01
        await own.fails("x")


async def test_a_clock_that_differs_from_keystones_does_not_matter(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        begun = double._log_in

        def shifted(request: Any) -> Answer:
            answer = begun(request)
            body: Any = answer.body
            for name, hours in (("issued_at", -5), ("expires_at", -4)):
                then = datetime.now(UTC) + timedelta(hours=hours)
                body["token"][name] = then.strftime("%Y-%m-%dT%H:%M:%SZ")
            return answer

        double._log_in = shifted  # type: ignore[method-assign]
        for _ in range(3):
            await own.client.token("x")
    assert double.log_ins == 1


async def test_a_refused_own_token_is_dropped_and_the_question_asked_once_more(
    double: KeystoneDouble,
) -> None:
    async with asking(double) as own:
        token = double.add_token(double.add_user("alice"))
        await own.client.token(token)
        double.service_tokens.clear()
        assert await own.name(token) == "alice"
        assert double.log_ins == 2
        double.overrides["/v3/auth/tokens"] = lambda _: problem(401)
        before = double.asked("/v3/auth/tokens")
        await own.fails(token)
        assert double.asked("/v3/auth/tokens") == before + 2


async def test_concurrent_questions_with_a_refused_token_log_in_once(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        double.service_tokens.clear()
        await asyncio.gather(*(own.client.token(f"x{number}") for number in range(20)))
    assert double.log_ins == 2


async def test_a_wrong_password_is_logged_once_and_not_tried_all_the_time(double: KeystoneDouble) -> None:
    service = {"username": "clustercert", "password": "wrong-secret"}
    async with asking(double, service=service) as own:
        with captured_lines(token_module) as said:
            for _ in range(5):
                assert await own.fails("x") == PAUSE_SECONDS
            assert double.log_ins == 1
            own.ahead = PAUSE_SECONDS + 1
            await own.fails("x")
        assert double.log_ins == 2
    [line] = said
    assert (line["event"], line["log_level"]) == ("keystone login failed", "error")
    assert "wrong-secret" not in str(said)


async def test_an_internal_error_of_keystone_stops_the_log_in_for_a_second_only(
    double: KeystoneDouble,
) -> None:
    async with asking(double) as own:
        working = double.answer
        double.answer = lambda request: problem(500)  # type: ignore[method-assign]
        for _ in range(3):
            assert await own.fails("x") == 1
        assert double.log_ins == 1
        double.answer = working  # type: ignore[method-assign]
        own.ahead = 1.1
        assert await own.client.token("x") is None
        assert double.log_ins == 2


async def test_a_changed_password_file_needs_no_restart(double: KeystoneDouble, tmp_path: Path) -> None:
    file = tmp_path / "password"
    service = {"username": "clustercert", "password_file": str(file)}
    async with asking(double, service=service) as own:
        for content in (None, "", "wrong\n"):
            if content is not None:
                file.write_text(content)
            await own.fails("x")
            own.ahead += PAUSE_SECONDS + 1
        file.write_text(f"{PASSWORD}\n")
        assert await own.client.token("x") is None


async def test_the_own_token_is_there_before_the_first_request(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        stop = asyncio.Event()
        watching = asyncio.create_task(own.service_token.watch(stop))
        await eventually_async(lambda: double.service_tokens)
        await own.client.token("x")
        stop.set()
        await watching
    assert double.log_ins == 1


async def test_a_keystone_that_hangs_does_not_delay_the_end(double: KeystoneDouble) -> None:
    async with asking(double, timeout="20s") as own:
        released, answered = threading.Event(), double.answer

        def hang(request: Request) -> Answer:
            released.wait(60)
            return answered(request)

        double.answer = hang  # type: ignore[method-assign]
        stop = asyncio.Event()
        watching = asyncio.create_task(own.service_token.watch(stop))
        await eventually_async(lambda: double.log_ins)
        stop.set()
        await watching
        assert not released.is_set()
        assert own.service_token._token is None
        released.set()


async def test_an_outage_costs_few_requests_and_ends_by_itself(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        token = double.add_token(double.add_user("alice"))
        await own.client.token(token)
        double.stop()
        with captured_lines(connection_module) as said:
            assert await own.fails(token) == 1
            failures = own.connection._failures
            for _ in range(50):
                await own.fails(token)
            assert own.connection._failures == failures
            for expected in (1, 2, 4, 8, 15, 15):
                own.ahead += 60
                assert await own.fails(token) == expected
        assert [line["event"] for line in said] == ["keystone not reachable"]
        double.start()
        await own.fails(token)
        own.ahead += 60
        assert await own.name(token) == "alice"
        assert own.connection._failures == 0


async def test_requests_that_fail_together_count_as_one_failure(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        double.stop()
        answers = await asyncio.gather(
            *(own.client.token(f"x{number}") for number in range(20)), return_exceptions=True
        )
        assert {type(each) for each in answers} == {CredentialUnverified}
        assert own.connection._failures == 1


async def test_after_an_outage_one_request_at_a_time_tries_again(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        double.stop()
        await own.fails("x")
        double.start()
        own.ahead += 60
        before = double.asked("/v3/auth/tokens")
        answers = await asyncio.gather(
            *(own.client.token(f"x{number}") for number in range(20)), return_exceptions=True
        )
        assert answers.count(None) == double.asked("/v3/auth/tokens") - before == 1
        assert await own.client.token("x") is None


async def test_a_cancelled_trial_does_not_block_the_next_one(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        await own.client.token("x")
        double.stop()
        await own.fails("x")
        double.start()
        own.ahead += 60
        trial = asyncio.create_task(own.client.token("x"))
        await asyncio.sleep(0)
        trial.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trial
        assert await own.client.token("x") is None


async def test_a_keystone_that_hangs_is_left_in_time(double: KeystoneDouble) -> None:
    async with asking(double, timeout="3s") as own:
        await own.client.token("x")
        waiting = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang(_: object) -> Answer:
            future = asyncio.run_coroutine_threadsafe(waiting.wait(), loop)
            return Answer({}, work=lambda: future.result(60))

        double.overrides["/v3/auth/tokens"] = hang
        assert await own.fails("x") == 1
        waiting.set()


async def test_errors_of_keystone_are_no_outage(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        token = double.add_token(double.add_user("alice"))
        double.overrides["/v3/auth/tokens"] = lambda _: problem(503)
        with captured_lines(client_module) as said:
            for _ in range(3):
                await own.fails(token)
        assert [line["event"] for line in said] == ["keystone answer not usable"]
        double.overrides.clear()
        assert await own.name(token) == "alice"


async def test_a_pooled_connection_that_was_closed_is_no_outage(double: KeystoneDouble) -> None:
    async with asking(double) as own:
        token = double.add_token(double.add_user("alice"))
        for _ in range(5):
            assert await own.name(token) == "alice"
            double.stop()
            double.start()


@pytest.mark.parametrize("content", ["missing", "not PEM"])
async def test_a_ca_file_that_cannot_be_read_is_an_outage(
    double: KeystoneDouble, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "ca.pem"
    if content != "missing":
        file.write_text(content)
    async with asking(double, ca_file=str(file)) as own:
        assert await own.fails("x") == 1


async def test_log_lines_name_the_keystone_readably(double: KeystoneDouble) -> None:
    """The log redacts fields whose names suggest a secret, such as `key` in `keystone`."""
    async with asking(double) as own:
        modules = (connection_module, client_module, token_module)
        with contextlib.ExitStack() as stack:
            said = [stack.enter_context(captured_lines(module)) for module in modules]
            double.overrides["/v3/auth/tokens"] = lambda _: problem(500)
            await own.fails("x")
            double.stop()
            await own.fails("x")
        lines = [dict(line) for of_module in said for line in of_module]
        assert {line["event"] for line in lines} == {"keystone answer not usable", "keystone not reachable"}
        assert REDACTED not in str([redact(None, "", line) for line in lines])
