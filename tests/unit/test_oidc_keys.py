"""When the keys of an issuer are fetched, and what that can't break."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from clustercert.authn.oidc import keys as module
from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.connection import FetchFailed
from clustercert.authn.oidc.keys import IssuerKeys, VerificationKey, parse_key_set
from clustercert.model.errors import Unavailable
from clustercert.observability.log import redact
from support.log_capture import captured_lines
from support.oidc import key_set, new_key
from support.wait import eventually_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OLD, NEW = new_key("old"), new_key("new")


class Issuer:
    """Keys with a clock and a server that the test controls."""

    def __init__(self) -> None:
        self.published = [OLD]
        self.fetches = 0
        self.time = 1000.0
        self.broken = False
        self.work: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
        self.keys = IssuerKeys("sso", self._fetch, lambda: self.time)

    async def _fetch(self) -> tuple[VerificationKey, ...]:
        self.fetches += 1
        await self.work()
        if self.broken:
            raise FetchFailed("it is away")
        return parse_key_set(key_set(*self.published))

    async def find(self, key_id: str) -> str:
        return (await self.keys.find(key_id, "ES256")).id


async def test_a_known_key_needs_no_request() -> None:
    issuer = Issuer()
    for _ in range(100):
        assert await issuer.find("old") == "old"
    assert issuer.fetches == 1


async def test_the_log_says_how_many_keys_are_known_while_the_issuer_is_away() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.broken, issuer.time = True, issuer.time + 30
    with captured_lines(module) as said, pytest.raises(Unavailable):
        await issuer.find("new")
    [line] = said
    written = redact(None, "warning", line)
    assert (written["issuer"], written["reason"], written["known_keys"]) == ("sso", "it is away", 1)


async def test_a_new_key_is_fetched_at_once() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 30
    issuer.published = [NEW]
    assert await issuer.find("new") == "new"
    assert (issuer.fetches, issuer.keys.version) == (2, 2)


async def test_a_new_key_right_after_the_first_fetch_is_fetched_at_once() -> None:
    issuer = Issuer()
    assert await issuer.find("old") == "old"
    issuer.published = [OLD, NEW]
    assert await issuer.find("new") == "new"


async def test_a_key_that_was_removed_is_rejected() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 30
    issuer.published = [NEW]
    await issuer.find("new")
    with pytest.raises(TokenRefused):
        await issuer.find("old")


async def test_a_new_key_behind_a_made_up_one_is_told_when_to_come_back() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 60
    with pytest.raises(TokenRefused):
        await issuer.find("made-up")
    issuer.published = [OLD, NEW]
    issuer.time += 10
    with pytest.raises(Unavailable) as caught:
        await issuer.find("new")
    assert caught.value.retry_after == 20
    issuer.time += 20
    assert await issuer.find("new") == "new"


async def test_a_key_set_without_keys_withdraws_all() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 30
    issuer.published = []
    with pytest.raises(TokenRefused):
        await issuer.find("made-up")
    with pytest.raises(TokenRefused):
        await issuer.find("old")
    assert (issuer.keys.failure, issuer.keys.version) == ("", 2)


async def test_keys_that_are_too_old_do_not_count_for_cached_tokens() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += module.MAX_AGE_SECONDS + 1
    assert issuer.keys.version == 2


async def test_unknown_key_ids_cost_one_request_in_thirty_seconds() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 30
    with pytest.raises(TokenRefused):
        await issuer.find("made-up-first")
    for number in range(200):
        with pytest.raises(Unavailable):
            await issuer.find(f"made-up-{number}")
    assert issuer.fetches == 2
    issuer.time += 29
    with pytest.raises(Unavailable):
        await issuer.find("made-up")
    assert issuer.fetches == 2
    issuer.time += 1
    with pytest.raises(TokenRefused):
        await issuer.find("made-up")
    assert issuer.fetches == 3


async def test_many_requests_for_an_unknown_key_share_one_fetch() -> None:
    issuer = Issuer()
    go = asyncio.Event()
    issuer.work = go.wait
    waiting = [asyncio.create_task(issuer.find("old")) for _ in range(50)]
    await eventually_async(lambda: issuer.fetches)
    go.set()
    assert set(await asyncio.gather(*waiting)) == {"old"}
    assert issuer.fetches == 1


async def test_a_key_that_appeared_during_a_fetch_is_found_by_the_next_one() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.time += 30
    go, stop = asyncio.Event(), asyncio.Event()
    issuer.work = go.wait
    watching = asyncio.create_task(issuer.keys.watch(stop))
    await eventually_async(lambda: issuer.fetches == 2)
    waiting = asyncio.create_task(issuer.find("new"))
    await asyncio.sleep(0)

    async def publish() -> None:
        issuer.published = [OLD, NEW] if issuer.fetches > 2 else [OLD]

    issuer.work = publish
    go.set()
    assert await waiting == "new"
    stop.set()
    await watching


async def test_an_issuer_away_for_an_hour_stops_only_unseen_keys() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.broken = True
    for _ in range(120):
        issuer.time += 30
        assert await issuer.find("old") == "old"
        with pytest.raises(Unavailable) as caught:
            await issuer.find("new")
        assert (caught.value.retry_after, str(caught.value.__cause__)) == (30, "sso: it is away")
    issuer.broken, issuer.published = False, [OLD, NEW]
    issuer.time += 30
    assert await issuer.find("new") == "new"


async def test_a_failed_fetch_is_remembered_for_thirty_seconds() -> None:
    issuer = Issuer()
    issuer.broken = True
    for _ in range(10):
        with pytest.raises(Unavailable):
            await issuer.find("old")
    assert issuer.fetches == 1
    issuer.broken = False
    issuer.time += 30
    assert await issuer.find("old") == "old"


async def test_keys_are_dropped_after_a_day_without_the_issuer() -> None:
    issuer = Issuer()
    await issuer.find("old")
    issuer.broken = True
    issuer.time += module.MAX_AGE_SECONDS + 1
    with pytest.raises(Unavailable):
        await issuer.find("old")


async def test_an_issuer_that_hangs_holds_few_requests() -> None:
    issuer = Issuer()
    go = asyncio.Event()
    issuer.work = go.wait
    waiting = [asyncio.create_task(issuer.find("old")) for _ in range(module.MAX_WAITING)]
    await eventually_async(lambda: issuer.fetches)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await issuer.find("old")
    go.set()
    await asyncio.gather(*waiting)


async def test_a_request_that_gives_up_does_not_stop_the_fetch_of_others() -> None:
    issuer = Issuer()
    go = asyncio.Event()
    issuer.work = go.wait
    impatient, patient = (asyncio.create_task(issuer.find("old")) for _ in range(2))
    await eventually_async(lambda: issuer.fetches)
    impatient.cancel()
    await asyncio.wait({impatient})
    go.set()
    assert (impatient.cancelled(), await patient) == (True, "old")
    assert issuer.fetches == 1


async def test_an_unexpected_error_is_a_failure_like_others() -> None:
    issuer = Issuer()

    async def fail() -> None:
        raise RuntimeError("bug")

    issuer.work = fail
    with pytest.raises(Unavailable):
        await issuer.find("old")
    assert issuer.keys.failure == "unexpected error"


async def test_keys_are_refreshed_in_the_background_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    issuer = Issuer()
    stop = asyncio.Event()
    watching = asyncio.create_task(issuer.keys.watch(stop))
    await eventually_async(lambda: issuer.fetches > 2)
    issuer.broken = True
    await eventually_async(lambda: issuer.keys.failure)
    issuer.broken = False
    await eventually_async(lambda: not issuer.keys.failure)
    issuer.work = asyncio.Event().wait
    before = issuer.fetches
    await eventually_async(lambda: issuer.fetches > before)
    stop.set()
    await watching
