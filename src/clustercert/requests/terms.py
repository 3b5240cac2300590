"""What users can ask for: checks of new requests and extensions against the terms of the policy's offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model import Caller, Cluster
from clustercert.model.access_requests import AccessRequest
from clustercert.model.errors import Forbidden, InvalidRequest
from clustercert.model.ids import new_id
from clustercert.policy.cluster_grant import require_roles
from clustercert.policy.lifetime import MIN_LIFETIME, lifetime_text
from clustercert.policy.offers import Offer
from clustercert.policy.rules import PolicyRule
from clustercert.policy.templates import is_plain_text, reason_problem

MAX_TICKET = 128
MAX_GROUPS = 32
MAX_GROUP = 255
# The maximum number of rules listed in a message.
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class NewRequest:
    """What a user asks for.

    Attributes:
        rule: the name of the rule that offers the groups; None if only one rule offers these groups.
        ticket: the name of a ticket in another system.
    """

    groups: tuple[str, ...]
    duration: timedelta
    reason: str
    ticket: str | None = None
    rule: str | None = None


def new_request(
    caller: Caller, cluster: Cluster, asked: NewRequest, offers: Sequence[PolicyRule], now: datetime
) -> AccessRequest:
    """Return a new request. A request that needs no approvers is approved.

    Raises InvalidRequest, or Forbidden if no offer has all the groups or allows the duration, or if a group has no role
    in a cluster whose credentials are tokens.
    """
    _check_groups(asked.groups)
    if asked.ticket is not None and not (
        1 <= len(asked.ticket) <= MAX_TICKET and is_plain_text(asked.ticket)
    ):
        raise InvalidRequest(f"ticket: write 1 to {MAX_TICKET} printable characters.")
    rule, offer = _offer_of(asked, offers)
    require_roles(asked.groups, cluster)
    project = cluster.project_name
    request = AccessRequest(
        id=new_id(),
        project_id=cluster.project_id,
        cluster_id=cluster.id,
        cluster_name=cluster.name,
        project_name=f"{project.domain.name}/{project.name}" if project is not None else cluster.project_id,
        user_id=caller.user.id,
        user_name=caller.user.shown_name,
        groups=tuple(sorted(set(asked.groups))),
        rule=rule.name,
        offered_groups=tuple(sorted(rule.groups)),
        duration=asked.duration,
        reason=checked_terms(rule.name, offer, asked.duration, asked.reason),
        ticket=asked.ticket,
        conditions=offer.clauses,
        before_approval=offer.before_approval,
        claim_within=offer.claim_within,
        created_at=now,
        approve_by=now + offer.approve_within,
    )
    return request.approved_at_once(now)


def checked_terms(rule: str, offer: Offer, duration: timedelta, reason: str) -> str:
    """Check the duration and reason of a request or extension. Returns the reason without spaces around it.

    Raises InvalidRequest, or Forbidden if the duration is longer than the offer allows.
    """
    if duration < MIN_LIFETIME or duration.microseconds:
        raise InvalidRequest(f"duration: ask for at least {lifetime_text(MIN_LIFETIME)}, in whole seconds.")
    if duration > offer.max_lifetime:
        raise Forbidden(
            f"The requested time ({lifetime_text(duration)}) exceeds the limit of rule {rule}"
            f" ({lifetime_text(offer.max_lifetime)}). Ask for less time."
        )
    checked = checked_reason(reason)
    if checked is None or len(checked) < offer.min_reason_length:
        raise InvalidRequest(f"reason: write at least {offer.min_reason_length} characters.")
    return checked


def checked_reason(reason: str | None) -> str | None:
    """Return the reason without spaces around it, or None if it is empty. Raises InvalidRequest."""
    if reason is None:
        return None
    if (problem := reason_problem(reason)) is not None:
        raise InvalidRequest(f"reason: {problem}.")
    return reason.strip() or None


def _check_groups(groups: Sequence[str]) -> None:
    if not 1 <= len(groups) <= MAX_GROUPS:
        raise InvalidRequest(f"groups: name 1 to {MAX_GROUPS} groups.")
    if not all(1 <= len(group) <= MAX_GROUP and group.isprintable() for group in groups):
        raise InvalidRequest(f"groups: each group has 1 to {MAX_GROUP} printable characters.")


def _offer_of(asked: NewRequest, offers: Sequence[PolicyRule]) -> tuple[PolicyRule, Offer]:
    """Return the rule that offers all groups, and its terms. Raises InvalidRequest if several rules do."""
    fitting = [
        (rule, rule.offer)
        for rule in offers
        if rule.offer is not None
        and set(asked.groups) <= set(rule.groups)
        and asked.rule in (None, rule.name)
    ]
    if not fitting:
        raise Forbidden(_not_offered(offers, asked))
    if len(fitting) > 1:
        listed = ", ".join(
            f"{rule.name}{' (before approval)' if offer.before_approval else ''}" for rule, offer in fitting
        )
        raise InvalidRequest(f"rule: several rules offer these groups: {listed}. Name one rule.")
    return fitting[0]


def _not_offered(offers: Sequence[PolicyRule], asked: NewRequest) -> str:
    if not offers:
        return "The policy offers you no groups for this cluster. Ask the operator."
    groups = ", ".join(sorted(set(asked.groups)))
    by_rule = f" by a rule {asked.rule}" if asked.rule in {rule.name for rule in offers} else ""
    listed = "; ".join(f"{rule.name}: {', '.join(rule.groups)}" for rule in offers[:MAX_NAMED])
    return (
        f"The policy does not offer you {groups}{by_rule} in one request. Rules that you can use: {listed}."
    )
