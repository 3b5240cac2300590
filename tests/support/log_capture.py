"""Log capture that does not depend on earlier logging setup in this process."""

import contextlib
import threading
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

import structlog
from structlog.testing import LogCapture, capture_logs
from structlog.typing import EventDict


@contextlib.contextmanager
def captured_logs(module: ModuleType) -> Iterator[list[MutableMapping[str, Any]]]:
    """The log lines of the module's `logger` during the block, and of others.

    Services of other tests in this process may log meanwhile: select the lines that the test is about.
    """
    # A logger that spoke in an application which this process ran before is bound to that one's settings.
    vars(module.logger).pop("bind", None)
    with capture_logs() as said:
        yield said


@contextlib.contextmanager
def captured_lines(module: ModuleType) -> Iterator[list[MutableMapping[str, Any]]]:
    """The lines that the module's `logger` writes in this thread during the block, and no others."""
    logger, lines = _capturing()
    with patch.object(module, "logger", logger):
        yield lines


@contextlib.contextmanager
def captured_lines_of_new_loggers() -> Iterator[list[MutableMapping[str, Any]]]:
    """The same for all loggers that are created in this thread during the block."""
    logger, lines = _capturing()
    with patch.object(structlog, "get_logger", return_value=logger):
        yield lines


def _capturing() -> tuple[Any, list[MutableMapping[str, Any]]]:
    """Return a logger, and the list of the lines that it writes in this thread."""
    capture, thread = LogCapture(), threading.get_ident()

    def of_this_thread(_logger: object, _name: str, line: EventDict) -> EventDict:
        if threading.get_ident() != thread:
            raise structlog.DropEvent
        return line

    return structlog.wrap_logger(None, processors=[of_this_thread, capture]), capture.entries
