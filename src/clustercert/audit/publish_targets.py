"""The targets for published checkpoints, and their addresses in the settings.

* `file:/path`: appended to a file, for example on write-once storage. * `https://host/path`: sent by POST as plain
text; http is allowed only for loopback. * `syslog:/dev/log` and `syslog://host:port`: sent as RFC 5424 describes, over
a local socket or UDP.

The settings import this module, so it must not import the store.
"""

import asyncio
import errno
import json
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from clustercert.http_client import ConnectionFailed, HttpClient, UnreadableResponse
from clustercert.model import utc_now
from clustercert.model.requests import is_loopback

TIMEOUT_SECONDS = 10
ATTEMPTS = 3
SYSLOG_PORT = 514
# RFC 5424 section 6.2.1: facility 13 (log audit), severity 5 (notice).
PRIORITY = 13 * 8 + 5
_FORMS = "write it like file:/path, https://host/path, syslog:/dev/log or syslog://host:514; http:// only for loopback"


class PublishError(Exception):
    """A checkpoint could not be published. The exception's message is meant only for the service's log."""


class PublishTarget(Protocol):
    """A place where checkpoints are published."""

    @property
    def name(self) -> str:
        """The target's address without secrets, for log messages."""

    async def publish(self, note: str) -> None:
        """Publish a signed checkpoint. Raises PublishError if publishing fails."""


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A file to which each checkpoint is appended."""

    path: Path

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    async def publish(self, note: str) -> None:
        await asyncio.to_thread(self._append, note.encode())

    def _append(self, note: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "ab", buffering=0):
                _append_all(descriptor, note)
                os.fsync(descriptor)
        except OSError as error:
            raise PublishError(f"{error.strerror or error}") from error


def _append_all(descriptor: int, note: bytes) -> None:
    """Append the whole note. Raises OSError.

    If only a part of the note is written, removes the part if possible, because a partial note makes later notes
    unreadable.
    """
    before = os.fstat(descriptor).st_size
    written = os.write(descriptor, note)
    if written == len(note):
        return
    if os.fstat(descriptor).st_size == before + written:
        os.ftruncate(descriptor, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """A server that accepts a POST with the checkpoint as its body.

    Attributes:
        url: the URL from the settings, which may contain a password.
        timeout_seconds: the time-out of each attempt.
    """

    url: str = field(repr=False)
    retry_seconds: float = 1
    timeout_seconds: float = TIMEOUT_SECONDS

    @property
    def name(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def publish(self, note: str) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        cause = ""
        # Load the CAs in a thread, because loading takes 20 ms.
        tls = await asyncio.to_thread(ssl.create_default_context)
        async with HttpClient(tls, 1) as client:
            for attempt in range(ATTEMPTS):
                await asyncio.sleep(self.retry_seconds * attempt)
                try:
                    response = await client.send(
                        "POST", self.url, self.timeout_seconds, headers=headers, body=note.encode()
                    )
                except UnreadableResponse as error:
                    cause = f"the server sent {error}"
                except TimeoutError:
                    cause = f"no complete response within {self.timeout_seconds:g} seconds"
                except ConnectionFailed as error:
                    cause = str(error)
                else:
                    if 200 <= response.status < 300:  # noqa: PLR2004 - RFC 9110: success
                        return
                    cause = f"the server responded with status {response.status}"
        raise PublishError(cause)


@dataclass(frozen=True, slots=True)
class SyslogTarget:
    """A syslog server, at a socket path or at a host and UDP port.

    UDP does not confirm delivery. The message is the checkpoint as a JSON string on one line.
    """

    address: str | tuple[str, int]
    now: Callable[[], datetime] = utc_now

    @property
    def name(self) -> str:
        if isinstance(self.address, str):
            return f"syslog:{self.address}"
        return f"syslog://{self.address[0]}:{self.address[1]}"

    async def publish(self, note: str) -> None:
        try:
            await asyncio.to_thread(self._send, self._message(note))
        except OSError as error:
            raise PublishError(f"{error.strerror or error}") from error

    def _message(self, note: str) -> bytes:
        # RFC 5424 section 6: priority and version, time, host, program, process, message id, no structured data.
        time = self.now().astimezone(UTC)
        head = f"<{PRIORITY}>1 {time:%Y-%m-%dT%H:%M:%S.%fZ} {socket.gethostname()[:255] or '-'} clustercert"
        return f"{head} {os.getpid()} checkpoint - {json.dumps(note)}".encode()

    def _send(self, message: bytes) -> None:
        if isinstance(self.address, str):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(TIMEOUT_SECONDS)
                sender.sendto(message, self.address)
            return
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(*self.address, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind, protocol) as sender:
            sender.settimeout(TIMEOUT_SECONDS)
            sender.sendto(message, address)


def parse_target(text: object) -> PublishTarget:
    """Parse a target's address from the settings. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError(_FORMS)  # noqa: TRY004 - pydantic reports a ValueError as an invalid setting
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_FORMS) from None
    match parts.scheme:
        case "file" if _is_local_path(parts):
            return FileTarget(Path(parts.path))
        case "syslog" if _is_local_path(parts):
            return SyslogTarget(parts.path)
        case "syslog" if parts.hostname and not parts.path:
            return SyslogTarget((parts.hostname, port or SYSLOG_PORT))
        case "https" if parts.hostname:
            return UrlTarget(text)
        case "http" if is_loopback(parts.hostname or ""):
            return UrlTarget(text)
    raise ValueError(_FORMS)


def _is_local_path(parts: SplitResult) -> bool:
    return not parts.netloc and len(parts.path) > 1 and parts.path.startswith("/")
