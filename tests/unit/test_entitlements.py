"""Who could get a group: compared with decisions on every kind of request."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import Caller, Domain, Group, IssueRequest, Origin
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.clusters import ClusterOptions
from clustercert.model.errors import ClustercertError, InvalidRequest
from clustercert.model.requests import KEYSTONE_METHODS
from clustercert.pki.keys import sample_key
from clustercert.policy.decision import Policy
from clustercert.policy.entitlements import Entitlement, Entitlements
from clustercert.policy.lifetime import BACKDATE
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.rules import PolicyRule
from support.samples import NOW, PROJECT_ID, caller, client_ca, cluster

Rule = dict[str, Any]
DOMAIN = Domain("d" * 32, "default")
CLUSTER = replace(cluster(), labels={"env": "prod"})
HOUR = timedelta(hours=1)


def loaded(*rules: Rule) -> Policy:
    # Rules that offer groups need a name.
    named = [{"name": f"rule-{number}"} | each for number, each in enumerate(rules, 1)]
    return PolicySettings.model_validate({"rules": named}).policy()


def member(*groups: str, roles: tuple[str, ...] = ("member",)) -> Caller:
    found = tuple(Group(f"{n:032x}", each, DOMAIN) for n, each in enumerate(groups))
    return replace(caller(), roles={PROJECT_ID: roles}, groups=found)


def entitled(*rules: Rule, group: str = "*", who: Caller | None = None) -> tuple[Entitlement, ...]:
    return Entitlements(loaded(*rules), CLUSTER, group, NOW).entitlements_of(who or member())


def ways(*rules: Rule, group: str = "*", who: Caller | None = None) -> list[tuple[object, ...]]:
    return [(each.rule, each.needs, each.unless) for each in entitled(*rules, group=group, who=who)]


def rule(name: str, when: Rule | None = None, **grant: object) -> Rule:
    return {"name": name, "when": when or {}, "grant": {"groups": [f"g-{name}"]} | grant}


# Every kind of request that the conditions below can tell apart.
REQUESTS = [
    IssueRequest(duration=1825, shorten=True, public_key=sample_key(key) if key else None, reason=reason)
    for key in (None, "ec-p256", "rsa-2048", "ed25519")
    for reason in (None, "incident")
]
ADDRESSES = ("192.0.2.9", "10.1.2.3", "10.1.0.0", "10.200.0.1", "198.51.100.7")
LOGINS = list(itertools.product(("token", "access_key"), ADDRESSES))


def obtained(policy: Policy, who: Caller) -> Iterator[tuple[str, timedelta]]:
    """The groups that the user gets with any request, also with an approved access request, and for how long."""
    accesses = [None, *map(approved, (rule for rule in policy.rules if rule.offer is not None))]
    for (method, address), request, access in itertools.product(LOGINS, REQUESTS, accesses):
        sender = replace(who, method=method, origin=Origin(address, "f" * 32))
        try:
            grant = policy.decide(sender, CLUSTER, request, NOW, access)
        except ClustercertError:
            continue
        for group in grant.groups:
            yield group, grant.not_after - grant.not_before - BACKDATE


def approved(rule: PolicyRule) -> RequestedAccess:
    """The longest access that the rule offers, approved by an admin."""
    assert rule.offer is not None
    met = (frozenset({"role is admin"}),)
    return RequestedAccess("a" * 32, rule.name, rule.groups, NOW + rule.offer.max_lifetime, True, met)


def longest(found: Iterator[tuple[str, timedelta]]) -> dict[str, timedelta]:
    lifetimes: dict[str, timedelta] = {}
    for group, lifetime in found:
        lifetimes[group] = max(lifetime, lifetimes.get(group, lifetime))
    return lifetimes


def conditions(*expressions: str) -> st.SearchStrategy[Rule]:
    return st.fixed_dictionaries(
        {},
        optional={
            "roles": st.sampled_from([["member"], ["admin"], ["read*"]]),
            "groups": st.sampled_from([["team-*"], ["ops"]]),
            "cluster_labels": st.sampled_from([{"env": ["prod"]}, {"env": ["test"]}]),
            "auth_methods": st.sampled_from([["token"], ["access_key"], ["*"]]),
            "sources": st.sampled_from([["10.0.0.0/8"], ["10.1.0.0/16", "192.0.2.9/32"]]),
            "cel": st.sampled_from(['"ops" in user.groups', "cluster.labels.none == ''", *expressions]),
        },
    )


def rules(*expressions: str) -> st.SearchStrategy[list[Rule]]:
    grant = st.fixed_dictionaries(
        {"groups": st.lists(st.sampled_from(["a", "b", "t:{group}", "r:{role}"]), max_size=2)},
        optional={
            "max_lifetime": st.sampled_from(["1h", "8h", "30d"]),
            "csr_required": st.booleans(),
            "reason_required": st.booleans(),
            "key_types": st.sampled_from([["ec-p256"], ["rsa-2048", "ed25519"]]),
        },
    )
    granting = st.fixed_dictionaries({"when": conditions(*expressions), "grant": grant})
    denying = st.fixed_dictionaries({"when": conditions(*expressions), "deny": st.just("No.")})
    offer = st.fixed_dictionaries(
        {
            "groups": st.sampled_from([["a"], ["a", "c"]]),
            "max_lifetime": st.sampled_from(["1h", "8h"]),
            "approvals": st.sampled_from([[], [{"role": "admin"}]]),
        }
    )
    offering = st.fixed_dictionaries({"when": conditions(*expressions), "offer": offer})
    return st.lists(st.one_of(granting, granting, offering, denying), max_size=5)


CALLERS = st.builds(
    lambda roles, groups: member(*groups, roles=roles),
    st.sampled_from([("member",), ("admin", "member"), ("reader",), ()]),
    st.lists(st.sampled_from(["team-a", "team-b", "ops", "a:b"]), max_size=3, unique=True),
)


@given(given_rules=rules(), who=CALLERS)
def test_users_could_get_what_some_request_gets(given_rules: list[Rule], who: Caller) -> None:
    policy = loaded(*given_rules)
    found = Entitlements(policy, CLUSTER, "*", NOW).entitlements_of(who)
    assert longest((group, each.lifetime) for each in found for group in each.groups) == longest(
        obtained(policy, who)
    )


@given(
    given_rules=rules(
        "!request.csr", 'request.reason != ""', "now.getHours() < 12", "request.reason + 1 == ''"
    ),
    who=CALLERS,
)
def test_no_user_is_missed_because_of_expressions_on_requests(given_rules: list[Rule], who: Caller) -> None:
    policy = loaded(*given_rules)
    found = Entitlements(policy, CLUSTER, "*", NOW).entitlements_of(who)
    could = longest((group, each.lifetime) for each in found for group in each.groups)
    for group, lifetime in longest(obtained(policy, who)).items():
        assert could[group] >= lifetime


def test_users_who_meet_the_same_conditions_share_a_plan() -> None:
    found = Entitlements(
        loaded(rule("teams", {"groups": ["team-*"]}, groups=["team:{group}"])), CLUSTER, "*", NOW
    )
    assert [each.groups for each in found.entitlements_of(member("team-a"))] == [("team:team-a",)]
    assert [each.groups for each in found.entitlements_of(member("team-b", "ops"))] == [("team:team-b",)]
    assert found.entitlements_of(member("ops")) == ()


def test_what_the_request_needs_is_said() -> None:
    strict = rule("strict", {"auth_methods": ["access_key"], "sources": ["10.0.0.0/8"]}, csr_required=True)
    [found] = entitled(strict | {"grant": strict["grant"] | {"max_lifetime": "1h", "reason_required": True}})
    assert found == Entitlement(
        rule="strict",
        groups=("g-strict",),
        lifetime=HOUR,
        needs=(
            "auth_method is access_key",
            "source is 10.0.0.0/8",
            "the request has a csr",
            "the request has a reason",
        ),
        unless=(),
    )


def test_what_needs_an_access_request_is_listed_last() -> None:
    """Who may use the access before its approval needs only the request."""
    by_admin = {"groups": ["edit"], "max_lifetime": "4h", "approvals": [{"role": "admin"}]}
    early = by_admin | {"before_approval": True, "max_lifetime": "1h"}
    alone = by_admin | {"approvals": [], "max_lifetime": "2h"}
    found = entitled(
        {"name": "by-admin", "when": {"auth_methods": ["access_key"]}, "offer": by_admin},
        {"name": "early", "offer": early},
        {"name": "alone", "offer": alone},
        {"name": "others", "when": {"roles": ["admin"]}, "offer": alone},
        rule("standing", groups=["edit"], csr_required=True, max_lifetime="3h"),
        {"name": "failing", "when": {"cel": "cluster.labels.none == ''"}, "offer": by_admin},
        group="edit",
    )
    assert [(each.rule, each.lifetime, each.needs) for each in found] == [
        ("standing", 3 * HOUR, ("the request has a csr",)),
        (
            "by-admin",
            4 * HOUR,
            ("an approved access request (rule by-admin)", "auth_method is access_key"),
        ),
        ("early", HOUR, ("an access request (rule early)",)),
        ("alone", 2 * HOUR, ("an access request (rule alone)",)),
    ]
    assert {(each.groups, each.unless) for each in found} == {(("edit",), ())}


def test_rules_that_may_refuse_are_named() -> None:
    keys = {"name": "keys", "when": {"auth_methods": ["access_key"]}, "deny": "No keys."}
    night = {"name": "night", "when": {"cel": "now.getHours() < 6"}, "deny": "Sleep."}
    assert ways(keys, rule("a"), night) == [("a", (), ("keys", "night"))]
    assert ways(keys, rule("a", {"auth_methods": ["token"]})) == [("a", ("auth_method is token",), ())]
    assert ways(keys, rule("a", {"auth_methods": ["access_key"]})) == []
    early = rule("early", {"cel": "now.getHours() < 6"})
    assert ways(early, rule("a")) == [("early", ("cel: now.getHours() < 6",), ()), ("a", (), ())]
    assert ways(rule("a"), {"name": "nobody", "deny": "No."}) == []


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("g-a", ["g-a"]),
        ("g-*", ["g-a", "g-b"]),
        ("team:*", ["team:x"]),
        ("*", ["g-a", "g-b", "team:x"]),
        ("g", []),
        ("G-A", []),
    ],
)
def test_groups_match_by_wildcards(pattern: str, groups: Sequence[str]) -> None:
    given_rules = (rule("a"), rule("b"), rule("t", groups=["team:{group}"]))
    found = entitled(*given_rules, group=pattern, who=member("x"))
    assert [group for each in found for group in each.groups] == groups


def test_the_longest_lifetime_is_that_of_a_certificate() -> None:
    both = (rule("a", max_lifetime="8h"), rule("b", max_lifetime="1h"))
    assert [each.lifetime for each in entitled(*both)] == [HOUR, HOUR]
    optional = (rule("a", max_lifetime="8h"), rule("b", csr_required=True, max_lifetime="1h"))
    assert [each.lifetime for each in entitled(*optional)] == [8 * HOUR, HOUR]
    capped = replace(loaded(rule("a"), rule("b", max_lifetime="1h")), max_lifetime=HOUR / 2)
    assert [each.lifetime for each in Entitlements(capped, CLUSTER, "*", NOW).entitlements_of(member())] == [
        HOUR / 2
    ] * 2
    short = replace(CLUSTER, client_ca=client_ca(lifetime=timedelta(days=1, hours=2)))
    [found] = Entitlements(loaded(rule("a")), short, "*", NOW).entitlements_of(member())
    assert found.lifetime == 2 * HOUR
    expired = replace(CLUSTER, client_ca=client_ca(lifetime=HOUR))
    assert Entitlements(loaded(rule("a")), expired, "*", NOW).entitlements_of(member()) == ()


def test_rules_that_tell_too_many_requests_apart_are_an_error() -> None:
    networks = [f"10.{n // 256}.{n % 256}.0/24" for n in range(100)]
    many = [rule(f"r{n}", {"sources": networks}) for n in range(30)]
    different = [rule(f"d{n}", {"sources": [f"10.{n // 256}.{n % 256}.0/24"]}) for n in range(900)]
    assert len(entitled(*many)) == 30
    needy = rule("needy", {"auth_methods": ["token"]}, reason_required=True, key_types=["ed25519"])
    with pytest.raises(InvalidRequest, match="distinguish more than 5000 different requests"):
        entitled(needy, *different)


def test_a_user_whose_names_can_not_be_issued_gets_nothing() -> None:
    templated = rule("a", groups=["team:{group}", "plain"])
    assert ways(templated, who=member("x")) == [("a", (), ())]
    assert ways(templated, who=member("a:b")) == []


def test_an_address_between_two_networks_of_a_deny_is_tried() -> None:
    deny = {"name": "d", "when": {"sources": ["10.0.0.0/24", "10.255.255.0/24"]}, "deny": "no"}
    last = {"name": "l", "when": {"sources": ["255.255.255.255/32", "::/0"]}, "deny": "no"}
    found = ways(deny, last, rule("g", {"sources": ["10.0.0.0/8"]}))
    assert found == [("g", ("source is 10.0.0.0/8",), ("d",))]


@pytest.mark.parametrize(
    ("who", "other"),
    [
        (member(*(f"team-{n}" for n in range(70))), rule("b", {}, groups=["team:{group}"])),
        (member("a:b"), rule("b", {}, groups=["team:{group}"])),
    ],
)
def test_another_request_is_tried_where_the_users_names_refuse_the_first(who: Caller, other: Rule) -> None:
    by_token = other | {"when": {"auth_methods": ["token"]}}
    assert [each.rule for each in entitled(rule("a"), by_token, group="g-a", who=who)] == ["a"]


def test_a_user_of_keystone_can_log_in_in_three_ways() -> None:
    who = replace(member(), issuer="https://keystone.example.com/v3", method="keystone")
    rules = [rule(name, {"auth_methods": [name]}) for name in (*KEYSTONE_METHODS, "token", "oidc")]
    assert {each.rule for each in entitled(*rules, who=who)} == set(KEYSTONE_METHODS)


def test_tokens_give_only_groups_with_roles_and_have_no_csr() -> None:
    ca = replace(client_ca(), certificate=None, signer="token")
    options = ClusterOptions(group_roles={"g-a": ("clusterrole/view",), "g-c": ("clusterrole/view",)})
    known = replace(CLUSTER, signer="token", client_ca=ca, options=options)
    policy = loaded(rule("a"), rule("b"), rule("c", csr_required=True))
    found = Entitlements(policy, known, "*", NOW).entitlements_of(member())
    assert [(each.rule, each.groups) for each in found] == [("a", ("g-a",))]
