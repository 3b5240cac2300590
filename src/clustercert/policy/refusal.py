"""Messages for callers to whom the policy denies a certificate."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from clustercert.model import JsonObject
from clustercert.model.errors import Forbidden
from clustercert.model.policy import (
    MAX_GROUPS,
    MAX_TRACED,
    DecisionInput,
    Match,
    PolicyRule,
    is_chosen,
    is_on_role,
)
from clustercert.policy.lifetime import MAX_DAYS, MAX_LIFETIME_SETTING, SHORTEN, lifetime_text

# The maximum number of rules that a message names.
MAX_NAMED = 3
# The maximum number of characters of a condition in a trace.
MAX_CLAUSE = 200


CA_EXPIRED = "The cluster's client CA has expired. Ask the operator to rotate it."


def lifetime_refusal(
    requested: timedelta, longest: timedelta, rule: PolicyRule | None, ca_end: datetime | None
) -> str:
    """Return the message about a lifetime that exceeds the limit of a rule, of the policy, or the end of the CA."""
    name = f"rule {rule.name}" if rule is not None else MAX_LIFETIME_SETTING
    limit = f"the limit of {name} ({lifetime_text(longest)})"
    if ca_end is not None:
        limit = f"the end of the cluster's client CA ({ca_end:%Y-%m-%d %H:%M:%S} UTC)"
    return f"The requested lifetime ({lifetime_text(requested)}) exceeds {limit}. {SHORTEN}"


def expire_at_problem(now: datetime) -> str:
    return (
        f"expire_at: must be 15 minutes to 5 years ({MAX_DAYS} days) ahead;"
        f" the time is {now:%Y-%m-%d %H:%M:%S} +0000 UTC."
    )


def group_count_refusal(count: int) -> str:
    given = f"more than {MAX_GROUPS}" if count > MAX_GROUPS else count
    return f"The policy gives you {given} Kubernetes groups; a certificate has 1 to {MAX_GROUPS}. Ask the operator."


def refusal(
    rules: Sequence[PolicyRule], match: Match, said: DecisionInput, own: Mapping[str, str], trace: JsonObject
) -> Forbidden:
    """Return the error if no rule grants a certificate.

    The message and the trace have only `own`, the unmet clauses of rules that the caller may see: project admins can
    read the trace. The log line has those of all rules.
    """
    if (rule := match.denied_by) is not None:
        trace["denied_by"] = rule.name
        failure = {rule.name: shortened(match.failure)} if match.failure else {}
        fails = f"The policy's rule {rule.name} can't be evaluated for this request. Ask the operator."
        return Forbidden(rule.deny or fails, trace=trace, unmet_conditions=failure)
    trace["unmet_conditions"] = {name: shortened(clause) for name, clause in own.items()}
    first = itertools.islice(match.unmet.items(), MAX_TRACED)
    every = {name: shortened(clause) for name, clause in first}
    return Forbidden(_message(rules, own, said), trace=trace, unmet_conditions=every)


def shortened(clause: str) -> str:
    return clause if len(clause) <= MAX_CLAUSE else f"{clause[:MAX_CLAUSE]}…"


def _message(rules: Sequence[PolicyRule], own: Mapping[str, str], said: DecisionInput) -> str:
    """Return the message: the rules for the caller's roles and what they need, or else the roles with access."""
    granting = [rule for rule in rules if rule.deny is None]
    near = [rule for rule in granting if _unmet(rule, said, is_on_role) == 0]
    own_near = sorted(
        (rule for rule in near if rule.name in own), key=lambda rule: _unmet(rule, said, is_chosen)
    )
    if own_near:
        listed = "; ".join(f"{rule.name}: {own[rule.name]}" for rule in own_near[:MAX_NAMED])
        return f"No rule of the policy matches this request. What the nearest rules need: {listed}."
    if near:
        return "No rule of the policy matches this request. Ask the operator which rules there are for you."
    open_to_all = (rule for rule in granting if not rule.private)
    roles = dict.fromkeys(
        each.names.text for rule in open_to_all for each in rule.conditions if is_on_role(each)
    )
    return (
        f"No rule gives your role in this project ({', '.join(said.roles)}) access to its clusters."
        f" Roles with access: {shortened(', '.join(roles)) or 'none at all'}."
    )


def _unmet(rule: PolicyRule, said: DecisionInput, counts: Callable[[object], bool]) -> int:
    """Return the number of a rule's false conditions that `counts` selects."""
    return sum(counts(each) and each.first_false(said) is not None for each in rule.conditions)
