"""Tests whether a cluster in mode `known-only` exempts a certificate, by the same rule as `manifests.cel.is_exempt`."""

from collections.abc import Collection, Iterable
from typing import Literal

from clustercert.model import ClusterOptions
from clustercert.model.kubernetes import GROUPS_OF_EVERYBODY, NODE_PREFIX, NODES, OUR_PREFIX
from clustercert.model.policy import PolicyRule
from clustercert.policy.names import SYSTEM_PREFIX
from clustercert.policy.templates import is_template


def groups_and_templates(rules: Iterable[PolicyRule]) -> set[str]:
    """Return the rules' groups, and their templates as in the settings."""
    return {
        each for rule in rules for each in (*rule.groups, *(template.text for template in rule.templates))
    }


def template_prefixes(policy_groups: Iterable[str]) -> tuple[str, ...]:
    """Return the prefix of the names from each template, up to a colon. Leaves out templates without such a prefix.

    Templates never give names with the prefix `system:`.
    """
    prefixes = {group[: group.find("{")].rpartition(":")[0] for group in policy_groups if is_template(group)}
    return tuple(sorted(f"{prefix}:" for prefix in prefixes if prefix and not _is_system(f"{prefix}:")))


def exempted_template(pattern: str, policy_groups: Iterable[str]) -> str | None:
    """Return a template whose names a pattern could exempt, because they begin with a placeholder, or None."""
    if _is_system(pattern):
        return None
    for group in unprefixed_templates(policy_groups):
        colons = group.count(":")
        # The values of placeholders have no colon.
        fits = pattern.count(":") <= colons if pattern.endswith("*") else pattern.count(":") == colons
        if fits:
            return group
    return None


def unprefixed_templates(policy_groups: Iterable[str]) -> list[str]:
    """Return the templates that begin with a placeholder, whose names can't be told from those of other issuers."""
    templates = sorted(filter(is_template, policy_groups))
    return [group for group in templates if not template_prefixes([group]) and not _is_system(group)]


def _is_system(name: str) -> bool:
    return name.casefold().startswith(SYSTEM_PREFIX)


Exemption = Literal["node", "component"]
"""Why a certificate is exempt: it is a kubelet's, or it has other names that the operator exempted."""


def exemption_of(
    username: str, presented: Collection[str], options: ClusterOptions, policy_groups: Collection[str]
) -> Exemption | None:
    """Return the exemption if all groups match the cluster's patterns; without groups, if the user name does.

    Ignores groups that every caller has. A user name with the prefix `system:` must match too, because Kubernetes binds
    rights to such users; kubelets need only their group. Nobody but kubelets is exempt by the group `system:nodes`.

    Never exempt are names in `policy_groups`, names with the prefix of a template in `policy_groups`, and names and
    groups that begin with `clustercert:`.
    """
    groups = {group for group in presented if group not in GROUPS_OF_EVERYBODY}
    is_kubelet = username.startswith(NODE_PREFIX) and NODES in groups
    if NODES in groups and not is_kubelet:
        return None
    needs_name = not groups or (username.startswith(SYSTEM_PREFIX) and not is_kubelet)
    names = [*groups, username] if needs_name else [*groups]
    prefixes = (OUR_PREFIX, *template_prefixes(policy_groups))
    # A template's text is not a name, even if a user or group has the same name.
    ours = [group for group in policy_groups if not is_template(group)]
    if any(name.startswith(prefixes) or name in ours for name in (username, *groups)):
        return None
    if not all(_matches(name, options.exemptions) for name in names):
        return None
    return "node" if groups == {NODES} else "component"


def is_exempt(
    username: str,
    presented: Collection[str],
    fingerprints: Collection[str],
    options: ClusterOptions,
    policy_groups: Collection[str],
) -> bool:
    """Whether `known-only` lets a certificate pass: it is exempt and, if components are pinned, among the pins.

    Args:
        fingerprints: of the certificate, in lower-case hex; several if it is not known which of them is presented.
    """
    exemption = exemption_of(username, presented, options, policy_groups)
    if exemption == "component" and options.pin_components:
        return not set(options.pins).isdisjoint(fingerprints)
    return exemption is not None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name matches a pattern. An asterisk is a wildcard only at the end of a pattern."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
