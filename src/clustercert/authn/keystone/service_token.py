"""The service's own token at Keystone, with which it asks about other tokens and about users."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from clustercert.authn.keystone.answers import TokenAnswer, UnusableAnswer, parsed
from clustercert.authn.keystone.authority import ServiceCredential, UnreadableSecret
from clustercert.authn.keystone.connection import NO_CATALOG, Connection
from clustercert.background import wait_for_stop
from clustercert.http_client import Response
from clustercert.model.errors import CredentialUnverified
from clustercert.observability import metrics

# The token is renewed after this share of its lifetime. If the renewal fails, the old token stays in use until it
# expires.
RENEW_AFTER = 0.8
# Pause after a refused login. Keystone may lock a user after several refused logins.
PAUSE_SECONDS = 10

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Token:
    """A token. The times are of the local clock, counted from the request for it."""

    text: str = field(repr=False)
    renew_at: float
    ends_at: float


class ServiceToken:
    """Logs in at Keystone, and again before the token expires."""

    def __init__(
        self,
        connection: Connection,
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
        """Return a valid token. Raises CredentialUnverified if there is none."""
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
        """Forget a token that Keystone refused, unless it was replaced already."""
        if self._token is not None and self._token.text == text:
            self._token = None

    async def watch(self, stop: asyncio.Event) -> None:
        """Log in now, and renew the token before it expires, until `stop` is set. So no request waits for that."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            renewal = asyncio.ensure_future(self._renewed())
            await asyncio.wait({renewal, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not renewal.done():
                # A Keystone that hangs does not delay the end of the service.
                renewal.cancel()
                await asyncio.wait({renewal})
                return
            await wait_for_stop(stop, renewal.result())
        stopping.cancel()

    async def _renewed(self) -> float:
        """Make sure that there is a token. Returns the seconds until the next attempt."""
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
            self._refused_until = self._clock() + PAUSE_SECONDS
            raise self._unusable(str(error)) from error
        self._failure = ""
        return token

    def _unusable(self, reason: str) -> CredentialUnverified:
        if reason != self._failure:
            logger.error("keystone login failed", authority=self._name, reason=reason)
        self._failure = reason
        return CredentialUnverified(
            "The service can't ask its identity service. Contact its operator.", retry_after=PAUSE_SECONDS
        )


def _token(response: Response, began: float) -> _Token:
    """Read a token from the response to a login. Raises UnusableAnswer."""
    if response.status != 201:  # noqa: PLR2004 - Identity API, "Authentication and token management"
        hint = ": check the service's credential" if response.status in (401, 403) else ""
        raise UnusableAnswer(f"the response has status {response.status}{hint}")
    text = response.headers.get("x-subject-token", "")
    body = parsed(TokenAnswer, response.content).token
    # Only the difference of Keystone's two times is used, because the clocks may differ.
    lifetime = (body.expires_at - body.issued_at).total_seconds()
    if not text or lifetime <= 0:
        raise UnusableAnswer("the response has no token, or one that has expired")
    return _Token(text, began + RENEW_AFTER * lifetime, began + lifetime)
