"""Rules in the form of the settings: what they match, what they give together, and what they never give."""

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clustercert.model import Domain, FederatedDomain, Group, IssueRequest, Origin
from clustercert.model.errors import ClustercertError, Forbidden
from clustercert.model.identity import ProjectName
from clustercert.model.name_patterns import Names, Values
from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.rules import MAX_GROUPS
from support.policy_rules import (
    ALICE,
    ANY_RULE,
    ASKS,
    CLUSTER,
    CSR,
    DEFAULT,
    GRANTING,
    HOUR,
    LONGEST,
    Rule,
    decide,
    groups,
    is_evaluable,
    rule,
)
from support.samples import ISSUED_AT, NOW, PROJECT_ID, USER_ID, cluster

# Conditions


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({}, True),
        ({"roles": ["member"]}, True),
        ({"roles": ["admin", "read*"]}, True),
        ({"roles": ["admin"]}, False),
        ({"groups": ["team-a"]}, True),
        ({"groups": ["1" * 32]}, True),
        ({"groups": ["default/team-?"]}, True),
        ({"groups": ["other/team-a"]}, False),
        ({"groups": ["team"]}, False),
        ({"users": ["alice"]}, True),
        ({"users": [USER_ID]}, True),
        ({"users": ["default/al*"]}, True),
        ({"users": ["other/*", "bob"]}, False),
        ({"projects": [PROJECT_ID]}, True),
        ({"projects": ["0" * 32]}, False),
        ({"clusters": ["prod*"]}, True),
        ({"clusters": [CLUSTER.id]}, True),
        ({"clusters": ["*-staging"]}, False),
        ({"cluster_labels": {"env": ["prod", "live"]}}, True),
        ({"cluster_labels": {"env": ["p*d"]}}, True),
        ({"cluster_labels": {"env": ["prod"], "zone": ["*"]}}, False),
        ({"auth_methods": ["token"]}, True),
        ({"auth_methods": ["access_key"]}, False),
        ({"auth_methods": ["tok*"]}, True),
        ({"issuers": ["built-in"]}, True),
        ({"issuers": ["https://*"]}, False),
        ({"sources": ["192.0.2.0/24", "10.0.0.0/8"]}, True),
        ({"sources": ["198.51.100.1/32", "2001:db8::/32"]}, False),
        ({"cel": '"team-a" in user.groups && cluster.labels.env == "prod"'}, True),
        ({"cel": 'request.source.startsWith("192.0.2.") && !request.csr && request.reason == ""'}, True),
        ({"cel": 'user.groups.exists(name, name.startsWith("team-"))'}, True),
        ({"cel": 'now < timestamp("2026-01-01T00:00:00Z")'}, False),
        ({"roles": ["member"], "cel": "false"}, False),
        ({"roles": ["admin"], "groups": ["team-a"]}, False),
    ],
)
def test_a_rule_matches_if_every_condition_is_met(when: dict[str, object], matches: bool) -> None:
    assert groups(rule("g", when)) == ({"g"} if matches else set())


@pytest.mark.parametrize(
    ("domain", "name", "names"),
    [
        ("default", "alice", {"alice", "default/alice"}),
        ("other", "default/alice", {"other/default/alice"}),
        ("other", "0" * 32, {"other/" + "0" * 32}),
        ("a/b", "c", {"c"}),
        ("a", "b/c", {"a/b/c"}),
    ],
)
def test_no_name_passes_for_a_user_or_group_of_another_domain(
    domain: str, name: str, names: set[str]
) -> None:
    where = Domain("f" * 32, domain)
    user, group = replace(ALICE.user, name=name, domain=where), Group("4" * 32, name, where)
    who = replace(ALICE, user=user, groups=(group,))
    assert set(user.qualified_names) == names
    assert set(group.qualified_names) == names
    for asked in ("default/alice", "0" * 32, "a/b/c", "default/*"):
        matches = {"g"} if any(fnmatch.fnmatchcase(each, asked) for each in names) else set()
        assert groups(rule("g", {"users": [asked]}), who=who) == matches
        assert groups(rule("g", {"groups": [asked]}), who=who) == matches


@pytest.mark.parametrize(
    ("address", "matches"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("192.0.3.7", False),
        ("local", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_a_source_is_compared_as_an_address(address: str, matches: bool) -> None:
    who = replace(ALICE, origin=Origin(address, "f" * 32))
    assert bool(groups(rule("g", {"sources": ["192.0.2.0/24", "2001:db8::/32"]}), who=who)) is matches


@pytest.mark.parametrize(
    ("grant", "without", "with_csr", "with_reason"),
    [
        ({"csr_required": True}, False, True, False),
        ({"reason_required": True}, False, False, True),
        ({"key_types": ["ec-p384"]}, False, True, False),
        ({"key_types": ["ec-p256", "rsa-2048"]}, True, False, True),
    ],
)
def test_a_requirement_that_is_not_met_is_a_rule_that_does_not_match(
    grant: dict[str, Any], without: bool, with_csr: bool, with_reason: bool
) -> None:
    needy = rule("needy", **grant)
    for ask, met in ((LONGEST, without), (CSR, with_csr), (replace(LONGEST, reason="incident"), with_reason)):
        assert groups(rule("base"), needy, ask=ask) == ({"base", "needy"} if met else {"base"})


@pytest.mark.parametrize("blank", ["", " ", "\u2003\t"])
def test_a_blank_reason_is_none(blank: str) -> None:
    ask = replace(LONGEST, reason=blank)
    assert ask.reason is None
    assert not groups(rule("g", reason_required=True), ask=ask)
    assert not groups(rule("g", {"cel": 'request.reason != ""'}), ask=ask)


PROD = ProjectName("prod", DEFAULT, is_unique=True)


@pytest.mark.parametrize(
    ("entry", "unique", "shared"),
    [
        ("prod", True, None),
        ("pro?", True, None),
        ("default/prod", True, True),
        ("default/*", True, True),
        ("*", True, True),
        (PROJECT_ID, True, True),
        ("other/prod", False, False),
        ("staging", False, False),
    ],
)
def test_a_project_is_named_with_its_domain_or_alone_while_one_project_has_the_name(
    entry: str, *, unique: bool, shared: bool | None
) -> None:
    named = rule("g", {"projects": [entry]})
    where = replace(CLUSTER, project_name=PROD)
    assert bool(groups(named, where=where)) is unique
    where = replace(CLUSTER, project_name=replace(PROD, is_unique=False))
    if shared is not None:
        assert bool(groups(named, where=where)) is shared
        return
    with pytest.raises(Forbidden, match="can't be evaluated") as refused:
        decide(rule("base"), named, where=where)
    assert "several projects are named prod" in refused.value.unmet_conditions["rule-2"]
    assert groups(rule("base"), rule("g", {"projects": [entry], "roles": ["admin"]}), where=where) == {"base"}


@pytest.mark.parametrize("pattern", ["sso/team-a", "sso/*", "*/team-a"])
def test_the_name_of_an_issuer_matches_its_own_users_alone(pattern: str) -> None:
    policy = PolicySettings.model_validate(
        {"rules": [{"when": {"groups": [pattern]}, "grant": {"groups": ["t:{group}"]}}]}
    ).policy(issuer_names=frozenset({"sso"}))
    squatter = replace(ALICE, groups=(Group("1" * 32, "team-a", Domain("f" * 32, "sso")),))
    with pytest.raises(Forbidden):
        policy.decide(squatter, CLUSTER, LONGEST, NOW)
    theirs = Group("1" * 32, "sso/team-a", FederatedDomain("f" * 32, "sso"))
    of_issuer = replace(ALICE, groups=(theirs,), issuer="https://sso.example")
    assert policy.decide(of_issuer, CLUSTER, LONGEST, NOW).groups == ("t:sso/team-a",)


@pytest.mark.parametrize("kind", ["users", "groups", "projects", "clusters"])
def test_an_id_matches_only_if_it_is_written_out(kind: str) -> None:
    own = "fed0ec375984d7a8182e2049601bc900"
    who = replace(ALICE, user=replace(ALICE.user, id=own), groups=(Group(own, "team", DEFAULT),))
    who = replace(who, roles={own: ("member",)})
    where = replace(CLUSTER, id=own, project_id=own)
    assert groups(rule("g", {kind: [own]}), who=who, where=where) == {"g"}
    for pattern in ("fed*", "*900", "fed0ec375984d7a8182e2049601bc90?"):
        assert groups(rule("g", {kind: [pattern]}), who=who, where=where) == set()


NAME = st.text(st.sampled_from("ab/-.:*?"), max_size=6)
PATTERN = NAME | st.text(st.sampled_from("ab?**"), max_size=12)


def matches_slowly(pattern: str, name: str) -> bool:
    """Try each number of characters for each `*`."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(matches_slowly(pattern[1:], name[start:]) for start in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and matches_slowly(pattern[1:], name[1:])


@given(
    names=st.lists(NAME | st.text(st.sampled_from("ab"), max_size=12), max_size=3),
    patterns=st.lists(PATTERN, min_size=1, max_size=3),
)
@example(["a\nb"], ["a*"])
@example(["x\0a"], ["a*"])
@example(["a\0x"], ["*a", "a?x*?"])
@example([""], ["*"])
@example([], ["*", "**", "*?*"])
@example(["aab"], ["*a*ab"])
@example(["aba"], ["*ab*ba"])
def test_patterns_match_as_a_slow_comparison_says(names: list[str], patterns: list[str]) -> None:
    expected = any(matches_slowly(pattern, name) for name in names for pattern in patterns)
    assert Names(patterns).match(names) is expected
    assert Names(patterns).match_prepared(Values(names)) is expected
    for pattern in patterns:
        assert Names([pattern]).match(names) is any(matches_slowly(pattern, name) for name in names)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*-*-*-*-*-prod", "-" * 16_000),
        ("refs/heads/*-*-*-*-*-prod", "refs/heads/" + "-" * 16_000),
        ("*a*a*a*a*a*a?b", "a" * 16_000),
        ("*?*?*?*?*?*?*b", "a" * 16_000),
    ],
)
def test_a_pattern_is_compared_without_backtracking(pattern: str, name: str) -> None:
    # With backtracking, each of them would take longer than the age of the universe.
    assert not Names([pattern]).match([name])
    assert Names([pattern]).match([f"{name}{pattern.rpartition('*')[2].replace('?', 'x')}"])


# Union


def test_all_matching_rules_add_their_groups_and_the_shortest_lifetime_counts() -> None:
    granted = decide(
        rule("a", {"groups": ["team-a"]}, max_lifetime="8h"),
        rule("b", {"groups": ["team-b"]}, max_lifetime="2h"),
        rule("c", {"groups": ["team-c"]}, max_lifetime="1h"),
        rule("a", {"roles": ["reader"]}),
    )
    assert granted.groups == ("a", "b")
    assert granted.not_after == ISSUED_AT + 2 * HOUR
    assert (granted.rule, granted.rules) == ("rule-1", ("rule-1", "rule-2", "rule-4"))
    assert granted.trace["rules"] == ["rule-1", "rule-2", "rule-4"]
    assert (granted.trace["skipped_rules"], granted.trace["skipped_count"]) == ([], 1)


def test_a_rule_that_denies_decides_with_its_message() -> None:
    deny = {"name": "frozen", "when": {"cluster_labels": {"env": ["prod"]}}, "deny": "Production is frozen."}
    for rules in ((deny, rule("a")), (rule("a"), deny)):
        with pytest.raises(Forbidden) as refused:
            decide(*rules)
        assert refused.value.message == "Production is frozen."
        assert refused.value.trace["denied_by"] == "frozen"
    assert groups(rule("a"), deny, where=cluster()) == {"a"}


def test_the_default_lifetime_is_that_of_minus_one() -> None:
    limits = rule("a", max_lifetime="8h", default_lifetime="1h")
    assert decide(limits).not_after == ISSUED_AT + HOUR
    assert decide(limits, ask=IssueRequest(expire_at=ISSUED_AT + 8 * HOUR)).not_after == ISSUED_AT + 8 * HOUR
    assert decide(limits, rule("b", max_lifetime="30m")).not_after == ISSUED_AT + HOUR / 2
    assert decide(rule("b", default_lifetime="2h"), limits).not_after == ISSUED_AT + HOUR


def test_a_refusal_for_the_lifetime_names_the_strictest_rule() -> None:
    with pytest.raises(Forbidden, match=r"limit of rule rule-2 \(1 hour\)"):
        decide(rule("a", max_lifetime="8h"), rule("b", max_lifetime="1h"), ask=IssueRequest(duration=1))


def test_a_refusal_says_what_the_nearest_rules_need() -> None:
    with pytest.raises(Forbidden) as refused:
        decide(
            {"name": "far"} | rule("a", {"roles": ["admin"]}),
            {"name": "near"} | rule("b", {"roles": ["member"], "cluster_labels": {"env": ["test"]}}),
        )
    assert "Ask the operator" in refused.value.message
    assert refused.value.trace["unmet_conditions"] == {"far": "role is admin"}
    assert refused.value.unmet_conditions == {
        "far": "role is admin",
        "near": "cluster label env is test",
    }
    with pytest.raises(Forbidden, match=r"nearest rules need: near: the request has a csr\.$"):
        decide(
            {"name": "else"} | rule("a", {"users": ["bob"]}), {"name": "near"} | rule("b", csr_required=True)
        )
    with pytest.raises(
        Forbidden, match=r"need: one: the request has a reason; two: the request has a csr\.$"
    ):
        decide(
            {"name": "two"} | rule("a", csr_required=True, reason_required=True),
            {"name": "one"} | rule("b", reason_required=True),
        )


SECRETS = ("mallory", "hidden-group", "9" * 32, "acme-prod", "203.0.113", "acme", "user.name")
OTHERS: Sequence[Rule] = [
    rule("g", {"users": ["mallory"]}),
    rule("g", {"groups": ["hidden-group"]}),
    rule("g", {"projects": ["9" * 32]}),
    rule("g", {"clusters": ["acme-prod"]}),
    rule("g", {"cluster_labels": {"owner": ["acme"]}}),
    rule("g", {"sources": ["203.0.113.0/24"]}),
    rule("g", {"issuers": ["https://acme.example"]}),
    rule("g", {"cel": 'user.name == "mallory"'}),
    rule("g", {"groups": ["hidden-group"]}, csr_required=True),
    rule("g", {"users": ["mallory"], "roles": ["acme-admin"]}),
    rule("g", {"roles": ["acme-admin"], "cel": "1 / 0 == 1"}),
]


@pytest.mark.parametrize("rules", [*([each] for each in OTHERS), OTHERS], ids=lambda rules: str(len(rules)))
def test_a_refusal_does_not_tell_what_rules_say_of_others(rules: list[Rule]) -> None:
    named = [{"name": f"acme-{n}"} | each for n, each in enumerate(rules)]
    with pytest.raises(Forbidden) as refused:
        decide(*named)
    assert not [each for each in SECRETS if each in refused.value.message]
    assert not [each for each in SECRETS if each in str(refused.value.trace)]
    assert refused.value.trace["skipped_count"] == len(rules)
    assert [each for each in (*SECRETS, "acme-admin") if each in str(refused.value.unmet_conditions)]
    granted = decide(*named, rule("a"))
    assert not [each for each in SECRETS if each in str(granted.trace)]
    assert granted.trace["skipped_count"] == len(rules)


@pytest.mark.parametrize("about", ["roles", "users"])
def test_the_trace_of_a_refusal_is_bounded(about: str) -> None:
    with pytest.raises(Forbidden) as refused:
        decide(*(rule("g", {about: ["x" * 200, "y" * 200]}) for _ in range(200)))
    traced = refused.value.trace["unmet_conditions"]
    assert isinstance(traced, dict)
    assert len(traced) == (50 if about == "roles" else 0)
    for unmet in (traced, refused.value.unmet_conditions):
        assert len(unmet) <= 50
        assert max(map(len, unmet.values()), default=0) <= 201
    assert len(refused.value.message) < 310
    assert refused.value.trace["skipped_rules"] == list(traced)
    assert refused.value.trace["skipped_count"] == 200


@pytest.mark.parametrize("skipped", [0, 50, 51])
def test_the_trace_of_a_grant_is_bounded(skipped: int) -> None:
    never = [{"name": f"never-{n}"} | rule("g", {"roles": ["nobody"]}) for n in range(skipped)]
    trace = decide(*never, rule("a")).trace
    assert trace["skipped_rules"] == [f"never-{n}" for n in range(min(skipped, 50))]
    assert trace.get("skipped_count") == (None if skipped <= 50 else skipped)


def test_rules_without_any_group_are_a_refusal() -> None:
    with pytest.raises(Forbidden, match="gives you 0 Kubernetes groups"):
        decide({"grant": {"max_lifetime": "1h"}})
    assert groups({"grant": {"max_lifetime": "1h"}}, rule("a")) == {"a"}


def test_a_certificate_has_a_bounded_number_of_groups() -> None:
    full = [{"grant": {"groups": [f"g{n}-{m}" for m in range(32)]}} for n in range(MAX_GROUPS // 32)]
    assert len(groups(*full)) == MAX_GROUPS
    with pytest.raises(Forbidden, match="gives you more than 64 Kubernetes groups"):
        decide(*full, rule("one-more"))


@given(
    rules=st.lists(ANY_RULE, max_size=4), added=GRANTING.filter(is_evaluable), at=st.integers(0, 4), ask=ASKS
)
def test_adding_a_rule_removes_groups_only_by_deny_or_failure(
    rules: list[Rule], added: Rule, at: int, ask: IssueRequest
) -> None:
    more = [*rules[:at], added, *rules[at:]]
    assert groups(*rules, ask=ask) <= groups(*more, ask=ask)


@given(rules=st.lists(ANY_RULE, max_size=5), ask=ASKS)
def test_the_united_decision_is_that_of_the_rules_one_by_one(rules: list[Rule], ask: IssueRequest) -> None:
    expected: set[str] = set()
    for each in rules:
        fails = not is_evaluable(each)
        if "deny" in each or fails:
            # A rule that would grant under the same condition tells whether it matches. A failing expression denies.
            when = {name: value for name, value in each["when"].items() if "none" not in str(value)}
            wanted = {
                name: value for name, value in each.get("grant", {}).items() if name.endswith("required")
            }
            if groups(rule("matches", when, **wanted), ask=ask):
                expected = set()
                break
            continue
        matches = groups(each | {"grant": each["grant"] | {"groups": ["matches"]}}, ask=ask)
        if matches:
            expected |= groups(each, ask=ask)
    assert groups(*rules, ask=ask) == expected


@given(rules=st.lists(ANY_RULE, min_size=1, max_size=5), ask=ASKS)
def test_the_shortest_lifetime_of_the_matching_rules_counts(rules: list[Rule], ask: IssueRequest) -> None:
    loaded = PolicySettings.model_validate({"rules": rules}).policy()
    try:
        granted = loaded.decide(ALICE, CLUSTER, ask, NOW)
    except Forbidden:
        return
    limits = [each.max_lifetime for each in loaded.rules if each.name in granted.rules and each.max_lifetime]
    assert granted.not_after == ISSUED_AT + min([*limits, MAX_LIFETIME])


Decided = tuple[frozenset[str], datetime, str] | str


def outcome(rules: Sequence[Rule], ask: IssueRequest, **policy: Any) -> Decided:
    """What is decided: groups, end and user name, or the kind of error."""
    try:
        granted = decide(*rules, ask=ask, **policy)
    except ClustercertError as refused:
        return type(refused).__name__
    return frozenset(granted.groups), granted.not_after, granted.username


@given(
    rules=st.lists(ANY_RULE, max_size=6),
    order=st.randoms(use_true_random=False),
    ask=ASKS | st.just(IssueRequest(duration=2)),
    policy=st.sampled_from([{}, {"role_groups": True}, {"max_lifetime": "2h", "username": "{user.name}"}]),
)
def test_the_order_of_rules_changes_no_decision(
    rules: list[Rule], order: Random, ask: IssueRequest, policy: dict[str, Any]
) -> None:
    shuffled = order.sample(rules, len(rules))
    assert outcome(shuffled, ask, **policy) == outcome(rules, ask, **policy)


@given(rules=st.lists(ANY_RULE, max_size=5), at=st.integers(0, 5), ask=ASKS, failing=st.booleans())
def test_a_deny_and_an_expression_that_fails_refuse_wherever_they_stand(
    rules: list[Rule], at: int, ask: IssueRequest, failing: bool
) -> None:
    refusing: Rule = {"deny": "No."} if not failing else rule("g", {"cel": 'cluster.labels.none == "1"'})
    assert outcome([*rules[:at], refusing, *rules[at:]], ask, role_groups=True) == "Forbidden"
