"""Publishes checkpoints of the audit log to the targets in the settings."""

import asyncio

import structlog

from clustercert.audit.log import AuditLog
from clustercert.audit.publish_targets import PublishError, PublishTarget
from clustercert.observability import metrics
from clustercert.store.audit.log import StoredCheckpoint

logger = structlog.get_logger()


class CheckpointPublisher:
    """Publishes the newest checkpoint to all targets that lack this checkpoint."""

    def __init__(self, log: AuditLog, targets: tuple[PublishTarget, ...]) -> None:
        self._log = log
        # The log size in the checkpoint last published to each target.
        self._sizes = dict.fromkeys(targets, 0)

    async def publish(self) -> int:
        """Publish the newest checkpoint, and return the number of targets that received it.

        Failures are logged, and the next call tries again. Raises Unavailable if there is no checkpoint.
        """
        if not self._sizes:
            return 0
        head = await self._log.checkpoint()
        behind = [target for target, size in self._sizes.items() if size < head.size]
        return sum(await asyncio.gather(*(self._publish_to(target, head) for target in behind)))

    async def _publish_to(self, target: PublishTarget, head: StoredCheckpoint) -> bool:
        try:
            await target.publish(head.note)
        except PublishError as failure:
            metrics.CHECKPOINTS.labels("failed").inc()
            logger.warning(
                "checkpoint publication failed", target=target.name, size=head.size, cause=str(failure)
            )
            return False
        metrics.CHECKPOINTS.labels("published").inc()
        self._sizes[target] = head.size
        return True
