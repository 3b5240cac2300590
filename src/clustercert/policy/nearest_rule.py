"""Finds the rule that would allow a refused request after the fewest changes."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.model import DecisionInput, Grant, IssueRequest, PolicyRule
from clustercert.model.errors import ClustercertError, Forbidden
from clustercert.model.policy import ConditionFailed, HasName, is_chosen
from clustercert.policy.lifetime import BACKDATE, lifetime_text
from clustercert.policy.rule_checks import ConditionCheck, RuleCheck

Decide = Callable[[Sequence[PolicyRule], IssueRequest], Grant]

# The maximum number of rules to try. Each of them costs a decision.
MAX_TRIED = 32
# A placeholder for the groups of a template for which the caller has no values yet.
_SOME_GROUP = "group"
# Kinds of names in conditions that also fill placeholders of templates.
_FILLED_IN = frozenset({"role", "group", "user"})


@dataclass(frozen=True, slots=True)
class Change:
    """Something that must change for the request to be allowed: what is needed, and what the request has."""

    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class NearestRule:
    """The rule that would allow the request after the fewest changes.

    Attributes:
        rule: its name; if only the lifetime must change, the name of the rule or setting that limits it.
    """

    rule: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """The known result of a rule's conditions, so that they are evaluated only once."""

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
    checks: Sequence[RuleCheck], request: IssueRequest, decide: Decide, *, limited_by: str, only_own: bool
) -> NearestRule | None:
    """Return the rule, or None if no change to the lifetime and to one rule's conditions would allow the request.

    A change can also make other rules match. This is not taken into account.

    Args:
        checks: all rules, compared with the request.
        decide: decides by other rules, for the same caller, cluster and time.
        limited_by: the name of the rule or setting that limits the lifetime.
        only_own: consider only rules that the caller may see.
    """
    known = [_known(check) for check in checks]
    if change := _lifetime_change(known, request, decide):
        return NearestRule(limited_by, change)
    for position in itertools.islice(_candidates(checks, only_own=only_own), MAX_TRIED):
        check = checks[position]
        tried = [*known[:position], _met(check), *known[position + 1 :]]
        change = _lifetime_change(tried, request, decide)
        if change is not None:
            changes = (*(Change(each.wanted, each.found) for each in check.unmet), *change)
            return NearestRule(check.rule.name, changes)
    return None


def _candidates(checks: Sequence[RuleCheck], *, only_own: bool) -> Iterator[int]:
    """Yield the positions of rules that could allow the request, those with the fewest false conditions first.

    Of rules with the same number, those whose conditions the caller can choose to meet come first.
    """

    def distance(position: int) -> tuple[int, int]:
        unmet = checks[position].unmet
        return len(unmet), sum(not is_chosen(each.condition) for each in unmet)

    for position in sorted(range(len(checks)), key=distance):
        check = checks[position]
        gives = check.rule.deny is None and (check.rule.groups or check.rule.templates)
        can_match = check.unmet and all(each.met is not None for each in check.unmet)
        if gives and can_match and (check.is_own or not only_own):
            yield position


def _known(check: RuleCheck) -> PolicyRule:
    """Return the rule with the known result of its conditions."""
    return replace(check.rule, conditions=tuple(_Known(each) for each in check.unmet[:1]))


def _met(check: RuleCheck) -> PolicyRule:
    """Return the rule as if its conditions were met."""
    fills_in = any(
        isinstance(each.condition, HasName) and each.condition.what in _FILLED_IN for each in check.unmet
    )
    if not (fills_in and check.rule.templates):
        return replace(check.rule, conditions=())
    return replace(check.rule, conditions=(), templates=(), groups=check.rule.groups or (_SOME_GROUP,))


def _lifetime_change(
    rules: Sequence[PolicyRule], request: IssueRequest, decide: Decide
) -> tuple[Change, ...] | None:
    """Return the lifetime that the rules require, or `()` if the requested one is allowed. None: they refuse both."""
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
        granted = decide(rules, replace(request, truncate=True))
    except ClustercertError:
        return None
    issued_at = granted.not_before + BACKDATE
    wanted = f"a lifetime of at most {lifetime_text(granted.not_after - issued_at)}"
    return (Change(wanted, lifetime_text(datetime.fromisoformat(str(requested)) - issued_at)),)
