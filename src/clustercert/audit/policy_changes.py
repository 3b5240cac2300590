"""Records changes to the policy."""

from datetime import datetime

from clustercert.model import Actor
from clustercert.model.events.operation import PolicyLoaded
from clustercert.policy.decision import Policy
from clustercert.policy.digest import (
    declared_names,
    declared_rules,
    declared_username,
    policy_digest,
)
from clustercert.store.job_cursors import JobCursor

NAME = "policy"


async def record_policy_change(cursor: JobCursor, policy: Policy, now: datetime) -> bool:
    """Record the policy if it differs from the last recorded policy. Returns whether this call recorded it.

    If several workers start at once, only one of them records the policy. Raises Unavailable.
    """
    digest = policy_digest(policy)
    event = PolicyLoaded(
        at=now,
        actor=Actor.service(),
        subject=digest,
        rules=declared_rules(policy),
        allow_system=declared_names(policy),
        max_lifetime=int(policy.max_lifetime.total_seconds()),
        username=declared_username(policy),
        sha256=digest,
        before=await cursor.value(),
    )
    return await cursor.set(digest, event)
