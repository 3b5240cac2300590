"""Use case: take the batches of audit events that a kube-apiserver sends, of any size.

kube-apiserver drops a batch in the end that is refused each time, so what can be read of it is taken all the same.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import structlog

from clustercert import metrics
from clustercert.errors import InvalidRequest, RequestTimeout, Unavailable
from clustercert.model import AuditEvent, Origin
from clustercert.store.sightings import SightingRows
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.audit_events import EventListParser
from clustercert.webhook.json_tokens import IncompleteJson
from clustercert.webhook.observing import Observation

logger = structlog.get_logger()

# As much is parsed at a time: for about ten milliseconds, a thousand events.
PIECE = 256 * 1024


class AuditBatches:
    """Takes batches. One for each event loop."""

    def __init__(self, observation: Observation, rows: SightingRows, now: Callable[[], datetime]) -> None:
        self._observation = observation
        self._rows = rows
        self._now = now
        # Threads that parse compete with the event loop, so there is one at a time.
        self._parsing = asyncio.Semaphore()

    async def take(self, gate: Gate, chunks: AsyncIterator[bytes], origin: Origin) -> None:
        """Observe the events of a batch while it arrives, and record whatever could not be read.

        Raises InvalidRequest where it is no EventList, Unavailable, and what `chunks` raises.
        """
        batch = _Batch(gate, origin)
        try:
            await self._read(batch, chunks)
        except (InvalidRequest, RequestTimeout, asyncio.CancelledError) as error:
            is_cut_off = not isinstance(error, InvalidRequest) or isinstance(error, IncompleteJson)
            await self._record(batch, "cut_off" if is_cut_off else "malformed")
            raise
        except Unavailable:
            # There is no database to write an event into; the API server tries again.
            metrics.AUDIT_BATCHES_REFUSED.labels("unavailable").inc()
            raise
        if batch.parser.unreadable:
            await self._record(batch, "unreadable_events")

    async def _read(self, batch: "_Batch", chunks: AsyncIterator[bytes]) -> None:
        waiting = bytearray()
        try:
            async for chunk in chunks:
                waiting += chunk
                while len(waiting) >= PIECE:
                    await self._parse(batch, bytes(waiting[:PIECE]))
                    del waiting[:PIECE]
        except RequestTimeout:
            await self._parse(batch, bytes(waiting))
            raise
        await self._parse(batch, bytes(waiting), last=True)

    async def _parse(self, batch: "_Batch", piece: bytes, *, last: bool = False) -> None:
        async with self._parsing:
            refusal = await asyncio.to_thread(batch.read, piece, last=last)
        await self._observation.observe(batch.gate, batch.parser.observed(), batch.origin)
        if refusal is not None:
            raise refusal

    async def _record(self, batch: "_Batch", reason: metrics.AuditBatchRefusal) -> None:
        """Count a batch that was not read whole, and write an event of it."""
        metrics.AUDIT_BATCHES_REFUSED.labels(reason).inc()
        detail = {
            "cluster_id": batch.gate.cluster_id,
            "reason": reason,
            "bytes_read": batch.bytes_read,
            "events_taken": batch.parser.taken,
            "events_unreadable": batch.parser.unreadable,
        }
        logger.warning("audit batch not read whole", **detail)
        event = AuditEvent(
            at=self._now(),
            kind="audit_batch.refused",
            project_id=batch.gate.project_id,
            actor=f"cluster:{batch.gate.cluster_id}",
            subject=batch.gate.cluster_id,
            origin=batch.origin,
            detail=detail,
        )
        # The count and the log line are there; the answer says what is wrong with the batch.
        with contextlib.suppress(Unavailable):
            await self._rows.note(event)


class _Batch:
    """A batch on its way in."""

    def __init__(self, gate: Gate, origin: Origin) -> None:
        self.gate = gate
        self.origin = origin
        self.parser = EventListParser()
        self.bytes_read = 0

    def read(self, piece: bytes, *, last: bool) -> InvalidRequest | None:
        """Parse a piece; what is wrong with it, since what stands before that is to be observed first."""
        self.bytes_read += len(piece)
        try:
            self.parser.feed(piece)
            if last:
                self.parser.close()
        except InvalidRequest as refusal:
            return refusal
        return None
