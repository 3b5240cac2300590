"""Use case: delete old revocations of users and clusters."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model import Actor
from clustercert.model.events.administration import RevocationsPruned
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.certificates.revocations import CLOCK_MARGIN


@dataclass(frozen=True, slots=True)
class RevocationPruning:
    """Deletes revocations of users and clusters once no certificate that they revoked can be valid.

    A certificate that is lost from the ledger, such as after a restore, expires at the latest after the longest
    lifetime that any policy has allowed. So a revocation is kept for this time, for the undo window, and for
    `CLOCK_MARGIN`. `RevocationPruningQueries.prune` says which revocations are kept for longer.
    """

    queries: RevocationPruningQueries
    undo_window: timedelta
    now: Callable[[], datetime]

    async def prune(self, *, actor: Actor, made_before: datetime | None = None) -> int:
        """Delete revocations, and return how many. Raises Unavailable.

        Args:
            made_before: only revocations that were recorded before this time.
        """
        kept_for = max(await self.queries.longest_lifetime(), self.undo_window) + CLOCK_MARGIN
        before = self.now() - kept_for
        if made_before is not None:
            before = min(before, made_before)

        def event(count: int) -> RevocationsPruned:
            return RevocationsPruned(
                at=self.now(), actor=actor, subject="revocations", count=count, made_before=before
            )

        deleted, after = 0, 0
        while True:
            step = await self.queries.prune(before, after, event)
            deleted += step.deleted
            if step.last_id is None:
                return deleted
            after = step.last_id
