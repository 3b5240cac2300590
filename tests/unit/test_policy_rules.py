"""Rules in the form of the settings: what they match, what they give together, and what they never give."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from clustercert.model import Caller, Cluster, Domain, Grant, Group, IssueRequest, Origin
from clustercert.model.errors import ClustercertError, Forbidden
from clustercert.model.name_patterns import Names, Values
from clustercert.model.policy import MAX_GROUPS
from clustercert.pki.keys import new_key
from clustercert.policy.rule_settings import PolicySettings
from support.samples import ISSUED_AT, NOW, PROJECT_ID, USER_ID, caller, cluster

CLUSTER = replace(cluster(), labels={"env": "prod"})
HOUR = timedelta(hours=1)
DEFAULT, OTHER = Domain("d" * 32, "default"), Domain("e" * 32, "other")
TEAMS = (
    Group("1" * 32, "team-a", DEFAULT),
    Group("2" * 32, "team-b", DEFAULT),
    Group("3" * 32, "ops", OTHER),
)
ALICE = replace(caller("member", "reader"), groups=TEAMS)
LONGEST = IssueRequest(duration=-1)
CSR = replace(LONGEST, public_key=new_key("ec-p384").public_key())

Rule = dict[str, Any]


def decide(
    *rules: Rule, who: Caller = ALICE, where: Cluster = CLUSTER, ask: IssueRequest = LONGEST, **policy: object
) -> Grant:
    """The decision on rules; without any, nobody has access."""
    loaded = PolicySettings.model_validate({"rules": list(rules)} | policy)
    return loaded.policy().decide(who, where, ask, NOW)


def groups(
    *rules: Rule, who: Caller = ALICE, where: Cluster = CLUSTER, ask: IssueRequest = LONGEST
) -> set[str]:
    """The groups that the rules give; empty if they refuse."""
    try:
        return set(decide(*rules, who=who, where=where, ask=ask).groups)
    except Forbidden:
        return set()


def rule(group: str, when: Mapping[str, object] | None = None, **grant: object) -> Rule:
    return {"when": when or {}, "grant": {"groups": [group]} | grant}


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
        ({"cel": 'user.groups.exists(name, name.matches("^team-"))'}, True),
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
    assert set(user.qualified_names) == names | {user.id}
    assert set(group.qualified_names) == names | {group.id}
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


def test_a_reason_of_spaces_is_none() -> None:
    assert not groups(rule("g", reason_required=True), ask=replace(LONGEST, reason=" "))


NAME = st.text(st.sampled_from("ab/-.:*?"), max_size=6)


@given(names=st.lists(NAME, max_size=3), patterns=st.lists(NAME, min_size=1, max_size=3))
@example(["a\nb"], ["a*"])
@example(["x\0a"], ["a*"])
@example(["a\0x"], ["*a", "a?x*?"])
@example([""], ["*"])
@example([], ["*", "**", "*?*"])
def test_patterns_match_as_in_a_shell(names: list[str], patterns: list[str]) -> None:
    expected = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
    assert Names(patterns).match(names) is expected
    assert Names(patterns).match_prepared(Values(names)) is expected


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


def test_a_rule_with_a_role_alone_is_final() -> None:
    short = {"role": "member", "groups": ["members"]}
    assert groups(short, rule("b")) == {"members"}
    assert groups(short | {"final": False}, rule("b")) == {"members", "b"}
    assert groups(rule("b"), short) == {"members", "b"}


def test_a_rule_that_denies_decides_with_its_message() -> None:
    deny = {"name": "frozen", "when": {"cluster_labels": {"env": ["prod"]}}, "deny": "Production is frozen."}
    for rules in ((deny, rule("a")), (rule("a"), deny)):
        with pytest.raises(Forbidden) as refused:
            decide(*rules)
        assert refused.value.message == "Production is frozen."
        assert refused.value.trace["denied_by"] == "frozen"
    assert groups(rule("a") | {"final": True}, deny) == {"a"}
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
    rule("g", {"roles": ["acme-admin"], "cel": "user.nope"}),
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


def is_evaluable(said: Mapping[str, object]) -> bool:
    """Whether none of the expressions below fails."""
    return "labels.none" not in str(said["when"])


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "roles": st.lists(st.sampled_from(["admin", "member", "read*"]), min_size=1, max_size=2),
        "groups": st.lists(st.sampled_from(["team-a", "team-*", "nobody"]), min_size=1, max_size=2),
        "cluster_labels": st.just({"env": ["prod"]}) | st.just({"env": ["test"]}),
        "cel": st.sampled_from(["true", "false", 'user.name == "alice"', "cluster.labels.none == '1'"]),
    },
)
GRANTS = st.fixed_dictionaries(
    {"groups": st.lists(st.sampled_from(["a", "b", "c", "t:{group}", "r:{role}"]), max_size=2)},
    optional={
        "max_lifetime": st.sampled_from(["1h", "8h", "30d"]),
        "csr_required": st.booleans(),
        "reason_required": st.booleans(),
    },
)
GRANTING = st.fixed_dictionaries({"when": CONDITIONS, "grant": GRANTS})
FINAL = GRANTING.map(lambda said: said | {"final": True})
DENYING = CONDITIONS.map(lambda when: {"when": when, "deny": "No."})
ANY_RULE = st.one_of(GRANTING, GRANTING, FINAL, DENYING)
ASKS = st.sampled_from([LONGEST, CSR, replace(LONGEST, reason="incident")])


@given(
    rules=st.lists(ANY_RULE, max_size=4), added=GRANTING.filter(is_evaluable), at=st.integers(0, 4), ask=ASKS
)
def test_adding_a_rule_removes_groups_only_by_deny_final_or_failure(
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
            if each.get("final"):
                break
    assert groups(*rules, ask=ask) == expected


@given(rules=st.lists(ANY_RULE, min_size=1, max_size=5), ask=ASKS)
def test_the_shortest_lifetime_of_the_matching_rules_counts(rules: list[Rule], ask: IssueRequest) -> None:
    loaded = PolicySettings.model_validate({"rules": rules}).policy()
    try:
        granted = loaded.decide(ALICE, CLUSTER, ask, NOW)
    except Forbidden:
        return
    limits = {each.name: each.max_lifetime for each in loaded.rules}
    assert granted.not_after == ISSUED_AT + min(limits[name] for name in granted.rules)


# Expressions


@pytest.mark.parametrize(
    "fails", ["cluster.labels.zone == 'a'", "user.nope", "'text'", "1 / 0 == 1", "user.name + 1 == ''"]
)
def test_an_expression_that_fails_gives_nothing_and_denies(fails: str) -> None:
    failing = {"name": "broken", "when": {"cel": fails}}
    for grant in ({"groups": ["a"]}, {"max_lifetime": "1h"}, {"username": "{user.name}"}):
        for final in (True, False):
            with pytest.raises(Forbidden, match="rule broken can't be evaluated") as refused:
                decide(failing | {"grant": grant, "final": final}, rule("b"))
            assert fails not in refused.value.message
            assert refused.value.trace["denied_by"] == "broken"
            assert "unmet_conditions" not in refused.value.trace
            assert fails in refused.value.unmet_conditions["broken"]
    for unmet_grant in ({"csr_required": True}, {"reason_required": True}, {"key_types": ["rsa-2048"]}):
        assert groups(rule("a", {"cel": fails}, **unmet_grant), rule("b")) == {"b"}
    assert groups(rule("a", {"cel": fails, "roles": ["admin"]}), rule("b")) == {"b"}
    assert groups(rule("b") | {"final": True}, rule("a", {"cel": fails})) == {"b"}
    with pytest.raises(Forbidden, match="Never"):
        decide(rule("a"), {"when": {"cel": fails}, "deny": "Never."})


# Templates


def test_each_matching_value_of_a_template_gives_a_group() -> None:
    assert decide(rule("team:{group}", {"groups": ["team-*"]})).groups == ("team:team-a", "team:team-b")
    assert decide(rule("{group}:{role}", {"groups": ["ops"]})).groups == ("ops:member", "ops:reader")
    assert decide(rule("{group}:x:{group}", {"groups": ["team-*"]})).groups == (
        "team-a:x:team-a",
        "team-b:x:team-b",
    )
    assert decide(rule("{group.id}:{group}", {"groups": ["team-*"]})).groups == (
        "1" * 32 + ":team-a",
        "2" * 32 + ":team-b",
    )
    assert decide(rule("p:{project.id}")).groups == (f"p:{PROJECT_ID}",)
    assert decide(rule("{cluster.name}:{user.id}")).groups == (f"production:{USER_ID}",)
    assert decide(rule("{role}", {"roles": ["read*"]})).groups == ("reader",)


def test_a_template_without_a_value_gives_no_group() -> None:
    assert groups(rule("base"), rule("team:{group}"), who=caller("member")) == {"base"}
    with pytest.raises(Forbidden, match="0 Kubernetes groups"):
        decide(rule("team:{group}"), who=caller("member"))


HOSTILE = st.one_of(
    st.text(max_size=70),
    st.sampled_from(
        [
            "system:masters", "masters", "clustercert:credential:" + "0" * 40, "credential:", "service", "Masters",
            "a:b", "", "x" * 64, "ä" * 40, "a\nb", "\u202e", "{role}", "{group}",
        ]
    ),
)  # fmt: skip
TEMPLATES = st.sampled_from(
    ["{group}", "system:{group}", "clustercert:{group}", "{role}:{group}", "team:{group}", "System:{group}"]
)


@given(template=TEMPLATES, group=HOSTILE, role=HOSTILE.filter(bool))
@example("system:{group}", "masters", "member")
@example("clustercert:{group}", "service", "member")
@example("{role}:{group}", "masters", "system")
def test_a_template_never_gives_a_reserved_empty_or_long_name(template: str, group: str, role: str) -> None:
    who = replace(caller(role), groups=(Group("1" * 32, group, DEFAULT),))
    try:
        given_groups = decide(rule(template), who=who, allow_system=["system:masters"]).groups
    except Forbidden as refused:
        refused.message.encode()
        return
    for name in given_groups:
        assert not name.casefold().startswith(("system:", "clustercert:credential:"))
        assert name.casefold() != "clustercert:service"
        assert 1 <= len(name.encode()) <= 64
        assert name.count(":") == template.count(":")


@pytest.mark.parametrize("wrong", ["team:{grup}", "team:{group", "team:}", "{}", "{user.name}", "{{group}}"])
def test_a_malformed_template_is_refused_at_load(wrong: str) -> None:
    with pytest.raises(ValidationError, match=r"placeholder|brace"):
        PolicySettings.model_validate({"rules": [rule(wrong)]})


@pytest.mark.parametrize(
    "ambiguous",
    [
        "{group}-admins",
        "team-{group}",
        "{group}{role}",
        "{group}-{role}",
        "a:{group}:b-{role}",
        "{group}:a{role}",
    ],
)
def test_a_template_whose_values_could_run_into_other_text_is_refused_at_load(ambiguous: str) -> None:
    with pytest.raises(ValidationError, match="by a colon"):
        PolicySettings.model_validate({"rules": [rule(ambiguous)]})


def test_templates_are_filled_in_only_up_to_the_number_of_groups_in_a_certificate() -> None:
    many = tuple(Group(f"{n:032x}", f"g{n}", DEFAULT) for n in range(300))
    who = replace(caller("member", "reader"), groups=many)
    with pytest.raises(Forbidden, match="more than 64") as refused:
        decide(rule("{group}:{role}"), who=who)
    assert len(cast("list[str]", refused.value.trace["groups"])) == MAX_GROUPS + 1


# User names


def named(template: str, when: Mapping[str, object] | None = None) -> Rule:
    return rule("g", when, username=template)


def test_a_user_name_is_the_id_unless_a_rule_chooses_another() -> None:
    assert decide(rule("g")).username == USER_ID
    assert decide(named("{user.name}@{user.domain}")).username == "alice@default"
    assert decide(named("u-{user.id}")).username == f"u-{USER_ID}"
    assert decide(rule("a"), named("first-{user.name}"), named("{user.name}")).username == "first-alice"
    assert decide(named("{user.name}", {"roles": ["admin"]}), rule("a")).username == USER_ID


@given(
    template=st.sampled_from(["{user.name}", "system:{user.name}", "clustercert:{user.name}"]), name=HOSTILE
)
@example("{user.name}", "a" * 32)
@example("{user.name}", "A" * 32)
@example("{user.name}", USER_ID)
def test_a_user_name_is_never_reserved_or_another_users_id(template: str, name: str) -> None:
    who = replace(ALICE, user=replace(ALICE.user, name=name))
    try:
        granted = decide(named(template), who=who, allow_system=["system:masters"])
    except Forbidden as refused:
        refused.message.encode()
        return
    assert not granted.username.casefold().startswith(("system:", "clustercert:"))
    assert granted.username == USER_ID or not re.fullmatch("[0-9a-fA-F]{32}", granted.username)
    assert 1 <= len(granted.username.encode()) <= 64


@pytest.mark.parametrize("wrong", ["everybody", "{user.domain}", "{group}", "{user.nam}", "{user.name"])
def test_a_user_name_that_does_not_name_the_user_is_refused_at_load(wrong: str) -> None:
    with pytest.raises(ValidationError, match=r"username"):
        PolicySettings.model_validate({"rules": [named(wrong)]})


# Presets


PEOPLE: Sequence[Caller] = [caller(role) for role in ("admin", "member", "reader", "auditor")]


@pytest.mark.parametrize("who", PEOPLE, ids=lambda who: who.roles_in(PROJECT_ID)[0])
@pytest.mark.parametrize(
    "ask",
    [LONGEST, CSR, IssueRequest(duration=30), IssueRequest()],
    ids=["longest", "csr", "30 days", "neither"],
)
def test_the_preset_contract_decides_as_no_rules_do(who: Caller, ask: IssueRequest) -> None:
    outcomes: list[object] = []
    for said in ({}, {"preset": "contract"}):
        try:
            granted = PolicySettings.model_validate(said).policy().decide(who, CLUSTER, ask, NOW)
            outcomes.append((granted, granted.trace))
        except ClustercertError as refused:
            outcomes.append((refused.message, refused.trace))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("role", "group"),
    [
        ("admin", "clustercert:admins"),
        ("member", "clustercert:editors"),
        ("reader", "clustercert:viewers"),
        ("auditor", None),
    ],
)
@pytest.mark.parametrize("said", [{}, {"preset": "contract"}])
def test_the_preset_contract_gives_groups_by_role_for_up_to_1825_days(
    said: dict[str, object], role: str, group: str | None
) -> None:
    policy = PolicySettings.model_validate(said).policy()
    if group is None:
        with pytest.raises(Forbidden):
            policy.decide(caller(role), CLUSTER, LONGEST, NOW)
        return
    granted = policy.decide(caller(role), CLUSTER, LONGEST, NOW)
    assert (granted.rule, granted.groups) == (role, (group,))
    assert granted.not_after == ISSUED_AT + timedelta(days=1825)


def test_the_preset_production_shortens_minus_one_and_refuses_more_than_a_day() -> None:
    granted = decide(preset="production")
    assert granted.groups == ("clustercert:editors",)
    assert granted.not_after == ISSUED_AT + 24 * HOUR
    with pytest.raises(Forbidden, match=r"30 days.*limit of rule member \(1 day\)"):
        decide(preset="production", ask=IssueRequest(duration=30))


def test_the_preset_strict_needs_a_csr() -> None:
    assert decide(preset="strict", ask=CSR).not_after == ISSUED_AT + 8 * HOUR
    with pytest.raises(Forbidden, match="member: the request has a csr"):
        decide(preset="strict")


def test_the_preset_cce_gives_the_ids_of_the_groups() -> None:
    assert decide(preset="cce").groups == ("1" * 32, "2" * 32, "3" * 32)
    with pytest.raises(Forbidden, match="0 Kubernetes groups"):
        decide(preset="cce", who=caller("member"))


def test_an_empty_list_of_rules_gives_nobody_access() -> None:
    with pytest.raises(Forbidden, match="Roles with access: none at all"):
        decide()
    assert PolicySettings().effective_preset == "contract"


def test_rules_come_before_those_of_the_preset() -> None:
    granted = decide(rule("extra", {"groups": ["team-a"]}, max_lifetime="1h"), preset="production")
    assert granted.groups == ("extra", "clustercert:editors")
    assert granted.not_after == ISSUED_AT + HOUR
    deny = {"when": {"roles": ["member"]}, "deny": "Not today."}
    with pytest.raises(Forbidden, match="Not today"):
        decide(deny, preset="production")


# Replay


@given(rules=st.lists(ANY_RULE, max_size=4))
def test_a_recorded_rule_makes_the_same_policy_again(rules: list[Rule]) -> None:
    policy = PolicySettings.model_validate({"rules": rules}).policy()
    assume(rules)
    again = PolicySettings.model_validate({"rules": [each.declared for each in policy.rules]}).policy()
    assert [each.declared for each in again.rules] == [each.declared for each in policy.rules]
    assert [(each.name, each.max_lifetime, each.final, each.deny) for each in again.rules] == [
        (each.name, each.max_lifetime, each.final, each.deny) for each in policy.rules
    ]
