"""Whom a cluster's `known-only` mode spares. Pure."""

from collections.abc import Iterable

from clustercert.model import ClusterOptions
from clustercert.webhook.review import Identity

# Kubernetes puts one of them on every request there is: a pattern that they match would spare everybody.
_EVERYBODY = frozenset({"system:authenticated", "system:unauthenticated"})


def exempt(who: Identity, options: ClusterOptions) -> bool:
    """Whether the user's name or one of their groups matches a pattern of the cluster."""
    names = [who.username, *(group for group in who.groups if group not in _EVERYBODY)]
    return any(_matches(names, pattern) for pattern in options.exemptions)


def _matches(names: Iterable[str], pattern: str) -> bool:
    """An asterisk at the end stands for anything; elsewhere it stands for itself."""
    if pattern.endswith("*"):
        return any(name.startswith(pattern[:-1]) for name in names)
    return pattern in names
