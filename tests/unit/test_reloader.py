"""When the policy is read again, and what happens if it can't be used."""

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from clustercert.model import IssueRequest
from clustercert.model.errors import Conflict
from clustercert.policy.rule_settings import PolicySettings
from clustercert.server import file_watch, reloading
from clustercert.server.file_watch import FileWatch, Stamp
from clustercert.server.reloading import FAULT_SECONDS, Reloader, Retry, with_reloadable
from clustercert.settings import Settings
from support.samples import NOW, caller, cluster

SETTINGS = Settings.model_validate({"policy": {"role_groups": True, "max_lifetime": "24h"}})
POLLS = 10


class WrittenFile:
    """A file that differs at each of the first looks, as while it is being written."""

    looks = 0

    def stamps(self, _: Iterable[Path]) -> dict[Path, Stamp]:
        self.looks += 1
        return {Path("policy.toml"): (min(self.looks, POLLS),)}


async def test_an_attempt_that_is_due_waits_until_the_file_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rule that denies can be at the end of the file."""
    written, stop = WrittenFile(), asyncio.Event()
    monkeypatch.setattr(file_watch, "_stamps", written.stamps)
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.001)
    looks_before: list[int] = []

    def load() -> Settings:
        looks_before.append(written.looks)
        stop.set()
        return SETTINGS

    async def apply(_: Settings) -> None:
        raise AssertionError("the policy is the same")

    retry = Retry()
    retry.plan(0)
    reloader = Reloader(load, None, FileWatch(None), _retry=retry)
    async with asyncio.timeout(60):
        await reloader.watch(SETTINGS, apply, stop)
    assert len(looks_before) == 1
    assert looks_before[0] > POLLS


async def test_a_policy_that_an_exemption_forbids_is_not_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.001)
    stop, clock = asyncio.Event(), [0.0]

    async def apply(_: Settings) -> None:
        stop.set()
        raise Conflict("The cluster exempts it.")

    retry = Retry(lambda: clock[0])
    retry.plan(0)
    other = Settings.model_validate({"policy": {"role_groups": True, "max_lifetime": "8h"}})
    await Reloader(lambda: other, None, FileWatch(None), _retry=retry).watch(SETTINGS, apply, stop)
    clock[0] = FAULT_SECONDS - 1
    assert not retry.is_due()
    clock[0] = FAULT_SECONDS
    assert retry.is_due()


async def test_the_policy_is_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand rules and examples take a second."""
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.001)
    stop, loop, threads = asyncio.Event(), threading.get_ident(), list[int]()
    other = Settings.model_validate({"policy": {"role_groups": True, "max_lifetime": "8h"}})

    def load() -> Settings:
        threads.append(threading.get_ident())
        return other

    def check(current: Settings, loaded: Settings) -> Settings:
        threads.append(threading.get_ident())
        return with_reloadable(current, loaded)

    async def apply(_: Settings) -> None:
        assert threading.get_ident() == loop
        stop.set()

    monkeypatch.setattr(reloading, "with_reloadable", check)
    reloader = Reloader(load, None, FileWatch(None))
    reloader.requested.set()
    await reloader.watch(SETTINGS, apply, stop)
    assert len(threads) == 2
    assert loop not in threads


async def test_an_expression_that_was_compiled_in_another_thread_decides() -> None:
    """The library is written in Rust, and its objects could belong to one thread."""
    rule = {"name": "a", "when": {"cel": "request.reason == ''"}, "grant": {"groups": ["a"]}}
    settings = PolicySettings.model_validate({"rules": [rule]})
    policy = await asyncio.to_thread(settings.policy)
    asked = IssueRequest(duration=-1)
    here = policy.decide(caller("admin"), cluster(), asked, NOW)
    there = await asyncio.to_thread(policy.decide, caller("admin"), cluster(), asked, NOW)
    assert here.groups == there.groups == ("a",)
