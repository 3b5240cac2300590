"""Policy decisions: evaluates the rules, explains refusals, and identifies a policy by its digest."""

import functools
import hashlib
import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model import Caller, ClientCA, Cluster, Grant, IssueRequest, JsonObject
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import Forbidden, InvalidRequest, Unavailable
from clustercert.model.events.issuance import ACCESS_REQUEST, event_access_request
from clustercert.model.name_patterns import Values
from clustercert.model.times import rfc3339
from clustercert.pki.keys import key_type_of, sample_key
from clustercert.policy.conditions import DecisionInput, is_chosen, is_on_role, names_of
from clustercert.policy.lifetime import (
    BACKDATE,
    LONGEST,
    MAX_DAYS,
    MAX_LIFETIME,
    MAX_LIFETIME_SETTING,
    MIN_EXPIRE_AT,
    SHORTEN,
    lifetime_option,
    lifetime_text,
)
from clustercert.policy.rules import MAX_GROUPS, MAX_TRACED, Match, PolicyRule, match_rules, united_groups
from clustercert.policy.templates import UserNameTemplate, name_problem

# The maximum number of rules listed in a message.
MAX_NAMED = 3
_UNKNOWN_RULES = "No rule of the policy matches this request. Ask the operator which rules apply to you."
# The maximum number of characters of a condition in a trace.
MAX_CLAUSE = 200
# The duration in an example command that asks for access, unless the policy allows only a shorter one.
_EXAMPLE_DURATION = timedelta(hours=1)


CA_EXPIRED = "The cluster's client CA has expired. Ask the operator to rotate the CA."


def lifetime_refusal(
    requested: timedelta, longest: timedelta, rule: PolicyRule | None, ca_end: datetime | None
) -> str:
    """Return the message about a lifetime that exceeds the limit of a rule or the policy, or outlives the CA."""
    name = f"rule {rule.name}" if rule is not None else MAX_LIFETIME_SETTING
    limit = f"the limit of {name} ({lifetime_text(longest)})"
    if ca_end is not None:
        limit = f"the end of the cluster's client CA ({rfc3339(ca_end)})"
    return f"The requested lifetime ({lifetime_text(requested)}) exceeds {limit}. {SHORTEN}"


def expire_at_problem(now: datetime) -> str:
    return (
        f"expire_at: must be 15 minutes to 5 years ({MAX_DAYS} days) ahead;"
        f" the time is {now:%Y-%m-%d %H:%M:%S} +0000 UTC."
    )


def group_count_refusal(count: int) -> str:
    given = f"more than {MAX_GROUPS}" if count > MAX_GROUPS else count
    return f"The policy gives you {given} Kubernetes groups; a certificate has 1 to {MAX_GROUPS}. Ask the operator."


def access_end_refusal(requested: timedelta, end: datetime) -> str:
    """Return the message about a lifetime that outlives the caller's access request."""
    return (
        f"The requested lifetime ({lifetime_text(requested)}) exceeds the end of the access request"
        f" ({rfc3339(end)}). {SHORTEN}"
    )


def refusal(
    rules: Sequence[PolicyRule],
    match: Match,
    decision_input: DecisionInput,
    own: Mapping[str, str],
    trace: JsonObject,
) -> Forbidden:
    """Return the error for a request that no rule grants.

    The message and the trace contain only `own`, the unmet clauses of rules that the caller may see, because project
    admins can read the trace. The log line contains the unmet clauses of all rules.
    """
    if (rule := match.denied_by) is not None:
        trace["denied_by"] = rule.name
        failure = {rule.name: shortened(match.failure)} if match.failure else {}
        fails = f"The policy's rule {rule.name} can't be evaluated for this request. Ask the operator to check it."
        return Forbidden(rule.deny or fails, trace=trace, unmet_conditions=failure)
    trace["unmet_conditions"] = {name: shortened(clause) for name, clause in own.items()}
    if match.offers:
        trace["offers"] = [rule.name for rule in match.offers]
    first = itertools.islice(match.unmet.items(), MAX_TRACED)
    every = {name: shortened(clause) for name, clause in first}
    near = [rule for rule in rules if rule.grants and _unmet(rule, decision_input, is_on_role) == 0]
    message = _nearest_message(near, own, decision_input)
    if match.offers:
        alone = message or "You have no access to this cluster without a request."
        message = f"{alone} {how_to_ask(match.offers, decision_input.cluster)}"
    elif not message:
        message = _UNKNOWN_RULES if near else _role_message(rules, decision_input)
    return Forbidden(message, trace=trace, unmet_conditions=every)


def how_to_ask(offers: Sequence[PolicyRule], cluster: Cluster) -> str:
    """Return which groups can be requested, and a command that requests one of them.

    The command preferably requests a group that can't be used before the approval.
    """
    terms = [(rule, rule.offer) for rule in offers if rule.offer is not None]
    groups = tuple(dict.fromkeys(group for rule, _ in terms for group in rule.groups))
    rule, offer = min(terms, key=lambda each: each[1].before_approval)
    group = rule.groups[0]
    command = ["clustercert", "request", "create", cluster.name, "--group", group]
    command += ["--for", lifetime_option(min(_EXAMPLE_DURATION, offer.max_lifetime))]
    if sum(group in each.groups for each, _ in terms) > 1:
        command += ["--rule", rule.name]
    least = offer.min_reason_length
    return (
        f"You can request {', '.join(groups[:MAX_NAMED])}{' and more' if len(groups) > MAX_NAMED else ''}:"
        f" run `{shlex.join(command)} --reason REASON`."
        f"{f' The reason needs at least {least} characters.' if least > 1 else ''}"
    )


def shortened(clause: str) -> str:
    return clause if len(clause) <= MAX_CLAUSE else f"{clause[:MAX_CLAUSE]}…"


def _nearest_message(
    near: Iterable[PolicyRule], own: Mapping[str, str], decision_input: DecisionInput
) -> str:
    """Return what the rules for the caller's roles need, or an empty string if the caller may see no such rule."""
    own_near = sorted(
        (rule for rule in near if rule.name in own), key=lambda rule: _unmet(rule, decision_input, is_chosen)
    )
    if not own_near:
        return ""
    listed = "; ".join(f"{rule.name}: {own[rule.name]}" for rule in own_near[:MAX_NAMED])
    return f"No rule of the policy matches this request. The nearest rules need: {listed}."


def _role_message(rules: Sequence[PolicyRule], decision_input: DecisionInput) -> str:
    """Return the message that lists the roles with access."""
    open_to_all = (rule for rule in rules if rule.grants and not rule.private)
    roles = dict.fromkeys(
        each.names.text for rule in open_to_all for each in rule.conditions if is_on_role(each)
    )
    return (
        f"No rule gives your role in this project ({', '.join(decision_input.roles)}) access to its clusters."
        f" Roles with access: {shortened(', '.join(roles)) or 'none at all'}."
    )


def _unmet(rule: PolicyRule, decision_input: DecisionInput, counts: Callable[[object], bool]) -> int:
    """Return the number of a rule's false conditions, counting only conditions for which `counts` is true."""
    return sum(counts(each) and each.first_false(decision_input) is not None for each in rule.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules that give callers their Kubernetes groups, and limits for all certificates.

    Attributes:
        rules: a certificate gets the groups of all rules that match the request. The order of rules does not matter.
        allowed_system_names: names with the prefix `system:` that certificates may contain.
        key_type: the type of keys that the service generates.
        max_lifetime: the longest lifetime of any certificate. Rules can only shorten this lifetime.
        username: the template of the user name; None if the user's id is the user name.
        issuer_names: the names of OIDC issuers and of Keystone. These names are the prefixes in user and group names
            such as `ISSUER/NAME`.
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

    def decide(
        self,
        caller: Caller,
        cluster: Cluster,
        request: IssueRequest,
        now: datetime,
        access: RequestedAccess | None = None,
    ) -> Grant:
        """Decide which certificate the caller may get. The grant or the error contains the decision trace.

        Raises NotFound if the caller has no role in the project, InvalidRequest if the requested end is out of range,
        Forbidden if no rule matches or the limit is exceeded, or Unavailable if the client CA has expired.

        Args:
            access: the access of the caller's access request, which adds groups and limits the lifetime. Raises
                Forbidden if the policy does not offer this access any more, or needs other approvals now.
        """
        decision_input = self.input_of(caller, cluster, request, now)
        trace: JsonObject = {"roles": list(decision_input.roles), "key_type": decision_input.key_type}
        trace["decided_at"] = now.isoformat()
        if access is not None:
            trace[ACCESS_REQUEST] = event_access_request(access)
        rules = self._matching(decision_input, access, trace)
        groups = self._groups(rules, decision_input, trace)
        username = (
            caller.user.id if self.username is None else self.username.render_name(decision_input, trace)
        )
        self._check_names((username, *groups), trace)
        issued_at = now.replace(microsecond=0)
        return Grant(
            rule=rules[0].name,
            rules=tuple(rule.name for rule in rules),
            username=username,
            groups=groups,
            not_before=issued_at - BACKDATE,
            not_after=self._not_after(rules, cluster.client_ca, request, issued_at, access, trace),
            trace=trace,
            access=access,
        )

    def offers(self, caller: Caller, cluster: Cluster, now: datetime) -> tuple[PolicyRule, ...]:
        """Return the rules whose groups the caller can request for a cluster, in order.

        Conditions on a certificate's request are compared with a request that has a CSR and a reason, because the
        access request itself has no such fields. Raises NotFound if the caller has no role in the project.
        """
        request = IssueRequest(public_key=sample_key("ec-p256"), reason="access request")
        return match_rules(self.rules, self.input_of(caller, cluster, request, now)).offers

    def offering_rule(self, name: str) -> PolicyRule | None:
        """Return the rule with this name if its groups can be requested, or None."""
        return next((rule for rule in self.rules if rule.name == name and rule.offer is not None), None)

    def access_refusal(self, access: RequestedAccess) -> str | None:
        """Return the message with which `decide` now refuses this access to every caller, or None.

        Does not compare the rule's conditions on the caller and on the certificate's request.
        """
        return _access_refusal((rule for rule in self.rules if rule.offer is not None), access)

    def met_conditions(self, caller: Caller, project_id: str) -> Mapping[str, frozenset[str]]:
        """Return the clauses of the approval conditions that the caller meets in a project, by the name of the rule.

        Omits a rule if the caller meets none of its conditions. Approvers need a role in the project.
        """
        roles = caller.roles_in(project_id)
        offers = [(rule.name, rule.offer) for rule in self.rules if rule.offer is not None]
        if not roles or not offers:
            return {}
        groups = tuple(name for group in caller.groups for name in names_of(group, self.issuer_names))
        names = {
            "role": Values(roles),
            "group": Values(groups, tuple(group.id for group in caller.groups)),
        }
        met = {name: offer.met_by(names) for name, offer in offers}
        return {name: clauses for name, clauses in met.items() if clauses}

    def input_of(
        self, caller: Caller, cluster: Cluster, request: IssueRequest, now: datetime
    ) -> DecisionInput:
        """Return the input for the rules' conditions. Raises NotFound if the caller has no role in the project."""
        roles = caller.require_roles_in(cluster.project_id)
        key_type = key_type_of(request.public_key) if request.public_key else self.key_type
        return DecisionInput(caller, cluster, request, roles, now, key_type, self.issuer_names)

    def _matching(
        self, decision_input: DecisionInput, access: RequestedAccess | None, trace: JsonObject
    ) -> tuple[PolicyRule, ...]:
        """Return the rules that grant the certificate. The rule of the requested access comes first.

        Raises Forbidden if no rule grants the certificate, a rule denies it, or the access is not offered.
        """
        match = match_rules(self.rules, decision_input)
        own = match.own_unmet(self.rules, decision_input)
        trace |= match.skipped(own)
        if access is not None and match.denied_by is None:
            match = _with_access(match, own, access, trace)
        if not match.rules:
            raise refusal(self.rules, match, decision_input, own, trace)
        trace["rule"] = match.rules[0].name
        trace["rules"] = [rule.name for rule in match.rules]
        return match.rules

    def _groups(
        self, rules: Sequence[PolicyRule], decision_input: DecisionInput, trace: JsonObject
    ) -> tuple[str, ...]:
        groups = united_groups(rules, decision_input, trace)
        trace["groups"] = list(groups)
        if not 1 <= len(groups) <= MAX_GROUPS:
            raise Forbidden(group_count_refusal(len(groups)), trace=trace)
        return groups

    def strictest(self, rules: Iterable[PolicyRule]) -> tuple[timedelta, PolicyRule | None]:
        """Return the longest lifetime that all these rules allow, and the rule that sets this limit.

        The rule is None if `max_lifetime` of the policy sets the limit.
        """
        limits = [(limit, rule) for rule in rules if (limit := rule.lifetime_limit) is not None]
        lifetime, rule = min(limits, key=lambda limit: limit[0], default=(self.max_lifetime, None))
        return (lifetime, rule) if lifetime < self.max_lifetime else (self.max_lifetime, None)

    def _not_after(
        self,
        rules: Sequence[PolicyRule],
        ca: ClientCA,
        request: IssueRequest,
        at: datetime,
        access: RequestedAccess | None,
        trace: JsonObject,
    ) -> datetime:
        """Compute the end of validity. Raises errors as described for `decide`."""
        lifetime, rule = self.strictest(rules)
        longest = min(at + lifetime, ca.not_after)
        allowed_by = ("rule" if rule is not None else "policy") if longest < ca.not_after else "ca"
        if access is not None and access.until < longest:
            longest, allowed_by = access.until.replace(microsecond=0), "access_request"
        trace["allowed_until"] = _text(longest)
        trace["allowed_by"] = allowed_by
        if longest <= at and allowed_by == "access_request":
            raise Forbidden("The access request has ended. Create a new request.", trace=trace)
        if longest <= at:
            raise Unavailable(CA_EXPIRED, retry_after=3600, trace=trace)
        by_default = min((rule.default_lifetime for rule in rules if rule.default_lifetime), default=None)
        requested = _requested_end(request, at, longest if by_default is None else at + by_default, trace)
        shortens = request.shorten or (request.expire_at is None and request.duration == LONGEST)
        trace["requested_not_after"] = _text(requested)
        trace["shortened"] = requested > longest and shortens
        if requested > longest and not shortens:
            if allowed_by == "access_request":
                raise Forbidden(access_end_refusal(requested - at, longest), trace=trace)
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


def _with_access(match: Match, own: Mapping[str, str], access: RequestedAccess, trace: JsonObject) -> Match:
    """Return the match with the rule that offers the requested access.

    Raises Forbidden if no matching rule offers the access, or if the rule needs other approvals now.
    """
    if (clause := own.get(access.rule)) is not None:
        raise Forbidden(
            f"The policy's rule {access.rule} does not offer you this access now. The rule needs: {shortened(clause)}.",
            trace=trace,
        )
    message = _access_refusal(match.offers, access)
    if message is not None:
        raise Forbidden(message, trace=trace)
    return match.with_requested(access.rule, access.groups)


def _access_refusal(offers: Iterable[PolicyRule], access: RequestedAccess) -> str | None:
    """Return the message if none of these rules offers the access, or if the access needs other approvals."""
    rule = next((rule for rule in offers if rule.name == access.rule), None)
    offer = rule.offer if rule is not None and set(access.groups) <= set(rule.groups) else None
    if offer is None:
        problem = "does not offer you this access any more"
    elif not access.is_approved and not offer.before_approval:
        problem = "does not allow use before the approval any more"
    elif access.is_approved and not access.satisfies(offer.clauses):
        problem = "needs other approvals now"
    else:
        return None
    return f"The policy's rule {access.rule} {problem}. End the access request, and create a new one."


# Cached, because all requests in the same second format the same times.
@functools.lru_cache(maxsize=1024)
def _text(time: datetime) -> str:
    return time.isoformat()


def _requested_end(request: IssueRequest, at: datetime, by_default: datetime, trace: JsonObject) -> datetime:
    if request.expires_in is not None:
        return at + request.expires_in
    if request.expire_at is not None:
        if not MIN_EXPIRE_AT <= request.expire_at - at <= MAX_LIFETIME:
            raise InvalidRequest(expire_at_problem(at), trace=trace)
        return request.expire_at
    if request.duration is None:
        raise InvalidRequest("Send duration (whole days) or expire_at.", trace=trace)
    return by_default if request.duration == LONGEST else at + timedelta(days=request.duration)


def declared_rules(policy: Policy) -> tuple[Mapping[str, object], ...]:
    """Return the rules in the form of the settings, as JSON values with lifetimes in seconds."""
    return tuple(rule.declared for rule in policy.rules)


def declared_names(policy: Policy) -> tuple[str, ...]:
    """Return the names in the setting `policy.allow_system`, sorted."""
    return tuple(sorted(policy.allowed_system_names))


def declared_username(policy: Policy) -> str:
    return "{user.id}" if policy.username is None else policy.username.text


def policy_digest(policy: Policy) -> str:
    """Return the SHA-256 of the policy in the form of the settings, in lower-case hex."""
    declared = {
        "rules": declared_rules(policy),
        "allow_system": declared_names(policy),
        "max_lifetime": int(policy.max_lifetime.total_seconds()),
        "username": declared_username(policy),
    }
    # The digest covers this JSON, with sorted names and no spaces.
    text = json.dumps(declared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# The service warns about longer lifetimes, because a stolen certificate works until it expires or is revoked.
LONG_LIFETIME = timedelta(days=7)


def long_lifetimes(policy: Policy) -> dict[str, timedelta]:
    """Return the longest lifetime of each rule that allows more than `LONG_LIFETIME`, by the rule's name."""
    granting = (rule for rule in policy.rules if rule.deny is None)
    longest = {rule.name: policy.strictest((rule,))[0] for rule in granting}
    return {name: lifetime for name, lifetime in longest.items() if lifetime > LONG_LIFETIME}
