"""Finds the rules that allow long lifetimes, of which the service warns."""

from datetime import timedelta

from clustercert.policy.decision import Policy

# The service warns of longer ones: a stolen certificate works that long, unless it is revoked.
LONG_LIFETIME = timedelta(days=7)


def long_lifetimes(policy: Policy) -> dict[str, timedelta]:
    """Return the longest lifetime by the name of each rule that allows more than `LONG_LIFETIME` by itself."""
    granting = (rule for rule in policy.rules if rule.deny is None)
    longest = {rule.name: policy.strictest((rule,))[0] for rule in granting}
    return {name: lifetime for name, lifetime in longest.items() if lifetime > LONG_LIFETIME}
