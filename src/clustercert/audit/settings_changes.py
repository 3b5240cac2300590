"""Records changes to the policy and to the issuers as audit events."""

from collections.abc import Sequence
from datetime import datetime

from clustercert.authn.oidc.issuers import OidcIssuer, declared_issuers, issuers_digest
from clustercert.model import Actor
from clustercert.model.events.operation import IssuersLoaded, PolicyLoaded
from clustercert.policy.decision import (
    Policy,
    declared_names,
    declared_rules,
    declared_username,
    policy_digest,
)
from clustercert.store.job_cursors import JobCursor

ISSUERS_CURSOR = "issuers"


async def record_issuer_change(cursor: JobCursor, issuers: Sequence[OidcIssuer], now: datetime) -> bool:
    """Record the issuers if they differ from the last recorded issuers. Returns whether this call recorded the issuers.

    If several workers start at once, only one of them records the issuers. Raises Unavailable.
    """
    before = await cursor.value()
    if before is None and not issuers:
        return False
    digest = issuers_digest(issuers)
    event = IssuersLoaded(
        at=now,
        actor=Actor.service(),
        subject=digest,
        issuers=declared_issuers(issuers),
        sha256=digest,
        before=before,
    )
    return await cursor.set(digest, event)


POLICY_CURSOR = "policy"


async def record_policy_change(cursor: JobCursor, policy: Policy, now: datetime) -> bool:
    """Record the policy if it differs from the last recorded policy. Returns whether this call recorded the policy.

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
