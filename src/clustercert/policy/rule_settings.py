"""Policy rules as written in TOML, and their conversion to `PolicyRule`."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from clustercert.model import JsonObject, KeyType
from clustercert.model.kubernetes import SERVICE
from clustercert.model.name_patterns import Names, is_pattern
from clustercert.model.policy import (
    NAMED,
    Condition,
    FromNetwork,
    HasCsr,
    HasLabel,
    HasName,
    HasReason,
    PolicyRule,
)
from clustercert.policy.decision import Policy
from clustercert.policy.example_settings import ExampleSettings
from clustercert.policy.expressions import Expression
from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.policy.names import name_problem
from clustercert.policy.setting_types import (
    AuthMethodName,
    ExpressionText,
    GroupList,
    NameList,
    Network,
    RuleFault,
    RuleLifetime,
    Section,
    UserNameText,
)
from clustercert.policy.templates import GroupTemplate, UserNameTemplate, is_template


class WhenSettings(Section):
    """`when` in `[[policy.rules]]`: all fields that are given must match for the rule to match.

    In a list, one match is enough. `*` stands for any characters of a name, `?` for one. An id matches only if it is
    written out. An empty `when` matches every member of the project.

    Attributes:
        roles: the caller's roles in the project.
        groups, users: ids, names, or names with their domain, such as `Default/alice`.
        projects: project ids.
        clusters: ids or names.
        cluster_labels: a table of labels with lists of values; the cluster must have every label.
        auth_methods: how the caller authenticated: `token`, `access_key`, `oidc`, or `keystone` for a token,
            `keystone_app` for one of an application credential, `keystone_key` for an access key of Keystone.
        issuers: who authenticated the caller: `built-in` for the built-in identity, else the URL of an OIDC issuer or
            of Keystone.
        sources: networks, such as `10.0.0.0/8`, that the request comes from.
        cel: an expression in CEL of at most 4 KiB; see [policy.md](policy.md). Needs `clustercert[policy]`.
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
        """Yield the conditions without `cel`, the cheapest first."""
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
        groups: Kubernetes groups, at most 32. `{group}`, `{group.id}`, `{role}`, `{user.id}`, `{project.id}`,
            `{cluster.id}` and `{cluster.name}` are filled in.
        username: the certificate's user name, with `{user.name}`, `{user.id}` or `{user.domain}`. By default, the
            user's id. Of several matching rules, the first with a user name counts.
        max_lifetime: longest lifetime of a certificate, 15m to 1827d. Of several matching rules, the shortest counts.
        default_lifetime: lifetime for the duration -1. By default, the longest.
        key_types: the rule matches only if the key has one of these types.
        csr_required: the rule matches only requests with a CSR.
        reason_required: the rule matches only requests with a reason.
    """

    groups: GroupList = ()
    username: UserNameText | None = None
    max_lifetime: RuleLifetime = MAX_LIFETIME
    default_lifetime: RuleLifetime | None = None
    key_types: tuple[KeyType, ...] | None = Field(default=None, min_length=1)
    csr_required: bool = False
    reason_required: bool = False

    def conditions(self) -> Iterator[Condition]:
        if self.csr_required:
            yield HasCsr()
        if self.reason_required:
            yield HasReason()
        if self.key_types is not None:
            yield HasName("key_type", Names(self.key_types))


class RuleSettings(Section):
    """`[[policy.rules]]`: what callers may request, in order.

    The grants of all matching rules are combined, see [policy.md](policy.md). The short form for a role has the fields
    `role`, `groups` and `max_lifetime`. The full form has `when`, and either `grant` or `deny`.

    Attributes:
        name: unique name. By default the role's name, or the rule's position, such as `rule-2`.
            `--credential-role` refuses a position.
        role: short form of `when.roles` for one role; `final` is true by default.
        groups: short form of `grant.groups`.
        max_lifetime: short form of `grant.max_lifetime`.
        when: conditions. See below.
        grant: what the rule grants. See below.
        deny: refuse the request with this message.
        final: if the rule matches, ignore the rules after it. By default false, but true in the short form.
    """

    name: str = Field(default="", max_length=64)
    role: str | None = Field(default=None, min_length=1, max_length=64)
    groups: Annotated[GroupList, Field(min_length=1)] | None = None
    max_lifetime: RuleLifetime | None = None
    when: WhenSettings | None = None
    grant: GrantSettings | None = None
    deny: str | None = Field(default=None, min_length=1, max_length=500)
    final: bool | None = None

    @model_validator(mode="after")
    def _is_in_one_form(self) -> Self:
        full = {"when": self.when, "grant": self.grant, "deny": self.deny}
        if self.role is not None:
            if given := [name for name, value in full.items() if value is not None]:
                raise RuleFault("a rule with role can't have when, grant or deny", given[0])
            if self.groups is None:
                raise RuleFault("a rule with role needs groups", "role")
            return self
        for name in ("groups", "max_lifetime"):
            if getattr(self, name) is not None:
                raise RuleFault(f"{name} needs a role; in a rule without role, use grant.{name}", name)
        if (self.grant is None) == (self.deny is None):
            raise RuleFault(
                "a rule needs role and groups, or grant, or deny", *(["deny"] if self.deny else [])
            )
        return self

    @property
    def granted_groups(self) -> tuple[str, ...]:
        """The groups and templates of either form."""
        return self.groups or (self.grant.groups if self.grant is not None else ())

    @property
    def tested_role(self) -> str | None:
        """A role that is enough for the rule to match and to grant a group, or None.

        A template may grant no group: the user may have none for `{group}`. Templates reject the user id of
        `kubernetes verify`, because it has a colon.
        """
        if all(map(is_template, self.granted_groups)) or any(
            "{user.id}" in each for each in self.granted_groups
        ):
            return None
        if self.role is not None:
            return self.role
        roles = self.when.roles if self.when is not None else None
        if self.deny is not None or not roles or is_pattern(roles[0]):
            return None
        others = self.when.model_fields_set - {"roles"} if self.when is not None else set()
        return None if others or (self.grant is not None and list(self.grant.conditions())) else roles[0]

    def rule(self) -> PolicyRule:
        """Return the rule with its conditions."""
        when, grant = self.when or WhenSettings(), self.grant or GrantSettings()
        conditions = [*when.conditions(), *grant.conditions()]
        if self.role is not None:
            conditions.append(HasName("role", Names((self.role,), wildcards=False)))
        if when.cel is not None:
            # Last, because an expression that fails refuses the request if all other conditions are met.
            conditions.append(Expression(when.cel))
        named = {
            what: Names(names) for what in ("roles", "groups") if (names := getattr(when, what)) is not None
        }
        return PolicyRule(
            name=self.name,
            conditions=tuple(conditions),
            groups=tuple(group for group in self.granted_groups if not is_template(group)),
            templates=tuple(
                GroupTemplate(group, **named) for group in self.granted_groups if is_template(group)
            ),
            max_lifetime=self.max_lifetime or grant.max_lifetime,
            default_lifetime=grant.default_lifetime,
            username=UserNameTemplate(grant.username) if grant.username is not None else None,
            deny=self.deny,
            final=self.role is not None if self.final is None else self.final,
            declared=self._declared(),
        )

    def _declared(self) -> JsonObject:
        said: JsonObject = self.model_dump(mode="json", exclude_defaults=True)
        if self.role is not None:
            # The form from before rules had names, so that the digest of such a policy stays the same.
            said["max_lifetime"] = int((self.max_lifetime or MAX_LIFETIME).total_seconds())
            if self.name == self.role:
                del said["name"]
        return said


def named_rules(rules: Iterable[RuleSettings]) -> tuple[RuleSettings, ...]:
    """Name the rules that have no name. Raises RuleFault if two rules have the same name."""
    given = tuple(rules)
    names = [rule.name for rule in given if rule.name]
    named = []
    for number, rule in enumerate(given):
        if not rule.name:
            name = rule.role if rule.role is not None and rule.role not in names else f"rule-{number + 1}"
            names.append(name)
            named.append(rule.model_copy(update={"name": name}))
            continue
        named.append(rule)
    for number, rule in enumerate(named):
        if names.count(rule.name) > 1:
            raise RuleFault(
                f"two rules have the name {rule.name}; give each rule its own", "rules", number, "name"
            )
    return tuple(named)


_ADMINS, _EDITORS, _VIEWERS = "clustercert:admins", "clustercert:editors", "clustercert:viewers"
_ROLES = {"admin": _ADMINS, "member": _EDITORS, "reader": _VIEWERS}


def _for_roles(lifetime: timedelta) -> tuple[RuleSettings, ...]:
    return tuple(
        RuleSettings(role=role, groups=(group,), max_lifetime=lifetime) for role, group in _ROLES.items()
    )


def _for_roles_by_csr(lifetime: timedelta) -> tuple[RuleSettings, ...]:
    return tuple(
        RuleSettings(
            name=role,
            when=WhenSettings(roles=(role,)),
            grant=GrantSettings(groups=(group,), max_lifetime=lifetime, csr_required=True),
            final=True,
        )
        for role, group in _ROLES.items()
    )


Preset = Literal["contract", "cce", "production", "strict"]

PRESETS: Mapping[Preset, tuple[RuleSettings, ...]] = {
    "contract": _for_roles(MAX_LIFETIME),
    "cce": (RuleSettings(name="cce", grant=GrantSettings(groups=("{group.id}",)), final=True),),
    "production": _for_roles(timedelta(hours=24)),
    "strict": _for_roles_by_csr(timedelta(hours=8)),
}


class PolicySettings(Section):
    """`[policy]`: which certificates callers may request.

    Attributes:
        preset: rules that apply after those below; `contract` if there are no rules. See [policy.md](policy.md).
        file: a TOML file with `preset`, `allow_system`, `[[rules]]` and `[[examples]]`, which then must not
            be set here.
        allow_system: names beginning with `system:` that may be issued. Members of `system:masters` bypass every
            authorizer of a cluster, and can't be revoked. Templates never produce such a name.
        rules: see below.
        examples: decisions that the policy must make. See below, and [policy.md](policy.md#examples).
    """

    preset: Preset | None = None
    file: Path | None = None
    allow_system: frozenset[str] = frozenset()
    rules: tuple[RuleSettings, ...] | None = Field(default=None, max_length=1000)
    examples: tuple[ExampleSettings, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _names_can_be_issued(self) -> Self:
        named_rules(self.all_rules)
        for number, rule in enumerate(self.rules or ()):
            for group in rule.granted_groups:
                # Templates are checked when they are filled in.
                if is_template(group):
                    continue
                problem = name_problem(group, self.allow_system)
                if group == SERVICE:
                    # Its members have the rights of this service.
                    problem = f"{group} is reserved for this service."
                if problem is not None:
                    raise RuleFault(problem, "rules", number, *([] if rule.groups else ["grant"]), "groups")
        return self

    @model_validator(mode="after")
    def _examples_have_names_of_their_own(self) -> Self:
        names = [example.name for example in self.examples]
        rules = {rule.name for rule in self.all_rules}
        for number, example in enumerate(self.examples):
            if names.index(example.name) < number:
                raise RuleFault(f"two examples have the name {example.name}", "examples", number, "name")
            if (rule := example.expects.refused_by) is not None and rule not in rules:
                raise RuleFault(f"no rule has the name {rule}", "examples", number, "expects", "refused_by")
        return self

    @property
    def all_rules(self) -> tuple[RuleSettings, ...]:
        """The rules, then those of the preset, all with names. A preset's rule never takes another rule's name."""
        own, preset = named_rules(self.rules or ()), self.effective_preset
        if preset is None:
            return own
        taken = {rule.name for rule in own}
        following = []
        for rule in PRESETS[preset]:
            name = rule.name or str(rule.role)
            following.append(rule.model_copy(update={"name": f"{preset}-{name}" if name in taken else name}))
        return named_rules((*own, *following))

    @property
    def effective_preset(self) -> Preset | None:
        """The preset that applies: `contract` if the settings have no `rules`. An empty list gives nobody access."""
        return "contract" if self.is_unwritten else self.preset

    @property
    def is_unwritten(self) -> bool:
        """Whether the settings have neither a preset nor rules, not even an empty list."""
        return self.preset is None and self.rules is None

    def policy(self, key_type: str = "ec-p256") -> Policy:
        """Return the policy. `key_type` is the type of keys that the service generates."""
        return Policy(tuple(rule.rule() for rule in self.all_rules), self.allow_system, key_type)
