"""The connection to Keystone, and the token with which this service authenticates to Keystone."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from clustercert.authn.keystone.answers import TokenAnswer, UnusableAnswer, parsed
from clustercert.authn.keystone.settings import Keystone, ServiceCredential, UnreadableSecret
from clustercert.background import wait_for_stop
from clustercert.http_client import ConnectionFailed, Response, ServerConnection, UnreadableResponse
from clustercert.model import JsonObject
from clustercert.model.errors import CredentialUnverified
from clustercert.observability import metrics

# Keystone ignores the value of the parameter `nocatalog`, but Huawei Cloud's IAM requires a value.
NO_CATALOG: Mapping[str, str] = {"nocatalog": "true"}
MAX_CONNECTIONS = 20
# Back-off: after a network failure, nothing is sent during a pause. Each further failure doubles the pause.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
_MAX_REASON = 200

logger = structlog.get_logger()


class KeystoneConnection:
    """Sends requests to one Keystone.

    After a network failure, all requests are refused during a pause. After the pause, one request at a time is sent as
    a probe.
    """

    def __init__(self, keystone: Keystone, clock: Callable[[], float] = time.monotonic) -> None:
        self._keystone = keystone
        self._seconds = keystone.timeout.total_seconds()
        self._clock = clock
        # Waiting for a free connection does not count towards a request's time-out, because Keystone has not failed if
        # all connections are in use.
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._server = ServerConnection(keystone.url, keystone.ca_file, MAX_CONNECTIONS, self._seconds)
        self._failures = 0
        self._failed_at = self._retry_at = float("-inf")
        self._is_probing = False

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
    ) -> Response:
        """Send a request to a path below Keystone's URL.

        Raises CredentialUnverified if Keystone can't be reached or no connection becomes free in time, or
        UnusableAnswer for a response that can't be read, such as a response that is too long.
        """
        self._require_open()
        async with self._slot():
            self._require_open()  # another request may have failed meanwhile
            is_probe = self._failures > 0
            self._is_probing = self._is_probing or is_probe
            began = self._clock()
            try:
                response = await self._server.send(method, path, headers, body, params)
            except ConnectionFailed as failure:
                self._note_failure(began, str(failure)[:_MAX_REASON])
                raise self._away() from failure
            except UnreadableResponse as error:
                raise UnusableAnswer(f"Keystone sent {error}") from None
            finally:
                if is_probe:
                    self._is_probing = False
            self._note_answer()
            return response

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a free connection. Raises CredentialUnverified if no connection becomes free before the time-out."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise CredentialUnverified(
                "The identity service responds slowly. Try again in a moment.", retry_after=1
            ) from None
        try:
            yield
        finally:
            self._slots.release()

    def _require_open(self) -> None:
        if self._failures and (self._is_probing or self._clock() < self._retry_at):
            raise self._away()

    def _away(self) -> CredentialUnverified:
        return CredentialUnverified(
            "The identity service can't be reached. Try again in a moment.",
            retry_after=max(1, math.ceil(self._retry_at - self._clock())),
        )

    def _note_failure(self, began: float, reason: str) -> None:
        metrics.KEYSTONE_REQUESTS.labels("failed").inc()
        # Concurrent requests usually fail together, so count them as one failure.
        if began < self._failed_at:
            return
        if self._failures == 0:
            logger.warning("keystone not reachable", authority=self._keystone.name, reason=reason)
        pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
        self._failures = min(self._failures + 1, 10)
        self._failed_at = self._clock()
        self._retry_at = self._failed_at + pause

    def _note_answer(self) -> None:
        if self._failures:
            logger.info("keystone reachable again", authority=self._keystone.name)
        self._failures = 0


# The service's token is renewed after this fraction of its lifetime. If the renewal fails, the old token stays in use
# until it expires.
RENEW_AFTER = 0.8
# Pause after a refused login. Keystone may lock a user after several refused logins.
PAUSE_SECONDS = 10
# Pause after a login that failed with an internal error of Keystone. Keystone does not count such a login as a refused
# login.
ERROR_PAUSE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class _Token:
    """A token. `renew_at` and `ends_at` are monotonic times, computed from the start of the login request."""

    text: str = field(repr=False)
    renew_at: float
    ends_at: float


class ServiceToken:
    """Logs in to Keystone, and logs in again before the token expires."""

    def __init__(
        self,
        connection: KeystoneConnection,
        credential: ServiceCredential,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._credential = credential
        self._name = name
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: _Token | None = None
        self._refused_until = float("-inf")
        self._failure = ""

    async def current(self) -> str:
        """Return a valid token. Logs in first if necessary. Raises CredentialUnverified if no token is valid."""
        if (fresh := self._before(lambda token: token.renew_at)) is not None:
            return fresh
        async with self._lock:
            # Another request may have renewed the token meanwhile.
            if (fresh := self._before(lambda token: token.renew_at)) is not None:
                return fresh
            try:
                self._token = await self._log_in()
            except CredentialUnverified:
                if (old := self._before(lambda token: token.ends_at)) is not None:
                    return old
                raise
            return self._token.text

    def drop(self, text: str) -> None:
        """Forget a token that Keystone refused. Does nothing if the token was replaced already."""
        if self._token is not None and self._token.text == text:
            self._token = None

    async def watch(self, stop: asyncio.Event) -> None:
        """Log in now, and renew the token in time until `stop` is set, so that no request waits for a login."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            renewal = asyncio.ensure_future(self._renewed())
            await asyncio.wait({renewal, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not renewal.done():
                # Don't let a slow Keystone delay the shutdown.
                renewal.cancel()
                await asyncio.wait({renewal})
                return
            await wait_for_stop(stop, renewal.result())
        stopping.cancel()

    async def _renewed(self) -> float:
        """Get or renew the token. Returns the seconds until the next call."""
        try:
            await self.current()
        except CredentialUnverified as error:
            return error.retry_after or PAUSE_SECONDS
        until_renewal = self._token.renew_at - self._clock() if self._token is not None else 0
        return max(PAUSE_SECONDS, until_renewal)

    def _before(self, end: Callable[[_Token], float]) -> str | None:
        token = self._token
        return token.text if token is not None and self._clock() < end(token) else None

    async def _log_in(self) -> _Token:
        if self._clock() < self._refused_until:
            raise self._unusable(self._failure)
        began = self._clock()
        try:
            body = await asyncio.to_thread(self._credential.request)
            response = await self._connection.send(
                "POST", "/auth/tokens", headers={}, params=NO_CATALOG, body=body
            )
            token = _token(response, began)
        except (UnreadableSecret, UnusableAnswer) as error:
            metrics.KEYSTONE_REQUESTS.labels("unusable").inc()
            pause = ERROR_PAUSE_SECONDS if isinstance(error, _InternalError) else PAUSE_SECONDS
            self._refused_until = self._clock() + pause
            raise self._unusable(str(error)) from error
        self._failure = ""
        return token

    def _unusable(self, reason: str) -> CredentialUnverified:
        if reason != self._failure:
            logger.error("keystone login failed", authority=self._name, reason=reason)
        self._failure = reason
        return CredentialUnverified(
            "The service can't log in to its identity service. Contact the operator.",
            retry_after=max(1, math.ceil(self._refused_until - self._clock())),
        )


class _InternalError(UnusableAnswer):
    """Keystone answered a login with a status of 500 or higher."""


def _token(response: Response, began: float) -> _Token:
    """Read the token in the response to a login. Raises UnusableAnswer."""
    if response.status >= 500:  # noqa: PLR2004
        raise _InternalError(f"the response has status {response.status}")
    if response.status != 201:  # noqa: PLR2004 - Identity API, "Authentication and token management"
        hint = ": check the service's credential" if response.status in (401, 403) else ""
        raise UnusableAnswer(f"the response has status {response.status}{hint}")
    text = response.headers.get("x-subject-token", "")
    body = parsed(TokenAnswer, response.content).token
    # Use only the difference of Keystone's two times, because Keystone's clock may differ from the local clock.
    lifetime = (body.expires_at - body.issued_at).total_seconds()
    if not text or lifetime <= 0:
        raise UnusableAnswer("the response has no token, or an expired token")
    return _Token(text, began + RENEW_AFTER * lifetime, began + lifetime)
