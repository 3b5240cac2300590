"""Explains a decision: what each rule needs, which rule would allow the request, and what would be signed.

The outcome is that of `Policy.decide`, and the rules are compared by `match_rules`, as for a certificate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert.model import Caller, Cluster, Grant, IssueRequest, PolicyRule
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.model.policy import match_rules
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import MAX_LIFETIME_SETTING
from clustercert.policy.nearest_rule import NearestRule, nearest_rule
from clustercert.policy.rule_checks import RuleCheck, check_rules


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explained decision.

    Attributes:
        grant: what would be signed; None if the request is refused.
        error: the refusal; None if the request is allowed.
        rules: in order. Empty if the caller has no role in the project.
        nearest: None if the request is allowed, or if no change to the conditions of one rule would allow it.
        longest: the longest lifetime that the matching rules allow; zero if no rule grants.
        strictest: the rule that sets `longest`; None if `policy.max_lifetime` does.
        key_type: the type of the CSR's key, or of the key that would be generated; empty without a role.
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
    *,
    only_own: bool = False,
    adapt: Callable[[Grant], Grant] = lambda grant: grant,
) -> Explanation:
    """Explain the policy's decision.

    Args:
        only_own: leave out the rules that the caller may not see, and do not propose them as the nearest rule.
        adapt: changes the grant as issuing would, or raises ClustercertError.
    """

    def decide(rules: Sequence[PolicyRule], request: IssueRequest) -> Grant:
        return adapt(replace(policy, rules=tuple(rules)).decide(caller, cluster, request, now))

    grant, error = None, None
    try:
        grant = decide(policy.rules, request)
    except ClustercertError as refused:
        error = refused
    try:
        said = policy.input_of(caller, cluster, request, now)
    except NotFound:
        return Explanation(grant, error)
    match = match_rules(policy.rules, said)
    longest, strictest = policy.strictest(match.rules) if match.rules else (timedelta(), None)
    checks = tuple(check_rules(policy.rules, match, said))
    nearest = None
    if error is not None:
        limited_by = strictest.name if strictest is not None else MAX_LIFETIME_SETTING
        nearest = nearest_rule(checks, request, decide, limited_by=limited_by, only_own=only_own)
    return Explanation(
        grant=grant,
        error=error,
        rules=tuple(each for each in checks if each.is_own) if only_own else checks,
        nearest=nearest,
        longest=longest,
        strictest=strictest,
        key_type=said.key_type,
    )
