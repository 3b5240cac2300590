"""The log of a process, by the standard library alone: for the supervisor of workers, and for records of libraries.

`log` writes the lines of requests and jobs, in the same form and to the same place.
"""

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clustercert.observability import canonical_json

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Style = Literal["json", "console"]

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
# The attribute of a record with the fields of its line.
_FIELDS = "fields"

logger = logging.getLogger("clustercert.process")


def configure(style: Style | None, level: str = "info", file: Path | None = None) -> None:
    """Set up the standard library's logging for this process, also for Python warnings and unhandled errors.

    Libraries log only warnings and errors.
    """
    stream = open_output(file)
    logging.basicConfig(
        handlers=[_LineHandler(stream, chosen_style(style, stream))], level=logging.WARNING, force=True
    )
    logger.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_error
    sys.unraisablehook = _log_ignored_error


def write(level: int, event: str, **fields: object) -> None:
    """Write a line of the process itself, with its process id."""
    logger.log(level, event, extra={_FIELDS: {"pid": os.getpid(), **fields}})


def open_output(file: Path | None) -> io.BufferedWriter:
    """Open the file for appending, or standard output."""
    output = os.open(file, _APPEND, 0o600) if file else sys.stdout.fileno()
    return io.BufferedWriter(_Output(output, "wb", closefd=file is not None))


def chosen_style(style: Style | None, stream: io.BufferedWriter) -> Style:
    """Return the style, which by default depends on whether the stream is a terminal."""
    if style is None:
        return "console" if stream.isatty() else "json"
    return style


def timestamp() -> str:
    """Return the time of now, in UTC, with microseconds."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat('T', 'microseconds')}Z"


class _Output(io.FileIO):
    """Drops lines that can't be written: a full disk or a closed pipe must not fail a request."""

    def write(self, data: "ReadableBuffer", /) -> int:
        written = None
        with contextlib.suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


class _LineHandler(logging.Handler):
    """Writes each record as one line, like the lines of `log`."""

    def __init__(self, stream: io.BufferedWriter, style: Style) -> None:
        super().__init__()
        self._stream = stream
        self._render = _as_json if style == "json" else _as_text

    def emit(self, record: logging.LogRecord) -> None:
        event: dict[str, Any] = {"event": record.getMessage(), **getattr(record, _FIELDS, {})}
        if record.name != logger.name:
            event["logger"] = record.name
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        event["level"] = record.levelname.lower()
        event["timestamp"] = timestamp()
        self._stream.write(self._render(event) + b"\n")
        self._stream.flush()


def _as_json(event: dict[str, Any]) -> bytes:
    return canonical_json.dumps(event, default=str)


def _as_text(event: dict[str, Any]) -> bytes:
    error = event.pop("exception", "")
    head = f"{event.pop('timestamp')} [{event.pop('level')}] {_printable(event.pop('event'))}"
    parts = [head, *(f"{name}={_printable(value)}" for name, value in event.items())]
    return "\n".join([" ".join(parts), *map(_printable, error.splitlines())]).encode(
        "utf-8", "backslashreplace"
    )


def _printable(value: object) -> str:
    """Return the value as text, with control characters escaped, which could steer a terminal."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.error("unexpected error in a thread", exc_info=error)


def _log_ignored_error(args: "sys.UnraisableHookArgs") -> None:
    if args.exc_value is not None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.error("unexpected error was ignored", exc_info=error)
