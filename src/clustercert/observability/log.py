"""Structured logs without secrets, one line per event.

The format is JSON, or plain text on a terminal. Audit events are not in the log, but in the database.
"""

import functools
import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog

from clustercert.observability import canonical_json
from clustercert.observability.process_log import Style, chosen_style, open_output, timestamp

# A field with one of these words in its name is redacted.
_SECRET_WORDS = ("token", "password", "secret", "key", "pem", "authorization", "cookie")
# Fields whose names contain one of these words, but whose values are not secret.
_HARMLESS = frozenset({"key_type", "key_id", "kek_id", "data_key_id", "access_key_id", "known_keys"})

REDACTED = "[redacted]"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the current request, added to each of its log lines. Empty outside a request."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Id of the current trace, added to each of its log lines. Empty outside a trace."""

_caller: ContextVar[tuple[str, str] | None] = ContextVar("caller", default=None)


def configure(style: Style | None, level: str = "info", file: Path | None = None) -> None:
    """Set up structlog for this process. For the standard library's logging, see `process_log`."""
    stream = open_output(file)
    style = chosen_style(style, stream)
    # Plain tracebacks in both styles: structlog's rich tracebacks print local variables, which may hold keys.
    renderer: list[structlog.typing.Processor]
    if style == "console":
        renderer = [
            _escape_controls,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
            _as_bytes,  # type: ignore[list-item] # follows a renderer, which returns text
        ]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(canonical_json.dumps),
        ]
    structlog.configure(
        processors=[_with_context, redact, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def begin_request(new_id: str) -> None:
    """Add the request id to the lines from now on, and the caller only after `set_caller`."""
    request_id.set(new_id)
    _caller.set(None)


def set_caller(caller_id: str, name: str) -> None:
    """Add the authenticated sender of the current request to its lines from now on.

    Args:
        caller_id: a user's id, or `cluster:` and the id of the cluster whose API server sent the request.
        name: the user's name with the domain; for a cluster, the same as `caller_id`.
    """
    _caller.set((caller_id, name))


def configure_command() -> None:
    """Set up structlog for a command. Logs go to standard error, because standard output has the command's result."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[_with_context, redact, _escape_controls, plain],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _with_context(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the request id, the caller, the trace id, the level and the time."""
    if request := request_id.get():
        event.setdefault("request_id", request)
    if caller := _caller.get():
        event["caller_id"], event["caller"] = caller
    if trace := trace_id.get():
        event["trace_id"] = trace
    event["level"] = method
    event["timestamp"] = timestamp()
    return event


def _escape_controls(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters for a terminal, since clients can send them."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event


def _as_bytes(_logger: object, _method: str, line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact the values of fields whose names suggest a secret."""
    for name in event:
        if _is_secret(name):
            event[name] = REDACTED
    return event


@functools.lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return name not in _HARMLESS and any(word in name.lower() for word in _SECRET_WORDS)
