"""HTTP client for the transit secrets engine of OpenBao and HashiCorp Vault, which have the same API.

The token comes from a file, which is read again when it changes. While the client is open, it renews the token in time.
Source: OpenBao's API documentation, "Transit secrets engine" and "Token auth method".
"""

import asyncio
import contextlib
import json
import stat
import time
from pathlib import Path
from typing import cast

import structlog

from clustercert.background import keep_running, wait_for_stop
from clustercert.http_client import ConnectionFailed, Response, ServerConnection, UnreadableResponse
from clustercert.model import JsonObject
from clustercert.pki.openbao_settings import OpenBaoSettings
from clustercert.secure_file import read_regular_file

MAX_CONNECTIONS = 20
# Time limit for one request, including the time to connect.
REQUEST_SECONDS = 5.0
# The longest pause between two looks at the token's file and at the time of the next renewal.
TOKEN_POLL_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_MAX_TOKEN = 4096
_MAX_REASON = 300

logger = structlog.get_logger()


class OpenBaoRefused(Exception):
    """The server refused a request for a permanent reason, such as a missing key or a wrong ciphertext.

    Attributes:
        status: the HTTP status, such as 400 or 404.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ServerUnavailable(Exception):
    """The server can't be used now: it is unreachable or sealed, or it refuses the token. The message says why."""


class OpenBao:
    """Sends requests to one server, within a time limit and with answers of a limited size."""

    def __init__(
        self,
        settings: OpenBaoSettings,
        seconds: float = REQUEST_SECONDS,
        token_poll_seconds: float = TOKEN_POLL_SECONDS,
    ) -> None:
        self._settings = settings
        self._server = ServerConnection(settings.url, settings.ca_file, MAX_CONNECTIONS, seconds)
        self._token = _TokenFile(settings.token_file)
        self._poll_seconds = token_poll_seconds
        self._stop = asyncio.Event()
        self._renewals: asyncio.Task[None] | None = None
        self._failure = ""

    @property
    def url(self) -> str:
        return self._settings.url

    async def transit(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """Send a request to a path of the transit secrets engine.

        Returns the field `data` of the response, empty if there is none. Raises OpenBaoRefused or ServerUnavailable.
        """
        if self._renewals is None:
            renewals = keep_running("renew the OpenBao token", self._renew_repeatedly, self._stop)
            self._renewals = asyncio.create_task(renewals)
        answer = await self._request(method, f"{self._settings.mount}/{path}", body)
        return _object(answer.get("data") or {})

    async def close(self) -> None:
        """Stop the renewals, and close all connections."""
        if self._renewals is not None:
            self._stop.set()
            # Let a fast renewal end.
            await asyncio.wait({self._renewals}, timeout=_CLOSE_SECONDS)
            self._renewals.cancel()
            await asyncio.wait({self._renewals})
            self._renewals = None
        await self._server.close()

    async def _request(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        try:
            headers = {"X-Vault-Token": self._token.read(), "X-Vault-Request": "true"}
            if self._settings.namespace is not None:
                headers["X-Vault-Namespace"] = self._settings.namespace
            response = await self._send(method, path, headers, body)
            answer = _answer(response)
        except ServerUnavailable as failure:
            # Log each reason only once, because many requests fail in the same way.
            if str(failure) != self._failure:
                logger.warning("openbao not usable", url=self.url, reason=str(failure))
            self._failure = str(failure)
            raise
        if self._failure:
            logger.info("openbao usable again", url=self.url)
        self._failure = ""
        return answer

    async def _send(
        self, method: str, path: str, headers: dict[str, str], body: JsonObject | None
    ) -> Response:
        try:
            return await self._server.send(method, f"/v1/{path}", headers, body)
        except ConnectionFailed as failure:
            raise ServerUnavailable(str(failure)[:_MAX_REASON]) from None
        except UnreadableResponse as error:
            raise ServerUnavailable(f"the server sent {error}") from None

    async def _renew_repeatedly(self, stop: asyncio.Event) -> None:
        """Renew the token when half of its remaining lifetime has passed, and whenever its file has changed."""
        renewed, due_at = "", float("-inf")
        while not stop.is_set():
            # A failure was logged by `_request`, and the next attempt follows after the pause.
            with contextlib.suppress(ServerUnavailable):
                token = self._token.read()
                if token != renewed:
                    renewed, due_at, longest = token, float("-inf"), 0.0
                if time.monotonic() >= due_at:
                    seconds = await self._renew()
                    if seconds < longest / 2:
                        logger.warning(
                            "openbao token reaches its maximum lifetime, and can't be renewed beyond it",
                            url=self.url,
                            seconds_left=seconds,
                            advice="replace the token in its file, and use a periodic token",
                        )
                    longest = max(longest, seconds)
                    due_at = time.monotonic() + seconds / 2
            await wait_for_stop(stop, self._poll_seconds)

    async def _renew(self) -> float:
        """Renew the token. Returns its remaining lifetime in seconds; infinity if it can't be renewed."""
        try:
            answer = await self._request("POST", "auth/token/renew-self", {})
        except OpenBaoRefused:
            with contextlib.suppress(OpenBaoRefused):
                token = _object((await self._request("GET", "auth/token/lookup-self")).get("data") or {})
                if _seconds(token.get("ttl")):
                    logger.warning(
                        "openbao token can't be renewed",
                        url=self.url,
                        seconds_left=token["ttl"],
                        advice="replace the token in its file in time, or use a periodic token",
                    )
            return float("inf")
        return _seconds(_object(answer.get("auth") or {}).get("lease_duration")) or float("inf")


class _TokenFile:
    """A file with a token. Reads the file again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._text = ""

    def read(self) -> str:
        """Return the token. Raises ServerUnavailable if the file can't be used; it may be replaced at any time."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                if status.st_mode & stat.S_IRWXO:
                    raise ServerUnavailable(
                        f"the token file {self._path} is accessible by all users; run `chmod 600 {self._path}`"
                    )
                content = read_regular_file(self._path, _MAX_TOKEN + 1)
                self._text, self._stamp = _first_line(content, self._path), stamp
        except OSError as error:
            raise ServerUnavailable(f"can't read the token file {self._path}: {error.strerror}") from None
        return self._text


def _first_line(content: bytes, path: Path) -> str:
    line = content.split(b"\n", 1)[0].strip().decode("ascii", errors="replace")
    if not line or len(line) > _MAX_TOKEN or not line.isascii() or not line.isprintable() or " " in line:
        raise ServerUnavailable(f"the first line of the token file {path} is not a token")
    return line


def _answer(response: Response) -> JsonObject:
    """Return the JSON object in a response. Raises OpenBaoRefused or ServerUnavailable."""
    if response.status == 204 or (response.status == 200 and not response.content):  # noqa: PLR2004
        return {}
    try:
        answer = _object(json.loads(response.content))
    except (ValueError, RecursionError):
        answer = {}
    if response.status == 200 and answer:  # noqa: PLR2004
        return answer
    errors = answer.get("errors")
    listed = [str(error) for error in errors] if isinstance(errors, list) else []
    reason = " ".join("; ".join(listed).split())[:_MAX_REASON] or "the response has no reason"
    if response.status in (400, 404, 405):
        raise OpenBaoRefused(response.status, reason)
    if response.status == 403:  # noqa: PLR2004
        reason += (
            "; the token is invalid or has expired, its policy lacks this path, or the key does not exist"
        )
    raise ServerUnavailable(f"status {response.status}: {reason}")


def _object(value: object) -> JsonObject:
    """Return a JSON object. Raises ServerUnavailable for any other JSON value."""
    if not isinstance(value, dict):
        raise ServerUnavailable("the server sent JSON of an unexpected form")
    return cast("JsonObject", value)


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else 0.0
