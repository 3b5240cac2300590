"""Periodic tasks: delete what is old, publish checkpoints, and check stored certificates."""

from datetime import timedelta
from functools import partial

from clustercert.audit.publishing import CheckpointPublisher
from clustercert.audit.retention import BATCH_SIZE, CertificateScrubber, Retention
from clustercert.certificates.pruning import RevocationPruning
from clustercert.clusters.signer_maintenance import SignerMaintenance
from clustercert.identity.service import Identity
from clustercert.jobs.leader_job import PeriodicWork, every
from clustercert.model import Actor, utc_now

PRUNE_SECONDS = 3600.0
PRUNE_REVOCATIONS_SECONDS = 86_400.0
SIGNER_SECONDS = 900.0
# Seconds between two steps of a task that is not finished yet.
NEXT_STEP_SECONDS = 1.0


def credential_pruning(identity: Identity) -> PeriodicWork:
    """Create the periodic task that deletes expired tokens and temporary access keys."""
    return every(PRUNE_SECONDS, "prune credentials", identity.prune)


def revocation_pruning(pruning: RevocationPruning) -> PeriodicWork:
    """Create the periodic task that deletes old revocations of users and clusters."""
    return every(
        PRUNE_REVOCATIONS_SECONDS, "prune revocations", partial(pruning.prune, actor=Actor.service())
    )


def signer_maintenance(signers: SignerMaintenance) -> PeriodicWork:
    """Create the periodic task that renews the access of signers to clusters."""
    return every(SIGNER_SECONDS, "maintain signers", signers.run)


def checkpoint_publishing(publisher: CheckpointPublisher, interval: timedelta) -> PeriodicWork:
    """Create the periodic task that publishes the newest checkpoint if the audit log has grown."""
    return every(interval.total_seconds(), "publish checkpoints", publisher.publish)


def certificate_checking(scrubber: CertificateScrubber, interval: timedelta) -> PeriodicWork:
    """Create the periodic task that checks all stored certificates in steps, then pauses for the interval."""

    async def check() -> float:
        checked = await scrubber.step()
        return NEXT_STEP_SECONDS if checked.count == BATCH_SIZE else interval.total_seconds()

    return PeriodicWork("check certificates", check)


def event_pruning(retention: Retention, keep: timedelta) -> PeriodicWork:
    """Create the periodic task that deletes audit events older than `keep`."""

    async def prune() -> float:
        pruned = await retention.prune(utc_now() - keep, actor=Actor.service())
        return NEXT_STEP_SECONDS if pruned else PRUNE_SECONDS

    return PeriodicWork("prune audit events", prune)
