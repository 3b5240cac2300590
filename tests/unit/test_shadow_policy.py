"""Comparing decisions with a shadow policy: what is counted, what is logged, and what it may cost."""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from clustercert.model import Caller, Cluster, FederatedDomain, Grant, IssueRequest
from clustercert.model.clusters import ClusterOptions
from clustercert.model.errors import Forbidden
from clustercert.observability import metrics
from clustercert.policy import shadow
from clustercert.policy.decision import Policy
from clustercert.policy.replay import Change
from clustercert.policy.shadow import LINES_PER_MINUTE, QUIET_SECONDS, Shadow, ShadowedPolicy, with_shadow
from support.log_capture import captured_lines
from support.samples import NOW, caller, cluster, role_rule

DAY = timedelta(days=1)
ASK = IssueRequest(duration=-1)
LONG = Policy((role_rule("admin", ("a",), 2 * DAY),))
SHORT = Policy((role_rule("admin", ("a",), DAY),))
OTHER = Policy((role_rule("admin", ("b",), 2 * DAY),))
NOBODY = Policy((role_rule("other", ("a",), DAY),))


class Failing(Policy):
    def decide(self, *_: Any) -> Grant:
        raise ZeroDivisionError


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Slow(Policy):
    """A policy that takes a second to decide."""

    clock: Clock | None = None

    def decide(self, caller: Caller, cluster: Cluster, request: IssueRequest, now: datetime) -> Grant:
        assert self.clock is not None
        self.clock.now += 1
        return Policy.decide(self, caller, cluster, request, now)


def count(name: str, **labels: str) -> float:
    counter = {"decisions": metrics.SHADOW_DECISIONS, "differences": metrics.SHADOW_DIFFERENCES}[name]
    [family] = counter.labels(**labels).collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))


@pytest.fixture
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    with captured_lines(shadow) as said:
        yield said


@pytest.mark.parametrize(
    ("policy", "other", "kinds"),
    [
        (LONG, LONG, []),
        (NOBODY, NOBODY, []),
        (LONG, NOBODY, ["allow_to_deny"]),
        (NOBODY, LONG, ["deny_to_allow"]),
        (LONG, SHORT, ["shorter"]),
        (SHORT, LONG, ["longer"]),
        (LONG, OTHER, ["other_groups"]),
        (SHORT, OTHER, ["longer", "other_groups"]),
    ],
)
def test_differences_are_counted_and_logged_and_the_decision_stays(
    policy: Policy, other: Policy, kinds: list[str], log: list[MutableMapping[str, Any]]
) -> None:
    before = {kind: count("differences", kind=kind) for kind in Change}
    expected: object
    actual: object
    try:
        expected = policy.decide(caller("admin"), cluster(), ASK, NOW)
    except Forbidden as refused:
        expected = refused.message
    try:
        actual = with_shadow(policy, other).decide(caller("admin"), cluster(), ASK, NOW)
    except Forbidden as refused:
        actual = refused.message
    assert actual == expected
    assert [kind for kind in Change if count("differences", kind=kind) > before[kind]] == kinds
    assert [line["differences"] for line in log] == ([kinds] if kinds else [])


def test_a_line_names_the_user_the_cluster_the_rules_and_the_groups(
    log: list[MutableMapping[str, Any]],
) -> None:
    with_shadow(LONG, OTHER).decide(caller("admin"), cluster(), ASK, NOW)
    [line] = log
    assert (line["user"], line["cluster"]) == ("default/alice", "production")
    assert (line["rules"], line["shadow_rules"]) == (("admin",), ("admin",))
    assert (line["groups_added"], line["groups_removed"]) == (["b"], ["a"])
    assert "refusal" not in line


def test_a_line_names_an_issuers_user_as_in_rules(log: list[MutableMapping[str, Any]]) -> None:
    who = caller("admin")
    user = replace(who.user, name="google/alice", domain=FederatedDomain("e" * 32, "google"))
    with_shadow(LONG, OTHER).decide(replace(who, user=user), cluster(), ASK, NOW)
    assert [line["user"] for line in log] == ["google/alice"]


def test_a_line_names_the_reason_of_a_refusal(log: list[MutableMapping[str, Any]]) -> None:
    with_shadow(LONG, NOBODY).decide(caller("admin"), cluster(), ASK, NOW)
    assert log[0]["refusal"].startswith("No rule gives your role")
    assert "shadow_not_after" in log[0]


def test_in_a_cluster_with_cluster_roles_only_the_bound_role_counts(
    log: list[MutableMapping[str, Any]],
) -> None:
    bound = replace(cluster(), options=ClusterOptions(credential_roles={"admin": "cluster-admin"}))
    with_shadow(LONG, OTHER).decide(caller("admin"), bound, ASK, NOW)
    assert log == []


def test_a_shadow_policy_that_fails_changes_no_decision(log: list[MutableMapping[str, Any]]) -> None:
    failed = count("decisions", outcome="failed")
    policy = with_shadow(LONG, Failing(()))
    for _ in range(3):
        assert policy.decide(caller("admin"), cluster(), ASK, NOW).groups == ("a",)
    assert count("decisions", outcome="failed") == failed + 3
    assert [line["event"] for line in log] == ["shadow policy failed"]


def compare(compared: Shadow, user: str = "1" * 32) -> None:
    who = caller("admin", user_id=user)
    compared.compare(who, cluster(), ASK, NOW, LONG.decide(who, cluster(), ASK, NOW))


def test_the_same_difference_is_logged_once_an_hour(log: list[MutableMapping[str, Any]]) -> None:
    clock = Clock()
    compared = Shadow(SHORT, clock)
    for _ in range(5):
        compare(compared)
    assert len(log) == 1
    clock.now += QUIET_SECONDS + 1
    compare(compared)
    assert len(log) == 2


def test_lines_are_limited_and_those_left_out_are_counted(log: list[MutableMapping[str, Any]]) -> None:
    clock = Clock()
    compared = Shadow(SHORT, clock)
    for number in range(LINES_PER_MINUTE + 7):
        compare(compared, f"{number:032x}")
    assert len(log) == LINES_PER_MINUTE
    clock.now += 61
    compare(compared, "f" * 32)
    assert log[-1]["suppressed"] == 7


def test_a_slow_shadow_policy_is_skipped_until_its_share_of_the_time_allows_it() -> None:
    clock = Clock()
    compared = Shadow(Slow(SHORT.rules, clock=clock), clock)
    skipped, different = (count("decisions", outcome=each) for each in ("skipped", "different"))
    for _ in range(10):
        compare(compared)
    assert clock.now == 1
    assert count("decisions", outcome="different") == different + 1
    assert count("decisions", outcome="skipped") == skipped + 9
    # It took half a second more than it had, which is its share of ten seconds.
    clock.now += 11
    compare(compared)
    assert count("decisions", outcome="different") == different + 2


def test_a_shadow_policy_is_off_after_two_slow_decisions_in_a_row(
    log: list[MutableMapping[str, Any]],
) -> None:
    cpu = Clock()
    slow = Slow(LONG.rules, clock=cpu)
    compared = Shadow(slow, Clock(), cpu)
    off = count("decisions", outcome="off")
    for _ in range(4):
        compare(compared)
    assert cpu.now == 2
    assert count("decisions", outcome="off") == off + 2
    assert [line["event"] for line in log] == ["shadow policy is off"]


def test_a_single_pause_does_not_switch_a_shadow_policy_off(log: list[MutableMapping[str, Any]]) -> None:
    cpu = Clock()
    slow = Slow(LONG.rules, clock=cpu)
    compared = Shadow(LONG, Clock(), cpu)
    for policy in (slow, LONG, slow, LONG):
        compared._policy = policy
        compare(compared)
    assert log == []


def test_a_policy_with_a_shadow_is_otherwise_the_same() -> None:
    policy = Policy(LONG.rules, frozenset({"system:x"}), "ed25519")
    shadowed = with_shadow(policy, SHORT)
    assert isinstance(shadowed, ShadowedPolicy)
    assert (shadowed.rules, shadowed.allowed_system_names, shadowed.key_type, shadowed.groups) == (
        *(policy.rules, policy.allowed_system_names, policy.key_type),
        policy.groups,
    )
