"""What the connection pool logs while a process ends."""

import asyncio
import logging

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import clustercert.store.engine.connections  # noqa: F401 - it filters the pool's log


@pytest.mark.parametrize(("failure", "logged"), [(asyncio.CancelledError(), 0), (OSError("reset"), 1)])
def test_only_a_cancelled_closing_is_not_logged(
    caplog: pytest.LogCaptureFixture, failure: BaseException, logged: int
) -> None:
    logger = create_async_engine("sqlite+aiosqlite:///none.db").sync_engine.pool.logger
    assert isinstance(logger, logging.Logger)
    with caplog.at_level(logging.ERROR, logger=logger.name):
        logger.error("Exception closing connection", exc_info=failure)
    assert len([each for each in caplog.records if each.name == logger.name]) == logged
