"""Finds which certificates a user could get, by deciding every different request that the user could send."""

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import get_args

from clustercert.model import Caller, Cluster, IssueRequest, KeyType, Origin
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError, InvalidRequest
from clustercert.model.identity import BUILT_IN
from clustercert.model.name_patterns import Names
from clustercert.model.requests import KEYSTONE_METHODS
from clustercert.pki.keys import sample_key
from clustercert.policy.cluster_grant import cluster_grant
from clustercert.policy.conditions import (
    Condition,
    ConditionFailed,
    DecisionInput,
    FromNetwork,
    HasCsr,
    HasName,
    HasReason,
    IPNetwork,
)
from clustercert.policy.decision import Policy
from clustercert.policy.expressions import Expression
from clustercert.policy.lifetime import BACKDATE, MOST_DAYS
from clustercert.policy.rules import PolicyRule, united_groups

# The maximum number of requests to decide for one user. Each network in a rule adds two requests.
MAX_VARIANTS = 5000

_ON_REQUEST = frozenset({"auth_method", "key_type"})
# Authentication methods of the built-in identity service.
_BUILT_IN_METHODS = ("token", "access_key")
# A source that matches no network.
_ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class RequestVariant:
    """A possible request: authentication method, source, and fields. The request is always for the longest lifetime."""

    auth_method: str
    source: str
    request: IssueRequest

    def sent_by(self, caller: Caller) -> Caller:
        return replace(caller, method=self.auth_method, origin=Origin(self.source, caller.origin.request_id))


def depends_on_request(condition: Condition) -> bool:
    """Whether the condition's result can differ between two requests from the same user for the same cluster."""
    if isinstance(condition, HasName):
        return condition.what in _ON_REQUEST
    if isinstance(condition, Expression):
        return condition.depends_on_request
    return isinstance(condition, HasCsr | HasReason | FromNetwork)


def is_offered(policy: Policy, rule_name: str, caller: Caller, cluster: Cluster, now: datetime) -> bool:
    """Whether a user and the cluster meet the conditions of a rule that offers groups.

    Ignores conditions on the request, such as a condition on the source. A condition that can't be evaluated counts as
    met.
    """
    rule = policy.offering_rule(rule_name)
    if rule is None or not caller.roles_in(cluster.project_id):
        return False
    decision_input = policy.input_of(caller, cluster, IssueRequest(), now)
    for condition in rule.conditions:
        with contextlib.suppress(ConditionFailed):
            if not depends_on_request(condition) and condition.first_false(decision_input) is not None:
                return False
    return True


def request_variants(conditions: Iterable[Condition], caller: Caller) -> Iterator[RequestVariant]:
    """Yield one request for each case that the conditions distinguish. The first request has no CSR and no reason.

    Raises InvalidRequest for more than `MAX_VARIANTS` requests.
    """
    given = tuple(conditions)
    named = {condition.what for condition in given if isinstance(condition, HasName)}
    methods = _methods(caller)
    keys: tuple[str | None, ...] = (None,)
    if "key_type" in named:
        keys = (None, *get_args(KeyType))
    elif any(isinstance(condition, HasCsr) for condition in given):
        keys = (None, "ec-p256")
    reasons = (None, "x") if any(isinstance(condition, HasReason) for condition in given) else (None,)
    found = itertools.product(
        methods if "auth_method" in named else methods[:1], _sources(given), keys, reasons
    )
    for number, (method, source, key_type, reason) in enumerate(found):
        if number == MAX_VARIANTS:
            raise InvalidRequest(
                f"The rules that match one user distinguish more than {MAX_VARIANTS} different requests."
                " Write fewer networks in rules that match the same users."
            )
        key = None if key_type is None else sample_key(key_type)
        request = IssueRequest(duration=MOST_DAYS, shorten=True, public_key=key, reason=reason)
        yield RequestVariant(method, source, request)


def _methods(caller: Caller) -> tuple[str, ...]:
    if caller.issuer == BUILT_IN:
        return _BUILT_IN_METHODS
    return KEYSTONE_METHODS if caller.method in KEYSTONE_METHODS else (caller.method,)


def _sources(conditions: Collection[Condition]) -> tuple[str, ...]:
    """Return a source outside all networks.

    For each network, also return its first address and the address after its last address.

    The networks divide all addresses into ranges, and each range begins at one of these addresses.
    """
    networks = [
        network
        for condition in conditions
        if isinstance(condition, FromNetwork)
        for network in condition.networks
    ]
    starts = (str(start) for network in networks for start in _starts(network))
    return (_ELSEWHERE, *dict.fromkeys(starts))


def _starts(network: IPNetwork) -> Iterator[IPv4Address | IPv6Address]:
    yield network.network_address
    # The highest possible address has no successor.
    with contextlib.suppress(AddressValueError):
        yield network.broadcast_address + 1


@dataclass(frozen=True, slots=True)
class Entitlement:
    """How a user could get a Kubernetes group.

    Attributes:
        groups: the rule's groups that match the requested group.
        lifetime: the longest lifetime of a certificate with these groups.
        needs: the conditions that the request must meet. If the rule offers its groups, begins with the access request
            that the user needs.
        unless: the names of rules that refuse some of the requests that meet `needs`.
    """

    rule: str
    groups: tuple[str, ...]
    lifetime: timedelta
    needs: tuple[str, ...]
    unless: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule with its conditions sorted into three kinds.

    Attributes:
        on_user: conditions on the user and the cluster.
        on_request: conditions on the request, except CEL expressions.
        expressions: CEL expressions that read the request or the time. The search does not evaluate these expressions.
    """

    rule: PolicyRule
    on_user: tuple[Condition, ...]
    on_request: tuple[Condition, ...]
    expressions: tuple[Condition, ...]

    @property
    def is_open(self) -> bool:
        """Whether the rule matches some requests of this user but not others."""
        return bool(self.on_request or self.expressions)

    @property
    def needs(self) -> tuple[str, ...]:
        clauses = tuple(condition.clause for condition in (*self.on_request, *self.expressions))
        offer = self.rule.offer
        if offer is None:
            return clauses
        approved = bool(offer.approvals) and not offer.before_approval
        return (f"{'an approved' if approved else 'an'} access request (rule {self.rule.name})", *clauses)

    def takes(self, decision_input: DecisionInput) -> bool:
        """Whether the request meets this rule's conditions on requests. Ignores expressions."""
        return all(condition.first_false(decision_input) is None for condition in self.on_request)


@dataclass(frozen=True, slots=True)
class _Match:
    """A rule whose conditions on the user and the cluster are met or, if `fails` is true, can't be evaluated."""

    rule: _Rule
    fails: bool


@dataclass(frozen=True, slots=True)
class _Choice:
    """A request that a rule grants.

    Attributes:
        policy: a policy with only the rules that match this request, without the rules' conditions.
    """

    policy: Policy
    variant: RequestVariant
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The requests with which all users who match the same rules can get the groups of one rule.

    Attributes:
        choices: one request for each different list of matching rules, the longest lifetime first. The policy can
            refuse a request because of the user's name or groups. The search then tries the next request.
    """

    rule: PolicyRule
    choices: tuple[_Choice, ...]
    unless: tuple[str, ...]


class Entitlements:
    """Finds users' entitlements to a group in a cluster. Caches results for users who meet the same conditions.

    Attributes:
        compared: how many times a request was compared with a rule, as a measure of the time that the search takes.
    """

    def __init__(self, policy: Policy, cluster: Cluster, group: str, now: datetime) -> None:
        """Prepare a search for `group`: a group's name, or a pattern in which `*` stands for any characters."""
        self._policy, self._cluster, self._now = policy, cluster, now
        self._group = Names((group,))
        self._rules = tuple(map(_split, policy.rules))
        self._plans: dict[tuple[object, ...], tuple[_Plan, ...]] = {}
        self.compared = 0

    def entitlements_of(self, caller: Caller) -> tuple[Entitlement, ...]:
        """Return the user's entitlements in the rules' order. Entitlements that need an access request come last."""
        if not caller.roles_in(self._cluster.project_id):
            return ()
        self.compared += len(self._rules)
        decision_input = self._input(caller, IssueRequest())
        matches = tuple(_matches(self._rules, decision_input))
        key = (caller.issuer, caller.method, tuple((each.rule.rule.name, each.fails) for each in matches))
        plans = self._plans.get(key)
        if plans is None:
            plans = self._plans[key] = tuple(self._new_plans(matches, caller))
        found = ((plan.rule.offer is not None, self._granted(plan, decision_input)) for plan in plans)
        # The sort is stable, so it keeps the order of the rules.
        ordered = sorted(found, key=lambda each: each[0])
        return tuple(entitlement for _, entitlement in ordered if entitlement is not None)

    def _input(self, caller: Caller, request: IssueRequest) -> DecisionInput:
        return self._policy.input_of(caller, self._cluster, request, self._now)

    def _granted(self, plan: _Plan, decision_input: DecisionInput) -> Entitlement | None:
        """Try the plan's requests in order. Return the entitlement from the first granted request, or None."""
        try:
            own = united_groups((plan.rule,), decision_input, {})
        except ClustercertError:
            return None
        groups = tuple(group for group in own if self._group.match((group,)) and self._has_role(group))
        for choice in plan.choices if groups else ():
            caller = choice.variant.sent_by(decision_input.caller)
            with contextlib.suppress(ClustercertError):
                access = self._access(plan.rule, groups)
                grant = choice.policy.decide(caller, self._cluster, choice.variant.request, self._now, access)
                grant = cluster_grant(grant, self._cluster)
                lifetime = grant.not_after - grant.not_before - BACKDATE
                return Entitlement(plan.rule.name, groups, lifetime, choice.needs, plan.unless)
        return None

    def _has_role(self, group: str) -> bool:
        """Whether credentials for the cluster can have a group. Tokens have only groups with roles in the cluster."""
        return self._cluster.credential_kind == "certificate" or group in self._cluster.options.group_roles

    def _access(self, rule: PolicyRule, groups: tuple[str, ...]) -> RequestedAccess | None:
        """Return the longest approved access to these groups, or None if the rule needs no access request."""
        if rule.offer is None:
            return None
        met = tuple(frozenset({clause}) for clause in rule.offer.clauses)
        return RequestedAccess("", rule.name, groups, self._now + rule.offer.max_lifetime, True, met)

    def _new_plans(self, matches: Sequence[_Match], caller: Caller) -> Iterator[_Plan]:
        """Yield a plan for each rule that can give the group."""
        conditions = [condition for match in matches for condition in match.rule.on_request]
        requests = [
            (variant, self._input(variant.sent_by(caller), variant.request))
            for variant in request_variants(conditions, caller)
            # A request for a token has no CSR.
            if variant.request.public_key is None or self._cluster.credential_kind == "certificate"
        ]
        for position, match in enumerate(matches):
            if self._can_give(match.rule.rule):
                self.compared += len(requests) * len(matches)
                choices = self._choices(match.rule, _outcomes(matches, position, requests))
                if choices:
                    unless = tuple(_unless(matches, position, (sent for _, sent in requests)))
                    yield _Plan(match.rule.rule, tuple(choices), unless)

    def _choices(
        self, target: _Rule, outcomes: Iterable[tuple[RequestVariant, Sequence[_Rule]]]
    ) -> list[_Choice]:
        """Return one request for each different list of granting rules, the longest lifetime first."""
        different: dict[tuple[str, ...], tuple[RequestVariant, Sequence[_Rule]]] = {}
        for variant, granting in outcomes:
            different.setdefault(tuple(each.rule.name for each in granting), (variant, granting))
        return [
            _Choice(
                replace(self._policy, rules=tuple(replace(each.rule, conditions=()) for each in granting)),
                variant,
                target.needs,
            )
            for variant, granting in sorted(different.values(), key=self._limit, reverse=True)
        ]

    def _limit(self, outcome: tuple[RequestVariant, Sequence[_Rule]]) -> timedelta:
        return self._policy.strictest(each.rule for each in outcome[1])[0]

    def _can_give(self, rule: PolicyRule) -> bool:
        return bool(rule.templates) or any(self._group.match((group,)) for group in rule.groups)


def _split(rule: PolicyRule) -> _Rule:
    on_request = tuple(each for each in rule.conditions if depends_on_request(each))
    return _Rule(
        rule,
        tuple(each for each in rule.conditions if not depends_on_request(each)),
        tuple(each for each in on_request if not isinstance(each, Expression)),
        tuple(each for each in on_request if isinstance(each, Expression)),
    )


def _matches(rules: Iterable[_Rule], decision_input: DecisionInput) -> Iterator[_Match]:
    """Yield the rules whose conditions on the user and the cluster are met, or can't be evaluated.

    Leaves out rules that offer groups and can't be evaluated, because such rules refuse no request.
    """
    for rule in rules:
        try:
            if all(condition.first_false(decision_input) is None for condition in rule.on_user):
                yield _Match(rule, fails=False)
        except ConditionFailed:
            if rule.rule.offer is None:
                yield _Match(rule, fails=True)


def _outcomes(
    matches: Sequence[_Match], position: int, requests: Iterable[tuple[RequestVariant, DecisionInput]]
) -> Iterator[tuple[RequestVariant, Sequence[_Rule]]]:
    """Yield each request that the rule at `position` grants, with all rules that grant this request."""
    for variant, sent in requests:
        if (granting := _granting(matches, position, sent)) is not None:
            yield variant, granting


def _granting(matches: Sequence[_Match], position: int, sent: DecisionInput) -> Sequence[_Rule] | None:
    """Return the rules that grant a request. Omits rules that offer groups, except the rule at `position`.

    Returns None if the rule at `position` is not among these rules, or if a rule refuses the request.
    """
    granting: list[_Rule] = []
    for number, match in enumerate(matches):
        is_taken_as_false = match.rule.expressions and number != position
        if is_taken_as_false or not match.rule.takes(sent):
            continue
        if match.fails or match.rule.rule.deny is not None:
            return None
        if match.rule.rule.offer is None or number == position:
            granting.append(match.rule)
    return granting if matches[position].rule in granting else None


def _unless(matches: Sequence[_Match], position: int, requests: Iterable[DecisionInput]) -> Iterator[str]:
    """Yield the names of rules that refuse some requests that the rule at `position` would grant."""
    target = matches[position].rule
    taken = [sent for sent in requests if target.takes(sent)]
    for number, match in enumerate(matches):
        refuses = match.fails or match.rule.rule.deny is not None
        if number != position and refuses and match.rule.is_open and any(map(match.rule.takes, taken)):
            yield match.rule.rule.name
