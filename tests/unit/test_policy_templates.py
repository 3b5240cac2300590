"""Expressions, templates, user names, and what the policy decides for all certificates."""

import re
import unicodedata
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from clustercert.model import Group, IssueRequest
from clustercert.model.errors import Forbidden
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.rules import MAX_GROUPS
from support.policy_rules import (
    ALICE,
    ANY_RULE,
    CLUSTER,
    DEFAULT,
    HOUR,
    LONGEST,
    Rule,
    decide,
    groups,
    rule,
)
from support.samples import ISSUED_AT, NOW, PROJECT_ID, USER_ID, caller

# Expressions


@pytest.mark.parametrize("fails", ["cluster.labels.zone == 'a'", "1 / 0 == 1", "user.name + 1 == ''"])
def test_an_expression_that_fails_gives_nothing_and_denies(fails: str) -> None:
    failing = {"name": "broken", "when": {"cel": fails}}
    for grant in ({"groups": ["a"]}, {"max_lifetime": "1h"}):
        for rules in ((failing | {"grant": grant}, rule("b")), (rule("b"), failing | {"grant": grant})):
            with pytest.raises(Forbidden, match="rule broken can't be evaluated") as refused:
                decide(*rules, username="{user.name}")
            assert fails not in refused.value.message
            assert refused.value.trace["denied_by"] == "broken"
            assert "unmet_conditions" not in refused.value.trace
            assert fails in refused.value.unmet_conditions["broken"]
    for unmet_grant in ({"csr_required": True}, {"reason_required": True}, {"key_types": ["rsa-2048"]}):
        assert groups(rule("a", {"cel": fails}, **unmet_grant), rule("b")) == {"b"}
    assert groups(rule("a", {"cel": fails, "roles": ["admin"]}), rule("b")) == {"b"}
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
            "a\u200bb", "e\u0301", " a", "a:b", "", "x" * 64, "ä" * 40, "a\nb", "\u202e", "{role}", "{group}",
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
        assert name.isprintable()
        assert unicodedata.is_normalized("NFC", name)


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


def test_a_user_name_is_the_id_unless_the_policy_chooses_another() -> None:
    assert decide(rule("g")).username == USER_ID
    assert decide(rule("g"), username="{user.id}").username == USER_ID
    assert decide(rule("g"), username="{user.name}@{user.domain}").username == "alice@default"
    assert decide(rule("g"), username="u-{user.id}").username == f"u-{USER_ID}"


@given(template=st.sampled_from(["{user.name}", "{user.name}:x", "{user.name}{user.domain}"]), name=HOSTILE)
@example("{user.name}", "a" * 32)
@example("{user.name}", "A" * 32)
@example("{user.name}", USER_ID)
def test_a_user_name_is_never_reserved_or_another_users_id(template: str, name: str) -> None:
    who = replace(ALICE, user=replace(ALICE.user, name=name))
    try:
        granted = decide(rule("g"), who=who, username=template, allow_system=["system:masters"])
    except Forbidden as refused:
        refused.message.encode()
        return
    assert not granted.username.casefold().startswith(("system:", "clustercert:"))
    assert granted.username == USER_ID or not re.fullmatch("[0-9a-fA-F]{32}", granted.username)
    assert 1 <= len(granted.username.encode()) <= 64


@pytest.mark.parametrize("wrong", ["everybody", "{user.domain}", "{group}", "{user.nam}", "{user.name"])
def test_a_user_name_that_does_not_name_the_user_is_refused_at_load(wrong: str) -> None:
    with pytest.raises(ValidationError, match=r"username"):
        PolicySettings.model_validate({"username": wrong})


# Groups by role, and the longest lifetime


ROLE_GROUPS = {
    "admin": "clustercert:admins",
    "member": "clustercert:editors",
    "reader": "clustercert:viewers",
}


@pytest.mark.parametrize("said", [{}, {"role_groups": True}, {"role_groups": True, "rules": []}])
@pytest.mark.parametrize(
    "roles", [("admin",), ("member",), ("reader",), ("admin", "reader"), ("auditor",), ("auditor", "member")]
)
def test_roles_give_groups_which_unite_for_up_to_1825_days(
    said: dict[str, object], roles: tuple[str, ...]
) -> None:
    policy = PolicySettings.model_validate(said).policy()
    expected = [ROLE_GROUPS[role] for role in roles if role in ROLE_GROUPS]
    if not expected:
        with pytest.raises(Forbidden, match="Roles with access: admin, member, reader"):
            policy.decide(caller(*roles), CLUSTER, LONGEST, NOW)
        return
    granted = policy.decide(caller(*roles), CLUSTER, LONGEST, NOW)
    assert sorted(granted.groups) == sorted(expected)
    assert granted.not_after == ISSUED_AT + timedelta(days=1825)


@pytest.mark.parametrize("said", [{"rules": []}, {"role_groups": False}, {"role_groups": False, "rules": []}])
def test_an_empty_list_of_rules_gives_nobody_access(said: dict[str, object]) -> None:
    policy = PolicySettings.model_validate(said).policy()
    with pytest.raises(Forbidden, match="Roles with access: none at all"):
        policy.decide(caller("admin"), CLUSTER, LONGEST, NOW)


def test_rules_switch_off_the_groups_of_roles_unless_they_are_switched_on() -> None:
    team = rule("team", {"groups": ["team-a"]})
    assert groups(team) == {"team"}
    assert set(decide(team, role_groups=True).groups) == {
        "team",
        "clustercert:editors",
        "clustercert:viewers",
    }
    deny = {"when": {"roles": ["member"]}, "deny": "Not today."}
    with pytest.raises(Forbidden, match="Not today"):
        decide(deny, role_groups=True)


def test_the_policy_caps_every_lifetime() -> None:
    for ask in (LONGEST, IssueRequest(duration=30, shorten=True)):
        assert decide(rule("a"), ask=ask, max_lifetime="24h").not_after == ISSUED_AT + 24 * HOUR
        long = rule("a", max_lifetime="30d", default_lifetime="30d")
        assert decide(long, ask=ask, max_lifetime="24h").not_after == ISSUED_AT + 24 * HOUR
        assert decide(rule("a", max_lifetime="1h"), ask=ask, max_lifetime="24h").not_after == ISSUED_AT + HOUR
    with pytest.raises(Forbidden, match=r"30 days.*limit of policy.max_lifetime \(1 day\)"):
        decide(rule("a"), ask=IssueRequest(duration=30), max_lifetime="24h")
    with pytest.raises(Forbidden, match=r"limit of rule rule-1 \(1 hour\)"):
        decide(rule("a", max_lifetime="1h"), ask=IssueRequest(duration=30), max_lifetime="24h")


# Replay


@given(rules=st.lists(ANY_RULE, max_size=4))
def test_a_recorded_rule_makes_the_same_policy_again(rules: list[Rule]) -> None:
    policy = PolicySettings.model_validate({"rules": rules}).policy()
    assume(rules)
    again = PolicySettings.model_validate({"rules": [each.declared for each in policy.rules]}).policy()
    assert [each.declared for each in again.rules] == [each.declared for each in policy.rules]
    assert [(each.name, each.max_lifetime, each.deny) for each in again.rules] == [
        (each.name, each.max_lifetime, each.deny) for each in policy.rules
    ]
