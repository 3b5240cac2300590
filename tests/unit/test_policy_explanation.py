"""Explanations agree with decisions, name what is missing, and show users only rules about themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import Caller, Cluster, Domain, Grant, Group, IssueRequest, Origin
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError, Forbidden, InvalidRequest, NotFound
from clustercert.pki.keys import sample_key
from clustercert.policy.decision import Policy
from clustercert.policy.explanation import Explanation, explain
from clustercert.policy.rule_settings import PolicySettings
from support.policy_rules import requested
from support.samples import ISSUED_AT, NOW, OTHER_PROJECT_ID, PROJECT_ID, caller, client_ca, cluster

Rule = dict[str, Any]
DOMAIN = Domain("d" * 32, "default")
CLUSTER = replace(cluster(), labels={"env": "prod"})
LONGEST = IssueRequest(duration=-1)
HOUR = timedelta(hours=1)


def loaded(rules: Sequence[Rule]) -> Policy:
    # Rules that offer groups need a name.
    named = [{"name": f"rule-{number}"} | each for number, each in enumerate(rules, 1)]
    return PolicySettings.model_validate({"rules": named}).policy()


def member(*groups: str, role: str = "member", **changed: Any) -> Caller:
    found = tuple(Group(f"{n:032x}", each, DOMAIN) for n, each in enumerate(groups))
    return replace(caller(role), groups=found, **changed)


def explained(
    *rules: Rule,
    who: Caller | None = None,
    where: Cluster = CLUSTER,
    ask: IssueRequest = LONGEST,
    access: RequestedAccess | None = None,
    only_own: bool = False,
) -> Explanation:
    return explain(loaded(rules), who or member(), where, ask, NOW, access, only_own=only_own)


def rule(name: str, when: Mapping[str, object] | None = None, **grant: object) -> Rule:
    return {"name": name, "when": when or {}, "grant": {"groups": [f"g-{name}"]} | grant}


def nearest(found: Explanation) -> tuple[str, list[tuple[str, str]]] | None:
    if found.nearest is None:
        return None
    return found.nearest.rule, [(each.wanted, each.found) for each in found.nearest.changes]


# Agreement with decisions

NAMES = st.sampled_from(["team-a", "team-b", "ops", "team-*", "*"])
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "roles": st.lists(st.sampled_from(["admin", "member", "read*"]), min_size=1, max_size=2),
        "groups": st.lists(NAMES, min_size=1, max_size=2),
        "users": st.sampled_from([["alice"], ["default/*"], ["bob"]]),
        "projects": st.sampled_from([[PROJECT_ID], [OTHER_PROJECT_ID]]),
        "clusters": st.sampled_from([["prod*"], ["other"]]),
        "cluster_labels": st.sampled_from([{"env": ["prod"]}, {"env": ["test"]}]),
        "auth_methods": st.sampled_from([["token"], ["access_key"]]),
        "sources": st.sampled_from([["192.0.2.0/24"], ["10.0.0.0/8"]]),
        "cel": st.sampled_from(
            ["true", "!request.csr", 'user.name == "alice"', "cluster.labels.none == '1'", "1 / 0 == 1"]
        ),
    },
)
GRANTS = st.fixed_dictionaries(
    {"groups": st.lists(st.sampled_from(["a", "b", "t:{group}", "r:{role}", "system:{group}"]), max_size=2)},
    optional={
        "max_lifetime": st.sampled_from(["1h", "8h", "30d"]),
        "default_lifetime": st.sampled_from(["30m", "1h"]),
        "csr_required": st.booleans(),
        "reason_required": st.booleans(),
        "key_types": st.sampled_from([["ec-p256"], ["rsa-2048", "ed25519"]]),
    },
)
GRANTING = st.fixed_dictionaries({"when": CONDITIONS, "grant": GRANTS})
DENYING = st.fixed_dictionaries({"when": CONDITIONS, "deny": st.just("No.")})
OFFERING = st.fixed_dictionaries(
    {
        "when": CONDITIONS,
        "offer": st.fixed_dictionaries(
            {
                "groups": st.sampled_from([["a"], ["a", "b"]]),
                "max_lifetime": st.sampled_from(["1h", "8h"]),
                "approvals": st.sampled_from([[], [{"role": "admin"}]]),
            }
        ),
    }
)
RULES = st.lists(st.one_of(GRANTING, GRANTING, OFFERING, DENYING), max_size=6)
ACCESS = st.none() | st.builds(
    RequestedAccess,
    st.just("a" * 32),
    st.sampled_from([f"rule-{number}" for number in range(1, 7)]),
    st.sampled_from([("a",), ("b",)]),
    st.sampled_from([NOW + HOUR / 2, NOW + 90 * HOUR]),
    st.booleans(),
    st.sampled_from([(), (frozenset({"role is admin"}),)]),
)
CALLERS = st.builds(
    lambda roles, groups, method, address: replace(
        member(*groups), roles={PROJECT_ID: roles}, method=method, origin=Origin(address, "f" * 32)
    ),
    st.sampled_from([("member",), ("admin", "member"), ("reader",), ("auditor",), ()]),
    st.lists(st.sampled_from(["team-a", "team-b", "ops", "a:b"]), max_size=3, unique=True),
    st.sampled_from(["token", "access_key"]),
    st.sampled_from(["192.0.2.9", "10.1.2.3", "local"]),
)
CLUSTERS = st.sampled_from(
    [
        CLUSTER,
        replace(CLUSTER, labels={}, name="staging"),
        replace(CLUSTER, client_ca=client_ca(lifetime=timedelta(days=2))),
        replace(CLUSTER, client_ca=client_ca(lifetime=HOUR)),
    ]
)
REQUESTS = st.builds(
    IssueRequest,
    duration=st.sampled_from([None, -1, 1, 30, 1825]),
    expire_at=st.sampled_from(
        [None, None, ISSUED_AT + HOUR, ISSUED_AT + 90 * HOUR, ISSUED_AT - HOUR, ISSUED_AT + timedelta(9000)]
    ),
    expires_in=st.sampled_from([None, None, HOUR, 90 * HOUR]),
    shorten=st.booleans(),
    public_key=st.sampled_from([None, sample_key("ec-p256"), sample_key("rsa-2048")]),
    reason=st.sampled_from([None, " ", "incident 4711"]),
)


def outcome(made: Grant | ClustercertError | None) -> object:
    if isinstance(made, ClustercertError):
        return type(made), made.message, dict(made.trace)
    return made, made and dict(made.trace)


@given(rules=RULES, who=CALLERS, where=CLUSTERS, ask=REQUESTS, access=ACCESS, only_own=st.booleans())
def test_explain_agrees_with_decide(
    rules: list[Rule],
    who: Caller,
    where: Cluster,
    ask: IssueRequest,
    access: RequestedAccess | None,
    *,
    only_own: bool,
) -> None:
    policy = loaded(rules)
    found = explain(policy, who, where, ask, NOW, access, only_own=only_own)
    decided: Grant | ClustercertError
    try:
        decided = policy.decide(who, where, ask, NOW, access)
    except ClustercertError as refused:
        decided = refused
    assert outcome(found.grant or found.error) == outcome(decided)
    assert (found.grant is None) != (found.error is None)
    granting = [each.rule.name for each in found.rules if each.outcome == "grants"]
    if found.grant is not None:
        assert sorted(granting) == sorted(found.grant.rules)
        assert (access is not None) <= (found.grant.rules[0] == (access and access.rule))
        assert found.nearest is None
    if not only_own and not isinstance(decided, NotFound):
        assert [each.rule for each in found.rules] == list(policy.rules)
        skipped = [each for each in found.rules if each.outcome == "does_not_match"]
        assert [each.rule.name for each in skipped if each.is_visible] == decided.trace["skipped_rules"]
        others = any(not each.is_visible for each in skipped)
        assert decided.trace.get("skipped_count") == (len(skipped) if others else None)


@given(rules=RULES, who=CALLERS, where=CLUSTERS, ask=REQUESTS)
def test_the_first_false_condition_is_that_of_the_rule(
    rules: list[Rule], who: Caller, where: Cluster, ask: IssueRequest
) -> None:
    found = explain(loaded(rules), who, where, ask, NOW)
    for each in found.rules:
        if each.outcome == "does_not_match" and each.unmet[0].met is None:
            # An offer that can't be evaluated is not offered.
            assert each.rule.offer is not None
        elif each.outcome == "does_not_match":
            said = Policy(()).input_of(who, where, ask, NOW)
            assert each.unmet[0].wanted == each.rule.first_false(said)
        elif each.outcome in ("grants", "offers", "denies"):
            assert not each.unmet
        elif each.outcome == "fails":
            assert each.unmet[0].met is None


# What is missing


def test_every_rule_is_explained_also_after_the_one_that_decides() -> None:
    found = explained(
        rule("others", {"groups": ["team-*"], "cluster_labels": {"env": ["test"], "zone": ["a"]}}),
        {"name": "frozen", "when": {"cluster_labels": {"env": ["prod"]}}, "deny": "Frozen."},
        rule("members", {"roles": ["member"]}),
        rule("keys", {"auth_methods": ["access_key"], "sources": ["10.0.0.0/8"]}, csr_required=True),
        who=member("ops"),
    )
    assert isinstance(found.error, Forbidden)
    assert found.error.message == "Frozen."
    assert [(each.rule.name, each.outcome) for each in found.rules] == [
        ("others", "does_not_match"),
        ("frozen", "denies"),
        ("members", "not_reached"),
        ("keys", "not_reached"),
    ]
    assert [[(each.wanted, each.found) for each in rule.unmet] for rule in found.rules] == [
        [
            ("group is team-*", "default/ops"),
            ("cluster label env is test", "prod"),
            ("cluster label zone is a", "no such label"),
        ],
        [],
        [],
        [
            ("auth_method is access_key", "token"),
            ("source is 10.0.0.0/8", "192.0.2.1"),
            ("the request has a csr", "no csr"),
        ],
    ]
    assert nearest(found) is None


def test_the_nearest_rule_is_that_with_the_fewest_false_conditions() -> None:
    far = rule("far", {"roles": ["admin"], "groups": ["ops"]})
    near = rule("near", {"roles": ["member"], "groups": ["on-call", "sre"]}, reason_required=False)
    assert nearest(explained(far, near)) == ("near", [("group is on-call or sre", "none")])
    assert nearest(explained(far)) == ("far", [("role is admin", "member"), ("group is ops", "none")])
    assert nearest(explained(near, far, who=member("sre"))) is None
    chosen = rule("chosen", reason_required=True)
    assert nearest(explained(near, chosen)) == ("chosen", [("the request has a reason", "no reason")])
    templated = {"name": "teams", "when": {"groups": ["team-*"]}, "grant": {"groups": ["team:{group}"]}}
    assert nearest(explained(templated)) == ("teams", [("group is team-*", "none")])


def test_the_nearest_rule_says_if_the_lifetime_must_be_shorter() -> None:
    short = rule("short", {"groups": ["sre"]}, max_lifetime="8h")
    week = IssueRequest(duration=7)
    assert nearest(explained(short, ask=week)) == (
        "short",
        [("group is sre", "none"), ("a lifetime of at most 8 hours", "7 days")],
    )
    found = explained(short, rule("longer", max_lifetime="30d"), ask=week, who=member("sre"))
    assert nearest(found) == ("short", [("a lifetime of at most 8 hours", "7 days")])
    assert found.strictest is not None
    assert found.strictest.name == "short"


@pytest.mark.parametrize(
    "rules",
    [
        [{"name": "no", "deny": "No."}, rule("a", {"groups": ["sre"]})],
        [rule("a", {"groups": ["sre"]}), {"name": "no", "deny": "No."}],
        [rule("fails", {"cel": "cluster.labels.none == ''"}), rule("a", {"groups": ["sre"]})],
        [{"name": "empty", "when": {"groups": ["sre"]}, "grant": {"max_lifetime": "1h"}}],
        [],
    ],
)
def test_a_change_to_one_rules_conditions_does_not_help_against_a_refusal_by_another(
    rules: list[Rule],
) -> None:
    assert nearest(explained(*rules)) is None


def test_an_invalid_request_has_no_nearest_rule() -> None:
    found = explained(rule("a"), rule("b", {"groups": ["x"]}), ask=IssueRequest())
    assert isinstance(found.error, InvalidRequest)
    assert found.nearest is None


def test_what_issuing_changes_or_refuses_is_explained_too() -> None:
    def only_second(grant: Grant) -> Grant:
        if grant.rules[0] != "second":
            raise Forbidden("No ClusterRole.", trace=grant.trace)
        return replace(grant, groups=())

    rules = loaded([rule("first")])
    found = explain(rules, member(), CLUSTER, LONGEST, NOW, adapt=only_second)
    assert (found.error and found.error.message, nearest(found)) == ("No ClusterRole.", None)
    rules = loaded([rule("second", {"groups": ["sre"]}), rule("first")])
    found = explain(rules, member(), CLUSTER, LONGEST, NOW, adapt=only_second)
    assert nearest(found) == ("second", [("group is sre", "none")])


# Access requests

EDIT: Rule = {
    "name": "edit",
    "when": {"roles": ["member"]},
    "offer": {"groups": ["editors", "owners"], "max_lifetime": "4h", "approvals": [{"role": "admin"}]},
}
APPROVED = requested("edit", "editors", met=(frozenset({"role is admin"}),))


def outcomes(found: Explanation) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.rule.name, each.outcome, each.groups) for each in found.rules]


def test_a_matching_offer_is_explained_as_something_to_ask_for() -> None:
    found = explained(rule("base"), EDIT)
    assert outcomes(found) == [("base", "grants", ("g-base",)), ("edit", "offers", ("editors", "owners"))]
    assert found.nearest is None
    alone = explained(EDIT)
    assert alone.error is not None
    assert "You can request editors, owners: run `clustercert request create" in alone.error.message
    assert (outcomes(alone), alone.nearest) == ([("edit", "offers", ("editors", "owners"))], None)


def test_the_nearest_rule_is_never_one_that_only_offers() -> None:
    reader = member(role="reader")
    far = rule("far", {"roles": ["admin"], "groups": ["ops"]})
    assert nearest(explained(EDIT, who=reader)) is None
    assert nearest(explained(EDIT, far, who=reader)) == (
        "far",
        [("role is admin", "reader"), ("group is ops", "none")],
    )
    assert outcomes(explained(EDIT, who=reader)) == [("edit", "does_not_match", ())]


def test_with_a_request_its_rule_grants_the_requested_groups() -> None:
    found = explained(rule("base"), EDIT, access=APPROVED)
    assert found.grant is not None
    assert found.grant.groups == ("editors", "g-base")
    assert outcomes(found) == [("base", "grants", ("g-base",)), ("edit", "grants", ("editors",))]
    assert found.strictest is not None
    assert (found.strictest.name, found.longest) == ("edit", 4 * HOUR)


def test_what_a_request_lacks_is_explained() -> None:
    early = explained(EDIT, access=replace(APPROVED, met=()))
    assert early.error is not None
    assert "rule edit needs other approvals now" in early.error.message
    assert (outcomes(early), early.nearest) == ([("edit", "offers", ("editors", "owners"))], None)
    too_long = explained(EDIT, access=APPROVED, ask=IssueRequest(duration=1))
    assert nearest(too_long) == ("edit", [("a lifetime of at most 1 hour", "1 day")])
    by_key = EDIT | {"when": {"auth_methods": ["access_key"]}}
    assert nearest(explained(by_key, rule("other", {"groups": ["ops"]}), access=APPROVED)) == (
        "edit",
        [("auth_method is access_key", "token")],
    )


# What a user may see of the rules

SECRETS = ("mallory", "hidden-group", "9" * 32, "acme", "203.0.113", "user.name", "prod")
OTHERS: Sequence[Rule] = [
    rule("acme-1", {"users": ["mallory"]}),
    rule("acme-2", {"groups": ["hidden-group"]}),
    rule("acme-3", {"projects": ["9" * 32]}),
    rule("acme-4", {"clusters": ["acme-prod"]}),
    rule("acme-5", {"cluster_labels": {"owner": ["acme"]}}),
    rule("acme-6", {"sources": ["203.0.113.0/24"]}),
    rule("acme-7", {"issuers": ["https://acme.example"]}),
    rule("acme-8", {"cel": 'user.name == "mallory"'}),
    rule("acme-9", {"groups": ["hidden-group"], "auth_methods": ["access_key"]}, csr_required=True),
    rule("acme-10", {"users": ["mallory"], "roles": ["acme-admin"]}),
    {"name": "acme-11", "when": {"projects": ["9" * 32]}, "deny": "Not for acme."},
    EDIT | {"name": "acme-12", "when": {"groups": ["hidden-group"]}},
]
OWN: Sequence[Rule] = [
    rule("strict", csr_required=True, key_types=["ed25519"]),
    rule("keys", {"auth_methods": ["access_key"], "groups": ["hidden-group", "team-a"]}),
    rule("admins", {"roles": ["admin"]}),
]


def test_a_user_sees_only_rules_about_themselves() -> None:
    found = explained(*OTHERS, *OWN, who=member("team-a"), only_own=True)
    assert {each.rule.name: [check.wanted for check in each.unmet] for each in found.rules} == {
        "strict": ["the request has a csr", "key_type is ed25519"],
        "keys": ["auth_method is access_key"],
        "admins": ["role is admin"],
    }
    assert nearest(found) == ("keys", [("auth_method is access_key", "token")])
    shown = [check.wanted for each in found.rules for check in each.unmet]
    assert not [each for each in SECRETS if each in str(shown)]
    assert len(explained(*OTHERS, *OWN, who=member("team-a")).rules) == len(OTHERS) + len(OWN)


@pytest.mark.parametrize("rules", [*([each] for each in OTHERS), OTHERS], ids=lambda rules: str(len(rules)))
def test_a_user_sees_nothing_of_rules_about_others(rules: list[Rule]) -> None:
    found = explained(*rules, only_own=True)
    assert (found.rules, found.nearest) == ((), None)
    assert found.error is not None
    assert not [each for each in SECRETS if each in found.error.message]
    assert not [each for each in SECRETS if each in str(found.error.trace)]


@given(rules=RULES, who=CALLERS, where=CLUSTERS, ask=REQUESTS)
def test_a_decision_names_only_rules_that_the_caller_may_see(
    rules: list[Rule], who: Caller, where: Cluster, ask: IssueRequest
) -> None:
    named = [each | {"name": f"named-{n}-"} for n, each in enumerate(rules)]
    found = explain(loaded(named), who, where, ask, NOW, only_own=True)
    decided = found.grant or found.error
    assert decided is not None
    shown = {each.rule.name for each in found.rules}
    deciding = decided.trace.get("denied_by")
    said = f"{dict(decided.trace)} {found.error and found.error.message}"
    for each in named:
        assert each["name"] in shown or each["name"] == deciding or each["name"] not in said
