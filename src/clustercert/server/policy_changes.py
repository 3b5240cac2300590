"""Records changes of the policy, and logs how many live certificates a new policy would refuse."""

import asyncio

import structlog

from clustercert.audit import settings_changes
from clustercert.issuance.live_certificates import compare_live_certificates
from clustercert.model import utc_now
from clustercert.model.errors import ClustercertError
from clustercert.policy.decision import Policy, policy_digest
from clustercert.policy.live_replay import LiveChange
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import JobCursor

logger = structlog.get_logger()

# The maximum number of certificates to compare with a new policy. Comparing so many takes a few seconds in a thread.
MAX_COMPARED = 5000


class PolicyChanges:
    """Records each new policy. The process that records the policy compares the live certificates with it.

    A newer policy stops the comparison with an older one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = asyncio.Event()
        self._comparisons: set[asyncio.Task[None]] = set()

    async def record(self, policy: Policy) -> None:
        """Record the policy if it has changed, and begin to compare. Raises Unavailable."""
        await RevocationPruningQueries(self._database).note_lifetime(policy.max_lifetime)
        cursor = JobCursor(self._database, settings_changes.POLICY_CURSOR)
        if await settings_changes.record_policy_change(cursor, policy, utc_now()):
            self._stop.set()
            self._stop = asyncio.Event()
            comparison = asyncio.create_task(self._compare(policy, self._stop))
            self._comparisons.add(comparison)
            comparison.add_done_callback(self._comparisons.discard)

    async def close(self) -> None:
        """Stop the comparisons."""
        self._stop.set()
        await asyncio.gather(*self._comparisons)

    async def _compare(self, policy: Policy, stop: asyncio.Event) -> None:
        try:
            compared = await compare_live_certificates(
                self._database, policy, utc_now(), stop, limit=MAX_COMPARED
            )
        except ClustercertError as failure:
            logger.warning("live certificates not compared with the new policy", error=failure.message)
            return
        except Exception:
            logger.exception("live certificates not compared with the new policy")
            return
        if compared is None or not compared.examined:
            return
        comparison = compared.comparison
        log = logger.warning if comparison.affected else logger.info
        log(
            "live certificates compared with the new policy",
            **{str(change): comparison.count(change) for change in LiveChange},
            examined=compared.examined,
            not_replayable=comparison.not_replayable.total(),
            # There are more certificates, so the other numbers are minimums.
            at_least=not compared.is_complete,
            policy_sha256=policy_digest(policy),
            **({"advice": "run `clustercert policy replay --live`"} if comparison.affected else {}),
        )
