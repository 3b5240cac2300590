"""The keys of one issuer, kept in memory, and when they are fetched again."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from clustercert.authn.oidc.fetching import FetchFailed, FetchKeys
from clustercert.authn.oidc.jwks import VerificationKey
from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.background import wait_for_stop
from clustercert.model.errors import CredentialUnverified
from clustercert.observability import metrics

REFRESH_SECONDS = 300
# After a failure, and after an unknown key id, nothing is sent to the issuer for this time.
PAUSE_SECONDS = 30
# When the service stops, a fetch is cancelled after this time.
STOP_SECONDS = 1
# Known keys are used for this long while the issuer can't be reached.
MAX_AGE_SECONDS = 24 * 3600
# The maximum number of requests that wait for one issuer. More would use up the worker's limit of requests.
MAX_WAITING = 64

logger = structlog.get_logger()


class IssuerKeys:
    """Finds an issuer's keys. While the issuer can't be reached, only tokens with unknown keys are rejected.

    Attributes:
        version: changes with each change of the keys, so a token that was verified with removed keys is not cached.
        failure: why the last attempt to fetch failed; empty if it succeeded.
    """

    def __init__(self, name: str, fetch: FetchKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._fetch = fetch
        self._clock = clock
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at = self._failed_at = self._sought_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._withdrawn: set[str] = set()
        self._version = 0
        self.failure = ""

    @property
    def version(self) -> int:
        self._drop_expired()
        return self._version

    async def find(self, key_id: str | None, algorithm: str) -> VerificationKey:
        """See `KeyLookup`. Fetches the keys again if the key is unknown, at most every 30 seconds."""
        if (key := self._known(key_id, algorithm)) is not None:
            return key
        if self._fetching is not None:
            # The response of this fetch may be older than the key, so another fetch may follow.
            await self._wait()
            if (key := self._known(key_id, algorithm)) is not None:
                return key
        was_sought = self._may_seek()
        if was_sought:
            if self._fetched_at > float("-inf"):
                # The first fetch does not count as a search for a new key: keys may be rotated right after the start.
                self._sought_at = self._clock()
            await self._wait()
            if (key := self._known(key_id, algorithm)) is not None:
                return key
        if self.failure:
            raise CredentialUnverified(
                "An identity provider can't be reached. Try again in a moment.", retry_after=PAUSE_SECONDS
            ) from FetchFailed(f"{self._name}: {self.failure}")
        if not was_sought and not self._is_settled(key_id):
            # The issuer may have published the key since the last fetch.
            seconds = max(1, math.ceil(self._sought_at + PAUSE_SECONDS - self._clock()))
            raise CredentialUnverified(
                f"The key of this token is not known yet. Try again in {seconds} seconds.",
                retry_after=seconds,
            )
        listed = ", ".join(each.id for each in self._keys[:10])
        raise TokenRefused("kid", key_id, f"one of the issuer's keys for {algorithm}: {listed}")

    async def watch(self, stop: asyncio.Event) -> None:
        """Fetch the keys now and every five minutes until `stop` is set, after a failure every 30 seconds."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            await asyncio.wait({self._task(), stopping}, return_when=asyncio.FIRST_COMPLETED)
            await wait_for_stop(stop, PAUSE_SECONDS if self.failure else REFRESH_SECONDS)
        if (fetching := self._fetching) is not None:
            # httpcore leaves a connection open if it is cancelled during the TLS handshake.
            await asyncio.wait({fetching}, timeout=STOP_SECONDS)
            fetching.cancel()
            await asyncio.wait({fetching})

    def _known(self, key_id: str | None, algorithm: str) -> VerificationKey | None:
        self._drop_expired()
        usable = [key for key in self._keys if algorithm in key.algorithms]
        if key_id is None:
            # Without a key id, the key must be unambiguous.
            return usable[0] if len(usable) == 1 else None
        return next((key for key in usable if key.id == key_id), None)

    def _drop_expired(self) -> None:
        if self._keys and self._clock() - self._fetched_at > MAX_AGE_SECONDS:
            self._replace(())

    def _is_settled(self, key_id: str | None) -> bool:
        """Whether another fetch would not find the key, because it was withdrawn or is for another algorithm."""
        return key_id is None or key_id in self._withdrawn or any(key.id == key_id for key in self._keys)

    def _may_seek(self) -> bool:
        return self._clock() - max(self._failed_at, self._sought_at) >= PAUSE_SECONDS

    async def _wait(self) -> None:
        """Wait for the current fetch, or start one. A cancelled request does not cancel the fetch of others."""
        if self._waiting >= MAX_WAITING:
            raise CredentialUnverified(
                "An identity provider responds slowly. Try again in a moment.", retry_after=PAUSE_SECONDS
            )
        self._waiting += 1
        try:
            await self._fetched()
        finally:
            self._waiting -= 1

    async def _fetched(self) -> None:
        fetching = self._task()
        try:
            await asyncio.shield(fetching)
        except asyncio.CancelledError:
            if not fetching.cancelled():
                raise
            # A reload has removed the issuer.
            raise CredentialUnverified(
                "The identity providers of this service have changed. Try again in a moment.", retry_after=1
            ) from None

    def _task(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh())
            self._fetching.add_done_callback(self._finished)
        return self._fetching

    def _finished(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh(self) -> None:
        try:
            keys = await self._fetch()
        except FetchFailed as error:
            self._note_failure(str(error))
        except Exception:
            logger.exception("issuer keys not fetched", issuer=self._name)
            self._note_failure("unexpected error")
        else:
            metrics.ISSUER_FETCHES.labels(self._name, "done").inc()
            if self.failure:
                logger.info("issuer keys fetched again", issuer=self._name)
            self.failure, self._fetched_at = "", self._clock()
            if not keys:
                logger.warning("issuer has no usable keys", issuer=self._name)
            self._replace(keys)

    def _note_failure(self, reason: str) -> None:
        metrics.ISSUER_FETCHES.labels(self._name, "failed").inc()
        if reason != self.failure:
            logger.warning(
                "issuer keys not fetched", issuer=self._name, reason=reason, known_keys=len(self._keys)
            )
        self.failure, self._failed_at = reason, self._clock()

    def _replace(self, keys: tuple[VerificationKey, ...]) -> None:
        if [_identity(key) for key in keys] != [_identity(key) for key in self._keys]:
            self._version += 1
            self._withdrawn = {key.id for key in self._keys} - {key.id for key in keys}
        self._keys = keys


def _identity(key: VerificationKey) -> tuple[str, frozenset[str], str]:
    return key.id, key.algorithms, key.key.thumbprint()
