"""Structured logs on standard output, one line an event, no secrets.

JSON, unless a terminal reads. The audit events are the store's; a log is for whoever runs the service.
"""

import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog

from clustercert import ascii_json

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Whatever a field of such a name holds, it isn't for a log.
_SECRET_WORDS = ("token", "password", "secret", "key", "pem", "authorization", "cookie")
# Names that have such a word in them and tell no secret.
_HARMLESS = frozenset({"key_type", "key_id", "kek_id", "data_key_id", "access_key_id"})

REDACTED = "[redacted]"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered; each of its lines says it. Empty outside of one."""

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def configure(
    style: Literal["json", "console"] | None, level: str = "info", file: Path | None = None
) -> None:
    """Set up structlog and the standard library's logging of our dependencies for this process."""
    output = os.open(file, _APPEND, 0o600) if file else sys.stdout.fileno()
    stream = io.BufferedWriter(_Output(output, "wb", closefd=file is not None))
    if style is None:
        style = "console" if stream.isatty() else "json"
    # Plain tracebacks in both: the prettier ones print local variables, and ours hold keys.
    renderer: list[structlog.typing.Processor]
    if style == "console":
        renderer = [
            _without_controls,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
            _as_bytes,  # type: ignore[list-item] # comes behind a renderer, which makes text
        ]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ascii_json.dumps)]
    structlog.configure(
        processors=[_completed, redact, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries speak through logging; only what somebody must look at is let through.
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def configure_command() -> None:
    """Set up structlog for a command: on standard error, since standard output has the command's answer."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[_completed, redact, _without_controls, plain],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


class _Output(io.FileIO):
    """Drops what can't be written: a full disk or a closed pipe fails no request."""

    def write(self, data: "ReadableBuffer", /) -> int:
        written = None
        with contextlib.suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


def _completed(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A line with what each has: the request, the level and the time."""
    if request := request_id.get():
        event.setdefault("request_id", request)
    event["level"] = method
    event["timestamp"] = f"{datetime.now(UTC).replace(tzinfo=None).isoformat('T', 'microseconds')}Z"
    return event


def _without_controls(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Texts, of which others may choose some, such as a path, without what a terminal would obey."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event


def _as_bytes(_logger: object, _method: str, line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank the value of every field whose name says that it is secret."""
    for name in event:
        if _is_secret(name):
            event[name] = REDACTED
    return event


@functools.lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return name not in _HARMLESS and any(word in name.lower() for word in _SECRET_WORDS)
