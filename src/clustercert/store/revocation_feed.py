"""The revocation feed, which keeps each worker's certificate cache up to date.

Several times a second, every worker reads the revocations that changed since the last generation it read. No change is
missed, because generations commit in increasing order: see `database.raise_generation`.
"""

import time
from collections.abc import Callable, Hashable

from sqlalchemy import Integer, bindparam, select

from clustercert.observability import metrics
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Generation

_revocation = tables.revocation

# After more changes than this, the whole cache is dropped.
MAX_CHANGES = 5000

_GENERATION = select(tables.generation.c.value)
_CHANGED = (
    select(_revocation.c.fingerprint, _revocation.c.user_id, _revocation.c.cluster_id)
    .where(_revocation.c.changed > bindparam("seen"))
    .order_by(_revocation.c.changed)
    .limit(bindparam("limit", type_=Integer()))
)


class RevocationFeed(Generation):
    """A `Generation` that also reads which revocations changed. `tick` increases with each read that finds changes."""

    # This is longer than for other caches, because an API server may fail open if its webhook returns errors.
    STALE_AFTER = 2.0

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, max_changes: int = MAX_CHANGES
    ) -> None:
        super().__init__(self._read_changes, clock)
        self._max_changes = max_changes
        self._database = database
        self.tick = 0
        self._dropped_at = 0
        self._changed_at: dict[Hashable, int] = {}

    async def refresh(self) -> None:
        """Read the generation and the changed revocations once. Raises Unavailable."""
        before = self._asked_at
        await super().refresh()
        if before > float("-inf"):
            metrics.FEED_SECONDS.observe(self._clock() - before)

    def is_current(self, read_at: int, fingerprint: bytes, user_id: str, cluster_id: str) -> bool:
        """Whether a certificate read at tick `read_at` is up to date: no revocation read since then can affect it."""
        changed_at = self._changed_at
        if read_at < self._dropped_at:
            return False
        if not changed_at:
            return True
        keys: tuple[Hashable, ...] = (fingerprint, (user_id, cluster_id), (user_id, ""), ("", cluster_id))
        return not any(changed_at.get(key, -1) > read_at for key in keys)

    async def _read_changes(self) -> int:
        """Read the generation and the changed revocations in one snapshot, and note which cache keys are affected."""
        # At the start and after a gap, drop everything, even if the generation is the same: after a restore from a
        # backup, the database may have counted up to the same number again, with different revocations.
        followed = self.fresh()
        if followed and await self._database.read_generation() == self.value:
            return self.value
        async with self._database.read() as connection:
            value: int = (await connection.execute(_GENERATION)).scalar_one()
            followed = followed and value >= self.value
            changed = []
            if followed and value > self.value:
                changed = list(
                    await connection.execute(_CHANGED, {"seen": self.value, "limit": self._max_changes + 1})
                )
        if changed or not followed:
            self.tick += 1
            for row in changed:
                key = row.fingerprint if row.fingerprint is not None else (row.user_id, row.cluster_id)
                self._changed_at[key] = self.tick
        # There may be more changes than were read, so drop everything.
        if not followed or max(len(self._changed_at), len(changed)) > self._max_changes:
            self._changed_at.clear()
            self._dropped_at = self.tick
        return value
