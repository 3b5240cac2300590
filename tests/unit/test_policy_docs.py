"""The policies in docs/policy.md, read from the page."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from clustercert.model import Caller, Domain, Group, IssueRequest, Origin
from clustercert.model.errors import Forbidden
from clustercert.pki.keys import new_key
from clustercert.policy.decision import Policy
from clustercert.policy.examples import run_examples
from clustercert.policy.rule_settings import PolicySettings
from support.samples import ISSUED_AT, NOW, PROJECT_ID, caller, cluster

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
NAMED = dict(re.findall(r"<!-- policy: ([\w-]+) -->\n```toml\n(.*?)```", PAGE, re.DOTALL))
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
CSR = new_key("ec-p256").public_key()
DOMAIN = Domain("d" * 32, "Default")


def policy(name: str) -> Policy:
    return PolicySettings.model_validate(tomllib.loads(NAMED[name])["policy"]).policy()


def member(*groups: str, role: str = "member") -> Caller:
    return replace(
        caller(role), groups=tuple(Group(f"{n:032x}", each, DOMAIN) for n, each in enumerate(groups))
    )


def outcome(
    name: str, who: Caller, labels: dict[str, str] | None = None, ask: IssueRequest | None = None
) -> str:
    """The groups and hours that a policy gives, or its refusal."""
    where = replace(cluster(), labels=labels or {})
    try:
        granted = policy(name).decide(who, where, ask or IssueRequest(duration=-1), NOW)
    except Forbidden as refused:
        return refused.message
    hours = (granted.not_after - ISSUED_AT).total_seconds() / 3600
    return f"{' '.join(granted.groups)} {hours:g}h"


def test_the_page_begins_with_five_policies() -> None:
    assert list(NAMED) == ["one-team", "many-teams", "by-label", "ci-jobs", "break-glass"]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_policy_on_the_page_is_valid(block: str) -> None:
    said = tomllib.loads(block)["policy"]
    loaded = PolicySettings.model_validate(said)
    failed = [each for each in run_examples(loaded.policy(), loaded.examples) if not each.passed]
    assert failed == []


@pytest.mark.parametrize("name", NAMED)
def test_each_of_the_five_policies_has_examples(name: str) -> None:
    assert tomllib.loads(NAMED[name])["policy"]["examples"]


def test_one_team() -> None:
    assert outcome("one-team", member(role="admin")) == "clustercert:admins 8h"
    assert outcome("one-team", member()) == "clustercert:editors 24h"
    assert "Roles with access: admin, member" in outcome("one-team", member(role="reader"))


def test_many_teams() -> None:
    assert outcome("many-teams", member("team-blue", "team-red", "x")) == "team:team-blue team:team-red 24h"
    assert outcome("many-teams", member("auditors", "team-red")) == "team:team-red clustercert:viewers 8h"
    assert "matches this request. Ask the operator" in outcome("many-teams", member("x"))


def test_rights_by_label() -> None:
    developer = member("developers")
    assert outcome("by-label", developer, {"env": "staging"}) == "clustercert:editors 24h"
    assert outcome("by-label", developer, {"env": "production"}) == "clustercert:viewers 8h"
    assert "matches this request. Ask the operator" in outcome("by-label", developer)


def test_ci_jobs() -> None:
    by_csr = IssueRequest(duration=-1, public_key=CSR)
    job = member(role="deployer")
    job = replace(job, user=replace(job.user, name="ci-web", domain=DOMAIN), method="access_key")
    job = replace(job, origin=Origin("10.20.3.4", "f" * 32))
    assert outcome("ci-jobs", job, ask=by_csr) == f"ci:{PROJECT_ID} 1h"
    assert "the request has a csr" in outcome("ci-jobs", job)
    elsewhere = replace(job, origin=Origin("192.0.2.1", "f" * 32))
    assert "matches this request. Ask the operator" in outcome("ci-jobs", elsewhere, ask=by_csr)
    assert outcome("ci-jobs", member()) == "clustercert:viewers 8h"
    assert "auth_method is token" in outcome("ci-jobs", replace(member(), method="access_key"))


def test_break_glass() -> None:
    urgent = IssueRequest(duration=-1, reason="incident 4711")
    on_call = member("on-call")
    assert outcome("break-glass", on_call, ask=urgent) == "clustercert:viewers clustercert:admins 1h"
    assert outcome("break-glass", on_call) == "clustercert:viewers 8h"
    assert outcome("break-glass", member(), ask=urgent) == "clustercert:viewers 8h"
    frozen = outcome("break-glass", on_call, {"frozen": "true"}, ask=urgent)
    assert frozen == "This cluster is frozen. Ask the platform team."
    alone = member("on-call", role="reader")
    assert outcome("break-glass", alone).endswith("break-glass: the request has a reason.")
