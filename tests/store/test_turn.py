"""Whose turn it is to write: a turn that nobody wants any more is somebody else's."""

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clustercert.store.turn import Turn


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Another process has the turn."""
    descriptor = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


async def take(turn: Turn) -> None:
    async with turn.taken():
        pass


async def test_a_turn_that_comes_as_its_waiter_gives_up_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    turn = Turn(str(path))
    with kept(path):
        waiter = asyncio.create_task(take(turn))
        await asyncio.sleep(0.1)
    # The thread has the turn before this loop hears of it, and by then nobody wants it.
    time.sleep(0.1)  # noqa: ASYNC251 - the loop has to be kept from running
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await asyncio.wait_for(take(turn), 2)


async def test_a_turn_that_comes_after_its_waiter_gave_up_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    turn = Turn(str(path))
    with kept(path):
        waiter = asyncio.create_task(take(turn))
        await asyncio.sleep(0.1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    await asyncio.wait_for(take(turn), 2)


async def test_a_failure_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    turn = Turn(str(path))
    # The second file can't be opened, as where a process has too many open.
    (tmp_path / "store.db-turn").mkdir()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            await take(turn)
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)), turn.held():
            pass
    assert len(list(Path("/dev/fd").iterdir())) == before
