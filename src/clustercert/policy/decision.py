"""Decides which certificate a caller may get. Pure functions: no I/O, no clock.

CCE's API counts lifetimes in days. Only this module and `http.cce` use days; other code uses `timedelta`.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model import Caller, ClientCA, Cluster, Grant, IssueRequest, JsonObject, PolicyRule
from clustercert.model.errors import Forbidden, InvalidRequest, Unavailable
from clustercert.model.policy import MAX_GROUPS, DecisionInput, match_rules, united_groups
from clustercert.pki.keys import key_type_of
from clustercert.policy.lifetime import BACKDATE, LONGEST, MAX_LIFETIME, MIN_LIFETIME
from clustercert.policy.names import name_problem
from clustercert.policy.refusal import (
    CA_EXPIRED,
    expire_at_problem,
    group_count_refusal,
    lifetime_refusal,
    refusal,
)
from clustercert.policy.templates import UserNameTemplate


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules that give callers their Kubernetes groups, and what applies to all certificates.

    Attributes:
        rules: those that match a request are united. Their order changes no decision.
        allowed_system_names: names with the prefix `system:` that certificates may contain.
        key_type: the type of keys that the service generates.
        max_lifetime: the longest lifetime of any certificate. Rules can only shorten it.
        username: the template of the user name; None for the user's id.
        issuer_names: the prefixes by which users and groups of issuers are named.
    """

    rules: tuple[PolicyRule, ...]
    allowed_system_names: frozenset[str] = frozenset()
    key_type: str = "ec-p256"
    max_lifetime: timedelta = MAX_LIFETIME
    username: UserNameTemplate | None = None
    issuer_names: frozenset[str] = frozenset()

    @property
    def groups(self) -> tuple[str, ...]:
        """The Kubernetes groups of all rules, in order, without duplicates and without templates."""
        return tuple(dict.fromkeys(group for rule in self.rules for group in rule.groups))

    def decide(self, caller: Caller, cluster: Cluster, request: IssueRequest, now: datetime) -> Grant:
        """Decide which certificate the caller may get. The grant or the error contains the decision trace.

        Raises NotFound if the caller has no role in the project, InvalidRequest if the requested end is out of range,
        Forbidden if no rule matches or the limit is exceeded, or Unavailable if the client CA has expired.
        """
        said = self.input_of(caller, cluster, request, now)
        trace: JsonObject = {"roles": list(said.roles), "key_type": said.key_type}
        trace["decided_at"] = now.isoformat()
        rules = self._matching(said, trace)
        groups = self._groups(rules, said, trace)
        username = caller.user.id if self.username is None else self.username.render_name(said, trace)
        self._check_names((username, *groups), trace)
        issued_at = now.replace(microsecond=0)
        return Grant(
            rule=rules[0].name,
            rules=tuple(rule.name for rule in rules),
            username=username,
            groups=groups,
            not_before=issued_at - BACKDATE,
            not_after=self._not_after(rules, cluster.client_ca, request, issued_at, trace),
            trace=trace,
        )

    def input_of(
        self, caller: Caller, cluster: Cluster, request: IssueRequest, now: datetime
    ) -> DecisionInput:
        """Return the input that rules are compared with. Raises NotFound if the caller has no role in the project."""
        roles = caller.require_roles_in(cluster.project_id)
        key_type = key_type_of(request.public_key) if request.public_key else self.key_type
        return DecisionInput(caller, cluster, request, roles, now, key_type, self.issuer_names)

    def _matching(self, said: DecisionInput, trace: JsonObject) -> tuple[PolicyRule, ...]:
        """Return the rules that grant the certificate. Raises Forbidden if none does, or if one denies it."""
        match = match_rules(self.rules, said)
        own = match.own_unmet(self.rules, said)
        trace |= match.skipped(own)
        if not match.rules:
            raise refusal(self.rules, match, said, own, trace)
        trace["rule"] = match.rules[0].name
        trace["rules"] = [rule.name for rule in match.rules]
        return match.rules

    def _groups(self, rules: Sequence[PolicyRule], said: DecisionInput, trace: JsonObject) -> tuple[str, ...]:
        groups = united_groups(rules, said, trace)
        trace["groups"] = list(groups)
        if not 1 <= len(groups) <= MAX_GROUPS:
            raise Forbidden(group_count_refusal(len(groups)), trace=trace)
        return groups

    def strictest(self, rules: Iterable[PolicyRule]) -> tuple[timedelta, PolicyRule | None]:
        """Return the longest lifetime that these rules allow together, and the rule that sets it; None: the policy."""
        limits = [(rule.max_lifetime, rule) for rule in rules if rule.max_lifetime is not None]
        lifetime, rule = min(limits, key=lambda limit: limit[0], default=(self.max_lifetime, None))
        return (lifetime, rule) if lifetime < self.max_lifetime else (self.max_lifetime, None)

    def _not_after(
        self,
        rules: Sequence[PolicyRule],
        ca: ClientCA,
        request: IssueRequest,
        at: datetime,
        trace: JsonObject,
    ) -> datetime:
        """Compute the end of validity. Raises errors as described for `decide`."""
        lifetime, rule = self.strictest(rules)
        longest = min(at + lifetime, ca.not_after)
        trace["allowed_until"] = _text(longest)
        trace["allowed_by"] = ("rule" if rule is not None else "policy") if longest < ca.not_after else "ca"
        if longest <= at:
            raise Unavailable(CA_EXPIRED, retry_after=3600, trace=trace)
        by_default = min((rule.default_lifetime for rule in rules if rule.default_lifetime), default=None)
        requested = _requested_end(request, at, longest if by_default is None else at + by_default, trace)
        truncates = request.truncate or (request.expire_at is None and request.duration == LONGEST)
        trace["requested_not_after"] = _text(requested)
        trace["truncated"] = requested > longest and truncates
        if requested > longest and not truncates:
            ca_end = ca.not_after if longest == ca.not_after else None
            raise Forbidden(lifetime_refusal(requested - at, lifetime, rule, ca_end), trace=trace)
        return min(requested, longest)

    def _check_names(self, names: Iterable[str], trace: JsonObject) -> None:
        for name in names:
            if problem := self.name_problem(name):
                raise Forbidden(f"A certificate can't be issued: {problem} Ask the operator.", trace=trace)

    def name_problem(self, name: str) -> str | None:
        """Return a sentence that says why a certificate can't contain this user or group name, or None if it can."""
        return name_problem(name, self.allowed_system_names)


# Cached: all requests in one second format the same times.
@functools.lru_cache(maxsize=1024)
def _text(time: datetime) -> str:
    return time.isoformat()


def _requested_end(request: IssueRequest, at: datetime, by_default: datetime, trace: JsonObject) -> datetime:
    if request.expire_at is not None:
        if not MIN_LIFETIME <= request.expire_at - at <= MAX_LIFETIME:
            raise InvalidRequest(expire_at_problem(at), trace=trace)
        return request.expire_at
    if request.duration is None:
        raise InvalidRequest("Send duration (whole days) or expire_at.", trace=trace)
    return by_default if request.duration == LONGEST else at + timedelta(days=request.duration)
