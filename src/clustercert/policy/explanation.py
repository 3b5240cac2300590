"""Explains a policy decision: compares the conditions of each rule with the request."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from clustercert.model import Caller, Cluster, Grant, IssueRequest
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError, Forbidden, NotFound
from clustercert.policy.conditions import Condition, ConditionFailed, DecisionInput, HasName, is_chosen
from clustercert.policy.decision import Policy, shortened
from clustercert.policy.lifetime import BACKDATE, MAX_LIFETIME_SETTING, lifetime_text
from clustercert.policy.rules import Match, PolicyRule, match_rules, united_groups

RuleOutcome = Literal["grants", "offers", "denies", "fails", "does_not_match", "not_reached"]
"""What a rule does with a request. `offers`: the user can create an access request for the rule's groups.

`fails`: a condition can't be evaluated, so the request is refused. `not_reached`: an earlier rule denies or fails.
"""


@dataclass(frozen=True, slots=True)
class ConditionCheck:
    """A rule's condition, compared with the request.

    Attributes:
        wanted: the condition in words, shortened.
        found: the request's actual value, shortened; empty if it can't be described.
        met: whether the condition is true. None if the condition can't be evaluated; `found` then says why.
    """

    condition: Condition
    wanted: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class RuleCheck:
    """A rule, compared with the request.

    Attributes:
        is_visible: whether the user may see the rule; see `PolicyRule.is_visible_to`.
        groups: the certificate's Kubernetes groups that the rule gives; empty if there is no certificate. If the rule
            offers groups, the groups that can be requested.
    """

    rule: PolicyRule
    outcome: RuleOutcome
    conditions: tuple[ConditionCheck, ...]
    is_visible: bool
    groups: tuple[str, ...] = ()

    @property
    def unmet(self) -> tuple[ConditionCheck, ...]:
        """The conditions that are false or can't be evaluated."""
        return tuple(each for each in self.conditions if not each.met)


def check_rules(
    rules: Sequence[PolicyRule], match: Match, decision_input: DecisionInput
) -> Iterator[RuleCheck]:
    """Compare the rules with the input. `match` is the result of `match_rules` for the same rules."""
    granting = {rule.name for rule in match.rules}
    offering = {rule.name for rule in match.offers}
    for rule in rules:
        outcome: RuleOutcome = "not_reached"
        if rule.name in granting:
            outcome = "grants"
        elif rule.name in offering:
            outcome = "offers"
        elif rule is match.denied_by:
            outcome = "fails" if match.failure else "denies"
        elif rule.name in match.unmet:
            outcome = "does_not_match"
        yield RuleCheck(
            rule,
            outcome,
            tuple(_check(each, decision_input) for each in rule.conditions),
            rule.is_visible_to(decision_input),
            rule.groups if outcome == "offers" else (),
        )


def _check(condition: Condition, decision_input: DecisionInput) -> ConditionCheck:
    wanted = shortened(condition.clause)
    try:
        met = condition.first_false(decision_input) is None
    except ConditionFailed as failed:
        return ConditionCheck(condition, wanted, shortened(str(failed)), None)
    return ConditionCheck(condition, wanted, "" if met else shortened(condition.found(decision_input)), met)


Decide = Callable[[Sequence[PolicyRule], IssueRequest], Grant]

# The maximum number of rules to try in the search for the nearest rule. Trying a rule takes one or two policy
# decisions.
MAX_TRIED = 32
# Stands for the groups that a template would produce, if the caller has no values for the template's placeholders yet.
_SOME_GROUP = "group"
# Kinds of names that occur in conditions and also fill placeholders of templates.
_FILLED_IN = frozenset({"role", "group", "user"})


@dataclass(frozen=True, slots=True)
class NeededChange:
    """A change that would allow the request: what is needed, and what the request has now."""

    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class NearestRule:
    """The rule that would allow the request after the fewest changes.

    Attributes:
        rule: the rule's name. If only the lifetime must change, the name of the rule or setting that limits the
            lifetime.
    """

    rule: str
    changes: tuple[NeededChange, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """A condition whose result is known.

    Replaces a rule's original conditions, so that no condition is evaluated twice.
    """

    first: ConditionCheck

    @property
    def clause(self) -> str:
        return self.first.wanted

    def first_false(self, _: DecisionInput) -> str | None:
        if self.first.met is None:
            raise ConditionFailed(self.first.found)
        return self.first.wanted

    def found(self, _: DecisionInput) -> str:
        return self.first.found


def nearest_rule(
    checks: Sequence[RuleCheck],
    request: IssueRequest,
    decide: Decide,
    *,
    limited_by: str,
    requested: str | None = None,
    only_own: bool = False,
) -> NearestRule | None:
    """Return the rule that would allow the request after the fewest changes, or None.

    Considers only changes to the lifetime, and changes that meet all conditions of one granting rule. Ignores that such
    a change can also make other rules match.

    Args:
        checks: all rules, compared with the request.
        decide: decides a request by the given rules, for the same caller, cluster and time.
        limited_by: the name of the rule or setting that limits the lifetime.
        requested: the name of the rule that offers the access of the caller's access request. Rules that offer other
            access are not considered.
        only_own: consider only rules that the caller may see.
    """
    known = [_known(check) for check in checks]
    if change := _lifetime_change(known, request, decide):
        return NearestRule(limited_by, change)
    candidates = _candidates(checks, requested, only_own=only_own)
    for position in itertools.islice(candidates, MAX_TRIED):
        check = checks[position]
        tried = [*known[:position], _met(check), *known[position + 1 :]]
        change = _lifetime_change(tried, request, decide)
        if change is not None:
            changes = (*(NeededChange(each.wanted, each.found) for each in check.unmet), *change)
            return NearestRule(check.rule.name, changes)
    return None


def _candidates(checks: Sequence[RuleCheck], requested: str | None, *, only_own: bool) -> Iterator[int]:
    """Yield the positions of rules that could allow the request, sorted by the number of false conditions.

    If the numbers are equal, rules whose conditions the caller can choose to meet come first.
    """

    def distance(position: int) -> tuple[int, int]:
        unmet = checks[position].unmet
        return len(unmet), sum(not is_chosen(each.condition) for each in unmet)

    for position in sorted(range(len(checks)), key=distance):
        check = checks[position]
        grants = check.rule.grants or check.rule.name == requested
        gives = grants and (check.rule.groups or check.rule.templates)
        can_match = check.unmet and all(each.met is not None for each in check.unmet)
        if gives and can_match and (check.is_visible or not only_own):
            yield position


def _known(check: RuleCheck) -> PolicyRule:
    """Return the rule with its conditions replaced by their known results."""
    return replace(check.rule, conditions=tuple(_Known(each) for each in check.unmet[:1]))


def _met(check: RuleCheck) -> PolicyRule:
    """Return the rule without conditions, as if all of them were met."""
    fills_in = any(
        isinstance(each.condition, HasName) and each.condition.what in _FILLED_IN for each in check.unmet
    )
    if not (fills_in and check.rule.templates):
        return replace(check.rule, conditions=())
    return replace(check.rule, conditions=(), templates=(), groups=check.rule.groups or (_SOME_GROUP,))


def _lifetime_change(
    rules: Sequence[PolicyRule], request: IssueRequest, decide: Decide
) -> tuple[NeededChange, ...] | None:
    """Return the change of the lifetime that the rules require.

    Returns `()` if the rules allow the requested lifetime, and None if they refuse every lifetime.
    """
    try:
        decide(rules, request)
    except Forbidden as refused:
        requested = refused.trace.get("requested_not_after")
    except ClustercertError:
        return None
    else:
        return ()
    if requested is None:
        return None
    try:
        granted = decide(rules, replace(request, shorten=True))
    except ClustercertError:
        return None
    issued_at = granted.not_before + BACKDATE
    wanted = f"a lifetime of at most {lifetime_text(granted.not_after - issued_at)}"
    return (NeededChange(wanted, lifetime_text(datetime.fromisoformat(str(requested)) - issued_at)),)


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explained decision.

    Attributes:
        grant: what would be signed; None if the request is refused.
        error: the refusal; None if the request is allowed.
        rules: the checked rules, in order. Empty if the caller has no role in the project.
        nearest: the result of `nearest_rule`; None if the request is allowed, or if `nearest_rule` found no rule.
        longest: the longest lifetime that the matching rules allow; zero if no rule matches the request.
        strictest: the rule that sets `longest`; None if `policy.max_lifetime` sets it.
        key_type: the type of the CSR's key, or of the key that would be generated; empty if the caller has no role in
            the project.
    """

    grant: Grant | None
    error: ClustercertError | None
    rules: tuple[RuleCheck, ...] = ()
    nearest: NearestRule | None = None
    longest: timedelta = timedelta()
    strictest: PolicyRule | None = None
    key_type: str = ""


def explain(
    policy: Policy,
    caller: Caller,
    cluster: Cluster,
    request: IssueRequest,
    now: datetime,
    access: RequestedAccess | None = None,
    *,
    only_own: bool = False,
    adapt: Callable[[Grant], Grant] = lambda grant: grant,
) -> Explanation:
    """Explain the policy's decision.

    Args:
        access: the access of the caller's access request.
        only_own: leave out the rules that the caller may not see, and do not propose them as the nearest rule.
        adapt: a function that changes the grant in the same way as issuing does, or raises ClustercertError.
    """

    def decide(rules: Sequence[PolicyRule], request: IssueRequest) -> Grant:
        return adapt(replace(policy, rules=tuple(rules)).decide(caller, cluster, request, now, access))

    grant, error = None, None
    try:
        grant = decide(policy.rules, request)
    except ClustercertError as refused:
        error = refused
    try:
        decision_input = policy.input_of(caller, cluster, request, now)
    except NotFound:
        return Explanation(grant, error)
    match = match_rules(policy.rules, decision_input)
    decided = grant or error
    if access is not None and decided is not None and decided.trace.get("rule") == access.rule:
        match = match.with_requested(access.rule, access.groups)
    longest, strictest = policy.strictest(match.rules) if match.rules else (timedelta(), None)
    checks = tuple(check_rules(policy.rules, match, decision_input))
    nearest = None
    if grant is not None:
        granting = {rule.name: rule for rule in match.rules}
        checks = tuple(_with_groups(each, granting, grant, decision_input) for each in checks)
    if error is not None:
        limited_by = strictest.name if strictest is not None else MAX_LIFETIME_SETTING
        nearest = nearest_rule(
            checks,
            request,
            decide,
            limited_by=limited_by,
            requested=access.rule if access is not None else None,
            only_own=only_own,
        )
    return Explanation(
        grant=grant,
        error=error,
        rules=tuple(each for each in checks if each.is_visible) if only_own else checks,
        nearest=nearest,
        longest=longest,
        strictest=strictest,
        key_type=decision_input.key_type,
    )


def _with_groups(
    check: RuleCheck, granting: Mapping[str, PolicyRule], grant: Grant, decision_input: DecisionInput
) -> RuleCheck:
    """Add the groups of a rule that grants.

    Adds no groups if the cluster has ClusterRoles for rules, because certificates for such a cluster have no groups of
    the policy.
    """
    if check.outcome != "grants":
        return check
    given = united_groups((granting[check.rule.name],), decision_input, {})
    return replace(check, groups=tuple(each for each in given if each in grant.groups))
