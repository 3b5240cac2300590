"""Offers of policy rules: groups that users get for a time, after a request."""

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, model_validator

from clustercert.model.name_patterns import Names, Values
from clustercert.policy.conditions import HasName, takes_role
from clustercert.policy.setting_types import (
    GroupList,
    Name,
    NameList,
    RuleFault,
    RuleLifetime,
    Section,
    TrueOrFalse,
    WaitingTime,
)
from clustercert.policy.templates import is_template


class Approval(Section):
    """An entry of `offer.approvals`: the role or groups that one approver needs.

    If both fields are given, both must match. In names, `*` and `?` work as in `when`.

    Attributes:
        role: a role that the approver must have in the cluster's project.
        groups: groups by id, by name, or by name with domain. The approver must be in one of these groups.
    """

    role: Name | None = None
    groups: NameList | None = None

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.role is None and self.groups is None:
            raise RuleFault('write the role or groups that the approver needs, such as {role = "admin"}')
        return self

    @cached_property
    def parts(self) -> tuple[HasName, ...]:
        """The conditions on the approver's roles and groups."""
        names = {"role": (self.role,) if self.role is not None else None, "group": self.groups}
        return tuple(HasName(what, Names(each)) for what, each in names.items() if each is not None)

    @cached_property
    def clause(self) -> str:
        """The condition in words."""
        return " and ".join(each.clause for each in self.parts)

    def is_met(self, names: Mapping[str, Values]) -> bool:
        """Whether an approver meets the condition. The keys of `names` are `role` and `group`."""
        return all(each.names.match_prepared(names[each.what]) for each in self.parts)


class Offer(Section):
    """`offer` in `[[policy.rules]]`: groups that a user gets for a time, after a request.

    See [Access requests](access-requests.md).

    Attributes:
        groups: Kubernetes groups that can be requested, 1 to 32, without placeholders.
        max_lifetime: the longest access that a user can request, the longest extension, and the longest lifetime of a
            certificate: 5m to 1827d.
        min_reason_length: the minimum number of characters in the reason of a request, 1 to 512.
        claim_within: the longest time between the approval and the first certificate, 1m to 30d.
        approve_within: the longest time between the request and its last approval, 1m to 30d.
        approvals: the approvers that a request needs, at most 8. Each entry needs a different person, and nobody
            approves their own request. An empty list: the request needs no approval.
        before_approval: whether the user may use the access before the approval (break-glass). The access ends at once
            if an approval is missing after `approve_within`, or if an approver denies the request.
        uses_before_approval: the number of times in 24 hours that a user may use access to a cluster before its
            approval, 1 to 100. Uses of other rules that offer one of the same groups also count. Approved uses do not
            count.
    """

    groups: Annotated[GroupList, Field(min_length=1)]
    max_lifetime: RuleLifetime
    approvals: tuple[Approval, ...] = Field(max_length=8)
    min_reason_length: int = Field(default=1, ge=1, le=512)
    claim_within: WaitingTime = timedelta(hours=8)
    approve_within: WaitingTime = timedelta(hours=8)
    before_approval: TrueOrFalse = False
    uses_before_approval: int = Field(default=2, ge=1, le=100)

    @model_validator(mode="after")
    def _is_requestable(self) -> Self:
        for group in self.groups:
            if is_template(group):
                raise RuleFault(
                    f"{group}: an offer can't have placeholders; write the group's name", "groups"
                )
        if self.before_approval and not self.approvals:
            raise RuleFault("before_approval needs approvals; add them", "before_approval")
        return self

    @property
    def clauses(self) -> tuple[str, ...]:
        """The conditions for the approvers, in words."""
        return tuple(each.clause for each in self.approvals)

    def takes_approver(self, role: str) -> bool:
        """Whether a user with only this role can approve. Ignores conditions on groups."""
        return any(takes_role(each.parts, role) for each in self.approvals)

    def met_by(self, names: Mapping[str, Values]) -> frozenset[str]:
        """Return the clauses of the conditions that an approver meets; see `Approval.is_met`."""
        return frozenset(each.clause for each in self.approvals if each.is_met(names))
