"""Policy rules, and their comparison with the input of a decision."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

from clustercert.model import Grant, JsonObject
from clustercert.model.errors import Forbidden
from clustercert.policy.conditions import (
    Condition,
    ConditionFailed,
    DecisionInput,
    is_chosen,
    is_on_role,
    takes_role,
)
from clustercert.policy.offers import Offer

MAX_GROUPS = 64
"""The maximum number of Kubernetes groups in one certificate."""

MAX_TRACED = 50
"""The maximum number of skipped rules, and of their conditions, in a decision trace."""


class Template(Protocol):
    """The template of a Kubernetes group's name."""

    @property
    def text(self) -> str:
        """Return the template's text in the settings."""

    def render(self, decision_input: DecisionInput, trace: JsonObject) -> Iterable[str]:
        """Return the group names for this input. Raises Forbidden for a name that must not be issued."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A rule. If its conditions are met, it adds groups and limits the lifetime, denies the request, or offers groups.

    Attributes:
        name: unique in the policy.
        groups: the groups that the rule grants or offers.
        max_lifetime: the limit of a rule that grants; None if only the policy limits the lifetime.
        default_lifetime: the lifetime for the duration -1; None means the longest lifetime allowed.
        deny: the message of a rule that denies; None for other rules.
        offer: the terms of a rule whose groups need an access request; None for other rules.
        declared: the rule in the form of the settings, as JSON values with lifetimes in seconds; for the audit event.
        private: the conditions that are shown only to callers who meet all of them, because the conditions can contain
            names of other users or projects. Empty if every condition is on a role, or on a property of the request
            that the caller chooses.
        chosen: the clauses of the conditions on properties that the caller chooses.
    """

    name: str
    conditions: tuple[Condition, ...]
    groups: tuple[str, ...] = ()
    templates: tuple[Template, ...] = ()
    max_lifetime: timedelta | None = None
    default_lifetime: timedelta | None = None
    deny: str | None = None
    offer: Offer | None = None
    declared: Mapping[str, object] = field(default_factory=dict, compare=False)
    private: tuple[Condition, ...] = field(init=False, repr=False, compare=False)
    chosen: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        private = tuple(each for each in self.conditions if not is_chosen(each))
        if all(is_on_role(each) for each in private):
            private = ()
        object.__setattr__(self, "private", private)
        object.__setattr__(
            self, "chosen", frozenset(each.clause for each in self.conditions if is_chosen(each))
        )

    @property
    def grants(self) -> bool:
        """Whether the rule grants its groups without an access request."""
        return self.deny is None and self.offer is None

    @property
    def lifetime_limit(self) -> timedelta | None:
        """The longest lifetime of a certificate with the rule's groups; None if only the policy limits it."""
        return self.max_lifetime if self.offer is None else self.offer.max_lifetime

    def first_false(self, decision_input: DecisionInput) -> str | None:
        """Return the first false clause of the first condition that is not met, or None if the rule matches.

        Raises ConditionFailed if a condition can't be evaluated and all conditions before it are met.
        """
        for condition in self.conditions:
            if (clause := condition.first_false(decision_input)) is not None:
                return clause
        return None

    def gives_role_rights(self, role: str) -> bool:
        """Whether users with only this role can get or request the rule's groups, or approve requests.

        Ignores conditions that are not on roles.
        """
        if self.offer is not None and self.offer.takes_approver(role):
            return True
        return self.deny is None and takes_role(self.conditions, role)

    def is_visible_to(self, decision_input: DecisionInput) -> bool:
        """Whether the caller may see the rule: all its private conditions are met.

        A caller who meets these conditions could match the rule with a different request, or with different roles.
        Rules that the caller may not see are secret, because their names or conditions can reveal users, groups,
        projects and clusters.
        """
        try:
            return all(each.first_false(decision_input) is None for each in self.private)
        except ConditionFailed:
            return False


@dataclass(frozen=True, slots=True)
class Match:
    """The rules that match an input.

    Attributes:
        rules: the matching rules that grant, in order. Empty if a rule denies or fails.
        denied_by: the first rule that denies or fails, or None.
        unmet: the first false clause of each rule that does not match, by the rule's name, in order.
        failure: why a condition of `denied_by` can't be evaluated; empty if the rule denies.
        offers: the matching rules whose groups need an access request, in order. Empty if a rule denies or fails.
    """

    rules: tuple[PolicyRule, ...]
    denied_by: PolicyRule | None
    unmet: Mapping[str, str]
    failure: str = ""
    offers: tuple[PolicyRule, ...] = ()

    def own_unmet(self, rules: Iterable[PolicyRule], decision_input: DecisionInput) -> dict[str, str]:
        """Return the entries of `unmet` that the caller may see, at most `MAX_TRACED`."""
        own: dict[str, str] = {}
        for rule in rules:
            clause = self.unmet.get(rule.name)
            if clause is None or (
                rule.private and not (clause in rule.chosen and rule.is_visible_to(decision_input))
            ):
                continue
            own[rule.name] = clause
            if len(own) == MAX_TRACED:
                break
        return own

    def with_requested(self, name: str, groups: Sequence[str]) -> "Match":
        """Return a match whose first rule grants the groups of an access request.

        Returns the match itself if no rule with this name matches and offers these groups.
        """
        for rule in self.offers:
            if rule.name == name and set(groups) <= set(rule.groups):
                requested = replace(rule, groups=tuple(groups))
                others = tuple(each for each in self.offers if each is not rule)
                return replace(self, rules=(requested, *self.rules), offers=others)
        return self

    def skipped(self, own: Mapping[str, str]) -> JsonObject:
        """Return the trace's field `skipped_rules` with the rules in `own`.

        If `own` lacks some of the skipped rules, add the field `skipped_count` with the number of all skipped rules.
        """
        skipped: JsonObject = {"skipped_rules": list(own)}
        return skipped if len(own) == len(self.unmet) else skipped | {"skipped_count": len(self.unmet)}


def match_rules(rules: Iterable[PolicyRule], decision_input: DecisionInput) -> Match:
    """Compare the rules with an input, in order. Stops at the first rule that fails, or that matches and denies.

    A rule fails if a condition can't be evaluated. The request is then refused, because skipping the rule would also
    skip its limits. So the order of the rules decides only which of several refusals the caller sees. A rule that
    offers groups does not match if a condition can't be evaluated, because its limits apply only to its own groups.
    """
    matching: list[PolicyRule] = []
    offers: list[PolicyRule] = []
    unmet: dict[str, str] = {}
    for rule in rules:
        try:
            clause = rule.first_false(decision_input)
        except ConditionFailed as failed:
            if rule.offer is None:
                return Match((), rule, unmet, str(failed))
            clause = str(failed)
        if clause is not None:
            unmet[rule.name] = clause
            continue
        if rule.deny is not None:
            return Match((), rule, unmet)
        (matching if rule.offer is None else offers).append(rule)
    return Match(tuple(matching), None, unmet, offers=tuple(offers))


def united_groups(
    rules: Iterable[PolicyRule], decision_input: DecisionInput, trace: JsonObject
) -> tuple[str, ...]:
    """Return the groups of the rules without duplicates. Stops soon after `MAX_GROUPS` is exceeded.

    Raises Forbidden for a name that must not be issued.
    """
    groups: dict[str, None] = {}
    for rule in rules:
        groups |= dict.fromkeys(rule.groups)
        for template in rule.templates:
            for name in template.render(decision_input, trace):
                groups[name] = None
                if len(groups) > MAX_GROUPS:
                    return tuple(groups)
    return tuple(groups)


def bound_grant(grant: Grant, roles: Mapping[str, str]) -> Grant:
    """Return the grant without groups, and with the rule whose ClusterRole is bound to the certificate.

    A certificate has only one binding. If several matching rules have a ClusterRole, the function takes the rule whose
    name sorts first, so that the result does not depend on the order of the rules. The rule of an access request comes
    before all others. `roles` maps rules to ClusterRoles. Raises Forbidden if no matching rule has a ClusterRole.
    """
    requested = grant.rules[:1] if grant.access is not None else ()
    named = [name for name in requested or grant.rules if name in roles]
    rule = min(named, default=None)
    if rule is None:
        raise Forbidden(
            f"This cluster has no ClusterRole for the rule {grant.rule}. Ask the operator to set one"
            " (clustercert cluster update --credential-role).",
            trace=grant.trace,
        )
    return replace(grant, rule=rule, groups=())


def groups_and_templates(rules: Iterable[PolicyRule]) -> set[str]:
    """Return the rules' groups, and the texts of their templates in the settings."""
    return {
        each for rule in rules for each in (*rule.groups, *(template.text for template in rule.templates))
    }
