"""Compares a cluster's options with the policy, whose rules they name and whose groups they could exempt."""

from collections.abc import Collection, Iterable

from clustercert.model import ClusterOptions
from clustercert.policy.exemptions import exempted_template, groups_and_templates
from clustercert.policy.rule_settings import PolicySettings


def positional_names(policy: PolicySettings) -> frozenset[str]:
    """Return the names of the rules that are named by their position, such as `rule-2`."""
    return frozenset(
        named.name
        for given, named in zip(policy.rules or (), policy.named_rules, strict=True)
        if not given.name
    )


def credential_rule_problem(names: Collection[str], policy: PolicySettings) -> str | None:
    """Say why rules can't have ClusterRoles for credentials: the policy lacks them or names them by position."""
    if unknown := set(names) - {rule.name for rule in policy.all_rules}:
        return f"The policy has no rule {', '.join(sorted(unknown))}."
    if by_position := set(names) & positional_names(policy):
        return (
            f"The name {min(by_position)} depends on the rule's position, so a change of the policy could give its"
            " ClusterRole to other users. Set name in [[policy.rules]]."
        )
    return None


def effective_exemptions(before: ClusterOptions, after: ClusterOptions) -> tuple[str, ...]:
    """Return the exemptions that a change makes effective: the new ones, or all if it switches known-only on."""
    is_switched_on = after.mode == "known-only" != before.mode
    return tuple(each for each in after.exemptions if is_switched_on or each not in before.exemptions)


def exemption_problem(
    patterns: Iterable[str], policy: PolicySettings, *, for_operator: bool = True
) -> str | None:
    """Say which pattern could exempt a group that a template of the policy gives. Only operators learn the template."""
    groups = groups_and_templates(policy.policy().rules)
    for pattern in patterns:
        if template := exempted_template(pattern, groups):
            if not for_operator:
                return f"{pattern} could exempt a group that the policy gives. Ask an operator."
            return (
                f"{pattern} could exempt a group that the policy's template {template} gives. Let the template"
                " begin with a prefix, such as team:{group}."
            )
    return None
