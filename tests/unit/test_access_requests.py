"""The states of access requests, in any order of steps."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clustercert.model.access_requests import AccessDecision, AccessRequest, all_assigned, assignment
from clustercert.model.errors import Conflict
from clustercert.requests.views import next_step, possible_steps
from support.access_requests import HOUR, access_request
from support.samples import NOW, caller

CONDITIONS = ("role is admin", "role is lead", "group is sre")
ASKER, APPROVERS = "asker", ("anna", "ben", "carla", "dora")
MET = st.frozensets(st.sampled_from(CONDITIONS), max_size=3)
NEEDED = st.lists(st.sampled_from(CONDITIONS), max_size=3).map(tuple)


def can_be_assigned(conditions: Sequence[str], met: Collection[Collection[str]]) -> bool:
    """Whether each condition gets a person of its own, by trying every order of the people."""
    return any(
        all(condition in person for condition, person in zip(conditions, people, strict=False))
        for people in itertools.permutations(met, len(conditions))
    )


@given(NEEDED, st.lists(MET, max_size=5))
def test_an_assignment_is_found_if_there_is_one(
    conditions: tuple[str, ...], met: list[frozenset[str]]
) -> None:
    assert all_assigned(conditions, met) == can_be_assigned(conditions, met)
    assigned = assignment(conditions, met)
    given = [approver for approver in assigned if approver is not None]
    assert len(set(given)) == len(given)
    for condition, approver in zip(conditions, assigned, strict=True):
        assert approver is None or condition in met[approver]


@given(NEEDED, st.dictionaries(st.sampled_from(APPROVERS), MET), st.permutations(APPROVERS))
def test_the_order_of_approvals_makes_no_difference(
    conditions: tuple[str, ...], met: Mapping[str, frozenset[str]], order: Sequence[str]
) -> None:
    request = new(conditions)
    for person in order:
        if met.get(person) and request.state == "pending":
            request = request.decided(decision(person, met[person]), conditions)
    assert (request.state == "approved") == can_be_assigned(conditions, met.values())


def new(conditions: tuple[str, ...], **changes: Any) -> AccessRequest:
    request = access_request(user_id=ASKER, conditions=conditions, **changes)
    return request.approved_at_once(request.created_at)


def decision(
    by: str, met: frozenset[str], at: datetime = NOW, *, approves: bool = True, part: str = "access"
) -> AccessDecision:
    return AccessDecision(part, by, by.title(), at, approves, met, "a reason")  # type: ignore[arg-type] # a literal


def test_who_is_missing_depends_not_on_the_condition_for_which_an_approver_counts() -> None:
    conditions = ("role is admin", "role is lead")
    both = replace(new(conditions), decisions=(decision("anna", frozenset(conditions)),))
    assert "for the approval of somebody else with the role admin or with the role lead." in next_step(both)
    one = replace(new(conditions), decisions=(decision("anna", frozenset({"role is lead"})),))
    assert "for the approval of somebody else with the role admin." in next_step(one)


def test_each_missing_approver_is_named_with_a_condition() -> None:
    assert next_step(new(("role is admin", "group is leads"))) == (
        "The request waits for the approvals of 2 other people: one with the role admin; one in the group leads."
        " Without approval, it expires."
    )


class Requests(RuleBasedStateMachine):
    """One request after the other, with all steps in any order and at any time."""

    @initialize(conditions=NEEDED, before_approval=st.booleans())
    def create(self, conditions: tuple[str, ...], *, before_approval: bool) -> None:
        self.begin(conditions, before_approval=before_approval)

    @precondition(lambda self: not self.request.is_open)
    @rule(conditions=NEEDED, before_approval=st.booleans())
    def create_another(self, conditions: tuple[str, ...], *, before_approval: bool) -> None:
        self.begin(conditions, before_approval=before_approval)

    def begin(self, conditions: tuple[str, ...], *, before_approval: bool) -> None:
        self.now, self.policy = NOW, conditions
        self.request = new(
            conditions,
            before_approval=before_approval and bool(conditions),
            approve_by=NOW + 3 * HOUR,
            claim_within=2 * HOUR,
        )
        # What the people said about each part, which the machine keeps by itself.
        self.approvals = dict[tuple[str, str], frozenset[str]]()
        self.certificates = list[tuple[datetime, datetime]]()
        self.was_approved = not conditions
        self.closed: AccessRequest | None = None
        self.extended = list[datetime]()

    def change(self, after: AccessRequest) -> None:
        before, self.request = self.request, after
        if before.ends_at is not None and after.ends_at != before.ends_at:
            assert after.ends_at is not None
            assert after.extension is not None
            assert after.ends_at == before.ends_at + after.extension
            self.extended.append(self.now)
        if not after.is_open and self.closed is None:
            self.closed = after

    @rule(
        by=st.sampled_from((*APPROVERS, ASKER)),
        met=MET,
        approves=st.sampled_from([True, True, True, True, False]),
        part=st.sampled_from(["access", "access", "extension"]),
    )
    def decide(self, by: str, met: frozenset[str], *, approves: bool, part: str) -> None:
        self.decided(by, met, approves=approves, part=part)

    def decided(self, by: str, met: frozenset[str], *, approves: bool, part: str) -> None:
        if self.request.lapsed(self.now) is not self.request:
            return
        waits = self.request.open_part
        try:
            after = self.request.decided(
                decision(by, met, self.now, approves=approves, part=part), self.policy
            )
        except Conflict:
            return
        assert by != ASKER
        if after is self.request:
            return
        assert waits == part
        assert met or not approves
        self.change(after)
        if not approves:
            assert part == "extension" or not after.is_open
            assert part == "extension" or after.open_part is None
            self.approvals.pop((part, by), None)
            return
        self.approvals[part, by] = met
        given = [clauses for (of, _), clauses in self.approvals.items() if of == part]
        is_complete = can_be_assigned(self.policy, given)
        assert is_complete == (after.open_part != part)
        self.was_approved |= is_complete and part == "access"

    @precondition(lambda self: self.request.open_part is not None)
    @rule()
    def approve_all(self) -> None:
        """Approve for each condition with a person of its own, if there are enough people."""
        part = str(self.request.open_part)
        for person, condition in zip(APPROVERS, self.policy, strict=False):
            self.decided(person, frozenset({condition}), approves=True, part=part)

    @rule(asks=st.sampled_from([HOUR / 4, HOUR, 4 * HOUR]))
    def issue(self, asks: timedelta) -> None:
        until = self.request.usable_until(self.now)
        assert (self.request.access(self.now) is None) == (until is None)
        if until is None:
            with pytest.raises(Conflict):
                self.request.claimed(self.now)
            return
        assert self.was_approved or self.request.before_approval
        if not self.was_approved:
            assert until <= self.request.approve_by
        self.change(self.request.claimed(self.now))
        assert self.request.ends_at is not None
        assert self.now < until <= self.request.ends_at
        self.certificates.append((self.now, min(self.now + asks, until)))

    @rule(duration=st.sampled_from([HOUR / 2, HOUR]))
    def extend(self, duration: timedelta) -> None:
        if self.request.lapsed(self.now) is not self.request:
            return
        try:
            after = self.request.with_extension(duration, "more", self.now)
        except Conflict:
            return
        assert after is self.request or self.was_approved
        self.change(after)

    @rule(chance=st.integers(0, 4))
    def end(self, chance: int) -> None:
        if chance:
            return
        self.change(self.request.ended(self.now, "Anna", None))
        assert not self.request.is_open

    @rule(by=st.sampled_from([timedelta(microseconds=1), HOUR / 4, HOUR, 2 * HOUR]))
    def wait(self, by: timedelta) -> None:
        self.now += by

    @rule()
    def wait_until_due(self) -> None:
        if self.request.due_at is not None:
            self.now = max(self.now, self.request.due_at)

    @rule()
    def lapse(self) -> None:
        after = self.request.lapsed(self.now)
        if after is not self.request:
            assert not after.is_open
            self.change(after)

    @precondition(lambda self: self.request.is_open)
    @rule(conditions=NEEDED)
    def change_policy(self, conditions: tuple[str, ...]) -> None:
        self.policy = conditions

    @invariant()
    def nothing_outlives_the_request(self) -> None:
        end = self.request.ends_at
        assert (end is None) == (self.request.started_at is None)
        for issued_at, not_after in self.certificates:
            assert end is not None
            assert issued_at < not_after <= end
        # Nothing is usable after the time of the present state.
        if self.request.lapsed(self.now).usable_until(self.now) is not None:
            assert self.request.is_open

    @invariant()
    def a_closed_request_stays_closed(self) -> None:
        if self.closed is not None:
            # Approvers may decide about a use before the approval also after its end. This changes nothing else.
            decided = {"decisions", "conditions", "approved_at"} if self.closed.was_used_unapproved else set()
            same = {name: getattr(self.closed, name) for name in decided}
            assert replace(self.request, **same) == self.closed
            assert self.request.usable_until(self.now) is None
            assert self.request.due_at is None

    @invariant()
    def approvals_are_of_others_and_extensions_happen_once(self) -> None:
        assert ASKER not in {each.by for each in self.request.decisions}
        assert len({(each.by, each.part) for each in self.request.decisions}) == len(self.request.decisions)
        assert len(self.extended) <= 1
        assert (self.request.approved_at is not None) == self.was_approved
        assert next_step(self.request).endswith(".")


TestRequests = Requests.TestCase


def test_use_before_the_approval_ends_when_the_approval_is_missing() -> None:
    request = new(CONDITIONS[:1], before_approval=True, approve_by=NOW + HOUR / 2)
    used = request.claimed(NOW)
    assert (used.usable_until(NOW), used.ends_at) == (NOW + HOUR / 2, NOW + HOUR)
    ended = used.lapsed(NOW + HOUR / 2)
    assert (ended.state, ended.closed_why) == ("ended", "used before the approval, and not approved in time")
    approved = used.decided(decision("anna", frozenset(CONDITIONS[:1])), CONDITIONS[:1])
    assert approved.usable_until(NOW + HOUR / 2) == NOW + HOUR
    denied = used.decided(decision("anna", frozenset(CONDITIONS[:1]), approves=False), CONDITIONS[:1])
    assert (denied.state, denied.closed_by, denied.usable_until(NOW)) == ("ended", "Anna", None)


def test_an_approver_approves_again_when_the_policy_asks_for_something_else() -> None:
    before, after = CONDITIONS[:2], CONDITIONS[1:2]
    first = new(before).decided(decision("anna", frozenset(before[:1])), before)
    assert first.decided(decision("anna", frozenset(before[:1]), NOW + HOUR / 4), before) is first
    again = first.decided(decision("anna", frozenset(after), NOW + HOUR / 4), after)
    assert (again.state, len(again.decisions)) == ("approved", 1)
    anna = replace(caller(), user=replace(caller().user, id="anna"))
    assert "approve" not in possible_steps(first, anna, frozenset(before[:1]), NOW)
    assert "approve" in possible_steps(first, anna, frozenset(after), NOW)


def test_access_is_extended_once() -> None:
    extended = new(()).claimed(NOW).with_extension(HOUR / 2, "more", NOW)
    assert (extended.extension_state, extended.ends_at) == ("approved", NOW + 3 * HOUR / 2)
    assert extended.with_extension(HOUR / 2, "again", NOW) is extended
    with pytest.raises(Conflict, match="extended only once"):
        extended.with_extension(HOUR, "more", NOW)
    denied = new(CONDITIONS[:1]).decided(decision("anna", frozenset(CONDITIONS[:1])), CONDITIONS[:1])
    denied = denied.claimed(NOW).with_extension(HOUR, "more", NOW)
    denied = denied.decided(
        decision("anna", frozenset(CONDITIONS[:1]), approves=False, part="extension"), CONDITIONS[:1]
    )
    assert (denied.state, denied.extension_state, denied.ends_at) == ("active", "denied", NOW + HOUR)
    with pytest.raises(Conflict, match="extended only once"):
        denied.with_extension(HOUR, "more", NOW)


def test_a_decision_about_the_other_part_is_refused() -> None:
    request = replace(new(()), conditions=CONDITIONS[:1]).claimed(NOW).with_extension(HOUR, "more", NOW)
    with pytest.raises(
        Conflict,
        match=r"not about its access\. Add --extension, or send the part extension",
    ):
        request.decided(decision("anna", frozenset(CONDITIONS[:1])), CONDITIONS[:1])


EARLY = {"before_approval": True, "duration": HOUR, "approve_by": NOW + 2 * HOUR}
GIVEN = decision("anna", frozenset(CONDITIONS[:1]))
REFUSAL = replace(GIVEN, approves=False)
MISSING = "the approval of somebody else with the role admin"


def asked(**changes: Any) -> AccessRequest:
    return new(CONDITIONS[:1], at=NOW, **changes)


def approved(request: AccessRequest) -> AccessRequest:
    return request.decided(GIVEN, CONDITIONS[:1])


@pytest.mark.parametrize(
    ("request_", "label", "severity", "due_at", "next_"),
    [
        (
            asked(),
            *("pending", "warn", NOW + HOUR),
            f"The request waits for {MISSING}. Without approval, it expires.",
        ),
        (
            approved(asked(claim_within=HOUR / 2)),
            *("approved", "good", NOW + HOUR / 2),
            "The access can be used for 1 hour from the first certificate. Access that is not used in time expires.",
        ),
        (
            asked(**EARLY).claimed(NOW),
            *("active, not approved", "bad", NOW + HOUR),
            f"The access is in use before the approval. It waits for {MISSING}.",
        ),
        (
            asked(**EARLY | {"approve_by": NOW + HOUR / 2}).claimed(NOW),
            *("active, not approved", "bad", NOW + HOUR / 2),
            f"The access is in use before the approval. It waits for {MISSING}. Without approval, it ends early.",
        ),
        (
            approved(asked(**EARLY).claimed(NOW)),
            *("active", "good", NOW + HOUR),
            "The access is in use.",
        ),
        (
            approved(asked()).claimed(NOW).with_extension(HOUR, "more", NOW),
            *("active, extension pending", "warn", NOW + HOUR),
            f"The access is in use. An extension by 1 hour waits for {MISSING}.",
        ),
        (
            asked().decided(REFUSAL, CONDITIONS[:1]),
            *("denied", "bad", None),
            "The request was denied by Anna: a reason.",
        ),
        (
            asked().lapsed(NOW + HOUR),
            *("expired", "plain", None),
            "The request expired: not approved in time.",
        ),
        (new(()).ended(NOW, "Anna", None), *("ended", "plain", None), "The access was ended by Anna."),
        (new(()).claimed(NOW).lapsed(NOW + HOUR), *("finished", "plain", None), "The access is over."),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else "",
)
def test_each_state_has_one_label_severity_deadline_and_sentence(
    request_: AccessRequest, label: str, severity: str, due_at: datetime | None, next_: str
) -> None:
    assert (request_.label, request_.severity, request_.due_at) == (label, severity, due_at)
    assert next_step(request_) == next_


def test_use_before_the_approval_is_over_at_its_end_even_if_approvers_had_more_time() -> None:
    used = asked(**EARLY).claimed(NOW)
    assert used.lapsed(NOW + HOUR - timedelta(seconds=1)) is used
    assert used.lapsed(NOW + HOUR).state == "ended"


@pytest.mark.parametrize(
    ("request_", "state"),
    [
        (asked(), "pending"),
        (approved(asked()), "approved"),
        (asked(**EARLY).claimed(NOW), "active, not approved"),
        (new(()).ended(NOW, None, None), "ended"),
    ],
    ids=["pending", "approved", "unapproved", "ended"],
)
def test_an_extension_is_refused_with_the_state(request_: AccessRequest, state: str) -> None:
    with pytest.raises(Conflict, match=f"approved and in use can be extended\\. This request is {state}\\.$"):
        request_.with_extension(HOUR, "more", NOW)


HOURS_24 = timedelta(hours=24)


def early_use(at: datetime, *decisions: AccessDecision, **changes: Any) -> AccessRequest:
    """A request that was used before its approval, ended, and then decided."""
    used = new(CONDITIONS[:1], at=at, **EARLY | changes | {"approve_by": at + 2 * HOUR}).claimed(at)
    ended = used.ended(at, "Asker", None)
    for each in decisions:
        ended = ended.decided(each, CONDITIONS[:1])
    return ended


@pytest.mark.parametrize(
    ("others", "limit", "until"),
    [
        ([], 1, None),
        ([early_use(NOW - HOUR)], 2, None),
        ([early_use(NOW - HOUR), early_use(NOW - 3 * HOUR)], 2, NOW - 3 * HOUR + HOURS_24),
        ([early_use(NOW - each * HOUR) for each in (1, 2, 3, 4)], 2, NOW - 2 * HOUR + HOURS_24),
        ([early_use(NOW - HOURS_24)], 1, None),
        ([early_use(NOW - HOURS_24 + timedelta(seconds=1))], 1, NOW + timedelta(seconds=1)),
        ([early_use(NOW - HOUR, replace(GIVEN, at=NOW))], 1, None),
        ([early_use(NOW - HOUR, replace(REFUSAL, at=NOW - HOUR / 2))], 5, NOW - HOUR / 2 + HOURS_24),
        ([early_use(NOW - 30 * HOUR, replace(REFUSAL, at=NOW - HOURS_24))], 1, None),
        ([early_use(NOW - HOUR, rule="renamed", offered_groups=("more", "sre"))], 1, NOW - HOUR + HOURS_24),
        ([early_use(NOW - HOUR, groups=("other",), offered_groups=("other",))], 1, None),
        ([asked(**EARLY).decided(REFUSAL, CONDITIONS[:1])], 5, NOW + HOURS_24),
    ],
    ids=[
        *("none", "one left", "none left", "four", "a day ago", "almost a day ago", "approved after its end"),
        *("denied after its end", "denied a day ago", "another rule", "other groups", "denied unused"),
    ],
)
def test_uses_before_the_approval_are_limited(
    others: list[AccessRequest], limit: int, until: datetime | None
) -> None:
    request = asked(**EARLY)
    refusal = request.early_use_refusal([*others, request], limit, NOW)
    assert (refusal.until if refusal is not None else None) == until
    if refusal is not None:
        assert next_step(request, refusal) == (
            f"The access can't be used before the approval. {refusal.why} The request waits for {MISSING}."
            " Without approval, it expires."
        )
    assert approved(request).early_use_refusal(others, limit, NOW) is None
    assert asked().early_use_refusal(others, limit, NOW) is None


def test_a_decision_after_the_end_revives_nothing_and_is_final() -> None:
    ended = early_use(NOW)
    assert (ended.open_part, ended.label, ended.severity) == ("access", "ended, not approved", "bad")
    assert next_step(ended) == (
        f"The access was ended by Asker. This use before the approval waits for {MISSING}. An approval does"
        " not give the access again, but the user may again use such access without waiting for an approval."
        " After a denial, the user may not do this for a day."
    )
    late = approved(ended)
    assert (late.state, late.label, late.closed_at) == ("ended", "ended", ended.closed_at)
    assert (late.approved_at, late.claim_by, late.usable_until(NOW)) == (NOW, None, None)
    denied = ended.decided(REFUSAL, CONDITIONS[:1])
    assert (denied.state, denied.closed_by, denied.label) == ("ended", "Asker", "ended, not approved")
    for decided in (late, denied):
        assert decided.open_part is None
        with pytest.raises(Conflict, match="waits for no decision: it is ended"):
            decided.decided(replace(GIVEN, by="ben"), CONDITIONS[:1])
    with pytest.raises(Conflict, match="your own request"):
        ended.decided(replace(GIVEN, by=ASKER), CONDITIONS[:1])
    with pytest.raises(Conflict, match="waits for no decision"):
        asked().ended(NOW, None, None).decided(GIVEN, CONDITIONS[:1])
