"""Access requests as one caller sees them: what the caller may do, and what happens next."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from clustercert.model import Caller
from clustercert.model.access_requests import AccessRequest, EarlyUseRefusal, all_assigned
from clustercert.model.choices import RequestSeverity
from clustercert.model.rights import operates
from clustercert.policy.lifetime import lifetime_text

Step = Literal["approve", "deny", "extend", "end"]
# The parts of a condition for approvers; see `Approval.clause`.
_CONDITION = re.compile(r"(^| and )(role|group) is ")
_APPROVERS = {"role": "with the role", "group": "in the group"}


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """An access request as one caller sees it.

    Attributes:
        request: the request after `AccessRequest.lapsed`.
        may: what the caller may do now.
        is_usable: whether a certificate can be issued now, in the request's state. The policy may refuse this
            certificate.
        certificates: the number of valid certificates of the request.
        refusal: why the present policy refuses each certificate of the request; None if the policy refuses none, or if
            the request can't be used in its state.
        early_use_refusal: see `AccessRequest.early_use_refusal`.
        is_user_entitled: whether the user still meets the conditions of the rule; None if unknown, see `RequestUsers`.
    """

    request: AccessRequest
    may: tuple[Step, ...] = ()
    is_usable: bool = False
    certificates: int = 0
    refusal: str | None = None
    early_use_refusal: EarlyUseRefusal | None = None
    is_user_entitled: bool | None = None

    @property
    def next_step(self) -> str:
        """What happens next, and who can make it happen."""
        if self.refusal is not None:
            return self.refusal
        then = next_step(self.request, self.early_use_refusal)
        if self.is_user_entitled is not False:
            return then
        return (
            f"The user does not meet the conditions of the rule {self.request.rule} any more, and gets no certificate."
            f" {then}"
        )

    @property
    def label(self) -> str:
        """The state in a few words."""
        if self.refusal is not None:
            return f"{self.request.state}, refused"
        return f"{self.request.label}, rights lost" if self.is_user_entitled is False else self.request.label

    @property
    def severity(self) -> RequestSeverity:
        return "bad" if self.refusal is not None or self.is_user_entitled is False else self.request.severity


@dataclass(frozen=True, slots=True)
class SeenPage:
    """A page of requests, newest first. The page may be empty even if there is a next page.

    Attributes:
        following: the time and id after which the next page begins; None on the last page.
    """

    requests: tuple[SeenRequest, ...]
    following: tuple[datetime, str] | None


def possible_steps(
    request: AccessRequest, caller: Caller, met: frozenset[str], now: datetime, *, is_refused: bool = False
) -> tuple[Step, ...]:
    """Return what the caller may do with a request.

    Args:
        request: the request after `AccessRequest.lapsed`.
        met: the clauses of the approval conditions that the caller meets now.
        is_refused: whether the policy refuses each certificate of the request now.
    """
    is_own = request.user_id == caller.user.id
    part = request.open_part
    waits = part is not None and not is_own
    has_approved = part is not None and any(
        each.by == caller.user.id and met <= each.met for each in request.approvals(part)
    )
    may: dict[Step, bool] = {
        "approve": waits and bool(met) and not has_approved,
        "deny": waits and (bool(met) or operates(caller)),
        "extend": is_own and request.can_be_extended(now) and not is_refused,
        "end": request.is_open and (is_own or bool(met) or operates(caller)),
    }
    return tuple(step for step, allowed in may.items() if allowed)


def next_step(request: AccessRequest, early_use_refusal: EarlyUseRefusal | None = None) -> str:
    """Return what happens next, and who can make it happen. `request` is the result of `AccessRequest.lapsed`.

    The sentence contains no times, because readers also want times relative to now: see `AccessRequest.due_at`.
    """
    match request.state:
        case "pending":
            return _next_of_pending(request, early_use_refusal)
        case "approved":
            duration = lifetime_text(request.duration)
            return (
                f"The access can be used for {duration} from the first certificate. Access that is not used"
                " in time expires."
            )
        case "active":
            return _next_of_active(request)
        case _:
            return _end(request)


def _next_of_pending(request: AccessRequest, early_use_refusal: EarlyUseRefusal | None) -> str:
    waits = f"The request waits for {_missing(request)}. Without approval,"
    if not request.before_approval:
        return f"{waits} it expires."
    if early_use_refusal is not None:
        return f"The access can't be used before the approval. {early_use_refusal.why} {waits} it expires."
    duration = lifetime_text(request.duration)
    return (
        f"The access can be used now, before the approval, for {duration} from the first certificate."
        f" {waits} the access ends."
    )


def _next_of_active(request: AccessRequest) -> str:
    if request.was_used_unapproved:
        early = " Without approval, it ends early." if request.due_at == request.approve_by else ""
        return f"The access is in use before the approval. It waits for {_missing(request)}.{early}"
    if request.extension is not None and request.open_part == "extension":
        longer = lifetime_text(request.extension)
        return f"The access is in use. An extension by {longer} waits for {_missing(request)}."
    return "The access is in use."


def approver_words(condition: str) -> str:
    """Return a condition for approvers in words: `with the role admin`, or `in the group leads`."""
    return _CONDITION.sub(lambda found: f"{found[1]}{_APPROVERS[found[2]]} ", condition)


def _missing(request: AccessRequest) -> str:
    """Return which approvals a request waits for."""
    part = request.open_part or "access"
    approvers = request.assigned_approvers(part)
    missing = [
        condition
        for condition, approver in zip(request.conditions, approvers, strict=True)
        if approver is None
    ]
    if len(missing) == 1:
        # An approver who met several conditions counts for any of them.
        met = [each.met for each in request.approvals(part)]
        enough = [each for each in request.conditions if all_assigned(request.conditions, [*met, {each}])]
        return f"the approval of somebody else {' or '.join(map(approver_words, dict.fromkeys(enough)))}"
    return f"the approvals of {len(missing)} other people: " + "; ".join(
        f"one {approver_words(condition)}" for condition in missing
    )


def _end(request: AccessRequest) -> str:
    how = {
        "denied": "The request was denied",
        "expired": "The request expired",
        "ended": "The access was ended",
        "finished": "The access is over",
    }[request.state]
    by = f" by {request.closed_by}" if request.closed_by is not None else ""
    why = f": {request.closed_why}" if request.closed_why is not None else ""
    decide = (
        f" This use before the approval waits for {_missing(request)}. An approval does not give the access again,"
        " but the user may again use such access without waiting for an approval. After a denial, the user may not do"
        " this for a day."
    )
    return f"{how}{by}{why}.{decide if request.open_part is not None else ''}"
