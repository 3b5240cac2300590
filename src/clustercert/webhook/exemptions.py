"""Which certificates a cluster's `known-only` mode spares. Pure.

`manifests.cel` writes the same rule into the match conditions of an API server.
"""

from collections.abc import Collection, Iterable

from clustercert.manifests import GROUPS_OF_EVERYBODY, OUR_PREFIX
from clustercert.model import ClusterOptions
from clustercert.webhook.review import Identity


def exempt(who: Identity, options: ClusterOptions, policy_groups: Collection[str]) -> bool:
    """Whether each of somebody's groups matches a pattern of the cluster, or their name where they have no group.

    Groups that everybody has do not count. A name or group of ours is never exempt: `policy_groups`, and what begins
    with `clustercert:`.
    """
    groups = [group for group in who.groups if group not in GROUPS_OF_EVERYBODY]
    names = groups or [who.username]
    if any(name.startswith(OUR_PREFIX) or name in policy_groups for name in (who.username, *groups)):
        return False
    return all(_matches(name, options.exemptions) for name in names)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """An asterisk at the end stands for anything; elsewhere it stands for itself."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
