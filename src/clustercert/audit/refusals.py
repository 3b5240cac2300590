"""Records denied requests and failed authentications as audit events. Repeated failures are counted in one event."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, cast

import structlog

from clustercert.background import until_stopped
from clustercert.model import Actor, AuditEvent, Caller, IssueRequest, Origin
from clustercert.model.errors import (
    ClustercertError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
    TooManyRequests,
    Unavailable,
)
from clustercert.model.events.issuance import (
    ACCESS_REQUEST,
    CertificateRefused,
    EventAccessRequest,
    EventRequest,
    event_caller,
    event_cluster,
    event_request,
    event_trace,
)
from clustercert.model.events.operation import (
    AuditBatchRefused,
    AuthenticationsFailed,
    FailureSource,
    RefusalCount,
    RefusalsRepeated,
    RequestRefused,
)
from clustercert.pki.keys import key_type_of
from clustercert.policy.templates import is_plain_text
from clustercert.store.clusters.registry import ClusterLookup
from clustercert.store.engine.database import Database

FLUSH_SECONDS = 60


async def flush_until_stopped(
    flush: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event
) -> None:
    """Call `flush` periodically until `stop` is set, and then once more. Ignores Unavailable from `flush`."""
    async for _ in until_stopped(stop, seconds):
        with contextlib.suppress(Unavailable):
            await flush()


logger = structlog.get_logger()

# At most this many refusals of one caller are recorded individually between two flushes.
SINGLE_EVENTS = 10
# At most this many pairs of caller and project are counted separately.
MAX_COUNTED = 1000
OTHER = "other"

Refusal = CertificateRefused | RequestRefused | AuditBatchRefused
_Counts = dict[tuple[str, str], RefusalCount]


class RepeatedRefusals:
    """Counts repeated refusals by caller and project. Each worker has one instance.

    The first few refusals of each caller are not counted, because they are recorded individually.
    """

    def __init__(
        self,
        single_events: int = SINGLE_EVENTS,
        max_counted: int = MAX_COUNTED,
        seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._single_events = single_events
        self._max_counted = max_counted
        self._seconds = seconds
        self._singles: Counter[str] = Counter()
        self._counts: dict[tuple[str, str | None], _Counts] = {}

    def is_repeated(self, event: Refusal) -> bool:
        """Return whether a refusal is repeated. Counts a repeated refusal, which the next flush then records.

        A refusal that is not repeated needs its own event.
        """
        caller = event.actor.id
        if self._singles[caller] < self._single_events:
            self._singles[caller] += 1
            return False
        self._add(
            (caller, event.project_id),
            {
                "kind": event.kind,
                "error": event.reason if isinstance(event, AuditBatchRefused) else event.error,
                "count": 1,
                "first": event.at,
                "last": event.at,
                "last_subject": event.subject,
                "last_source": event.actor.origin.address,
            },
        )
        return True

    def _add(self, key: tuple[str, str | None], refusals: RefusalCount) -> None:
        if key not in self._counts and len(self._counts) >= self._max_counted:
            key = OTHER, None
        counts = self._counts.setdefault(key, {})
        kind = refusals["kind"], refusals["error"]
        counts[kind] = _sum(counts[kind], refusals) if kind in counts else refusals

    async def flush(self, database: Database) -> None:
        """Record the refusals since the last flush.

        If this raises Unavailable, the counts are kept for the next flush.
        """
        self._singles.clear()
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        try:
            await database.record(*(_event(*key, tuple(each.values())) for key, each in counts.items()))
        except Unavailable:
            for key, each in counts.items():
                for refusals in each.values():
                    self._add(key, refusals)
            raise

    async def flush_periodically(self, database: Database, stop: asyncio.Event) -> None:
        """Flush periodically until `stop` is set, and then once more."""
        await flush_until_stopped(functools.partial(self.flush, database), self._seconds, stop)
        if self._counts:
            logger.error("repeated refusals could not be recorded", callers=len(self._counts))


def _event(caller: str, project_id: str | None, refusals: tuple[RefusalCount, ...]) -> RefusalsRepeated:
    last = max(refusals, key=lambda each: each["last"])
    return RefusalsRepeated(
        at=last["last"],
        project_id=project_id,
        actor=Actor(caller, Origin(last["last_source"], Origin.local().request_id)),
        subject=caller,
        count=sum(each["count"] for each in refusals),
        refusals=refusals,
    )


def _sum(one: RefusalCount, other: RefusalCount) -> RefusalCount:
    later = other if other["last"] >= one["last"] else one
    return {
        **later,
        "count": one["count"] + other["count"],
        "first": min(one["first"], other["first"]),
    }


# Longer ids and paths are truncated: a caller can send ids of any length.
MAX_ID = 64
MAX_PATH = 256


class EventRecorder(Protocol):
    """Records events. Implemented by the store's ledger."""

    async def record_event(self, event: AuditEvent) -> None:
        """Store the event durably. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class DenialAudit:
    """Records denied requests before the response is sent. Raises Unavailable if a denial can't be recorded.

    In each minute, only the first few denials of a caller are recorded at once. `repeats` counts the other denials, and
    records the counts later.
    """

    ledger: EventRecorder
    clusters: ClusterLookup
    now: Callable[[], datetime]
    repeats: RepeatedRefusals = field(default_factory=RepeatedRefusals)

    async def certificate(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest | None,
        failure: ClustercertError,
    ) -> None:
        """Record that a certificate was denied or that signing failed. Ignores other failures. Raises Unavailable.

        `request` is None if the request body was invalid.
        """
        signer_failed = isinstance(failure, SignerError | RemoteFailed)
        refused = isinstance(failure, InvalidRequest | Forbidden | NotFound | TooManyRequests)
        if not (signer_failed or refused or failure.trace):
            return
        cluster = None
        if request is not None and not isinstance(failure, NotFound):
            cluster = await self.clusters.cluster(project_id, cluster_id)
        event = CertificateRefused(
            at=self.now(),
            kind="certificate.failed" if signer_failed else "certificate.refused",
            project_id=_event_project(caller, project_id),
            actor=caller.actor,
            subject=_bounded(cluster_id, MAX_ID),
            caller=event_caller(caller, project_id),
            requested_project_id=_bounded(project_id, MAX_ID),
            request=_event_request(request) if request is not None else None,
            cluster=event_cluster(cluster) if cluster is not None else None,
            error=type(failure).__name__,
            message=failure.message,
            trace=event_trace(failure.trace),
            access_request=cast("EventAccessRequest | None", failure.trace.get(ACCESS_REQUEST)),
        )
        await self._record(event)

    async def request(
        self, caller: Caller, method: str, path: str, project_id: str, failure: ClustercertError
    ) -> None:
        """Record that a request was forbidden or exceeded a limit. For certificate requests, see `certificate`.

        Does not record NotFound, because otherwise each mistyped URL would create an event. Raises Unavailable.
        """
        if not isinstance(failure, Forbidden | TooManyRequests):
            return
        event = RequestRefused(
            at=self.now(),
            project_id=_event_project(caller, project_id),
            actor=caller.actor,
            subject=_bounded(path, MAX_PATH),
            method=method,
            error=type(failure).__name__,
            message=failure.message,
            auth_method=caller.method,
        )
        await self._record(event)

    async def _record(self, event: Refusal) -> None:
        if not self.repeats.is_repeated(event):
            await self.ledger.record_event(event)


def _event_request(request: IssueRequest) -> EventRequest:
    return event_request(request, key_type_of(request.public_key) if request.public_key is not None else None)


def _event_project(caller: Caller, unverified_id: str) -> str | None:
    """Return the project id, or None for a caller without a role, who must not add events to the project."""
    return unverified_id if caller.roles_in(unverified_id) else None


def _bounded(unverified: str, size: int) -> str:
    """Truncate a string to `size` characters and an ellipsis. Escape the string if it contains control characters."""
    # Truncate first: is_plain_text caches its arguments, so they must be short.
    start = unverified[: size + 1]
    plain = start if is_plain_text(start) else ascii(start)
    return plain if len(plain) <= size else f"{plain[:size]}…"


# At most this many addresses are counted separately in one event.
MAX_SOURCES = 64
MAX_KNOWN = 16


class FailedAuthentications:
    """Counts failed authentications by source address. Each worker has one instance.

    Ids of existing users and access keys are recorded, but only keyed hashes of unknown names, because a client may
    have sent a secret in the field for the name.
    """

    def __init__(
        self, now: Callable[[], datetime], max_sources: int = MAX_SOURCES, seconds: float = FLUSH_SECONDS
    ) -> None:
        self._now = now
        self._max_sources = max_sources
        self._seconds = seconds
        self._counts: dict[str, FailureSource] = {}

    def count(self, source: str, known: str = "", unknown: str = "") -> None:
        """Count a rejected request.

        Args:
            known: id of the existing user or access key that the request named, if any.
            unknown: keyed hash of the name in the request, if there is no such account.
        """
        now = self._now()
        self._add(
            {
                "source": source,
                "count": 1,
                "first": now,
                "last": now,
                "known": (known,) if known else (),
                "unknown": (unknown,) if unknown else (),
            }
        )

    def _add(self, failures: FailureSource) -> None:
        source = failures["source"]
        if source not in self._counts and len(self._counts) >= self._max_sources:
            source = OTHER
        earlier = self._counts.get(source)
        self._counts[source] = (
            _total(earlier, failures) if earlier is not None else {**failures, "source": source}
        )

    async def flush(self, database: Database) -> None:
        """Record the failures since the last flush.

        If this raises Unavailable, the counts are kept for the next flush.
        """
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        try:
            await database.record(self._event(counts))
        except Unavailable:
            for failures in counts.values():
                self._add(failures)
            raise

    def _event(self, counts: dict[str, FailureSource]) -> AuthenticationsFailed:
        by_count = sorted(counts.values(), key=lambda failures: (-failures["count"], failures["source"]))
        return AuthenticationsFailed(
            at=self._now(),
            actor=Actor("unknown", Origin.local()),
            subject="clustercert",
            count=sum(failures["count"] for failures in by_count),
            sources=tuple(
                {
                    **failures,
                    "known": tuple(sorted(failures["known"])),
                    "unknown": tuple(sorted(failures["unknown"])),
                }
                for failures in by_count
            ),
        )

    async def flush_periodically(self, database: Database, stop: asyncio.Event) -> None:
        """Flush periodically until `stop` is set, and then once more."""
        await flush_until_stopped(functools.partial(self.flush, database), self._seconds, stop)
        if self._counts:
            logger.error("failed authentications could not be recorded", sources=len(self._counts))


def _total(earlier: FailureSource, later: FailureSource) -> FailureSource:
    known = dict.fromkeys((*earlier["known"], *later["known"]))
    unknown = dict.fromkeys((*earlier["unknown"], *later["unknown"]))
    return {
        "source": earlier["source"],
        "count": earlier["count"] + later["count"],
        "first": min(earlier["first"], later["first"]),
        "last": max(earlier["last"], later["last"]),
        "known": tuple(known)[:MAX_KNOWN],
        "unknown": tuple(unknown)[:MAX_KNOWN],
    }
