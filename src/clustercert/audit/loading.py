"""The policy that a service works by is recorded whenever it is another one than before."""

import hashlib
import json
from datetime import datetime

from clustercert.model import AuditEvent, JsonObject, Origin
from clustercert.policy import Policy
from clustercert.store.progress import Progress

NAME = "policy"


async def record_policy(progress: Progress, policy: Policy, now: datetime) -> bool:
    """Record the policy where the one recorded last is another; whether it was. Raises Unavailable.

    Several workers that start at once record it once.
    """
    rules = _rules(policy)
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    event = AuditEvent(
        at=now,
        kind="policy.loaded",
        project_id=None,
        actor="clustercert",
        subject=digest,
        origin=Origin.local(),
        detail={**rules, "sha256": digest, "before": await progress.value()},
    )
    return await progress.change(digest, event)


def _rules(policy: Policy) -> JsonObject:
    """The policy as JSON; the digest is over this, names sorted and without spaces."""
    return {
        "rules": [
            {
                "role": rule.role,
                "groups": list(rule.groups),
                "max_lifetime": int(rule.max_lifetime.total_seconds()),
            }
            for rule in policy.rules
        ],
        "allow_system": sorted(policy.allowed_system_names),
    }
