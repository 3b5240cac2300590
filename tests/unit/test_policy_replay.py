"""Recorded decisions, computed again by the same policy and by others."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.audit.refusals import DenialAudit
from clustercert.kubernetes.bindings import Bindings
from clustercert.model import (
    Caller,
    Cluster,
    ClusterOptions,
    Domain,
    FederatedDomain,
    Group,
    IssueRequest,
    Origin,
)
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError, TooManyRequests
from clustercert.pki.keys import sample_key
from clustercert.policy.decision import Policy
from clustercert.policy.live_replay import LiveChange, LiveComparison
from clustercert.policy.replay import (
    MAX_EXAMPLES,
    NOT_SIGNED,
    NotReplayable,
    OutcomeChange,
    Replay,
    parse_decision,
)
from clustercert.policy.rule_settings import PolicySettings
from clustercert.store.audit.events import canonical
from support.issuance_doubles import Accesses, Clusters, MemoryLedger, Usernames, issuance
from support.policy_rules import requested
from support.samples import CLUSTER_ID, NOW, PROJECT_ID, caller, client_ca, cluster

Rule = dict[str, Any]

DOMAIN = Domain("d" * 32, "default")
MEMBER = {"name": "members", "when": {"roles": ["member"]}, "grant": {"groups": ["editors"]}}
LONGEST = IssueRequest(duration=-1)
# The request of the exec plugin.
AT_MOST_8H = IssueRequest(expires_in=timedelta(hours=8), shorten=True)
BY_CSR = replace(LONGEST, public_key=sample_key("ec-p384"))


def policy(*rules: Rule, **fields: object) -> Policy:
    # Rules that offer groups need a name.
    named = [{"name": f"rule-{number}"} | each for number, each in enumerate(rules, 1)]
    return PolicySettings.model_validate({"rules": named} | fields).policy()


@dataclass
class Service:
    """An issuance service that keeps its audit events."""

    policy: Policy
    where: Cluster
    usernames: Usernames
    access: RequestedAccess | None = None

    def ask(self, who: Caller, request: IssueRequest, at: datetime = NOW) -> dict[str, Any]:
        """Request a certificate. Returns the body of the audit event."""
        return asyncio.run(self._ask(who, request, at))

    async def _ask(self, who: Caller, request: IssueRequest, at: datetime) -> dict[str, Any]:
        ledger, clusters = MemoryLedger(), Clusters(self.where)
        service = replace(
            issuance(ledger=ledger, clusters=clusters, now=lambda: at),
            policy=self.policy,
            usernames=self.usernames,
            bindings=_NoBindings(None),  # type: ignore[arg-type] # no cluster is called
            requests=Accesses(self.access, ledger),
        )
        try:
            await service.issue(who, self.where.project_id, self.where.id, request)
        except ClustercertError as refused:
            # A refusal is recorded a little later.
            denials = DenialAudit(ledger, clusters, lambda: at + timedelta(seconds=2))
            await denials.certificate(who, self.where.project_id, self.where.id, request, refused)
        [event] = [*ledger.notes, *(event for _, event in ledger.entries)]
        body: dict[str, Any] = json.loads(canonical(event))
        return body


class _NoBindings(Bindings):
    def binding(self, *_: object) -> Any:
        return _Nothing()


class _Nothing:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def service(of: Policy, where: Cluster | None = None) -> Service:
    return Service(of, where or cluster(), Usernames())


def compared(other: Policy, *events: Mapping[str, Any]) -> Replay:
    replay = Replay(other)
    for event in events:
        replay.add(event)
    return replay


def changed(other: Policy, *events: Mapping[str, Any]) -> set[OutcomeChange]:
    return {change for change, tally in compared(other, *events).changes.items() if tally.decisions}


# The same policy


def federated(who: Caller) -> Caller:
    """The caller as a user of an OIDC issuer, who names users and groups with the issuer's name."""
    domain = FederatedDomain("e" * 32, "google")
    return replace(
        who,
        user=replace(who.user, name=f"google/{who.user.name}", domain=domain),
        groups=tuple(replace(group, name=f"google/{group.name}", domain=domain) for group in who.groups),
        issuer="https://accounts.google.com",
        method="oidc",
    )


WORDS = st.sampled_from(
    [
        "admin",
        "member",
        "reader",
        "team-a",
        "team-b",
        "alice",
        "*a*",
        "team-?",
        "prod*",
        "google/*",
        "google/google/*",
    ]
)
WHENS = st.fixed_dictionaries(
    {},
    optional={
        "roles": st.lists(WORDS, min_size=1, max_size=2),
        "groups": st.lists(WORDS, min_size=1, max_size=2),
        "users": st.lists(WORDS, min_size=1, max_size=2),
        "clusters": st.lists(WORDS, min_size=1, max_size=1),
        "projects": st.just([PROJECT_ID]),
        "cluster_labels": st.just({"env": ["prod"]}),
        "auth_methods": st.sampled_from([["token"], ["access_key"], ["oidc"], ["keystone*"]]),
        "issuers": st.sampled_from([["built-in"], ["https://accounts.*"]]),
        "sources": st.just(["192.0.2.0/24"]),
        "cel": st.sampled_from(
            [
                '"team-a" in user.groups && user.domain == "default"',
                "request.csr || request.reason != ''",
                "cluster.labels.env == 'prod'",
                "now < timestamp('2026-03-14T15:09:28.5Z')",
                "'operator' in user.service_roles || request.source.startsWith('192.')",
            ]
        ),
    },
)
GRANTS = st.fixed_dictionaries(
    {
        "groups": st.lists(
            st.sampled_from(["a", "b", "{group}", "{role}", "p:{project.id}", "{cluster.name}"]), max_size=32
        )
    },
    optional={
        "max_lifetime": st.sampled_from(["1h", "8h", "3d", "1825d"]),
        "default_lifetime": st.sampled_from(["30m", "1h"]),
        "key_types": st.sampled_from([["ec-p256"], ["ec-p384", "rsa-3072"]]),
        "csr_required": st.booleans(),
        "reason_required": st.booleans(),
    },
)
OFFERS = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([["a"], ["a", "b"]]),
        "max_lifetime": st.sampled_from(["1h", "8h"]),
        "approvals": st.sampled_from([[], [{"role": "admin"}]]),
    }
)
RULES = st.lists(
    st.fixed_dictionaries({"when": WHENS, "grant": GRANTS})
    | st.fixed_dictionaries({"when": WHENS, "deny": st.just("no")})
    | st.fixed_dictionaries({"when": WHENS, "offer": OFFERS}),
    max_size=5,
)
ACCESSES = st.builds(
    RequestedAccess,
    st.just("a" * 32),
    st.sampled_from(["rule-1", "rule-2", "rule-3"]),
    st.sampled_from([("a",), ("b",)]),
    st.sampled_from([NOW + timedelta(minutes=30), NOW + timedelta(days=3)]),
    st.booleans(),
    st.sampled_from([(), (frozenset({"role is admin"}),)]),
)
FOR_ALL = st.fixed_dictionaries(
    {},
    optional={
        "role_groups": st.booleans(),
        "max_lifetime": st.sampled_from(["1h", "8h", "3d"]),
        "username": st.sampled_from(["{user.name}", "{user.domain}:{user.id}"]),
    },
)
REQUESTS = st.builds(
    IssueRequest,
    duration=st.sampled_from([None, -1, 1, 30, 1825]),
    expire_at=st.sampled_from([None, NOW.replace(microsecond=0) + timedelta(hours=1)]),
    expires_in=st.sampled_from([None, timedelta(minutes=15), timedelta(hours=8)]),
    shorten=st.booleans(),
    public_key=st.sampled_from([None, *map(sample_key, ["ec-p256", "ec-p384", "ed25519"])]),
    reason=st.sampled_from([None, "", "incident 4711"]),
)
BUILT_IN_CALLERS = st.builds(
    replace,
    st.builds(caller, st.sampled_from(["admin", "member", "reader"])),
    groups=st.lists(st.sampled_from(["team-a", "team-b", "a:b"]), unique=True, max_size=2).map(
        lambda names: tuple(Group(f"{ord(name[-1]):032x}", name, DOMAIN) for name in names)
    ),
    method=st.sampled_from(["token", "access_key", "cli"]),
    origin=st.builds(Origin, st.sampled_from(["192.0.2.1", "local", "2001:db8::1"]), st.just("f" * 32)),
    service_roles=st.sampled_from([(), ("operator",)]),
)
CALLERS = st.one_of(BUILT_IN_CALLERS, BUILT_IN_CALLERS.map(federated))
CLUSTERS = st.builds(
    replace,
    st.just(cluster()),
    labels=st.sampled_from([{}, {"env": "prod"}]),
    client_ca=st.sampled_from(
        [client_ca(), client_ca(lifetime=timedelta(days=2)), client_ca(lifetime=timedelta(hours=1))]
    ),
    options=st.sampled_from(
        [ClusterOptions(), ClusterOptions(credential_roles={"rule-1": "view", "rule-2": "edit"})]
    ),
)


@given(
    rules=RULES,
    for_all=FOR_ALL,
    who=CALLERS,
    where=CLUSTERS,
    request=REQUESTS,
    access=st.none() | ACCESSES,
    later=st.integers(0, 10**7),
)
def test_the_same_policy_changes_nothing(
    rules: list[Rule],
    for_all: dict[str, object],
    who: Caller,
    where: Cluster,
    request: IssueRequest,
    access: RequestedAccess | None,
    later: int,
) -> None:
    same = policy(*rules, **for_all)
    issuing = replace(service(same, where), access=access)
    asked = replace(request, access_request=access.request_id if access is not None else None)
    event = issuing.ask(who, asked, NOW + timedelta(microseconds=later))
    replay = compared(same, event)
    assert (replay.decisions, replay.unchanged, replay.not_replayable) == (1, 1, {})
    again = compared(replace(same, key_type="rsa-2048"), event)
    assert again.unchanged == 1


# Another policy


@pytest.mark.parametrize(
    ("before", "after", "request_", "expected"),
    [
        ({}, {"deny": "no"}, LONGEST, {OutcomeChange.DENIED}),
        ({"deny": "no"}, {}, LONGEST, {OutcomeChange.ALLOWED}),
        ({}, {"max_lifetime": "8h"}, LONGEST, {OutcomeChange.SHORTER}),
        ({}, {"max_lifetime": "8h"}, IssueRequest(duration=1), {OutcomeChange.DENIED}),
        ({}, {"max_lifetime": "8h"}, IssueRequest(duration=1, shorten=True), {OutcomeChange.SHORTER}),
        ({"max_lifetime": "8h"}, {"max_lifetime": "1h"}, AT_MOST_8H, {OutcomeChange.SHORTER}),
        ({"max_lifetime": "1h"}, {"max_lifetime": "30m"}, AT_MOST_8H, {OutcomeChange.SHORTER}),
        ({"max_lifetime": "1h"}, {"max_lifetime": "9h"}, AT_MOST_8H, {OutcomeChange.LONGER}),
        ({"max_lifetime": "8h"}, {"max_lifetime": "1h"}, replace(AT_MOST_8H, shorten=False), {OutcomeChange.DENIED}),
        ({"max_lifetime": "8h"}, {}, LONGEST, {OutcomeChange.LONGER}),
        ({}, {"max_lifetime": "3d"}, IssueRequest(duration=1), set()),
        ({}, {"groups": ["editors", "more"]}, LONGEST, {OutcomeChange.GROUPS}),
        ({}, {"groups": ["g"], "max_lifetime": "1h"}, LONGEST, {OutcomeChange.SHORTER, OutcomeChange.GROUPS}),
        ({"groups": ["a", "b"]}, {"groups": ["b", "a"]}, LONGEST, set()),
        ({"deny": "no"}, {"deny": "still no"}, LONGEST, set()),
        ({}, {"csr_required": True}, LONGEST, {OutcomeChange.DENIED}),
        ({"csr_required": True}, {"key_types": ["ec-p384"]}, BY_CSR, set()),
        ({"key_types": ["ec-p256"]}, {"key_types": ["ed25519"]}, LONGEST, {OutcomeChange.DENIED}),
    ],
)  # fmt: skip
def test_differences_are_named(
    before: Rule, after: Rule, request_: IssueRequest, expected: set[OutcomeChange]
) -> None:
    def rule(said: Rule) -> Rule:
        if "deny" in said:
            return {"name": "members"} | said
        return {"name": "members", "grant": {"groups": ["editors"]} | said}

    event = service(policy(rule(before))).ask(caller("member"), request_)
    assert changed(policy(rule(before)), event) == set()
    assert changed(policy(rule(after)), event) == expected


def test_differences_of_all_certificates_are_named() -> None:
    event = service(policy(MEMBER)).ask(caller("member"), LONGEST)
    assert changed(policy(MEMBER, username="{user.name}"), event) == {OutcomeChange.USERNAME}
    assert changed(policy(MEMBER, max_lifetime="24h"), event) == {OutcomeChange.SHORTER}
    assert changed(policy(MEMBER, role_groups=True), event) == {OutcomeChange.GROUPS}


def test_a_decision_is_computed_again_at_its_time() -> None:
    """A refusal is recorded later than it was decided."""
    early = {"name": "early", "when": {"cel": "now < timestamp('2026-03-14T15:09:27Z')"}, "deny": "too early"}
    event = service(policy(early, MEMBER)).ask(caller("member"), LONGEST)
    assert event["kind"] == "certificate.refused"
    assert changed(policy(early, MEMBER), event) == set()
    assert changed(policy(MEMBER), event) == {OutcomeChange.ALLOWED}


def test_the_end_of_the_ca_at_that_time_limits_the_lifetime() -> None:
    short_lived = replace(cluster(), client_ca=client_ca(lifetime=timedelta(days=2)))
    event = service(policy(MEMBER), short_lived).ask(caller("member"), LONGEST)
    assert changed(policy(MEMBER), event) == set()
    ended = service(policy(MEMBER), short_lived).ask(caller("member"), LONGEST, NOW + timedelta(days=2))
    assert ended["detail"]["error"] == "Unavailable"
    assert changed(policy(MEMBER), ended) == set()


def test_a_cluster_role_takes_the_place_of_the_groups() -> None:
    roles = ClusterOptions(credential_roles={"members": "edit", "others": "view"})
    event = service(policy(MEMBER), replace(cluster(), options=roles)).ask(caller("member"), LONGEST)
    assert changed(policy(MEMBER), event) == set()
    assert changed(policy(MEMBER | {"grant": {"groups": ["x"]}}), event) == set()
    assert changed(policy(MEMBER | {"name": "others"}), event) == {OutcomeChange.GROUPS}
    assert changed(policy(MEMBER | {"name": "unbound"}), event) == {OutcomeChange.DENIED}


def test_a_user_name_of_another_user_stays_refused() -> None:
    named = policy(MEMBER, username="{user.name}")
    issuing = service(named)
    first, other = caller("member"), caller("member", user_id="0" * 32)
    issued, refused = issuing.ask(first, LONGEST), issuing.ask(other, LONGEST)
    assert "belongs to another user" in refused["detail"]["message"]
    assert changed(named, issued, refused) == set()
    assert compared(policy(MEMBER), issued, refused).changes[OutcomeChange.ALLOWED].decisions == 1


# Access requests


def edit(*approvals: Rule, **terms: object) -> Rule:
    offer = {"groups": ["admins"], "max_lifetime": "4h", "approvals": list(approvals)} | terms
    return {"name": "edit", "when": {"roles": ["member"]}, "offer": offer}


BY_ADMIN = edit({"role": "admin"})
BY_TWO = edit({"role": "admin"}, {"groups": ["leads"]})
APPROVED = requested("edit", "admins", met=(frozenset({"role is admin"}),))


def with_access(of: Policy, access: RequestedAccess, where: Cluster | None = None) -> dict[str, Any]:
    """Issue a certificate with an access request. Returns the body of the audit event."""
    issuing = replace(service(of, where), access=access)
    return issuing.ask(caller("member"), replace(LONGEST, access_request=access.request_id))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ((MEMBER, BY_ADMIN), set()),
        ((MEMBER, edit()), set()),
        ((MEMBER, BY_TWO), {OutcomeChange.DENIED}),
        ((MEMBER,), {OutcomeChange.DENIED}),
        ((MEMBER, BY_ADMIN | {"name": "other"}), {OutcomeChange.DENIED}),
        ((MEMBER, BY_ADMIN | {"when": {"roles": ["reader"]}}), {OutcomeChange.DENIED}),
        ((MEMBER, edit({"role": "admin"}, groups=["others"])), {OutcomeChange.DENIED}),
        ((MEMBER, edit({"role": "admin"}, groups=["admins", "others"])), set()),
        ((MEMBER, edit({"role": "admin"}, max_lifetime="30m")), {OutcomeChange.SHORTER}),
        ((BY_ADMIN,), {OutcomeChange.GROUPS}),
    ],
)
def test_a_certificate_of_an_access_request_is_decided_with_the_request(
    after: tuple[Rule, ...], expected: set[OutcomeChange]
) -> None:
    event = with_access(policy(MEMBER, BY_ADMIN), APPROVED)
    assert event["kind"] == "certificate.issued"
    assert event["detail"]["organizations"][:2] == ["admins", "editors"]
    assert changed(policy(*after), event) == expected


def test_a_live_certificate_of_a_request_that_is_not_offered_any_more_is_affected() -> None:
    event = with_access(policy(MEMBER, BY_ADMIN), APPROVED)
    same, stricter = LiveComparison(policy(MEMBER, BY_ADMIN)), LiveComparison(policy(MEMBER, BY_TWO))
    for comparison in (same, stricter):
        comparison.add(event)
    assert same.affected == []
    [affected] = stricter.affected
    assert affected.changes == (LiveChange.REFUSED,)
    assert "rule edit needs other approvals now" in affected.outcome.message


def test_access_before_the_approval_is_decided_as_such() -> None:
    early = requested("edit", "admins", is_approved=False)
    event = with_access(policy(edit({"role": "admin"}, before_approval=True)), early)
    assert event["kind"] == "certificate.issued"
    assert changed(policy(edit({"role": "admin"}, before_approval=True)), event) == set()
    assert changed(policy(BY_ADMIN), event) == {OutcomeChange.DENIED}


def test_a_refused_request_with_access_is_decided_with_the_request() -> None:
    """The caller's standing access alone would not be refused."""
    refused = with_access(policy(MEMBER, BY_TWO), APPROVED)
    assert (refused["kind"], refused["detail"]["error"]) == ("certificate.refused", "Forbidden")
    assert refused["detail"]["access_request"] == {
        "id": "a" * 32,
        "rule": "edit",
        "groups": ["admins"],
        "until": (NOW + timedelta(hours=1)).isoformat(),
        "is_approved": True,
        "met": [["role is admin"]],
    }
    assert "access_request" not in refused["detail"]["trace"]
    assert changed(policy(MEMBER, BY_TWO), refused) == set()
    assert changed(policy(MEMBER, BY_ADMIN), refused) == {OutcomeChange.ALLOWED}
    frozen = {"name": "frozen", "deny": "Frozen."}
    assert changed(policy(BY_ADMIN), with_access(policy(BY_ADMIN, frozen), APPROVED)) == {
        OutcomeChange.ALLOWED
    }


def test_the_cluster_role_of_an_access_request_is_decided_again() -> None:
    roles = ClusterOptions(credential_roles={"edit": "edit", "a-view": "view"})
    where = replace(cluster(), options=roles)
    rules = policy(MEMBER | {"name": "a-view"}, BY_ADMIN)
    event = with_access(rules, APPROVED, where)
    assert event["detail"]["rule"] == "edit"
    assert changed(rules, event) == set()


def test_the_access_of_a_request_is_read_from_its_event() -> None:
    event = with_access(policy(MEMBER, BY_ADMIN), APPROVED)
    assert parse_decision(event).access == APPROVED
    assert parse_decision(service(policy(MEMBER)).ask(caller("member"), LONGEST)).access is None
    damaged = event["detail"] | {"access_request": event["detail"]["access_request"] | {"met": None}}
    with pytest.raises(NotReplayable, match="malformed"):
        parse_decision(event | {"detail": damaged})


# What can't be computed again


def test_events_without_all_inputs_are_counted_by_reason() -> None:
    same = policy(MEMBER)
    event = service(same).ask(caller("member"), LONGEST)
    own = event | {"detail": event["detail"] | {"trace": {}}}
    long = {**event["detail"]["request"], "duration": 10**10}
    late = {**event["detail"]["trace"], "decided_at": "9999-12-31T12:00:00+00:00"}
    damaged = [
        event | {"detail": None},
        event | {"detail": event["detail"] | {"request": long}},
        event | {"detail": event["detail"] | {"trace": late}},
        event
        | {"detail": {**event["detail"], "cluster": {**event["detail"]["cluster"], "labels": {"a": 1}}}},
        event | {"detail": {**event["detail"], "caller": {**event["detail"]["caller"], "groups": "x"}}},
        event | {"detail": {**event["detail"], "not_after": "soon"}},
        event | {"detail": event["detail"] | {"organizations": None}},
    ]
    replay = compared(same, event, own, *damaged)
    assert (replay.decisions, replay.unchanged) == (1, 1)
    assert replay.not_replayable == {
        "the service issued the certificate for itself": 1,
        "the event is malformed": 7,
    }


def test_a_request_that_was_allowed_but_not_signed_is_counted() -> None:
    failed = service(policy(MEMBER)).ask(caller("member"), LONGEST) | {"kind": "certificate.failed"}
    replay = compared(policy(MEMBER), failed)
    assert replay.not_replayable == {NOT_SIGNED: 1}


def test_text_that_is_no_unicode_fails_the_expression() -> None:
    event = service(policy(MEMBER)).ask(caller("member"), LONGEST)
    request = {**event["detail"]["request"], "reason": "\ud800"}
    by_reason = {"name": "by-reason", "when": {"cel": "request.reason == 'x'"}, "grant": {"groups": ["g"]}}
    replay = compared(policy(by_reason), event | {"detail": event["detail"] | {"request": request}})
    assert replay.changes[OutcomeChange.DENIED].decisions == 1


async def test_a_request_that_a_limit_refused_was_not_decided() -> None:
    ledger = MemoryLedger()
    denials = DenialAudit(ledger, Clusters(), lambda: NOW)
    failure = TooManyRequests("Too many.", retry_after=1)
    await denials.certificate(caller("member"), PROJECT_ID, CLUSTER_ID, LONGEST, failure)
    [event] = ledger.notes
    with pytest.raises(NotReplayable, match=r"but not by the policy \(TooManyRequests\)"):
        parse_decision(json.loads(canonical(event)))


def test_users_clusters_and_rules_are_counted_and_a_few_decisions_are_kept() -> None:
    issuing, count = service(policy(MEMBER)), MAX_EXAMPLES + 2
    events = [issuing.ask(caller("member", user_id=f"{n % 2:032x}"), LONGEST) for n in range(count)]
    denying = policy({"name": "freeze", "deny": "Frozen."})
    tally = compared(denying, *events).changes[OutcomeChange.DENIED]
    assert tally.decisions == count
    assert tally.users == {("0" * 32, "default/alice"): 4, ("0" * 31 + "1", "default/alice"): 3}
    assert tally.clusters == {(CLUSTER_ID, "production"): count}
    assert (tally.recorded_rules, tally.rules) == ({"members": count}, {"freeze": count})
    assert len(tally.examples) == MAX_EXAMPLES
    assert {each.outcome.message for each in tally.examples} == {"Frozen."}


def test_the_names_of_an_issuers_user_and_groups_are_the_same_again() -> None:
    who = federated(replace(caller("member"), groups=(Group("a" * 32, "ops", DOMAIN),)))
    named = {"when": {"users": ["google/alice"], "groups": ["google/ops"]}, "grant": {"groups": ["editors"]}}
    doubled = {"when": {"users": ["google/google/*"]}, "deny": "no"}
    event = service(policy(doubled, named)).ask(who, LONGEST)
    assert event["kind"] == "certificate.issued"
    assert changed(policy(doubled, named), event) == set()


def test_an_issuers_user_is_named_as_in_rules() -> None:
    event = service(policy(MEMBER)).ask(federated(caller("member")), LONGEST)
    tally = compared(policy({"name": "freeze", "deny": "Frozen."}), event).changes[OutcomeChange.DENIED]
    assert [name for _, name in tally.users] == ["google/alice"]
