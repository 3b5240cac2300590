"""What one process of all does about the audit log beside sealing: publish it, keep its bounds, check certificates."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import structlog

from clustercert.app.wiring import Components
from clustercert.audit.checking import AT_ONCE, CertificateChecker
from clustercert.audit.loading import NAME, record_policy
from clustercert.audit.publishing import Publisher, target
from clustercert.audit.retention import Retention
from clustercert.background import pause
from clustercert.errors import Unavailable
from clustercert.model import Origin, utc_now
from clustercert.store.evidence import EvidenceRows
from clustercert.store.leader import Leader
from clustercert.store.progress import Progress

logger = structlog.get_logger()

PRUNE_SECONDS = 3600.0
FAILED_SECONDS = 10.0


async def policy_recorded(parts: Components) -> None:
    """Record the policy that this process works by, where another one is recorded. Raises Unavailable."""
    policy = parts.settings.policy.policy()
    await record_policy(Progress(parts.database, NAME), policy, utc_now())


def auditing(parts: Components) -> Callable[[asyncio.Event], Coroutine[object, object, None]]:
    """All of it, for as long as a worker serves and holds the lease."""
    leader = Leader(parts.database, "audit")
    chores = _chores(parts)

    async def audit(stop: asyncio.Event) -> None:
        leads, asked_at = False, float("-inf")
        while not stop.is_set():
            try:
                if time.monotonic() - asked_at >= leader.seconds / 3:
                    asked_at = time.monotonic()
                    leads = await leader.leads()
                for chore in chores if leads else ():
                    await chore.do_if_due()
            except Unavailable as failure:
                logger.warning("the audit log has nobody to look after it", cause=repr(failure.__cause__))
            await pause(stop, 1)
        with contextlib.suppress(Unavailable):
            await leader.resign()

    return audit


@dataclass(slots=True)
class _Chore:
    """Work that says how many seconds it rests until it is done again."""

    name: str
    do: Callable[[], Coroutine[object, object, float]]
    due_at: float = field(default=float("-inf"))

    async def do_if_due(self) -> None:
        if time.monotonic() >= self.due_at:
            self.due_at = time.monotonic() + await self._done()

    async def _done(self) -> float:
        """Do it; what fails is said, and keeps no other chore from being done."""
        try:
            return await self.do()
        except Unavailable as failure:
            logger.warning("the audit log was not looked after", work=self.name, cause=failure.message)
        except Exception:
            logger.exception("the audit log was not looked after", work=self.name)
        return FAILED_SECONDS


def _chores(parts: Components) -> list[_Chore]:
    wanted = parts.settings.audit
    targets = tuple(target(address, utc_now) for address in wanted.publish)
    publisher = Publisher(parts.audit_log, targets)
    checker = CertificateChecker(parts.database, parts.settings.policy.policy(), utc_now)
    retention = Retention(EvidenceRows(parts.database), utc_now)

    async def publish() -> float:
        await publisher.publish()
        return wanted.publish_every.total_seconds()

    async def check() -> float:
        checked = await checker.step()
        return 1.0 if checked.count == AT_ONCE else wanted.check_every.total_seconds()

    async def prune() -> float:
        if wanted.retention is None:
            return PRUNE_SECONDS
        origin = Origin.local()
        pruned = await retention.prune(utc_now() - wanted.retention, actor="clustercert", origin=origin)
        return 1.0 if pruned else PRUNE_SECONDS

    chores = [_Chore("publish", publish)] if targets else []
    chores += [_Chore("check", check)] if wanted.check_certificates else []
    return [*chores, _Chore("prune", prune)]
