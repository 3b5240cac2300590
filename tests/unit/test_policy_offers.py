"""Rules that offer groups: their settings, and decisions with and without an access request."""

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clustercert.model import Group, IssueRequest, Origin
from clustercert.model.errors import Forbidden, NotFound
from clustercert.policy.decision import long_lifetimes, policy_digest
from clustercert.policy.entitlements import is_offered
from clustercert.policy.rules import MAX_GROUPS, bound_grant
from clustercert.settings import SettingsError, load
from support.policy_rules import (
    ALICE,
    CLUSTER,
    CSR,
    DEFAULT,
    HOUR,
    Rule,
    decide,
    loaded_policy,
    offer,
    requested,
    rule,
)
from support.samples import ISSUED_AT, NOW, caller, client_ca

EDIT = offer("edit", "editors", approvals=[{"role": "admin"}, {"groups": ["leads", "sre"]}])
VIEW = {"name": "view"} | rule("viewers", {"roles": ["member"]})
ADMIN, LEAD = frozenset({"role is admin"}), frozenset({"group is leads or sre"})
APPROVED = requested("edit", "editors", met=(ADMIN, LEAD))

# Settings

SETTINGS = """\
[[policy.rules]]
name = "edit"
when.roles = ["member"]
[policy.rules.offer]
groups = ["editors"]
max_lifetime = "4h"
approvals = [{ role = "admin" }]
"""


@pytest.mark.parametrize(
    ("change", "to", "fault"),
    [
        ('when.roles = ["member"]', 'deny = "No."', r":4:15: policy.rules.0.offer: a rule needs exactly one of"),
        ('when.roles = ["member"]', 'grant.groups = ["g"]', r":4:15: .*offer: a rule needs exactly one of grant, deny"),
        ('groups = ["editors"]', "", r":4:15: policy.rules.0.offer.groups: the field is missing"),
        ('groups = ["editors"]', "groups = []", r":5:1: policy.rules.0.offer.groups: write at least one entry"),
        ('groups = ["editors"]', f"groups = {['g'] * 33}", r":5:1: .*offer.groups: write at most 32 entries"),
        ('groups = ["editors"]', 'groups = ["t:{group}"]', r":5:1: .*t:{group}: an offer can't have placeholders;"),
        ('groups = ["editors"]', 'groups = ["system:masters"]', r":5:1: .*offer.groups: system:masters .*reserved"),
        ('groups = ["editors"]', 'groups = ["clustercert:service"]', r":5:1: .*is reserved for this service"),
        ('groups = ["editors"]', 'groups = ["a\u200bb"]', r":5:1: .*has invisible characters"),
        ('max_lifetime = "4h"', "", r":4:15: policy.rules.0.offer.max_lifetime: the field is missing"),
        ('max_lifetime = "4h"', 'max_lifetime = "4m59s"', r":6:1: .*from 5m to 1827d"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\nmin_reason_length = 0', r":7:1: .*_length: .*equal to 1"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\nmin_reason_length = 513', r":7:1: .*_length: .*equal to 512"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\nuses_before_approval = 0', r":7:1: .*_approval: .*equal to 1"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\nclaim_within = "59s"', r":7:1: .*must be from 1m to 30d"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\napprove_within = "31d"', r":7:1: .*must be from 1m to 30d"),
        ('max_lifetime = "4h"', 'max_lifetime = "1h"\ncsr_required = true', r":7:1: .*csr_required: unknown field"),
        ('[{ role = "admin" }]', '[{ role = "a" }, {}]', r":7:1: .*approvals.1: write the role or groups"),
        ('[{ role = "admin" }]', '[{ roles = ["a"] }]', r":7:16: .*approvals.0.roles: unknown field"),
        ('[{ role = "admin" }]', "[{ groups = [] }]", r":7:16: .*approvals.0.groups: write at least one entry"),
        ('[{ role = "admin" }]', "[" + '{ role = "a" },' * 9 + "]", r":7:1: .*approvals: write at most 8"),
        ('[{ role = "admin" }]', "[]\nbefore_approval = true", r":8:1: .*before_approval needs approvals; add them"),
        ('name = "edit"', "", r":1:10: policy.rules.0.name: a rule that offers groups needs a name; set"),
        ('approvals = [{ role = "admin" }]', "", r":4:15: policy.rules.0.offer.approvals: the field is missing"),
    ],
)  # fmt: skip
def test_a_fault_in_an_offer_is_named_with_its_place(
    tmp_path: Path, change: str, to: str, fault: str
) -> None:
    assert SETTINGS.count(change) == 1
    config = tmp_path / "clustercert.toml"
    config.write_text(SETTINGS.replace(change, to), encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        load(config)
    found = [line.strip().removeprefix(str(config)) for line in refused.value.message.splitlines()[1:]]
    assert any(re.match(fault, each) for each in found), found


def test_an_offer_has_its_terms_and_defaults() -> None:
    plain, strict = loaded_policy(
        offer("plain", "g"),
        offer(
            "strict",
            "g",
            approvals=[{"role": "admin", "groups": ["leads"]}, {"groups": ["a", "b"]}],
            min_reason_length=20,
            claim_within="15m",
            approve_within="30d",
            before_approval=True,
        ),
    ).rules
    assert plain.offer is not None
    assert strict.offer is not None
    assert (plain.offer.max_lifetime, plain.offer.min_reason_length) == (4 * HOUR, 1)
    assert (plain.offer.claim_within, plain.offer.approve_within) == (8 * HOUR, 8 * HOUR)
    assert (plain.offer.clauses, plain.offer.before_approval) == ((), False)
    assert strict.offer.clauses == ("role is admin and group is leads", "group is a or b")
    assert (strict.offer.claim_within, strict.offer.approve_within) == (HOUR / 4, timedelta(days=30))
    assert (strict.offer.min_reason_length, strict.offer.before_approval) == (20, True)


def test_the_terms_of_an_offer_change_the_policys_digest() -> None:
    digests = {
        policy_digest(loaded_policy(offer("edit", "g", **terms)))
        for terms in (
            {},
            {"max_lifetime": "1h"},
            {"approvals": [{"role": "admin"}]},
            {"approvals": [{"role": "admin"}], "before_approval": True},
            {"claim_within": "1h"},
        )
    }
    assert len(digests) == 5


def test_a_system_group_can_be_offered_only_if_the_policy_allows_it() -> None:
    masters = offer("masters", "system:masters")
    with pytest.raises(ValueError, match="reserved by Kubernetes"):
        loaded_policy(masters)
    granted = decide(masters, access=requested("masters", "system:masters"), allow_system=["system:masters"])
    assert granted.groups == ("system:masters",)


def test_an_offer_of_long_access_is_a_long_lifetime() -> None:
    policy = loaded_policy(offer("long", "g", max_lifetime="30d"), offer("short", "g"))
    assert long_lifetimes(policy) == {"long": timedelta(days=30)}


@pytest.mark.parametrize(
    ("roles", "groups", "met"),
    [
        (("admin",), (), {"role is admin"}),
        (("member",), ("leads",), {"group is leads or sre"}),
        (("admin",), ("sre",), {"role is admin", "group is leads or sre"}),
        (("member",), ("default",), set()),
    ],
)
def test_an_approver_meets_conditions_on_roles_and_groups(
    roles: tuple[str, ...], groups: tuple[str, ...], met: set[str]
) -> None:
    policy = loaded_policy(EDIT)
    approver = replace(caller(*roles), groups=tuple(Group("4" * 32, name, DEFAULT) for name in groups))
    assert policy.met_conditions(approver, CLUSTER.project_id).get("edit", frozenset()) == met


def test_an_approver_who_must_have_a_role_and_a_group_needs_both() -> None:
    policy = loaded_policy(offer("edit", "g", approvals=[{"role": "admin", "groups": ["team-a"]}]))
    [edit] = policy.rules
    assert edit.offer is not None
    admin = replace(ALICE, roles={CLUSTER.project_id: ("admin",)})
    for who, met in (
        (admin, {"edit": set(edit.offer.clauses)}),
        (ALICE, {}),
        (replace(admin, groups=()), {}),
    ):
        assert policy.met_conditions(who, CLUSTER.project_id) == met
    assert policy.met_conditions(admin, "another project") == {}


# Without a request


def test_an_offer_grants_nothing_without_a_request() -> None:
    assert decide(VIEW, EDIT).groups == ("viewers",)
    with pytest.raises(Forbidden) as refused:
        decide(EDIT)
    assert refused.value.trace["offers"] == ["edit"]
    assert refused.value.message == (
        "You have no access to this cluster without a request. You can request editors: run"
        " `clustercert request create production --group editors --for 1h --reason REASON`."
    )


def test_the_message_about_offers_has_a_command_that_the_policy_accepts() -> None:
    where = replace(CLUSTER, name="it's prod")
    with pytest.raises(Forbidden) as refused:
        decide(offer("x", "a b; rm", max_lifetime="30m", min_reason_length=20), where=where)
    assert refused.value.message.endswith(
        "run `clustercert request create 'it'\"'\"'s prod' --group 'a b; rm' --for 30m --reason REASON`."
        " The reason needs at least 20 characters."
    )


def test_the_message_about_several_offers_prefers_one_that_is_not_for_emergencies() -> None:
    urgent = offer("break-glass", "admins", "editors", approvals=[{"role": "admin"}], before_approval=True)
    with pytest.raises(Forbidden, match="request admins, editors, a and more: ") as refused:
        decide(urgent, EDIT, offer("others", "a", "b"))
    assert "--group editors --for 1h --rule edit --reason REASON" in refused.value.message


def test_the_message_about_an_offer_also_says_what_standing_access_needs() -> None:
    by_csr = {"name": "by-csr"} | rule("g", {"roles": ["member"]}, csr_required=True)
    with pytest.raises(Forbidden) as refused:
        decide(by_csr, EDIT)
    assert refused.value.message.startswith(
        "No rule of the policy matches this request. The nearest rules need: by-csr: the request has a csr."
        " You can request editors: "
    )


def test_a_refusal_does_not_reveal_offers_to_others() -> None:
    hidden = offer("secret-project", "secret-admins", when={"groups": ["secret-team"]})
    with pytest.raises(Forbidden) as refused:
        decide(hidden, VIEW | {"when": {"roles": ["admin"]}})
    assert "secret" not in f"{refused.value.message} {refused.value.trace}"
    assert refused.value.unmet_conditions["secret-project"] == "group is secret-team"


# What can be requested


def test_the_offers_are_those_whose_conditions_the_caller_meets() -> None:
    for_others = offer("others", "o", when={"groups": ["nobody"]})
    policy = loaded_policy(
        VIEW, EDIT, for_others, offer("labelled", "l", when={"cluster_labels": {"env": ["prod"]}})
    )
    assert [each.name for each in policy.offers(ALICE, CLUSTER, NOW)] == ["edit", "labelled"]
    assert [each.name for each in policy.offers(ALICE, replace(CLUSTER, labels={}), NOW)] == ["edit"]
    with pytest.raises(NotFound):
        policy.offers(caller(), CLUSTER, NOW)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"roles": ["member"]}, True),
        ({"roles": ["member"], "sources": ["192.0.2.0/24"], "auth_methods": ["access_key"]}, True),
        ({"roles": ["member"], "cel": "now.getHours() > 30"}, True),
        ({"roles": ["admin"]}, False),
        ({"groups": ["nobody"]}, False),
        ({"roles": ["member"], "cluster_labels": {"team": ["other"]}}, False),
    ],
    ids=["role", "request", "time", "lost role", "lost group", "label"],
)
def test_conditions_on_the_request_say_nothing_about_what_a_user_may_ask_for(
    when: Rule, expected: bool
) -> None:
    policy = loaded_policy(offer("edit", "editors", when=when))
    assert is_offered(policy, "edit", ALICE, CLUSTER, NOW) is expected
    assert is_offered(policy, "other", ALICE, CLUSTER, NOW) is False


def test_nothing_is_offered_if_a_rule_denies() -> None:
    frozen: Rule = {"when": {"cluster_labels": {"env": ["prod"]}}, "deny": "Frozen."}
    assert loaded_policy(EDIT, frozen).offers(ALICE, CLUSTER, NOW) == ()


def test_an_offer_whose_condition_cannot_be_evaluated_leaves_standing_access_alone() -> None:
    failing = EDIT | {"when": {"cel": "cluster.labels.none == '1'"}}
    assert decide(VIEW, failing).groups == ("viewers",)
    assert loaded_policy(VIEW, failing).offers(ALICE, CLUSTER, NOW) == ()
    with pytest.raises(Forbidden, match="rule edit does not offer you this access any more"):
        decide(VIEW, failing, access=APPROVED)


def test_a_rule_that_denies_requests_without_a_csr_or_reason_hides_no_offer() -> None:
    no_csr: Rule = {"when": {"cel": "!request.csr"}, "deny": "Send a CSR."}
    no_reason: Rule = {"when": {"cel": "request.reason == ''"}, "deny": "Send a reason."}
    assert [each.name for each in loaded_policy(EDIT, no_csr, no_reason).offers(ALICE, CLUSTER, NOW)] == [
        "edit"
    ]


def test_only_a_rule_that_offers_is_found_by_name() -> None:
    policy = loaded_policy(VIEW, EDIT)
    found = policy.offering_rule("edit")
    assert found is not None
    assert found.groups == ("editors",)
    assert policy.offering_rule("view") is policy.offering_rule("other") is None


def test_a_role_has_rights_if_it_can_get_or_request_groups_or_approve() -> None:
    [edit] = loaded_policy(EDIT | {"when": {"roles": ["member"]}}).rules
    [view] = loaded_policy(VIEW).rules
    [freeze] = loaded_policy({"name": "freeze", "when": {"roles": ["member"]}, "deny": "Frozen."}).rules
    found = {
        rule.name: [role for role in ("member", "admin") if rule.gives_role_rights(role)]
        for rule in (edit, view, freeze)
    }
    # Group members need no particular role to approve.
    assert found == {"edit": ["member", "admin"], "view": ["member"], "freeze": []}
    [strict] = loaded_policy(
        offer("strict", "g", when={"roles": ["member"]}, approvals=[{"role": "lead"}])
    ).rules
    assert [role for role in ("member", "lead", "admin") if strict.gives_role_rights(role)] == [
        "member",
        "lead",
    ]


# With a request


def test_a_request_adds_its_groups_to_the_standing_ones_and_its_rule_comes_first() -> None:
    granted = decide(VIEW, EDIT, access=APPROVED)
    assert granted.groups == ("editors", "viewers")
    assert (granted.rule, granted.rules) == ("edit", ("edit", "view"))
    assert granted.access == APPROVED
    assert granted.access_request_id == APPROVED.request_id
    assert decide(VIEW, EDIT).access_request_id is None


def test_a_request_gives_only_the_requested_groups_of_its_own_rule() -> None:
    granted = decide(offer("two", "a", "b"), offer("other", "c"), access=requested("two", "b"))
    assert (granted.groups, granted.rules) == (("b",), ("two",))


def test_a_certificate_never_outlives_its_request() -> None:
    granted = decide(VIEW, EDIT, access=APPROVED)
    assert granted.not_after == ISSUED_AT + HOUR
    assert granted.trace["allowed_by"] == "access_request"
    shorter = decide(VIEW, EDIT, ask=IssueRequest(expires_in=HOUR / 4), access=APPROVED)
    assert shorter.not_after == ISSUED_AT + HOUR / 4
    with pytest.raises(
        Forbidden, match=r"requested lifetime \(2 hours\) exceeds the end of the access request"
    ):
        decide(VIEW, EDIT, ask=IssueRequest(expires_in=2 * HOUR), access=APPROVED)
    shortened = decide(VIEW, EDIT, ask=IssueRequest(expires_in=2 * HOUR, shorten=True), access=APPROVED)
    assert shortened.not_after == ISSUED_AT + HOUR


@pytest.mark.parametrize(
    ("offered", "standing", "policy", "lifetime", "allowed_by"),
    [
        ("30m", "8h", "8h", HOUR / 2, "rule"),
        ("4h", "15m", "8h", HOUR / 4, "rule"),
        ("4h", "8h", "45m", HOUR * 3 / 4, "policy"),
    ],
)
def test_the_limits_of_the_policy_hold_for_requested_access_too(
    offered: str, standing: str, policy: str, lifetime: timedelta, allowed_by: str
) -> None:
    rules = offer("edit", "editors", max_lifetime=offered), rule("viewers", max_lifetime=standing)
    granted = decide(*rules, access=requested("edit", "editors"), max_lifetime=policy)
    assert granted.not_after == ISSUED_AT + lifetime
    assert granted.trace["allowed_by"] == allowed_by


def test_the_end_of_the_ca_limits_requested_access() -> None:
    ending = replace(CLUSTER, client_ca=client_ca(lifetime=timedelta(days=1, minutes=20)))
    assert decide(EDIT, where=ending, access=APPROVED).not_after == ISSUED_AT + HOUR / 3


def test_a_request_that_ends_within_the_second_is_over() -> None:
    with pytest.raises(Forbidden, match=r"access request has ended\. Create a new request\."):
        decide(EDIT, access=replace(APPROVED, until=NOW + timedelta(microseconds=1)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([VIEW], "rule edit does not offer you this access any more. End the access request, and create a new one."),
        ([{"name": "edit"} | rule("editors")], "does not offer you this access any more"),
        ([offer("edit", "others")], "does not offer you this access any more"),
        ([EDIT | {"when": {"groups": ["nobody"]}}], "rule edit does not offer you this access any more"),
        ([EDIT | {"when": {"roles": ["admin"]}}], "does not offer you this access now. The rule needs: role is admin."),
        (
            [EDIT | {"when": {"auth_methods": ["oidc"]}}],
            "rule edit does not offer you this access now. The rule needs: auth_method is oidc.",
        ),
        (
            [offer("edit", "editors", approvals=[*EDIT["offer"]["approvals"], {"role": "security"}])],
            "rule edit needs other approvals now. End the access request, and create a new one.",
        ),
        ([offer("edit", "editors", approvals=[{"role": "admin"}] * 2)], "needs other approvals now"),
        ([EDIT, {"name": "freeze", "deny": "Frozen."}], "Frozen."),
    ],
)  # fmt: skip
def test_the_policy_is_asked_again_with_a_request(rules: list[Rule], message: str) -> None:
    with pytest.raises(Forbidden) as refused:
        decide(VIEW | {"name": "standing"}, *rules, access=APPROVED)
    assert message in refused.value.message


@pytest.mark.parametrize(
    "approvals",
    [
        [],
        [{"role": "admin"}],
        [{"groups": ["leads", "sre"]}, {"role": "admin"}],
    ],
)
def test_approvals_that_meet_the_present_conditions_are_enough(approvals: list[Rule]) -> None:
    changed = offer("edit", "editors", approvals=approvals)
    assert decide(changed, access=APPROVED).groups == ("editors",)


def test_one_approver_does_not_meet_two_conditions() -> None:
    both = requested("edit", "editors", met=(ADMIN | LEAD,))
    with pytest.raises(Forbidden, match="needs other approvals now"):
        decide(EDIT, access=both)
    assert decide(EDIT, access=replace(both, met=(ADMIN | LEAD, ADMIN))).groups == ("editors",)


def test_access_is_used_before_the_approval_only_if_the_policy_allows_it() -> None:
    early = requested("edit", "editors", is_approved=False)
    with pytest.raises(Forbidden, match="rule edit does not allow use before the approval any more"):
        decide(EDIT, access=early)
    urgent = EDIT | {"offer": EDIT["offer"] | {"before_approval": True}}
    assert decide(urgent, access=early).groups == ("editors",)


def test_a_certificate_with_a_request_has_no_more_groups_than_others() -> None:
    many = [rule(f"g{number}", groups=[f"g{number}-{n}" for n in range(32)]) for number in range(2)]
    assert len(decide(*many).groups) == MAX_GROUPS
    with pytest.raises(Forbidden, match="more than 64 Kubernetes groups"):
        decide(*many, EDIT, access=APPROVED)


def test_the_cluster_role_of_a_request_is_that_of_its_rule() -> None:
    granted = decide(VIEW | {"name": "a-view"}, EDIT, access=APPROVED)
    roles = {"a-view": "view", "edit": "edit"}
    assert bound_grant(granted, roles).rule == "edit"
    with pytest.raises(Forbidden, match="no ClusterRole for the rule edit"):
        bound_grant(granted, {"a-view": "view"})
    assert bound_grant(decide(VIEW | {"name": "a-view"}, EDIT), roles).rule == "a-view"


def test_the_rule_of_a_request_sees_the_request_for_the_certificate() -> None:
    inside = EDIT | {"when": {"sources": ["10.0.0.0/8"]}}
    with pytest.raises(Forbidden, match="does not offer you this access"):
        decide(inside, access=APPROVED)
    who = replace(ALICE, origin=Origin("10.1.2.3", "f" * 32))
    assert decide(inside, who=who, ask=CSR, access=APPROVED).groups == ("editors",)
