"""The ledger: the only writer of certificates, each with its audit event in the same transaction, and of refusals.

Group commit: requests that arrive while a batch is being committed share the next transaction. So do those that arrive
within a few milliseconds, until they are as many as in the batch before. A request that is alone is committed at once.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from clustercert.errors import Unavailable
from clustercert.model import AuditEvent, CertificateRecord
from clustercert.store import tables
from clustercert.store.bulk_insert import BulkInsert
from clustercert.store.database import Database
from clustercert.store.events import event_row
from clustercert.store.writer import NothingBegun

_certificate = tables.certificate
# The epoch is read by the statement that records: what a revocation's transaction hasn't seen is either older than
# its epoch, and revoked, or was recorded after it.
_certificates = BulkInsert(_certificate, epoch="(SELECT value FROM generation)")
_events = BulkInsert(tables.audit_event)

# A flush takes longer than inserting this many rows; more would only make the first of them wait for the last.
MAX_BATCH = 128
# While one batch is being committed, the next one is made ready and sent behind it. Of more, each would be smaller.
BATCHES = 2
# A batch that is smaller than the last one waits for more requests, for at most so long: most of a commit's cost does
# not depend on how many rows it has.
GATHER_SECONDS = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """An event on its way into the ledger, with the certificate that it is about, if it is about one.

    Attributes:
        fingerprint, row: the certificate's; both None where the event stands alone.
        done: set when it is durable, or when it is certain that this attempt is not.
    """

    fingerprint: bytes | None
    row: dict[str, object] | None
    event: dict[str, object]
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, failure: Exception | None = None) -> None:
        # Its request may have been given up meanwhile.
        if not self.done.done():
            if failure is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(failure)


class Ledger:
    """Records certificates and refusals. One for each event loop."""

    def __init__(self, database: Database, gather_seconds: float = GATHER_SECONDS) -> None:
        self._database = database
        self._gather_seconds = gather_seconds
        self._waiting: list[_Entry] = []
        self._expected = 1
        self._enough = asyncio.Event()
        self._gathering: asyncio.Task[None] | None = None
        self._committing: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(BATCHES)

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Return when the certificate and its event are durable, once each. Raises Unavailable.

        A failure of a commit leaves open whether it happened. So after one, the fingerprint is looked up, and only
        where it is missing the transaction is run once more. Where even that fails, Unavailable may be raised for a
        certificate that is in the ledger all the same, but never the other way round.
        """
        await self._settled(_Entry(record.fingerprint, _row(record), event_row(event)))

    async def note(self, event: AuditEvent) -> None:
        """Return when an event that comes with no certificate is durable. Raises Unavailable.

        Where a failure leaves open whether the commit happened, the event is written again: it may stand there
        twice, with the same request id, but never not at all.
        """
        await self._settled(_Entry(None, None, event_row(event)))

    async def _settled(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        if len(self._waiting) >= self._expected:
            self._enough.set()
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._commit_waiting())
        await entry.done

    async def _commit_waiting(self) -> None:
        """Batch after batch, until nobody waits."""
        try:
            while self._waiting:
                await self._places.acquire()
                await self._gather()
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                self._expected = len(batch)
                commit = asyncio.create_task(self._commit(batch))
                self._committing.add(commit)
                commit.add_done_callback(self._committed)
        finally:
            self._gathering = None

    def _committed(self, commit: asyncio.Task[None]) -> None:
        self._committing.discard(commit)
        self._places.release()

    async def _gather(self) -> None:
        """Wait until there are as many requests as in the last batch, for at most `gather_seconds`.

        Clients that were answered at the same moment send their next requests at the same moment.
        """
        if len(self._waiting) < self._expected:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_seconds):
                    await self._enough.wait()

    async def _commit(self, batch: Sequence[_Entry]) -> None:
        """Settle every entry of a batch, whatever happens."""
        try:
            left = await self._try(batch)
            if left:
                left = await self._try([entry for entry, _ in left])
            for entry, failure in left:
                entry.settle(failure)
        except Unavailable as failure:
            for entry in batch:
                entry.settle(failure)
        except Exception as refusal:  # noqa: BLE001 - whatever it is, a request waits for its end
            # One row can't be written, and it fails alone.
            if len(batch) > 1:
                for entry in batch:
                    await self._commit([entry])
            else:
                await self._settle_refused(batch[0], refusal)

    async def _settle_refused(self, entry: _Entry, refusal: Exception) -> None:
        """A row is refused too where an earlier commit of it, thought lost, has arrived meanwhile."""
        try:
            held = await self._held([entry])
        except Unavailable as failure:
            entry.settle(failure)
        else:
            entry.settle(None if held else refusal)

    async def _try(self, batch: Sequence[_Entry]) -> list[tuple[_Entry, Unavailable]]:
        """One transaction; the entries that are not in the ledger after it, and why. Settles the others.

        Raises Unavailable where nothing was begun; lets out whatever refuses a row.
        """
        try:
            await self._database.insert(
                (_certificates, [entry.row for entry in batch if entry.row is not None]),
                (_events, [entry.event for entry in batch]),
            )
        except NothingBegun:
            # The database is busy or away, and a second try at once helps neither.
            raise
        except Unavailable as failure:
            held = await self._held(batch)
            left = [(entry, failure) for entry in batch if entry.fingerprint not in held]
        else:
            left = []
        waiting = {entry for entry, _ in left}
        for entry in batch:
            if entry not in waiting:
                entry.settle()
        return left

    async def _held(self, entries: Iterable[_Entry]) -> set[bytes]:
        """Those of the fingerprints that are in the ledger. Raises Unavailable."""
        fingerprints = [entry.fingerprint for entry in entries if entry.fingerprint is not None]
        query = select(_certificate.c.fingerprint).where(_certificate.c.fingerprint.in_(fingerprints))
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())


def _row(record: CertificateRecord) -> dict[str, object]:
    return {
        "fingerprint": record.fingerprint,
        "serial": record.serial,
        "cluster_id": record.cluster_id,
        "project_id": record.project_id,
        "ca_id": record.ca_id,
        "user_id": record.user_id,
        "user_name": record.user_name,
        "groups": record.groups,
        "not_before": record.not_before,
        "not_after": record.not_after,
        "key_type": record.key_type,
        "key_origin": record.key_origin,
        "auth_method": record.auth_method,
        "source_address": record.source_address,
        "request_id": record.request_id,
        "reason": record.reason,
        "issued_at": record.issued_at,
        "rule": record.rule,
        "credential_number": record.credential_number,
        "der": record.der,
    }
