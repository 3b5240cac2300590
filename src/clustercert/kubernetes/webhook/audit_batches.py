"""Use case: record which credentials were used, from the audit events that a kube-apiserver sends.

Batches may have any size. A kube-apiserver drops a batch after a few failed attempts, so the readable events of an
invalid batch are recorded too.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from clustercert.kubernetes.webhook.audit_events import (
    Allowed,
    AllowedRequests,
    Approval,
    AuditedRequest,
    EventListParser,
)
from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.json_tokens import IncompleteJson
from clustercert.kubernetes.webhook.pending_reports import ObservedUse, Reporter
from clustercert.kubernetes.webhook.recognition import Recognition
from clustercert.model import Actor, Origin
from clustercert.model.errors import InvalidRequest, RequestTimeout, Unavailable
from clustercert.model.events.operation import AuditBatchRefused
from clustercert.observability import metrics
from clustercert.store.clusters.registry import ClusterWebhookConfig
from clustercert.store.engine.database import Database

if TYPE_CHECKING:
    from clustercert.kubernetes.webhook.review import RequestSender

logger = structlog.get_logger()

# Bytes parsed at a time: about a thousand events, which take ten milliseconds.
CHUNK_BYTES = 256 * 1024


# Maximum number of approvals with one credential that are recorded from one part of a batch.
MAX_APPROVALS = 32


@dataclass(slots=True)
class _Span:
    """The requests of one identity in a part of a batch."""

    first: datetime
    last: datetime
    allowed: AllowedRequests | None = None
    approvals: dict[Approval, None] = field(default_factory=dict)

    def add(self, request: AuditedRequest, at: datetime, late: timedelta) -> None:
        """Add a request.

        Args:
            at: the time of the request, but not later than the current time.
            late: by how much the API server's clock was ahead of this machine's clock.
        """
        self.first, self.last = min(self.first, at), max(self.last, at)
        if request.allowed is not None:
            allowed = Allowed(request.allowed.decided_at - late, at)
            one = AllowedRequests(1, allowed, allowed)
            self.allowed = one if self.allowed is None else self.allowed.joined(one)
        if request.approval is not None and len(self.approvals) < MAX_APPROVALS:
            self.approvals[request.approval] = None


@dataclass(slots=True)
class _Batch:
    """A batch that is still being received."""

    webhook_config: ClusterWebhookConfig
    token_hash: bytes
    origin: Origin
    parser: EventListParser = field(default_factory=EventListParser)
    bytes_read: int = 0

    def parse(self, chunk: bytes, *, last: bool) -> InvalidRequest | None:
        """Parse a chunk of the batch.

        Returns an error instead of raising it, so that the events before the error can be recorded first.
        """
        self.bytes_read += len(chunk)
        try:
            self.parser.feed(chunk)
            if last:
                self.parser.close()
        except InvalidRequest as refusal:
            return refusal
        return None


@dataclass(frozen=True, slots=True)
class AuditBatches:
    """Reads batches of audit events. Create one instance per event loop.

    Attributes:
        is_repeated: returns whether an event only repeats a recent event. If so, counts the event in a later event;
            otherwise, the caller must record the event.
    """

    recognition: Recognition
    credential_usage: CredentialUsage
    database: Database
    now: Callable[[], datetime]
    is_repeated: Callable[[AuditBatchRefused], bool]
    # Only one thread parses at a time, because parsing competes with the event loop.
    _parsing: asyncio.Semaphore = field(default_factory=asyncio.Semaphore)

    async def receive(
        self,
        webhook_config: ClusterWebhookConfig,
        token_hash: bytes,
        chunks: AsyncIterator[bytes],
        origin: Origin,
    ) -> None:
        """Record the events of a batch while it arrives. Records an audit event if parts are unreadable.

        Raises Unavailable, any error that `chunks` raises, and InvalidRequest if the batch is not an EventList.
        """
        batch = _Batch(webhook_config, token_hash, origin)
        try:
            await self._read(batch, chunks)
        except (InvalidRequest, RequestTimeout, asyncio.CancelledError) as error:
            is_cut_off = not isinstance(error, InvalidRequest) or isinstance(error, IncompleteJson)
            await self._report(batch, "cut_off" if is_cut_off else "malformed")
            raise
        except Unavailable:
            # The database is down, so record no audit event. The API server sends the batch again.
            metrics.AUDIT_BATCHES_REFUSED.labels("unavailable").inc()
            raise
        self.credential_usage.report_audit_events(webhook_config.cluster_id)
        if batch.parser.unreadable:
            await self._report(batch, "unreadable_events")

    async def ingest(
        self,
        webhook_config: ClusterWebhookConfig,
        requests: Iterable[AuditedRequest],
        origin: Origin,
        token_hash: bytes | None,
        reporter: Reporter = "audit-events",
    ) -> None:
        """Record the use of credentials, once for each identity. Raises Unavailable.

        Each record has the times of the identity's first and last requests.
        """
        # An API server's clock may be ahead of this machine's, so replace later times by the current time.
        now = self.now()
        spans: dict[RequestSender, _Span] = {}
        for request in requests:
            at = min(request.at, now)
            spans.setdefault(request.identity, _Span(at, at)).add(request, at, request.at - at)
        for identity, span in spans.items():
            if identity.account is not None and webhook_config.kind != "token":
                # An account of another installation, which uses tokens.
                continue
            for recognized in await self.recognition.recognize(webhook_config.cluster_id, identity):
                self.credential_usage.report(
                    ObservedUse(
                        webhook_config,
                        identity,
                        recognized,
                        span.first,
                        span.last,
                        origin,
                        reporter,
                        token_hash,
                        span.allowed,
                        tuple(span.approvals),
                    )
                )

    async def _read(self, batch: _Batch, chunks: AsyncIterator[bytes]) -> None:
        waiting = bytearray()
        try:
            async for chunk in chunks:
                waiting += chunk
                while len(waiting) >= CHUNK_BYTES:
                    await self._parse(batch, bytes(waiting[:CHUNK_BYTES]))
                    del waiting[:CHUNK_BYTES]
        except RequestTimeout:
            await self._parse(batch, bytes(waiting))
            raise
        await self._parse(batch, bytes(waiting), last=True)

    async def _parse(self, batch: _Batch, chunk: bytes, *, last: bool = False) -> None:
        async with self._parsing:
            refusal = await asyncio.to_thread(batch.parse, chunk, last=last)
        await self.ingest(batch.webhook_config, batch.parser.take_requests(), batch.origin, batch.token_hash)
        if refusal is not None:
            raise refusal

    async def _report(self, batch: _Batch, reason: metrics.AuditBatchRefusal) -> None:
        """Count and log a batch that was not read completely.

        Records an audit event, unless the event repeats a recent event.
        """
        metrics.AUDIT_BATCHES_REFUSED.labels(reason).inc()
        event = AuditBatchRefused(
            at=self.now(),
            project_id=batch.webhook_config.project_id,
            actor=Actor(f"cluster:{batch.webhook_config.cluster_id}", batch.origin),
            subject=batch.webhook_config.cluster_id,
            cluster_id=batch.webhook_config.cluster_id,
            reason=reason,
            bytes_read=batch.bytes_read,
            events_taken=batch.parser.readable,
            events_unreadable=batch.parser.unreadable,
        )
        logger.warning(
            "audit batch not read completely",
            cluster_id=event.cluster_id,
            reason=reason,
            bytes_read=event.bytes_read,
            events_taken=event.events_taken,
            events_unreadable=event.events_unreadable,
        )
        if self.is_repeated(event):
            return
        # Ignore a failure to record the audit event: the response must report the batch's error, which the caller
        # raises.
        with contextlib.suppress(Unavailable):
            await self.database.record(event)
