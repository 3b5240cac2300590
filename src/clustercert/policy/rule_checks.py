"""Compares each rule and each condition with a request, for explanations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.model import DecisionInput, PolicyRule
from clustercert.model.policy import Condition, ConditionFailed, Match
from clustercert.policy.refusal import shortened

RuleOutcome = Literal["grants", "denies", "fails", "does_not_match", "not_reached"]
"""What a rule does with a request. `fails`: an expression can't be evaluated, so the request is refused.

`not_reached`: a rule before it denies or fails.
"""


@dataclass(frozen=True, slots=True)
class ConditionCheck:
    """A rule's condition, compared with the request.

    Attributes:
        wanted: the condition in words, shortened.
        found: what the request has instead, shortened; empty if it can't be said in words.
        met: None if the condition can't be evaluated; `found` then says why.
    """

    condition: Condition
    wanted: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class RuleCheck:
    """A rule, compared with the request.

    Attributes:
        is_own: whether the user may see the rule; see `PolicyRule.is_own`.
    """

    rule: PolicyRule
    outcome: RuleOutcome
    conditions: tuple[ConditionCheck, ...]
    is_own: bool

    @property
    def unmet(self) -> tuple[ConditionCheck, ...]:
        """The conditions that are false or can't be evaluated."""
        return tuple(each for each in self.conditions if not each.met)


def check_rules(rules: Sequence[PolicyRule], match: Match, said: DecisionInput) -> Iterator[RuleCheck]:
    """Compare the rules with the input. `match` is the result of `match_rules` for them."""
    granting = {rule.name for rule in match.rules}
    for rule in rules:
        outcome: RuleOutcome = "not_reached"
        if rule.name in granting:
            outcome = "grants"
        elif rule is match.denied_by:
            outcome = "fails" if match.failure else "denies"
        elif rule.name in match.unmet:
            outcome = "does_not_match"
        yield RuleCheck(
            rule, outcome, tuple(_check(each, said) for each in rule.conditions), rule.is_own(said)
        )


def _check(condition: Condition, said: DecisionInput) -> ConditionCheck:
    wanted = shortened(condition.clause)
    try:
        met = condition.first_false(said) is None
    except ConditionFailed as failed:
        return ConditionCheck(condition, wanted, shortened(str(failed)), None)
    return ConditionCheck(condition, wanted, "" if met else shortened(condition.found(said)), met)
