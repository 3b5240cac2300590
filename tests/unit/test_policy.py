from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import IssueRequest
from clustercert.model.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from clustercert.model.name_patterns import Names
from clustercert.policy.conditions import DecisionInput, HasName
from clustercert.policy.decision import Policy
from clustercert.policy.rules import PolicyRule
from support.policy_decisions import CLUSTER, DAY, decide
from support.samples import (
    BACKDATE,
    CA_NOT_BEFORE,
    ISSUED_AT,
    NOW,
    OTHER_PROJECT_ID,
    POLICY,
    PROJECT_ID,
    USER_ID,
    caller,
    client_ca,
    cluster,
    role_rule,
)

# Roles


@pytest.mark.parametrize(
    ("roles", "groups"),
    [
        (("admin",), ("clustercert:admins",)),
        (("member",), ("clustercert:editors", "builders")),
        (("reader",), ("clustercert:viewers",)),
        (("reader", "admin"), ("clustercert:admins", "clustercert:viewers")),
        (("member", "reader"), ("clustercert:editors", "builders", "clustercert:viewers")),
        (("something", "reader"), ("clustercert:viewers",)),
    ],
)
def test_the_groups_of_all_roles_unite(roles: tuple[str, ...], groups: tuple[str, ...]) -> None:
    granted = decide(IssueRequest(duration=-1), *roles)
    assert granted.groups == groups
    assert granted.username == USER_ID


def test_a_role_without_a_rule_is_forbidden_and_told_which_roles_have_one() -> None:
    with pytest.raises(Forbidden) as refused:
        decide(IssueRequest(duration=1), "auditor")
    assert "auditor" in refused.value.message
    assert "admin, member, reader" in refused.value.message


def test_no_role_in_the_project_means_that_there_is_no_such_project() -> None:
    with pytest.raises(NotFound) as missing:
        POLICY.decide(caller(), CLUSTER, IssueRequest(duration=1), NOW)
    assert missing.value.message == NotFound().message


def test_a_role_in_another_project_is_none_in_this_one() -> None:
    elsewhere = caller(in_projects={OTHER_PROJECT_ID: ("admin",)})
    with pytest.raises(NotFound):
        POLICY.decide(elsewhere, CLUSTER, IssueRequest(duration=1), NOW)


def test_roles_of_several_projects_do_not_add_up() -> None:
    both = caller(in_projects={PROJECT_ID: ("reader",), OTHER_PROJECT_ID: ("admin",)})
    assert POLICY.decide(both, CLUSTER, IssueRequest(duration=-1), NOW).groups == ("clustercert:viewers",)


@dataclass(frozen=True)
class IsLabelled:
    """A condition that a later version may have."""

    label: str

    @property
    def clause(self) -> str:
        return f"the cluster has the label {self.label}"

    def first_false(self, said: DecisionInput) -> str | None:
        return None if self.label in said.cluster.labels else self.clause

    def found(self, said: DecisionInput) -> str:
        return ", ".join(said.cluster.labels)


def test_a_rule_needs_all_of_its_conditions() -> None:
    rule = PolicyRule("labelled", (HasName("role", Names(("admin",))), IsLabelled("test")), ("testers",))
    policy = Policy(rules=(rule,))
    labelled = replace(CLUSTER, labels={"test": ""})
    granted = policy.decide(caller("admin"), labelled, IssueRequest(duration=1), NOW)
    assert (granted.rule, granted.groups) == ("labelled", ("testers",))
    for roles, where, unmet in (
        (("admin",), CLUSTER, "the cluster has the label test"),
        (("member",), labelled, "role is admin"),
        (("member",), CLUSTER, "role is admin"),
    ):
        with pytest.raises(Forbidden) as refused:
            policy.decide(caller(*roles), where, IssueRequest(duration=1), NOW)
        assert refused.value.unmet_conditions == {"labelled": unmet}
        assert refused.value.trace["unmet_conditions"] == {}


def test_without_rules_nobody_gets_anything() -> None:
    with pytest.raises(Forbidden):
        decide(IssueRequest(duration=1), policy=Policy(rules=()))


# Lifetimes


@given(days=st.integers(1, 1825), microsecond=st.integers(0, 999_999))
def test_validity_is_the_time_of_issue_and_the_duration_in_whole_seconds(days: int, microsecond: int) -> None:
    now = ISSUED_AT.replace(microsecond=microsecond)
    granted = decide(IssueRequest(duration=days), now=now)
    assert granted.not_after == ISSUED_AT + days * DAY
    assert granted.not_before == ISSUED_AT - BACKDATE
    assert granted.not_before.microsecond == granted.not_after.microsecond == 0


def test_minus_one_is_the_longest_that_the_contract_has() -> None:
    assert decide(IssueRequest(duration=-1)).not_after == ISSUED_AT + timedelta(days=1825)


def test_minus_one_is_truncated_to_the_rule() -> None:
    assert decide(IssueRequest(duration=-1), "member").not_after == ISSUED_AT + timedelta(days=30)
    assert decide(IssueRequest(duration=-1), "reader").not_after == ISSUED_AT + timedelta(hours=8)


@pytest.mark.parametrize("ca_lifetime", [timedelta(days=100), timedelta(days=1, hours=3, seconds=7)])
@pytest.mark.parametrize("ask", [IssueRequest(duration=-1), IssueRequest(duration=400, shorten=True)])
def test_minus_one_and_get_are_truncated_to_the_end_of_the_ca(
    ask: IssueRequest, ca_lifetime: timedelta
) -> None:
    short = cluster(client_ca(lifetime=ca_lifetime))
    granted = POLICY.decide(caller("admin"), short, ask, NOW)
    assert granted.not_after == CA_NOT_BEFORE + ca_lifetime


def test_get_is_truncated_to_the_rule() -> None:
    assert decide(IssueRequest(duration=30, shorten=True), "reader").not_after == ISSUED_AT + timedelta(
        hours=8
    )
    assert decide(IssueRequest(duration=30, shorten=True), "admin").not_after == ISSUED_AT + timedelta(
        days=30
    )


def test_a_longer_wish_than_the_rule_is_forbidden_and_told_the_limit() -> None:
    assert decide(IssueRequest(duration=30), "member").not_after == ISSUED_AT + timedelta(days=30)
    with pytest.raises(Forbidden, match="30 days"):
        decide(IssueRequest(duration=31), "member")
    with pytest.raises(Forbidden, match="8 hours"):
        decide(IssueRequest(duration=1), "reader")


def test_a_longer_wish_than_the_ca_is_forbidden_and_told_its_end() -> None:
    short = cluster(client_ca(lifetime=timedelta(days=101)))
    granted = POLICY.decide(caller("admin"), short, IssueRequest(duration=100), NOW)
    assert granted.not_after == ISSUED_AT + timedelta(days=100)
    assert granted.not_after == short.client_ca.ca_certificate.not_valid_after_utc
    with pytest.raises(Forbidden, match=r"2026-06-22T15:09:26Z"):
        POLICY.decide(caller("admin"), short, IssueRequest(duration=101), NOW)


@pytest.mark.parametrize(
    "ask", [IssueRequest(duration=-1), IssueRequest(duration=1), IssueRequest(duration=30, shorten=True)]
)
def test_an_expired_ca_issues_nothing(ask: IssueRequest) -> None:
    ended = cluster(client_ca(lifetime=timedelta(hours=12)))
    with pytest.raises(Unavailable, match="CA"):
        POLICY.decide(caller("admin"), ended, ask, NOW)


@pytest.mark.parametrize(
    "ahead",
    [
        timedelta(minutes=15),
        timedelta(minutes=15, seconds=1),
        timedelta(hours=1),
        DAY,
        timedelta(days=1825),
    ],
)
def test_expire_at_is_the_end_from_15_minutes_to_1825_days(ahead: timedelta) -> None:
    assert decide(IssueRequest(expire_at=ISSUED_AT + ahead)).not_after == ISSUED_AT + ahead


@pytest.mark.parametrize(
    "ahead",
    [
        timedelta(minutes=14, seconds=59),
        timedelta(0),
        timedelta(days=-400),
        timedelta(days=1825, seconds=1),
        timedelta(days=1828),
        timedelta(days=2_000_000),
    ],
)
def test_expire_at_out_of_bounds_is_an_invalid_request_that_says_the_time(ahead: timedelta) -> None:
    with pytest.raises(InvalidRequest, match="expire_at") as refused:
        decide(IssueRequest(expire_at=ISSUED_AT + ahead))
    assert "2026-03-14 15:09:26" in refused.value.message


def test_expire_at_wins_over_duration() -> None:
    ask = IssueRequest(duration=7, expire_at=ISSUED_AT + timedelta(hours=2))
    assert decide(ask).not_after == ISSUED_AT + timedelta(hours=2)


def test_expire_at_wins_over_a_duration_that_the_rule_would_forbid() -> None:
    ask = IssueRequest(duration=1825, expire_at=ISSUED_AT + timedelta(hours=2))
    assert decide(ask, "reader").not_after == ISSUED_AT + timedelta(hours=2)


def test_expire_at_beyond_the_rule_is_forbidden_and_told_the_limit() -> None:
    end = ISSUED_AT + timedelta(hours=8)
    assert decide(IssueRequest(expire_at=end), "reader").not_after == end
    with pytest.raises(Forbidden, match="8 hours"):
        decide(IssueRequest(expire_at=ISSUED_AT + timedelta(hours=8, seconds=1)), "reader")


def test_an_expire_at_beyond_the_rule_is_forbidden_even_with_minus_one() -> None:
    """expire_at wins: what is left to shorten is -1, which was not asked for."""
    with pytest.raises(Forbidden):
        decide(IssueRequest(duration=-1, expire_at=ISSUED_AT + timedelta(days=40)), "member")


def test_expires_in_counts_from_the_request_and_is_shortened_only_on_request() -> None:
    ask = IssueRequest(expires_in=timedelta(hours=8))
    assert decide(ask, "reader").not_after == ISSUED_AT + timedelta(hours=8)
    longer = replace(ask, expires_in=timedelta(hours=8, seconds=1))
    with pytest.raises(Forbidden, match="8 hours"):
        decide(longer, "reader")
    assert decide(replace(longer, shorten=True), "reader").not_after == ISSUED_AT + timedelta(hours=8)


def test_neither_duration_nor_expire_at_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest):
        decide(IssueRequest())


@given(
    rule_seconds=st.integers(300, 1825 * 86400),
    ca_seconds=st.integers(1, 3650 * 86400),
    ask=st.one_of(
        st.builds(IssueRequest, duration=st.just(-1) | st.integers(1, 1825)),
        st.builds(
            IssueRequest,
            expires_in=st.integers(300, 1825 * 86400).map(lambda seconds: timedelta(seconds=seconds)),
            shorten=st.booleans(),
        ),
    ),
)
def test_nothing_ever_outlives_the_rule_the_ca_or_the_wish(
    rule_seconds: int, ca_seconds: int, ask: IssueRequest
) -> None:
    policy = Policy(rules=(role_rule("admin", ("g",), timedelta(seconds=rule_seconds)),))
    ca_end = ISSUED_AT + timedelta(seconds=ca_seconds)
    short = cluster(client_ca(lifetime=ca_end - CA_NOT_BEFORE))
    longest = min(ISSUED_AT + timedelta(seconds=rule_seconds), ca_end)
    days = 1825 if ask.duration in (-1, None) else ask.duration
    wish = ISSUED_AT + (ask.expires_in or timedelta(days=days))
    try:
        granted = policy.decide(caller("admin"), short, ask, NOW)
    except Forbidden:
        assert ask.duration != -1
        assert not ask.shorten
        assert wish > longest
        return
    assert granted.not_after == min(wish, longest)
