"""The digest that names a policy in audit events, logs and reports."""

import hashlib
import json
from collections.abc import Mapping

from clustercert.policy.decision import Policy


def declared_rules(policy: Policy) -> tuple[Mapping[str, object], ...]:
    """Return the rules as in the settings, JSON values with lifetimes in seconds."""
    return tuple(rule.declared for rule in policy.rules)


def declared_names(policy: Policy) -> tuple[str, ...]:
    """Return `policy.allow_system`, sorted."""
    return tuple(sorted(policy.allowed_system_names))


def declared_username(policy: Policy) -> str:
    return "{user.id}" if policy.username is None else policy.username.text


def policy_digest(policy: Policy) -> str:
    """Return the policy's SHA-256, lower-case hex."""
    declared = {
        "rules": declared_rules(policy),
        "allow_system": declared_names(policy),
        "max_lifetime": int(policy.max_lifetime.total_seconds()),
        "username": declared_username(policy),
    }
    # The digest covers this JSON, with sorted names and no spaces.
    text = json.dumps(declared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
