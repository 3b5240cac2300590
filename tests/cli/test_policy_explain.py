"""`clustercert policy explain`."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from support.command_line import Operator, new_operator
from support.page_steps import ROOT
from support.samples import server_ca_pem
from support.stores import execute

POLICY = """
[[rules]]
name = "frozen"
when.cluster_labels = { frozen = ["true"] }
deny = "This cluster is frozen. Ask the platform team."

[[rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["clustercert:viewers"]
grant.max_lifetime = "8h"

[[rules]]
name = "break-glass"
when.groups = ["on-call"]
grant.groups = ["clustercert:admins"]
grant.max_lifetime = "1h"
grant.reason_required = true

[[rules]]
name = "the-rule-of-the-runners-in-the-data-center"
when.sources = ["10.20.0.0/16", "10.21.0.0/16", "10.22.0.0/16", "10.23.0.0/16", "2001:db8::/32"]
grant.groups = ["ci"]
grant.csr_required = true

[[rules]]
name = "edit-on-request"
when.roles = ["member"]
offer.groups = ["clustercert:editors"]
offer.max_lifetime = "4h"
offer.approvals = [{ role = "admin" }, { groups = ["leads"] }]

[[rules]]
name = "emergency"
when.groups = ["on-call"]
offer.groups = ["owners"]
offer.max_lifetime = "1h"
offer.approvals = [{ role = "admin" }]
offer.before_approval = true
"""


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """An operator with the users alice, carol (both on call) and dave, who has no role, and two clusters."""
    folder = tmp_path_factory.mktemp("explain")
    operator = new_operator(folder)
    (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
    (folder / "ca.pem").write_bytes(server_ca_pem())
    operator.output("project", "create", "eu-de")
    operator.output("group", "create", "on-call")
    for name, role in (("alice", "member"), ("carol", "admin"), ("dave", None)):
        operator.output("user", "create", name, "--no-password")
        if role is not None:
            operator.create_role(role)
            operator.output("role", "assign", role, "--user", name, "--project", "eu-de")
            operator.output("group", "add-user", "on-call", name)
    for name, label in (("prod", "env=production"), ("old", "frozen=true")):
        operator.output(
            *("cluster", "add", name, "--project", "eu-de", "--label", label),
            *("--internal-url", "https://192.168.1.7:5443", "--server-ca", folder / "ca.pem"),
        )
    operator.configure(f"[policy]\nfile = '{folder / 'policy.toml'}'\n")
    return operator


def explained(operator: Operator, user: str, cluster: str, *options: str) -> tuple[int, list[str]]:
    done = operator.run("policy", "explain", cluster, "--user", user, *options)
    assert done.err == ""
    return done.code, done.out.splitlines()


def test_an_allowed_request_ends_with_0(operator: Operator) -> None:
    code, lines = explained(operator, "alice", "prod", "--expires-in", "30m", "--reason", "incident 4711")
    assert (code, lines[0]) == (0, "Allowed: alice gets a certificate for the cluster Default/eu-de/prod.")
    text = "\n".join(lines)
    assert re.search(r"\n  user name   [0-9a-f]{32}\n", text)
    assert "\n  groups      clustercert:viewers, clustercert:admins,\n" in text
    assert "clustercert:credential:<number>" in text
    assert re.search(r"\n  not after   20\d\d-.*Z \(30 minutes\)\n", text)
    assert "\n  key type    ec-p256\n" in text
    assert "\n  limit       1 hour, by rule break-glass\n" in text
    assert "\n  yes   members                   gives clustercert:viewers\n" in text
    assert "Nearest rule" not in text


def test_a_refused_request_ends_with_1(operator: Operator) -> None:
    code, lines = explained(operator, "carol", "prod")
    assert (code, lines[0]) == (
        1,
        "Refused (403): No rule of the policy matches this request. The nearest rules",
    )
    text = "\n".join(lines)
    assert "Nearest rule: break-glass. It would allow the request with:\n" in text
    assert "  - the request has a reason (found: no reason)\n" in text
    assert "  no    members                   needs role is member (found: admin)\n" in text
    assert "  no    frozen                    would deny if cluster label frozen is true" in text
    code, lines = explained(operator, "alice", "old")
    assert (code, lines[0]) == (1, "Refused (403): This cluster is frozen. Ask the platform team.")
    assert "  DENY  frozen                    denies, because cluster label frozen is true" in lines
    assert "  -     members                   not reached; would match" in lines
    code, lines = explained(operator, "dave", "prod")
    assert (code, lines) == (
        1,
        ["Refused (404): dave has no role in the project of the cluster", "Default/eu-de/prod."],
    )


def test_offers_are_shown_as_what_the_user_can_ask_for(operator: Operator) -> None:
    code, lines = explained(operator, "alice", "prod")
    assert code == 0
    assert lines[-8:] == [
        "  ask   edit-on-request           offers clustercert:editors for at most 4",
        "                                  hours; approvers: role is admin, group is",
        "                                  leads",
        "  ask   emergency                 offers owners for at most 1 hour, usable",
        "                                  before the approval; approvers: role is admin",
        "",
        "You can request clustercert:editors, owners: run `clustercert request create",
        "prod --group clustercert:editors --for 1h --reason REASON`.",
    ]
    code, lines = explained(operator, "carol", "prod")
    assert code == 1
    assert "`clustercert request create prod --group owners --for 1h --reason REASON`." in " ".join(lines)
    assert "  no    edit-on-request           needs role is member (found: admin)" in lines


def test_lines_have_at_most_80_columns(operator: Operator) -> None:
    for user, options in (
        ("alice", ()),
        ("carol", ("--source", "10.20.1.1")),
        ("carol", ("--duration", "3")),
    ):
        _, lines = explained(operator, user, "prod", *options)
        assert max(map(len, lines)) <= 80, lines


def test_another_policy_can_be_asked(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        '[[rules]]\nname = "admin"\nwhen.roles = ["admin"]\ngrant.groups = ["ours"]\ngrant.max_lifetime = "2h"\n',
        encoding="utf-8",
    )
    code, lines = explained(operator, "carol", "prod", "--policy", str(file))
    assert (code, lines[-1]) == (0, "  yes   admin  gives ours")
    assert "  limit       2 hours, by rule admin" in lines


def test_json_has_what_the_api_answers(operator: Operator) -> None:
    done = operator.run(
        *("policy", "explain", "prod", "--user", "carol", "--key-type", "ed25519"),
        *("--source", "10.20.1.1", "--auth-method", "access_key", "--output", "json"),
    )
    assert done.code == 0
    body = json.loads(done.out)
    assert (body["allowed"], body["complete"], body["source"]) == (True, True, "10.20.1.1")
    assert (body["would_sign"]["key_type"], body["would_sign"]["organizations"][0]) == ("ed25519", "ci")
    done = operator.run("policy", "explain", "prod", "--user", "carol", "--output", "json")
    assert done.code == 1
    assert json.loads(done.out)["nearest"]["rule"] == "break-glass"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--duration", "0"], "--duration: Must be whole days"),
        (["--expires-in", "8"], "--expires-in: Write it like"),
        (["--expires-in", "8h", "--duration", "1"], "--expires-in, --duration: Send only one of them"),
        (["--source", "here"], "--source: Must be an IP address"),
        (["--auth-method", "password"], "--auth-method: Must be"),
        (["--reason", "a\u202eb"], "--reason: Must have at most"),
    ],
)
def test_wrong_options_are_named(operator: Operator, options: list[str], named: str) -> None:
    asked = ["policy", "explain", "prod", "--user", "carol"]
    assert named in " ".join(operator.usage_error(*asked, *options).split())


def test_an_unknown_user_or_cluster_is_named(operator: Operator) -> None:
    assert "no user nobody" in operator.error("policy", "explain", "prod", "--user", "nobody")
    assert "no cluster none" in operator.error("policy", "explain", "none", "--user", "carol")


def test_a_user_of_an_issuer_is_explained_once_they_have_sent_a_request(operator: Operator) -> None:
    asked = ("policy", "explain", "prod", "--user", "sso/anna")
    assert operator.error(*asked).startswith("There is no user sso/anna. ")
    database = operator.folder / "data" / "clustercert.db"
    execute(
        database,
        "INSERT INTO federated_user (id, name, domain, issuer) VALUES (?, 'sso/anna', 'sso', 'https://sso')",
        "ab" * 16,
    )
    try:
        assert "has made no recorded request for this cluster" in operator.error(*asked)
    finally:
        execute(database, "DELETE FROM federated_user")


def policy_of(page: str) -> str:
    """The only policy that a page prints."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"^ *```toml\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    printed = textwrap.dedent(block)
    return printed[re.search(r"^\[\[?policy", printed, re.MULTILINE).start() :]  # type: ignore[union-attr] # it has one


def test_the_policies_of_the_pages_keep_two_customers_apart(tmp_path: Path) -> None:
    operator = new_operator(tmp_path)
    (tmp_path / "ca.pem").write_bytes(server_ca_pem())
    operator.output("domain", "create", "acme")
    operator.create_role("member")
    for domain in ("Default", "acme"):
        operator.output("project", "create", "eu-de", "--domain", domain)
        operator.output(
            *("cluster", "add", "prod", "--project", "eu-de", "--domain", domain),
            *("--internal-url", "https://192.168.1.7:5443", "--server-ca", tmp_path / "ca.pem"),
        )
        for team in ("team-blue", "team-red"):
            operator.output("group", "create", team, "--domain", domain)
    # alice is in a team of each customer, bob in acme's team-blue alone. Both have a role in both projects.
    for user, domain, groups in (
        ("alice", "Default", ("Default/team-blue", "acme/team-red")),
        ("bob", "acme", ("acme/team-blue",)),
    ):
        operator.output("user", "create", user, "--domain", domain, "--no-password")
        for project in ("Default/eu-de", "acme/eu-de"):
            operator.output("role", "assign", "member", "--user", f"{domain}/{user}", "--project", project)
        for group in groups:
            operator.output("group", "add-user", group, f"{domain}/{user}")

    def groups_of(user: str, cluster: str) -> list[str]:
        done = operator.run("policy", "explain", cluster, "--user", user, "--output", "json")
        return [str(group) for rule in json.loads(done.out)["rules"] for group in rule["groups"]]

    operator.configure(policy_of("install.md"))
    assert groups_of("Default/alice", "Default/eu-de/prod") == ["team:team-blue"]
    for user, cluster in (
        ("Default/alice", "acme/eu-de/prod"),
        ("acme/bob", "Default/eu-de/prod"),
        ("acme/bob", "acme/eu-de/prod"),
    ):
        assert groups_of(user, cluster) == []
    operator.configure(policy_of("install.md") + policy_of("administration.md"))
    assert groups_of("Default/alice", "Default/eu-de/prod") == ["team:team-blue"]
    assert groups_of("Default/alice", "acme/eu-de/prod") == ["team:team-red"]
    assert groups_of("acme/bob", "Default/eu-de/prod") == []
    assert groups_of("acme/bob", "acme/eu-de/prod") == ["team:team-blue"]
    assert "Groups of several domains" not in operator.run("db", "check").err
