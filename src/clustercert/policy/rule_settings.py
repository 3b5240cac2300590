"""Settings of policy rules, and their conversion to `PolicyRule`."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from clustercert.model import ClusterOptions, KeyType
from clustercert.model.kubernetes import SERVICE
from clustercert.model.name_patterns import Names, is_pattern
from clustercert.policy.conditions import (
    NAMED,
    Condition,
    FromNetwork,
    HasCsr,
    HasLabel,
    HasName,
    HasReason,
    InProject,
)
from clustercert.policy.decision import Policy
from clustercert.policy.examples import ExampleSettings
from clustercert.policy.expressions import Expression
from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.policy.offers import Approval, Offer
from clustercert.policy.rules import PolicyRule, groups_and_templates
from clustercert.policy.setting_types import (
    AuthMethodName,
    ExpressionText,
    GroupList,
    Message,
    NameList,
    Network,
    RuleFault,
    RuleLifetime,
    Section,
    SystemName,
    TrueOrFalse,
    UserNameText,
    VisibleText,
)
from clustercert.policy.templates import (
    GroupTemplate,
    UserNameTemplate,
    exempted_template,
    is_template,
    name_problem,
)


class WhenSettings(Section):
    """`when` in `[[policy.rules]]`: conditions of a rule.

    The rule matches if all given fields match. A list matches if one of its values matches. In names, `*` stands for
    any characters and `?` for one character. Ids must be written in full. An empty `when` matches every member of the
    project.

    Attributes:
        roles: the caller's roles in the cluster's project.
        groups, users: ids, names, or names with their domain, such as `Default/alice`.
        projects: ids, names with their domain, such as `Default/eu-de`, or names that only one project has.
        clusters: ids or names.
        cluster_labels: a table of labels with lists of values; the cluster must have every label.
        auth_methods: `token`, `access_key`, `oidc`, `cli` (a command on the service's machine); for callers from
            Keystone: `keystone` (a token), `keystone_app` (a token of an application credential), `keystone_key` (an
            access key).
        issuers: who authenticated the caller: `built-in` for the built-in identity service, else the URL of an OIDC
            issuer or of Keystone.
        sources: networks from which the request comes, such as `10.0.0.0/8`.
        cel: an expression in CEL of at most 4 KiB; see [Expressions](policy.md#expressions). Needs
            `clustercert[policy]`.
    """

    roles: NameList | None = None
    groups: NameList | None = None
    users: NameList | None = None
    projects: NameList | None = None
    clusters: NameList | None = None
    cluster_labels: dict[str, NameList] | None = Field(default=None, min_length=1)
    auth_methods: Annotated[tuple[AuthMethodName, ...], Field(min_length=1)] | None = None
    issuers: NameList | None = None
    sources: Annotated[tuple[Network, ...], Field(min_length=1)] | None = None
    cel: ExpressionText | None = None

    def conditions(self) -> Iterator[Condition]:
        """Yield all conditions except `projects` and `cel`, the cheapest first."""
        for what in NAMED:
            if (names := getattr(self, f"{what}s", None)) is not None:
                yield HasName(what, Names(names))
        for label, values in (self.cluster_labels or {}).items():
            yield HasLabel(label, Names(values))
        if self.sources is not None:
            yield FromNetwork(self.sources)


class GrantSettings(Section):
    """`grant` in `[[policy.rules]]`: what a matching rule grants.

    Attributes:
        groups: Kubernetes groups, at most 32. The placeholders `{group}`, `{group.id}`, `{role}`, `{user.id}`,
            `{project.id}` and `{cluster.name}` are replaced by their values.
        max_lifetime: longest lifetime of a certificate, 5m to 1827d. The shortest limit of all matching rules and of
            `policy.max_lifetime` applies.
        default_lifetime: lifetime if the duration -1 is requested. By default, the longest lifetime allowed. If several
            rules match, the shortest `default_lifetime` applies.
        key_types: the rule matches only if the certificate's key has one of these types. Without a CSR, the key has the
            type `issuing.key_type`.
        csr_required: the rule matches only requests with a CSR.
        reason_required: the rule matches only requests with a reason. A reason of only white space does not count.
    """

    groups: GroupList = ()
    max_lifetime: RuleLifetime | None = None
    default_lifetime: RuleLifetime | None = None
    key_types: tuple[KeyType, ...] | None = Field(default=None, min_length=1)
    csr_required: TrueOrFalse = False
    reason_required: TrueOrFalse = False

    @model_validator(mode="after")
    def _default_is_within_the_limit(self) -> Self:
        if self.max_lifetime is not None and (self.default_lifetime or self.max_lifetime) > self.max_lifetime:
            raise RuleFault("default_lifetime is longer than max_lifetime; shorten it", "default_lifetime")
        return self

    def conditions(self) -> Iterator[Condition]:
        if self.csr_required:
            yield HasCsr()
        if self.reason_required:
            yield HasReason()
        if self.key_types is not None:
            yield HasName("key_type", Names(self.key_types))


class RuleSettings(Section):
    """`[[policy.rules]]`: what callers may request. The order of rules does not affect decisions.

    A rule has the table `when` with its conditions, and one of `grant`, `deny` and `offer`.

    Attributes:
        name: unique name. By default, the rule's position, such as `rule-2`. `--credential-role` does not accept such a
            default name, and a rule with `offer` needs a name.
        grant: what the rule grants. See below.
        deny: refuse the request with this message.
        offer: groups that a user gets for a time, after a request. See below.
    """

    name: VisibleText = Field(default="", max_length=64)
    when: WhenSettings = WhenSettings()
    grant: GrantSettings | None = None
    deny: Message | None = Field(default=None, max_length=500)
    offer: Offer | None = None

    @model_validator(mode="after")
    def _has_one_effect(self) -> Self:
        effects = [name for name in ("grant", "deny", "offer") if getattr(self, name) is not None]
        if len(effects) != 1:
            raise RuleFault("a rule needs exactly one of grant, deny and offer", *effects[1:2])
        if self.offer is not None and not self.name:
            raise RuleFault("a rule that offers groups needs a name; set the field name", "name")
        return self

    @property
    def granted_groups(self) -> tuple[str, ...]:
        """The names and templates of groups that the rule grants or offers."""
        source = self.grant or self.offer
        return source.groups if source is not None else ()

    @property
    def named_roles(self) -> tuple[str, ...]:
        """The names and patterns of roles in the conditions on callers and approvers."""
        approvers = (each.role for each in self._approvals if each.role is not None)
        return (*(self.when.roles or ()), *approvers)

    @property
    def named_groups(self) -> tuple[str, ...]:
        """The ids, names and patterns of users' groups in the conditions on callers and approvers."""
        approvers = (group for each in self._approvals for group in each.groups or ())
        return (*(self.when.groups or ()), *approvers)

    @property
    def _approvals(self) -> tuple[Approval, ...]:
        return self.offer.approvals if self.offer is not None else ()

    @property
    def tested_role(self) -> str | None:
        """A role that alone makes the rule match and grant a group, or None.

        The command `kubernetes verify` uses this role.

        The result is None for rules with only templates, because a template grants no group if the user has no value
        for a placeholder. The result is also None for rules with `{user.id}`, because the user id of `kubernetes
        verify` contains a colon, and templates reject values with colons.
        """
        groups, roles = self.granted_groups, self.when.roles
        if all(map(is_template, groups)) or any("{user.id}" in each for each in groups):
            return None
        if self.grant is None or list(self.grant.conditions()) or not roles or is_pattern(roles[0]):
            return None
        return None if self.when.model_fields_set - {"roles"} else roles[0]

    def rule(self) -> PolicyRule:
        """Convert these settings to a policy rule with its conditions."""
        when, grant = self.when, self.grant or GrantSettings()
        conditions = [*when.conditions(), *grant.conditions()]
        # Put the conditions `projects` and `cel` last, so that they are evaluated only if all other conditions are met:
        # if one of the two can't be evaluated, the request is refused.
        if when.projects is not None:
            conditions.append(InProject(Names(when.projects)))
        if when.cel is not None:
            conditions.append(Expression(when.cel))
        named = {
            what: Names(names) for what in ("roles", "groups") if (names := getattr(when, what)) is not None
        }
        return PolicyRule(
            name=self.name,
            conditions=tuple(conditions),
            groups=tuple(group for group in self.granted_groups if not is_template(group)),
            templates=tuple(GroupTemplate(group, **named) for group in grant.groups if is_template(group)),
            max_lifetime=grant.max_lifetime,
            default_lifetime=grant.default_lifetime,
            deny=self.deny,
            offer=self.offer,
            declared=self.model_dump(mode="json", exclude_defaults=True),
        )


_ROLE_GROUPS = tuple(
    RuleSettings(name=role, when=WhenSettings(roles=(role,)), grant=GrantSettings(groups=(group,)))
    for role, group in (
        ("admin", "clustercert:admins"),
        ("member", "clustercert:editors"),
        ("reader", "clustercert:viewers"),
    )
)


class PolicySettings(Section):
    """`[policy]`: which certificates callers may request.

    Attributes:
        role_groups: whether the roles `admin`, `member` and `reader` give groups. By default, only if `rules` is not
            set. An empty list counts as set. See [Groups by role](policy.md#groups-by-role).
        max_lifetime: longest lifetime of any certificate, 5m to 1827d. Rules can only shorten this lifetime.
        username: template of the user name in all certificates, with `{user.name}`, `{user.id}` or `{user.domain}`. By
            default, the user's id. See [User names](policy.md#user-names).
        file: a TOML file with the fields of `[policy]`, and the tables `[[rules]]` and `[[examples]]`. If `file` is
            given, the other fields must not be set in `[policy]`.
        allow_system: names beginning with `system:` that certificates may contain. Members of `system:masters` bypass
            every authorizer of a cluster, and their access can't be revoked. Templates never produce names beginning
            with `system:`.
        rules: what callers may request. See [Fields of a rule](policy.md#fields-of-a-rule).
        examples: decisions that the policy must make. See [Examples](policy.md#examples).
    """

    role_groups: TrueOrFalse | None = None
    max_lifetime: RuleLifetime = MAX_LIFETIME
    username: UserNameText | None = None
    file: Path | None = None
    allow_system: frozenset[SystemName] = frozenset()
    rules: tuple[RuleSettings, ...] | None = Field(default=None, max_length=1000)
    examples: tuple[ExampleSettings, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [rule.name for rule in self.all_rules]
        for number, rule in enumerate(self.named_rules):
            if names.count(rule.name) > 1:
                by_role = (
                    " role_groups has rules named admin, member and reader." if self.has_role_groups else ""
                )
                raise RuleFault(
                    f"two rules have the name {rule.name}; give each rule its own.{by_role}",
                    *("rules", number, "name"),
                )
        return self

    @model_validator(mode="after")
    def _names_can_be_issued(self) -> Self:
        for number, rule in enumerate(self.rules or ()):
            for group in rule.granted_groups:
                # Names from templates are checked when the placeholders are filled in.
                if is_template(group):
                    continue
                problem = name_problem(group, self.allow_system)
                if group.casefold() == SERVICE:
                    # Members of the service's own group have the same rights as the service.
                    problem = f"{group} is reserved for this service."
                if problem is not None:
                    effect = "offer" if rule.offer is not None else "grant"
                    raise RuleFault(problem, "rules", number, effect, "groups")
        return self

    @model_validator(mode="after")
    def _examples_have_names_of_their_own(self) -> Self:
        names = [example.name for example in self.examples]
        rules = {rule.name for rule in self.all_rules}
        offers = {rule.name for rule in self.all_rules if rule.offer is not None}
        for number, example in enumerate(self.examples):
            at = ("examples", number)
            if names.index(example.name) < number:
                raise RuleFault(f"two examples have the name {example.name}; rename one", *at, "name")
            if (rule := example.expects.refused_by) is not None and rule not in rules:
                raise RuleFault(f"no rule has the name {rule}; correct it", *at, "expects", "refused_by")
            if unknown := set(example.expects.offers or ()) - offers:
                raise RuleFault(
                    f"no rule named {min(unknown)} offers groups; correct it", *at, "expects", "offers"
                )
            access = example.request.access
            if access is not None and access.rule not in offers:
                raise RuleFault(
                    f"no rule named {access.rule} offers groups", *at, "request", "access", "rule"
                )
        return self

    @property
    def named_rules(self) -> tuple[RuleSettings, ...]:
        """The rules in `policy.rules`. A rule without a name gets a name from its position."""
        return tuple(
            rule if rule.name else rule.model_copy(update={"name": f"rule-{number + 1}"})
            for number, rule in enumerate(self.rules or ())
        )

    @property
    def all_rules(self) -> tuple[RuleSettings, ...]:
        """The rules in `policy.rules`, followed by the rules that `role_groups` adds."""
        return (*self.named_rules, *(_ROLE_GROUPS if self.has_role_groups else ()))

    @property
    def has_role_groups(self) -> bool:
        """Whether roles give groups: by default only if `rules` is not set. An empty list `rules` counts as set."""
        return self.rules is None if self.role_groups is None else self.role_groups

    @property
    def is_unwritten(self) -> bool:
        """Whether the settings have neither `role_groups` nor `rules`, not even an empty list."""
        return self.role_groups is None and self.rules is None

    def policy(self, key_type: str = "ec-p256", issuer_names: frozenset[str] = frozenset()) -> Policy:
        """Return the policy. The arguments come from settings outside of `[policy]`; see the class `Policy`."""
        return Policy(
            tuple(rule.rule() for rule in self.all_rules),
            self.allow_system,
            key_type,
            self.max_lifetime,
            UserNameTemplate(self.username) if self.username is not None else None,
            issuer_names,
        )


def positional_names(policy: PolicySettings) -> frozenset[str]:
    """Return the names of rules without a name in the settings, such as `rule-2`."""
    return frozenset(
        named.name
        for given, named in zip(policy.rules or (), policy.named_rules, strict=True)
        if not given.name
    )


def credential_rule_problem(names: Collection[str], policy: PolicySettings) -> str | None:
    """Return why a rule can't have a ClusterRole for credentials (it does not exist or has no name), or None."""
    if unknown := set(names) - {rule.name for rule in policy.all_rules}:
        return f"The policy has no rule {', '.join(sorted(unknown))}. Correct the name, or add the rule to the policy."
    if by_position := set(names) & positional_names(policy):
        return (
            f"The name {min(by_position)} depends on the rule's position, so a change of the policy could give the"
            " rule's ClusterRole to other users. Set the rule's name in [[policy.rules]]."
        )
    return None


def effective_exemptions(before: ClusterOptions, after: ClusterOptions) -> tuple[str, ...]:
    """Return the exemptions that a change makes effective: new ones, or all if the mode changes to `known-only`."""
    is_switched_on = after.mode == "known-only" != before.mode
    return tuple(each for each in after.exemptions if is_switched_on or each not in before.exemptions)


def exemption_problem(
    patterns: Iterable[str], policy: PolicySettings, *, for_operator: bool = True
) -> str | None:
    """Return a message about a pattern that could exempt a group from the policy's templates, or None.

    The message shows the template only to operators.
    """
    groups = groups_and_templates(policy.policy().rules)
    for pattern in patterns:
        if template := exempted_template(pattern, groups):
            if not for_operator:
                return f"{pattern} could exempt a group that the policy gives. Ask an operator."
            return (
                f"{pattern} could exempt a group that the policy's template {template} gives. Let the"
                " template"
                " begin with a prefix, such as team:{group}."
            )
    return None
