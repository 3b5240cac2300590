import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import pytest

from clustercert.model import KeyType
from clustercert.model.errors import Unavailable
from clustercert.pki import key_generator
from clustercert.pki.key_generator import RsaKeyGenerator, new_key_generator
from clustercert.pki.keys import KeyGenerator, key_type_of
from support.leaf_checks import spki
from support.wait import suspend

ELLIPTIC: tuple[KeyType, ...] = ("ec-p256", "ec-p384", "ed25519")


@asynccontextmanager
async def generator(key_type: KeyType) -> AsyncIterator[KeyGenerator]:
    keys = new_key_generator(key_type)
    try:
        yield keys
    finally:
        await keys.close()


def child_of(keys: KeyGenerator) -> "asyncio.subprocess.Process":
    assert isinstance(keys, RsaKeyGenerator)
    assert keys._child is not None
    return keys._child


@pytest.mark.parametrize("key_type", get_args(KeyType))
async def test_keys_are_of_the_type_and_new_each_time(key_type: KeyType) -> None:
    async with generator(key_type) as keys:
        made = [(await keys.new_key()).public_key() for _ in range(2)]
    assert [key_type_of(key) for key in made] == [key_type, key_type]
    assert spki(made[0]) != spki(made[1])


@pytest.mark.parametrize("key_type", ELLIPTIC)
async def test_elliptic_keys_need_no_other_process(key_type: KeyType) -> None:
    async with generator(key_type) as keys:
        await keys.new_key()
        assert type(keys) is KeyGenerator


async def test_rsa_keys_come_from_one_child_process_that_ends_with_the_generator() -> None:
    async with generator("rsa-2048") as keys:
        await keys.new_key()
        first = child_of(keys)
        await keys.new_key()
        assert child_of(keys) is first
        assert first.pid != os.getpid()
        assert first.returncode is None
    assert first.returncode == 0


@pytest.mark.slow
async def test_the_event_loop_runs_while_rsa_keys_are_generated() -> None:
    async with generator("rsa-4096") as keys:
        await keys.new_key()
        turns, making = 0, asyncio.ensure_future(keys.new_key())
        while not making.done():
            await asyncio.sleep(0)
            turns += 1
        assert key_type_of((await making).public_key()) == "rsa-4096"
    # Made in this process, the key would leave room for a turn before it and one after.
    assert turns > 50


async def test_the_child_process_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cryptography.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    async with generator("rsa-2048") as keys:
        assert key_type_of((await keys.new_key()).public_key()) == "rsa-2048"


async def test_concurrent_callers_each_get_their_own_key() -> None:
    async with generator("rsa-2048") as keys:
        made = await asyncio.gather(*(keys.new_key() for _ in range(6)))
    assert len({spki(key.public_key()) for key in made}) == 6


async def test_requests_beyond_the_queue_limit_fail_at_once() -> None:
    async with generator("rsa-2048") as keys:
        waiting = [asyncio.ensure_future(keys.new_key()) for _ in range(key_generator.MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await keys.new_key()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert key_type_of((await keys.new_key()).public_key()) == "rsa-2048"


async def test_a_cancelled_request_leaves_no_key_for_the_next_one() -> None:
    """The answer to the question that was given up must not be taken for the answer to the next."""
    async with generator("rsa-2048") as keys:
        await keys.new_key()
        asked, given_up = child_of(keys), asyncio.ensure_future(keys.new_key())
        await asyncio.sleep(0)  # the question is on its way
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asked.wait()
        made = [await keys.new_key() for _ in range(3)]
    assert len({spki(key.public_key()) for key in made}) == 3


async def test_a_killed_child_process_fails_one_request_and_is_replaced() -> None:
    async with generator("rsa-2048") as keys:
        await keys.new_key()
        killed = child_of(keys)
        os.kill(killed.pid, signal.SIGKILL)
        await killed.wait()
        try:
            await keys.new_key()
        except Unavailable:
            await keys.new_key()
        assert child_of(keys).pid != killed.pid


@pytest.mark.slow
async def test_a_child_process_killed_while_it_works_is_unavailable() -> None:
    async with generator("rsa-4096") as keys:
        await keys.new_key()
        asked = child_of(keys)
        # It must not have answered before it is killed.
        suspend(asked.pid)
        making = asyncio.ensure_future(keys.new_key())
        await asyncio.sleep(0)  # the question is on its way
        os.kill(asked.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await making
        await asked.wait()


async def test_closing_twice_or_without_a_process_does_nothing() -> None:
    keys = new_key_generator("rsa-2048")
    await keys.close()
    await keys.new_key()
    await keys.close()
    await keys.close()
