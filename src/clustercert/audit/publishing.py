"""Checkpoints are handed on to where the database's masters can't reach, so that somebody keeps them."""

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from clustercert import metrics
from clustercert.audit.addresses import Address
from clustercert.audit.log import AuditLog
from clustercert.store.audit import StoredCheckpoint

if TYPE_CHECKING:
    # Loaded where a log is published by POST: most are not.
    import httpx

logger = structlog.get_logger()

SECONDS = 10
ATTEMPTS = 3
# RFC 5424, 6.2.1: facility 13 (log audit), severity 5 (notice).
PRIORITY = 13 * 8 + 5


class PublishError(Exception):
    """A checkpoint did not get to where it should. The message says why, for the log."""


class Target(Protocol):
    """Where checkpoints go."""

    @property
    def name(self) -> str:
        """For the log."""

    async def publish(self, note: str) -> None:
        """Hand on a checkpoint. Raises PublishError."""


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A file that grows by each checkpoint; none of them is replaced."""

    name: str
    path: Path

    async def publish(self, note: str) -> None:
        await asyncio.to_thread(self._append, note.encode())

    def _append(self, note: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "ab", buffering=0):
                _append_whole(descriptor, note)
                os.fsync(descriptor)
        except OSError as error:
            raise PublishError(f"{error.strerror or error}") from error


def _append_whole(descriptor: int, note: bytes) -> None:
    """Append all of it or, as far as the file lets itself be cut, nothing: behind a part no other note is read.

    Raises OSError.
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
    """A server that takes a POST with the checkpoint as its body."""

    name: str
    url: str
    transport: "httpx.AsyncBaseTransport | None" = None
    pause: float = 1

    async def publish(self, note: str) -> None:
        import httpx  # noqa: PLC0415

        async with httpx.AsyncClient(timeout=SECONDS, transport=self.transport) as client:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await self._post(client, note)
                except PublishError:
                    if attempt == ATTEMPTS:
                        raise
                    await asyncio.sleep(self.pause * attempt)
                else:
                    return

    async def _post(self, client: "httpx.AsyncClient", note: str) -> None:
        import httpx  # noqa: PLC0415

        headers = {"Content-Type": "text/plain; charset=utf-8"}
        try:
            answer = await client.post(self.url, content=note.encode(), headers=headers)
        except httpx.HTTPError as error:
            raise PublishError(f"{type(error).__name__}: {error}") from error
        if not answer.is_success:
            raise PublishError(f"the server answered {answer.status_code}")


@dataclass(frozen=True, slots=True)
class SyslogTarget:
    """A syslog server: the path of its socket, or its host and UDP port.

    UDP tells nobody whether anything arrived. The message is the checkpoint as a JSON string, in one line.
    """

    name: str
    address: str | tuple[str, int]
    now: Callable[[], datetime]

    async def publish(self, note: str) -> None:
        try:
            await asyncio.to_thread(self._send, self._message(note))
        except OSError as error:
            raise PublishError(f"{error.strerror or error}") from error

    def _message(self, note: str) -> bytes:
        # RFC 5424, 6: priority and version, time, host, program, process, message id, no structured data.
        time = self.now().astimezone(UTC)
        head = f"<{PRIORITY}>1 {time:%Y-%m-%dT%H:%M:%S.%fZ} {socket.gethostname()[:255] or '-'} clustercert"
        return f"{head} {os.getpid()} checkpoint - {json.dumps(note)}".encode()

    def _send(self, message: bytes) -> None:
        if isinstance(self.address, str):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SECONDS)
                sender.sendto(message, self.address)
            return
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(*self.address, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind, protocol) as sender:
            sender.settimeout(SECONDS)
            sender.sendto(message, address)


def target(address: Address, now: Callable[[], datetime]) -> Target:
    """What hands checkpoints on to an address."""
    match address.kind:
        case "file":
            return FileTarget(str(address), Path(address.path))
        case "url":
            return UrlTarget(str(address), address.url)
        case "socket":
            return SyslogTarget(str(address), address.path, now)
        case "udp":
            return SyslogTarget(str(address), (address.host, address.port), now)


@dataclass(slots=True)
class _Due:
    """A target, and the size of the log that it was told of last."""

    target: Target
    size: int = 0


class Publisher:
    """Hands the newest checkpoint on to every target that doesn't have it yet."""

    def __init__(self, log: AuditLog, targets: tuple[Target, ...]) -> None:
        self._log = log
        self._targets = [_Due(one) for one in targets]

    async def publish(self) -> int:
        """To how many it was handed on now. What fails is logged, counted, and tried again the next time.

        Raises Unavailable where there is no checkpoint to be had.
        """
        if not self._targets:
            return 0
        head = await self._log.checkpoint()
        behind = [one for one in self._targets if one.size < head.size]
        return sum(await asyncio.gather(*(self._hand_on(one, head) for one in behind)))

    async def _hand_on(self, due: "_Due", head: StoredCheckpoint) -> bool:
        try:
            await due.target.publish(head.note)
        except PublishError as failure:
            metrics.CHECKPOINTS.labels("failed").inc()
            logger.warning(
                "a checkpoint could not be published",
                target=due.target.name,
                size=head.size,
                cause=str(failure),
            )
            return False
        metrics.CHECKPOINTS.labels("published").inc()
        due.size = head.size
        return True
