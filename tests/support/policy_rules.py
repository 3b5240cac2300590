"""Decisions on rules that a test writes as dicts, and random rules."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from clustercert.model import Caller, Cluster, Domain, Grant, Group, IssueRequest
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import Forbidden
from clustercert.pki.keys import new_key
from clustercert.policy.decision import Policy
from clustercert.policy.rule_settings import PolicySettings
from support.samples import NOW, caller, cluster

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
    *rules: Rule,
    who: Caller = ALICE,
    where: Cluster = CLUSTER,
    ask: IssueRequest = LONGEST,
    access: RequestedAccess | None = None,
    **policy: object,
) -> Grant:
    """The decision on rules; without any, nobody has access."""
    return loaded_policy(*rules, **policy).decide(who, where, ask, NOW, access)


def loaded_policy(*rules: Rule, **policy: object) -> Policy:
    return PolicySettings.model_validate({"rules": list(rules)} | policy).policy()


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


def offer(name: str, *groups: str, when: Mapping[str, object] | None = None, **terms: object) -> Rule:
    """A rule that offers groups, by default for four hours and without approvals."""
    return {
        "name": name,
        "when": when or {},
        "offer": {"groups": list(groups), "max_lifetime": "4h", "approvals": []} | terms,
    }


def requested(
    rule: str, *groups: str, met: tuple[frozenset[str], ...] = (), is_approved: bool = True
) -> RequestedAccess:
    """The access of a request that ends in an hour."""
    return RequestedAccess("a" * 32, rule, groups, NOW + HOUR, is_approved, met)


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


DENYING = CONDITIONS.map(lambda when: {"when": when, "deny": "No."})


ANY_RULE = st.one_of(GRANTING, GRANTING, DENYING)


ASKS = st.sampled_from([LONGEST, CSR, replace(LONGEST, reason="incident")])
