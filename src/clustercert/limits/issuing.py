"""Limits how often users get certificates, tokens and temporary access keys, and how often they change passwords."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog
from cachetools import LRUCache, TTLCache

from clustercert.background import wait_for_stop
from clustercert.limits.rates import TEMPORARY_KEYS, TOKENS, Kind, Rate, TokenBuckets
from clustercert.model import (
    Caller,
    CallerAuthentication,
    Issued,
    IssueRequest,
    Origin,
    Preview,
    RecordedIssue,
    User,
)
from clustercert.model.errors import ClustercertError, TooManyRequests
from clustercert.observability import metrics
from clustercert.policy.lifetime import waiting_time

CredentialKind = Literal["tokens", "temporary_keys", "passwords", "sessions"]

# A password change takes as much CPU time as three logins.
PASSWORDS = Rate(10, 600)
# Logins of users of OIDC issuers and of Keystone in the console.
SESSIONS = Rate(60, 600)

_PROBLEMS: dict[CredentialKind, str] = {
    "tokens": "You created too many tokens. Use one token for several requests, or try",
    "temporary_keys": "You created too many temporary access keys. Use one key for several requests, or try",
    "passwords": "You changed your password too often. Try",
    "sessions": "You logged in too often. Try",
}


class UserRates:
    """Limits how often each user creates tokens, temporary access keys and sessions, and changes the password."""

    def __init__(
        self,
        tokens: Rate = TOKENS,
        temporary_keys: Rate = TEMPORARY_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buckets: dict[CredentialKind, TokenBuckets] = {
            "tokens": TokenBuckets(tokens, clock=clock),
            "temporary_keys": TokenBuckets(temporary_keys, clock=clock),
            "passwords": TokenBuckets(PASSWORDS, clock=clock),
            "sessions": TokenBuckets(SESSIONS, clock=clock),
        }

    def count(self, kind: CredentialKind, user: User) -> None:
        """Count a credential that an authenticated user creates or changes. Raises TooManyRequests."""
        buckets = self._buckets[kind]
        if seconds := buckets.seconds_until_token(user.id):
            metrics.LIMITED.labels(kind).inc()
            raise TooManyRequests(
                f"{_PROBLEMS[kind]} again in {waiting_time(seconds)}.",
                retry_after=seconds,
                user=user,
            )
        buckets.add(user.id, -1)


logger = structlog.get_logger()

_WHOSE: Mapping[Kind, str] = {
    "caller": "you",
    "project": "this project",
    "source": "your address",
}

# The time between two reads of the certificates that other processes have issued.
READ_SECONDS = 1.0
# A process remembers at most this many certificates that it has issued, but not yet read from the audit log.
MAX_OWN = 100_000
# How long the number of a user's live certificates is cached. Certificates that this process issues meanwhile are added
# to the cached number.
COUNT_SECONDS = 1.0
MAX_COUNTS = 10_000
QUOTA_RETRY_SECONDS = 60


class CertificateIssuer(Protocol):
    """Issues certificates. Implemented by `issuance`."""

    async def issue(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest,
        authentication: CallerAuthentication | None = None,
    ) -> Issued:
        """Issue a certificate, and return it once it is recorded durably."""

    async def preview(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Preview:
        """Return what `issue` would issue."""


class IssuedFeed(Protocol):
    """Lists certificates that any process has issued. Implemented by `store.issued_feed`."""

    async def read(self) -> Sequence[RecordedIssue]:
        """Return the next batch of the certificates issued since the first call. Raises Unavailable."""


class IssuingRates:
    """Limits how often certificates are issued, with a token bucket for each caller, project and source address."""

    def __init__(
        self, rates: Mapping[Kind, Rate], feed: IssuedFeed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._buckets = {kind: TokenBuckets(rate, clock=clock) for kind, rate in rates.items()}
        self._feed = feed
        self._own: LRUCache[str, None] = LRUCache(MAX_OWN)

    @contextlib.contextmanager
    def token(self, caller: Caller, project_id: str) -> Iterator[None]:
        """Take a token from each bucket. Put the tokens back if the `with` block fails. Raises TooManyRequests."""
        keys = _keys(caller.user.id, project_id, caller.origin)
        waits = {kind: buckets.seconds_until_token(keys[kind]) for kind, buckets in self._buckets.items()}
        kind: Kind
        for kind, seconds in waits.items():
            if seconds:
                wait = max(waits.values())
                message = f"Too many certificates were issued for {_WHOSE[kind]}. Try again in {waiting_time(wait)}."
                raise _refused(kind, message, wait)
        self._add(keys, -1)
        self._own[caller.origin.request_id] = None
        try:
            yield
        except BaseException:
            # If the certificate was recorded despite the error, `read_others` counts it.
            self._own.pop(caller.origin.request_id, None)
            self._add(keys, 1)
            raise

    async def read_others(self) -> None:
        """Count the certificates that other processes have issued. Raises Unavailable."""
        for issued in await self._feed.read():
            if issued.request_id in self._own:
                del self._own[issued.request_id]
            else:
                origin = Origin(issued.source, issued.request_id)
                self._add(_keys(issued.user_id, issued.project_id, origin), -1)

    async def watch(self, stop: asyncio.Event) -> None:
        """Count other processes' certificates periodically until `stop` is set. Runs in each worker process."""
        failing = False
        while not stop.is_set():
            try:
                await self.read_others()
                failing = False
            except Exception as error:
                metrics.RATE_READ_FAILURES.inc()
                if not failing and isinstance(error, ClustercertError):
                    logger.warning("rates not shared: audit log can't be read", error=error.message)
                elif not failing:
                    logger.exception("rates not shared: audit log can't be read")
                failing = True
            await wait_for_stop(stop, READ_SECONDS)

    def _add(self, keys: Mapping[Kind, str], tokens: int) -> None:
        for kind, buckets in self._buckets.items():
            buckets.add(keys[kind], tokens)


class LiveQuota:
    """A quota of live certificates for each user and cluster.

    `count_live`: returns the number of live certificates for a user id and a cluster id.
    """

    def __init__(
        self,
        quota: int,
        count_live: Callable[[str, str], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quota = quota
        self._count_live = count_live
        self._counts: TTLCache[tuple[str, str], list[int]] = TTLCache(MAX_COUNTS, COUNT_SECONDS, clock)

    async def check(self, user_id: str, cluster_id: str) -> None:
        """Count a new certificate within the quota. Raises TooManyRequests if the quota is used up, or Unavailable."""
        key = user_id, cluster_id
        count = self._counts.get(key)
        if count is None:
            live = await self._count_live(user_id, cluster_id)
            # Another request may have counted meanwhile, and its certificate must stay counted.
            count = self._counts.setdefault(key, [live])
        if count[0] >= self._quota:
            message = (
                f"You have {count[0]} live certificates for this cluster, and {self._quota} are allowed."
                " Revoke some certificates, or wait until some expire."
            )
            raise _refused("quota", message, QUOTA_RETRY_SECONDS)
        count[0] += 1


@dataclass(frozen=True, slots=True)
class LimitedIssuance:
    """Issues certificates within the limits. The limits don't apply to previews."""

    issuance: CertificateIssuer
    rates: IssuingRates | None = None
    quota: LiveQuota | None = None

    @property
    def is_limited(self) -> bool:
        return self.rates is not None or self.quota is not None

    async def issue(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest,
        authentication: CallerAuthentication | None = None,
    ) -> Issued:
        """See `Issuance.issue`. Also raises TooManyRequests."""
        # A caller without a role must not take tokens from the project's bucket: `issue` raises NotFound.
        if not caller.roles_in(project_id):
            return await self.issuance.issue(caller, project_id, cluster_id, request, authentication)
        with self.rates.token(caller, project_id) if self.rates else contextlib.nullcontext():
            if self.quota is not None:
                # Requests that the policy refuses must not count toward the quota.
                await self.issuance.preview(caller, project_id, cluster_id, request)
                await self.quota.check(caller.user.id, cluster_id)
            return await self.issuance.issue(caller, project_id, cluster_id, request, authentication)

    async def preview(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Preview:
        return await self.issuance.preview(caller, project_id, cluster_id, request)


def _keys(user_id: str, project_id: str, origin: Origin) -> Mapping[Kind, str]:
    return {"caller": user_id, "project": project_id, "source": origin.network}


def _refused(limit: str, message: str, seconds: int) -> TooManyRequests:
    metrics.LIMITED.labels(limit).inc()
    metrics.ISSUANCES.labels(TooManyRequests.__name__).inc()
    return TooManyRequests(message, retry_after=seconds)
