"""Every policy that the documentation prints, read from the pages: it is valid, and decides what the page says."""

import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clustercert.kubernetes.setup.rbac import DEFAULT_BINDINGS
from clustercert.model import Caller, Domain, FederatedDomain, Group, IssueRequest, Origin
from clustercert.model.errors import Forbidden
from clustercert.model.identity import ProjectName
from clustercert.pki.keys import new_key
from clustercert.policy.decision import Policy, policy_digest
from clustercert.policy.examples import run_examples
from clustercert.policy.rule_settings import PolicySettings
from support.samples import ISSUED_AT, NOW, PROJECT_ID, USER_ID, caller, cluster

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
NAMED = dict(re.findall(r"<!-- policy: ([\w-]+) -->\n```toml\n(.*?)```", PAGE, re.DOTALL))


def printed() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the page and the table `policy` of each block of settings that has one."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(
            r"^ *```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            said = tomllib.loads(textwrap.dedent(block))
            policy = said.get(
                "policy", {k: said[k] for k in said.keys() & {"rules", "role_groups", "examples"}}
            )
            if policy:
                yield page.name, policy


PRINTED = [(f"{page} {number}", policy) for number, (page, policy) in enumerate(printed())]
CSR = new_key("ec-p256").public_key()
DOMAIN = Domain("d" * 32, "Default")
LONGEST = IssueRequest(duration=-1)


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


def test_the_page_has_policies_to_copy() -> None:
    copied = ["production", "many-teams", "by-label", "ci-jobs", "break-glass", "strict"]
    assert list(NAMED) == copied


@pytest.mark.parametrize("said", [policy for _, policy in PRINTED], ids=[name for name, _ in PRINTED])
def test_every_printed_policy_is_valid_and_decides_its_examples(said: dict[str, Any]) -> None:
    loaded = PolicySettings.model_validate(said)
    failed = [each for each in run_examples(loaded.policy(), loaded.examples) if not each.passed]
    assert failed == []


def decided(said: Mapping[str, Any], who: Caller) -> str:
    """The user name, groups and hours that a policy gives, or its refusal."""
    try:
        where = replace(cluster(), project_name=ProjectName("eu-de", DOMAIN, is_unique=True))
        granted = PolicySettings.model_validate(said).policy().decide(who, where, LONGEST, NOW)
    except Forbidden as refused:
        return refused.message
    hours = (granted.not_after - ISSUED_AT).total_seconds() / 3600
    return f"{granted.username}: {' '.join(granted.groups)} {hours:g}h"


def of_issuer(url: str, name: str, *groups: str, method: str = "oidc") -> Caller:
    domain = FederatedDomain("f" * 32, name)
    who = member()
    found = tuple(Group(f"{n:032x}", f"{name}/{each}", domain) for n, each in enumerate(groups))
    user = replace(who.user, name=f"{name}/{who.user.name}", domain=domain)
    return replace(who, user=user, groups=found, issuer=url, method=method)


GITHUB = of_issuer("https://token.actions.githubusercontent.com", "github")
GITLAB = of_issuer("https://gitlab.example.com", "gitlab")
PODS = of_issuer("https://kubernetes.default.svc.cluster.local", "cluster-a")
SSO = of_issuer("https://sso.example.com/realms/acme", "sso", "team-red")
KEYSTONE = of_issuer("https://keystone.example.com/v3", "keystone", "acme/team-blue", method="keystone")
NOBODY = "matches this request"


@pytest.mark.parametrize(
    ("page", "number", "who", "expected"),
    [
        ("access-requests.md", 0, "none", f"{USER_ID}: clustercert:viewers 8h"),
        # tests/cli/test_policy_explain.py decides about teams of two domains.
        ("administration.md", 0, "team-blue", NOBODY),
        ("install.md", 0, "team-blue", "alice@default: team:team-blue 8h"),
        ("install.md", 0, "none", NOBODY),
        ("quick-starts.md", 0, GITLAB, f"{USER_ID}: ci:deploy 1h"),
        ("quick-starts.md", 0, "team-blue", NOBODY),
        ("recipes.md", 0, GITLAB, f"{USER_ID}: ci:deploy 1h"),
        ("recipes.md", 0, GITHUB, NOBODY),
        ("configuration.md", 0, "none", "Roles with access: admin."),
        ("identity.md", 0, SSO, f"{USER_ID}: team:sso/team-red 8h"),
        ("identity.md", 0, "team-red", NOBODY),
        ("identity.md", 1, GITHUB, f"{USER_ID}: ci:deploy 1h"),
        ("identity.md", 1, GITLAB, NOBODY),
        ("identity.md", 2, PODS, NOBODY),
        ("keystone.md", 0, KEYSTONE, f"{USER_ID}: team:blue 8h"),
        ("keystone.md", 0, "team-blue", NOBODY),
    ],
)
def test_a_printed_policy_decides_what_its_page_says(
    page: str, number: int, who: Caller | str, expected: str
) -> None:
    said = [policy for name, policy in printed() if name == page][number]
    asked = who if isinstance(who, Caller) else member(who)
    assert expected in decided(said, asked)


def test_the_printed_message_about_offers_is_that_of_the_printed_policy() -> None:
    [said] = [policy for name, policy in printed() if name == "access-requests.md"]
    offers = {"rules": [rule for rule in said["rules"] if "offer" in rule]}
    with pytest.raises(Forbidden) as refused:
        PolicySettings.model_validate(offers).policy().decide(
            member(), replace(cluster(), name="prod"), LONGEST, NOW
        )
    page = (ROOT / "docs" / "policy-changes.md").read_text(encoding="utf-8")
    assert f"```\n{refused.value.message}\n```" in page


def test_every_policy_outside_of_the_page_about_policies_is_decided() -> None:
    pages = Counter(page for page, _ in printed())
    assert pages == {
        "access-requests.md": 1,
        "administration.md": 1,
        "install.md": 1,
        "quick-starts.md": 1,
        "recipes.md": 1,
        "configuration.md": 1,
        "identity.md": 3,
        "keystone.md": 1,
        "policy.md": 10,
    }


def test_the_printed_digest_is_that_of_the_printed_policy() -> None:
    block = re.findall(r"```toml\n(.*?)```", PAGE.split("\n## Examples\n")[1], re.DOTALL)[0]
    digest = policy_digest(PolicySettings.model_validate(tomllib.loads(block)["policy"]).policy())
    assert f"SHA-256 {digest}." in PAGE


def test_for_production() -> None:
    said = tomllib.loads(NAMED["production"])["policy"]
    assert decided(said, member("team-blue")) == "alice@default: team:team-blue 8h"
    assert NOBODY in decided(said, member(role="admin"))
    installed = next(policy for name, policy in printed() if name == "install.md")
    assert {key: said[key] for key in said.keys() - {"examples"}} == installed


def test_only_with_a_csr() -> None:
    by_csr = IssueRequest(duration=-1, public_key=CSR)
    assert outcome("strict", member(), ask=by_csr) == "clustercert:editors 8h"
    assert outcome("strict", member()) == "Send a CSR: the service makes no keys here."


@pytest.mark.parametrize("name", [name for name in NAMED if name != "strict"])
def test_each_policy_for_daily_use_has_examples(name: str) -> None:
    assert tomllib.loads(NAMED[name])["policy"]["examples"]


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


def test_the_default_rights_of_roles_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    table = page.split("<!-- roles -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \| `([^`]*)` \|$", table, re.MULTILINE)
    expected = [
        (rule.tested_role, group, DEFAULT_BINDINGS[group])
        for rule in PolicySettings(role_groups=True).all_rules
        for group in rule.granted_groups
    ]
    assert rows == expected
