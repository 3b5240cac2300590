"""Console blocks of pages about the use of the service, run as they stand there."""

import base64
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support.command_line import Operator, new_operator
from support.operated_cluster import SERVICE_CA, tls_service, tls_settings
from support.page_steps import (
    PASSWORD,
    ROOT,
    Reader,
    Step,
    block,
    new_reader,
    run,
    section,
    steps_below,
)
from support.samples import server_ca_pem

pytestmark = [pytest.mark.slow, pytest.mark.full]
URL = "https://clustercert.example.com"
CLUSTERS = {
    "prod": ("--external-url", "https://203.0.113.5:6443", "--internal-url", "https://10.0.0.5:6443"),
    "staging": ("--internal-url", "https://10.0.0.6:6443", "--label", "env=test"),
}
POLICY = """
[policy]
role_groups = false

[[policy.rules]]
name = "frozen"
when.cluster_labels = { frozen = ["true"] }
deny = "This cluster is frozen. Ask the platform team."

[[policy.rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["clustercert:viewers"]
grant.max_lifetime = "8h"

[[policy.rules]]
name = "break-glass"
when.groups = ["on-call"]
grant.groups = ["clustercert:admins"]
grant.max_lifetime = "1h"
grant.reason_required = true
"""


@dataclass(frozen=True)
class PageSite:
    """A running service with the clusters prod and staging in the project eu-de."""

    operator: Operator
    url: str

    def add_user(self, name: str, role: str | None, *groups: str) -> None:
        """A user with a role in the project, or in the service if it is `operator`."""
        password = self.operator.folder / "password"
        password.write_text(PASSWORD)
        self.operator.output("user", "create", name, "--password-file", password)
        if role is not None:
            scope = ("--service",) if role == "operator" else ("--project", "eu-de")
            self.operator.create_role(role)
            self.operator.output("role", "assign", role, "--user", name, *scope)
        for group in groups:
            if f"Default/{group}" not in self.operator.output("group", "list", "-o", "name").split():
                self.operator.output("group", "create", group)
            self.operator.output("group", "add-user", group, name)

    def reader(self, home: Path, words: Mapping[str, str] | None = None) -> Reader:
        """Somebody without a login, whose home is `home`."""
        known = {f"{URL}:8443": self.url, URL: self.url, **(words or {}), "/home/alice": str(home)}
        following = new_reader(home)
        following.words |= known
        return following

    def log_in(self, reader: Reader, user: str) -> None:
        """Log in before the page begins."""
        (reader.home / "password").write_text(PASSWORD)
        ca = self.operator.folder / SERVICE_CA
        login = f"clustercert login {self.url} --user {user} --password-file password --ca-file {ca}"
        run(Step(login, ()), reader.home, reader.env)


@contextmanager
def page_site(folder: Path, settings: str = "") -> Iterator[PageSite]:
    folder.mkdir(exist_ok=True)
    operator = new_operator(folder)
    operator.configure(settings)
    (folder / "api-ca.pem").write_bytes(server_ca_pem())
    operator.output("project", "create", "eu-de")
    for name, options in CLUSTERS.items():
        ca = ("--server-ca", folder / "api-ca.pem")
        operator.output("cluster", "add", name, "--project", "eu-de", *options, *ca)
    with tls_service(operator) as url:
        yield PageSite(operator, url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    with page_site(tmp_path_factory.mktemp("site"), POLICY) as site:
        site.add_user("alice", "member", "on-call")
        site.add_user("carol", "admin", "on-call")
        site.add_user("dan", "member")
        site.add_user("olga", "operator")
        yield site


def issue(user: Reader, cluster: str) -> None:
    """Let a user get a certificate."""
    get = f"clustercert kubeconfig get {cluster} --local-key --out issued --force"
    run(Step(get, ()), user.home, user.env)


def cluster_kubeconfig() -> str:
    """A kubeconfig of a cluster's administrator."""
    ca = base64.b64encode(server_ca_pem()).decode()
    server = {"server": "https://10.0.0.7:6443", "certificate-authority-data": ca}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "one", "cluster": server}],
            "users": [{"name": "admin", "user": {}}],
            "contexts": [{"name": "admin", "context": {"cluster": "one", "user": "admin"}}],
            "current-context": "admin",
        }
    )


def test_explanations(site: PageSite, tmp_path: Path) -> None:
    page = "docs/policy-changes.md"
    alice, olga = (site.reader(tmp_path / name) for name in ("alice", "olga"))
    site.log_in(alice, "alice")
    site.log_in(olga, "olga")
    own, of_others = steps_below(page, "Explain")
    alice.follow_steps(own)
    olga.follow_steps(of_others)


def test_live_certificates_under_another_policy(tmp_path: Path) -> None:
    every = '[[policy.rules]]\nname = "all"\nwhen.roles = ["member"]\ngrant.groups = ["clustercert:viewers"'
    [replay] = steps_below("docs/policy-changes.md", "Live certificates")
    with page_site(
        tmp_path / "service", f'{every}, "clustercert:admins"]\ngrant.max_lifetime = "8h"\n'
    ) as site:
        for name in ("ci-web", "alice"):
            site.add_user(name, "member")
            user = site.reader(tmp_path / name)
            site.log_in(user, name)
            issue(user, "prod")
        site.add_user("olga", "operator")
        olga = site.reader(tmp_path / "olga")
        site.log_in(olga, "olga")
        members = every.replace('"all"', '"members"') + ']\ngrant.max_lifetime = "1h"\n'
        freeze = (
            '[[policy.rules]]\nname = "freeze"\nwhen.users = ["ci-*"]\ndeny = "This cluster is frozen."\n'
        )
        site.operator.configure(freeze + members)
        olga.env["CLUSTERCERT_CONFIG"] = str(site.operator.config)
        # The comparison reads sealed events only.
        site.operator.output("audit", "checkpoint")
        olga.follow_steps(replay)


def test_an_example_that_fails(operator: Operator, tmp_path: Path) -> None:
    page = section("docs/policy.md", "Examples")
    settings = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    assert "now = 2026-01-04T12:00:00Z" in settings
    assert "(`now = 2026-01-05T12:00:00Z`)" in page
    operator.configure(settings.replace("2026-01-04", "2026-01-05"))
    [tested] = steps_below("docs/policy.md", "Examples")
    following = new_reader(tmp_path / "home", CLUSTERCERT_CONFIG=str(operator.config))
    following.columns = 140
    following.follow_steps(tested)


def test_a_fingerprint(operator: Operator, tmp_path: Path) -> None:
    [shown] = steps_below("docs/operations.md", "The certificate of the service")
    variables = {"CLUSTERCERT_CONFIG": str(operator.config), **tls_settings(operator.folder)}
    following = new_reader(tmp_path / "home", **variables)
    following.words["/etc/clustercert/tls.pem"] = variables["CLUSTERCERT_SERVER__TLS_CERTIFICATE"]
    following.follow_steps(shown)


def test_documents_are_applied_once(operator: Operator, tmp_path: Path) -> None:
    [applied] = steps_below("docs/administration.md", "As code")
    following = new_reader(tmp_path / "home", CLUSTERCERT_CONFIG=str(operator.config))
    following.words["clustercert apply"] = "clustercert apply --local"
    (following.home / "apply.yaml").write_text((ROOT / "docs" / "examples" / "apply.yaml").read_text())
    (following.home / "prod.kubeconfig").write_text(cluster_kubeconfig())
    following.follow_steps(applied)


USED = """
[policy]
username = "{user.name}"

[[policy.rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["clustercert:editors"]
grant.max_lifetime = "8h"
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    with page_site(tmp_path_factory.mktemp("used"), USED) as site:
        site.add_user("olga", "operator")
        yield site


def test_kubectl_every_day(used: PageSite, tmp_path: Path) -> None:
    used.add_user("alice", "member")
    alice = used.reader(tmp_path / "alice", {"/home/alice/.local/bin": str(Path(sys.executable).parent)})
    used.log_in(alice, "alice")
    page = "docs/kubeconfig.md"
    for heading in (
        "kubectl every day",
        "Which clusters, and which one now",
        "After a revocation",
    ):
        [found] = steps_below(page, heading)
        alice.follow_steps(found)
    [(listing, revoking)] = steps_below(page, "Your certificates")
    shown = alice.follow_step(listing)
    [alice.words["2f9c1a7e5b3d8046"]] = re.findall(r"^[0-9a-f]{16}\b", shown, re.MULTILINE)
    alice.follow_step(revoking)


def test_a_lost_laptop(used: PageSite, tmp_path: Path) -> None:
    used.add_user("anna", "member")
    used.operator.output("project", "create", "eu-nl")
    used.operator.output("role", "assign", "member", "--user", "anna", "--project", "eu-nl")
    used.operator.output("access-key", "create", "--user", "anna", "--description", "pipeline")
    laptop, other = (used.reader(tmp_path / name) for name in ("laptop", "other"))
    for each in (laptop, other):
        each.words |= {"alice": "anna"}
    [first] = steps_below("docs/login.md", "Log in")
    laptop.follow_steps(first)
    for _ in range(3):
        issue(laptop, "prod")
    used.log_in(other, "anna")
    [lost] = steps_below("docs/login.md", "A lost laptop")
    other.follow_steps(lost)


def test_administration(used: PageSite, tmp_path: Path) -> None:
    page = "docs/administration.md"
    olga = used.reader(tmp_path / "olga", {"kubectl config view --raw --minify": "cat admin.conf"})
    used.log_in(olga, "olga")
    [(*before, deletion)] = steps_below(page, "Commands")
    olga.follow_steps(before)
    bob = used.reader(tmp_path / "bob")
    used.log_in(bob, "bob")
    for _ in range(2):
        issue(bob, "prod")
    olga.follow_step(deletion)

    used.operator.output("group", "create", "team-blue")
    used.operator.output("role", "assign", "member", "--group", "team-blue", "--project", "eu-de")
    used.add_user("chris", None, "team-blue")
    chris = used.reader(tmp_path / "chris")
    used.log_in(chris, "chris")
    for _ in range(2):
        issue(chris, "prod")
    olga.words["alice"] = "chris"
    [removal] = steps_below(page, "Remove a member or a role")
    olga.follow_steps(removal)

    used.add_user("ci", "member")
    (olga.home / "admin.conf").write_text(cluster_kubeconfig())
    [clusters] = steps_below(page, "Clusters, access keys and webhook tokens")
    olga.follow_steps(clusters)


def test_an_access_request(tmp_path: Path) -> None:
    page = "docs/access-requests.md"
    [(offers, create)], [(listing, approve)] = (
        steps_below(page, each) for each in ("Ask", "Approve or deny")
    )
    with page_site(tmp_path / "service", block(page, "policy: access-requests")) as site:
        site.add_user("anna", "member")
        site.add_user("bert", "member", "leads")
        anna, bert = (site.reader(tmp_path / name) for name in ("anna", "bert"))
        site.log_in(anna, "anna")
        site.log_in(bert, "bert")
        anna.follow_step(offers)
        bert.words["8500d16f"] = anna.follow_step(create).split()[2][:8]
        bert.follow_step(listing)
        bert.follow_step(approve)
