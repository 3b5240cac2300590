"""Policy rules, their conditions, and the input of a policy decision."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar, Protocol, TypeGuard

from clustercert.model import Caller, Grant, JsonObject
from clustercert.model.clusters import Cluster
from clustercert.model.errors import Forbidden
from clustercert.model.identity import FederatedDomain, Group, User
from clustercert.model.issuance import IssueRequest
from clustercert.model.name_patterns import Names, Values

MAX_GROUPS = 64
"""The maximum number of Kubernetes groups in one certificate."""

MAX_TRACED = 50
"""The maximum number of skipped rules, and of their conditions, in a decision trace."""

# Kinds of names in conditions that the caller can choose.
_CHOSEN = frozenset({"auth_method", "key_type"})

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True, eq=False)
class DecisionInput:
    """The input of a policy decision. Audit events contain the input, so that the decision can be computed again.

    Attributes:
        roles: the caller's roles in the cluster's project.
        key_type: the type of the CSR's key, or of the key that the service would generate.
        issuer_names: the names of OIDC issuers and of Keystone. These names are the prefixes in user and group names
            such as `ISSUER/NAME`.
        cel_context: the variables for CEL. The first expression creates the variables, and later expressions reuse
            them.
    """

    caller: Caller
    cluster: Cluster
    request: IssueRequest
    roles: tuple[str, ...]
    at: datetime
    key_type: str
    issuer_names: frozenset[str] = frozenset()
    cel_context: object | None = field(init=False, default=None)
    _named: dict[str, Values] = field(init=False, repr=False, default_factory=dict)

    def named(self, what: str) -> Values:
        """Return the names and ids of one kind, such as `role`. The kinds are the keys of `NAMED`."""
        values = self._named.get(what)
        if values is None:
            values = self._named[what] = Values(NAMED[what](self), _IDS[what](self) if what in _IDS else ())
        return values

    def groups_matching(self, names: Names | None) -> list[Group]:
        """Return the caller's groups that match one of the names, or all groups if `names` is `None`."""
        return [
            group
            for group in self.caller.groups
            if names is None or names.match(self.names_of(group), (group.id,))
        ]

    def names_of(self, party: User | Group) -> tuple[str, ...]:
        """Return the names of a user or group; see the function `names_of`."""
        return names_of(party, self.issuer_names)


def names_of(party: User | Group, issuer_names: frozenset[str]) -> tuple[str, ...]:
    """Return the names of a user or group.

    Omits the form `DOMAIN/NAME` for a built-in domain that has the same name as an issuer.
    """
    domain = party.domain
    if domain.name in issuer_names and not isinstance(domain, FederatedDomain):
        return tuple(name for name in party.qualified_names if not name.startswith(f"{domain.name}/"))
    return party.qualified_names


class ConditionFailed(Exception):
    """A condition can't be evaluated for this input. The message contains the condition's clause and the reason."""


class Condition(Protocol):
    """A condition that a decision's input must meet for a rule to match."""

    @property
    def clause(self) -> str:
        """Return the condition in words, such as `role is admin`."""

    def first_false(self, decision_input: DecisionInput) -> str | None:
        """Return the first clause that is false, for the decision trace, or None if the condition is met.

        Raises ConditionFailed.
        """

    def found(self, decision_input: DecisionInput) -> str:
        """Return the input's actual value in words; empty if it can't be described."""


class Template(Protocol):
    """The template of a Kubernetes group's name."""

    @property
    def text(self) -> str:
        """Return the template's text in the settings."""

    def render(self, decision_input: DecisionInput, trace: JsonObject) -> Iterable[str]:
        """Return the group names for this input. Raises Forbidden for a name that must not be issued."""


@dataclass(frozen=True, slots=True)
class HasName:
    """The input has a matching value of one kind: for example, one of the caller's roles matches one of the names."""

    what: str
    names: Names
    clause: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clause", f"{self.what} is {self.names.text}")

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if self.names.match_prepared(decision_input.named(self.what)) else self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return ", ".join((_SHOWN.get(self.what) or NAMED[self.what])(decision_input)) or "none"


NAMED: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "role": lambda decision_input: decision_input.roles,
    "group": lambda decision_input: tuple(
        name for group in decision_input.caller.groups for name in decision_input.names_of(group)
    ),
    "user": lambda decision_input: decision_input.names_of(decision_input.caller.user),
    "cluster": lambda decision_input: (decision_input.cluster.name,),
    "auth_method": lambda decision_input: (decision_input.caller.method,),
    "issuer": lambda decision_input: (decision_input.caller.issuer,),
    "key_type": lambda decision_input: (decision_input.key_type,),
}
"""Functions that return an input's names, by kind. A rule's entries are compared with these names."""

# Functions that return an input's ids, by kind. A rule's entries without wildcards are also compared with these ids.
_IDS: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "group": lambda decision_input: tuple(group.id for group in decision_input.caller.groups),
    "user": lambda decision_input: (decision_input.caller.user.id,),
    "cluster": lambda decision_input: (decision_input.cluster.id,),
}

# Functions that return the values to display, by kind. Only for kinds for which `NAMED` returns several names of one
# object.
_SHOWN: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "group": lambda decision_input: tuple(group.shown_name for group in decision_input.caller.groups),
    "user": lambda decision_input: (decision_input.caller.user.shown_name,),
}


@dataclass(frozen=True, slots=True)
class InProject:
    """The cluster belongs to one of the projects. A name without a domain must be the name of only one project."""

    names: Names

    @property
    def clause(self) -> str:
        return f"project is {self.names.text}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        """Return the clause if it is false, else None. Raises ConditionFailed if several projects have the name."""
        cluster, project = decision_input.cluster, decision_input.cluster.project_name
        names = project.qualified_names if project is not None else ()
        bare = [name for name in names if project is not None and name == project.name]
        if self.names.match([name for name in names if name not in bare], (cluster.project_id,)):
            return None
        if not self.names.match(bare):
            return self.clause
        if project is not None and not project.is_unique:
            raise ConditionFailed(
                f"several projects are named {project.name}; write the id or DOMAIN/NAME: {self.clause}"
            )
        return None

    def found(self, decision_input: DecisionInput) -> str:
        project = decision_input.cluster.project_name
        return (decision_input.cluster.project_id, *(project.qualified_names if project is not None else ()))[
            -1
        ]


@dataclass(frozen=True, slots=True)
class HasLabel:
    """The cluster has a label with one of the values."""

    label: str
    values: Names

    @property
    def clause(self) -> str:
        return f"cluster label {self.label} is {self.values.text}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        value = decision_input.cluster.labels.get(self.label)
        return None if value is not None and self.values.match((value,)) else self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return decision_input.cluster.labels.get(self.label, "no such label")


@dataclass(frozen=True, slots=True)
class FromNetwork:
    """The request comes from one of the networks."""

    networks: tuple[IPNetwork, ...]

    @property
    def clause(self) -> str:
        return f"source is {' or '.join(map(str, self.networks))}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        try:
            address = ipaddress.ip_address(decision_input.caller.origin.address)
        except ValueError:
            # The address of requests from the command line is "local".
            address = None
        if address is not None:
            address = getattr(address, "ipv4_mapped", None) or address
            if any(address in network for network in self.networks):
                return None
        return self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return decision_input.caller.origin.address


@dataclass(frozen=True, slots=True)
class HasCsr:
    """The request has a certificate signing request."""

    clause: ClassVar[str] = "the request has a csr"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if decision_input.request.public_key is not None else self.clause

    def found(self, _: DecisionInput) -> str:
        return "no csr"


@dataclass(frozen=True, slots=True)
class HasReason:
    """The request has a reason."""

    clause: ClassVar[str] = "the request has a reason"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if decision_input.request.reason else self.clause

    def found(self, _: DecisionInput) -> str:
        return "no reason"


@dataclass(frozen=True, slots=True)
class ApprovalCondition:
    """What one approver of an access request must be. Each condition needs an approver of its own.

    Attributes:
        parts: conditions on the approver's roles and groups; all of them must be met.
    """

    parts: tuple[HasName, ...]

    @property
    def clause(self) -> str:
        return " and ".join(each.clause for each in self.parts)

    def is_met(self, names: Mapping[str, Values]) -> bool:
        """Whether an approver with these roles and groups meets the condition. The keys are `role` and `group`."""
        return all(each.names.match_prepared(names[each.what]) for each in self.parts)


@dataclass(frozen=True, slots=True)
class Offer:
    """The terms on which a rule's groups can be requested.

    Attributes:
        max_lifetime: the longest duration of the access, of its extension, and of a certificate.
        min_reason_length: the least number of characters in the request's reason.
        claim_within: how long after the approval the first certificate may be issued.
        approve_within: how long after the request the approvals must be complete.
        approvals: the conditions for the approvers.
        before_approval: whether the access may be used before the approval.
        uses_before_approval: how often a user may use such access to a cluster before an approval within 24 hours.
    """

    max_lifetime: timedelta
    min_reason_length: int
    claim_within: timedelta
    approve_within: timedelta
    approvals: tuple[ApprovalCondition, ...]
    before_approval: bool
    uses_before_approval: int

    @property
    def clauses(self) -> tuple[str, ...]:
        """The conditions for the approvers, in words."""
        return tuple(each.clause for each in self.approvals)

    def takes_approver(self, role: str) -> bool:
        """Whether a user with only this role can approve. Ignores conditions on groups."""
        return any(_take_role(each.parts, role) for each in self.approvals)

    def met_by(self, names: Mapping[str, Values]) -> frozenset[str]:
        """Return the clauses of the conditions that an approver meets; see `ApprovalCondition.is_met`."""
        return frozenset(each.clause for each in self.approvals if each.is_met(names))


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """If all conditions are met, the rule adds groups and limits the lifetime, or denies the request, or offers groups.

    Attributes:
        name: unique in the policy.
        groups: the groups that the rule grants or offers.
        max_lifetime: the limit of a rule that grants; None if only the policy limits the lifetime.
        default_lifetime: the lifetime for the duration -1; None for the longest lifetime allowed.
        deny: the message of a rule that denies; None for other rules.
        offer: the terms of a rule whose groups need an access request; None for other rules.
        declared: the rule in the form of the settings, as JSON values with lifetimes in seconds; for the audit event.
        private: the conditions that are shown only to callers who meet all of them, because the conditions can contain
            names of other users or projects. Empty if all conditions are on roles, or on things that the caller can
            choose.
        chosen: the clauses of the conditions on things that the caller can choose.
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
        return self.deny is None and _take_role(self.conditions, role)

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


def _take_role(conditions: Iterable[object], role: str) -> bool:
    """Whether this role alone meets all conditions on roles."""
    return all(each.names.match((role,)) for each in conditions if is_on_role(each))


def is_on_role(condition: object) -> TypeGuard[HasName]:
    return isinstance(condition, HasName) and condition.what == "role"


def is_chosen(condition: object) -> bool:
    """Whether the condition depends only on things that the caller can choose, such as the CSR or the reason."""
    return isinstance(condition, HasCsr | HasReason) or (
        isinstance(condition, HasName) and condition.what in _CHOSEN
    )


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
        """Return the match with a rule that grants the groups that were requested from it, before the other rules.

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
    skip its limits. So the order of the rules only decides which of several refusals the caller sees. A rule that
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
