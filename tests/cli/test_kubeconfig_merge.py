"""`clustercert kubeconfig merge`, `unmerge` and `list` against a running service."""

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clustercert.pki.certificates import certificate_der
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from support.command_line import Operator
from support.demo_process import interrupted
from support.exec_plugin import COMMAND, User, add_cluster, status_of
from support.operated_cluster import SERVICE_CA
from support.stores import execute, rows
from support.wait import line_with

SAMPLES = Path(__file__).parents[1] / "support" / "kubeconfigs"
EXTERNAL = ("--external-url", "https://203.0.113.5:6443")


@dataclass(frozen=True)
class Desk:
    """A user with two clusters, of which the second one has a public address.

    Attributes:
        earlier: the ids of the certificates that were issued before the test.
    """

    user: User
    first: str
    second: str
    ids: dict[str, str]
    earlier: frozenset[object] = frozenset()

    def at(self, user: User) -> "Desk":
        """The clusters of another user, or of this user on another machine."""
        return replace(self, user=user, earlier=frozenset(key for key, _, _ in self._certificates()))

    @property
    def config(self) -> Path:
        return self.user.home / ".kube" / "config"

    def read(self) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return document

    def merge(self, *arguments: str, **variables: str) -> str:
        environment = self.user.environment | variables
        done = self.user.run("kubeconfig", "merge", *arguments, env=environment)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return done.stderr

    def error(self, *arguments: str) -> str:
        done = self.user.run("kubeconfig", *arguments)
        assert done.returncode in {1, 2, 5}, done
        assert done.stdout == ""
        return done.stderr

    def key_origins(self, name: str) -> list[object]:
        """Where the keys of the certificates come from that the test got for a cluster."""
        return [
            origin
            for key, cluster_id, origin in self._certificates()
            if key not in self.earlier and cluster_id == self.ids[name]
        ]

    def _certificates(self) -> Sequence[tuple[object, ...]]:
        database = self.user.operator.folder / "data" / "clustercert.db"
        return rows(database, "SELECT id, cluster_id, key_origin FROM certificate")


@pytest.fixture(scope="module")
def shared(made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A user who is logged in. Only `desk` uses the home directory."""
    operator, url = made
    user = User.create(operator, url, tmp_path_factory.mktemp("shared") / "home", "merger")
    first, second, ca = f"{user.name}-a", f"{user.name}-b", operator.folder / SERVICE_CA
    ids = {
        first: add_cluster(operator, first, ca, "--label", f"note={'x' * 60}"),
        second: add_cluster(operator, second, ca, *EXTERNAL, "--label", "env=test"),
    }
    user.log_in()
    yield Desk(user, first, second, ids)
    for cluster_id in ids.values():
        operator.output("cluster", "remove", cluster_id, "--yes")


@pytest.fixture
def desk(shared: Desk, tmp_path: Path) -> Desk:
    """The user on a new machine, with the same login."""
    home = tmp_path / "home"
    shutil.copytree(shared.user.home, home)
    return shared.at(replace(shared.user, home=home))


@pytest.fixture
def own_desk(shared: Desk, tmp_path: Path) -> Desk:
    """A new user of the same clusters, whose roles and login a test can change."""
    name = f"user-{tmp_path.name[-40:].strip('-').lower()}"
    user = User.create(shared.user.operator, shared.user.url, tmp_path / "home", name)
    user.log_in()
    return shared.at(user)


def by_name(document: dict[str, Any], field: str, noun: str) -> dict[str, Any]:
    return {entry["name"]: entry[noun] for entry in document[field]}


def test_two_clusters_get_their_own_names_and_the_exec_plugin(desk: Desk) -> None:
    said = desk.merge(desk.first, desk.ids[desk.second])

    document = desk.read()
    names = [desk.first, desk.second]
    assert stat.S_IMODE(desk.config.stat().st_mode) == 0o600
    for field in ("clusters", "users", "contexts"):
        assert [entry["name"] for entry in document[field]] == names
    clusters = by_name(document, "clusters", "cluster")
    assert [cluster["server"] for cluster in clusters.values()] == [
        "https://10.0.0.5:6443",
        "https://203.0.113.5:6443",
    ]
    assert all("certificate-authority-data" in cluster for cluster in clusters.values())
    assert "insecure-skip-tls-verify" not in desk.config.read_text()
    assert document["current-context"] == names[0]
    assert f"The current context is {names[0]}.\n" in said
    assert all(name in said for name in names)
    assert desk.key_origins(desk.first) == [], "only kubectl needs a certificate"
    plugin = by_name(document, "users", "user")[names[0]]["exec"]
    assert Path(plugin["command"]).is_absolute()
    done = desk.user.run(*plugin["args"][plugin["args"].index("credential") :])
    status_of(done.stdout)
    assert desk.key_origins(desk.first) == ["csr"]


def test_a_merge_of_the_current_context_advises_no_switch(desk: Desk) -> None:
    for names in ((desk.first,), (desk.first,), (desk.second,)):
        code, screen = desk.user.in_terminal("kubeconfig", "merge", *names, columns=200)
        assert code == 0, screen
        assert ("kubeconfig use" in screen) == (names == (desk.second,)), screen


def test_a_cluster_that_has_a_context_gets_no_second_one(desk: Desk) -> None:
    desk.merge(desk.first, "--context-name", "mine")
    before = desk.config.read_bytes()
    full = f"Default/eu-de/{desk.first}"
    said = desk.merge(full)
    assert said == f"mine: already the context of {full} at https://10.0.0.5:6443, in {desk.config}\n"
    refused = desk.error("merge", desk.first, "--context-name", "{cluster}")
    assert f"The cluster {full} has the context mine in {desk.config} already." in refused
    assert "`clustercert kubeconfig unmerge mine`" in refused
    assert desk.config.read_bytes() == before
    # With several clusters, this one keeps its name.
    assert "It keeps its name." in desk.merge("--all", "--context-name", "x-{cluster}")
    assert [each["name"] for each in desk.read()["contexts"]] == ["mine", f"x-{desk.second}"]
    # A context that the user renamed keeps its cluster and user.
    desk.config.write_text(
        desk.config.read_text().replace("- name: mine\n  context", "- name: ours\n  context")
    )
    desk.merge(desk.first, "--expires-in", "1h")
    for field, name in (("contexts", "ours"), ("clusters", "mine"), ("users", "mine")):
        assert [each["name"] for each in desk.read()[field]] == [name, f"x-{desk.second}"]


def test_a_name_that_another_tool_has_is_qualified(desk: Desk) -> None:
    desk.config.parent.mkdir()
    desk.config.write_text((SAMPLES / "kind.yaml").read_text().replace("kind-kind", desk.first.upper()))
    desk.merge("--all")
    names = [each["name"] for each in desk.read()["contexts"]]
    assert names == [desk.first.upper(), f"Default/eu-de/{desk.first}", desk.second]


def test_the_contexts_of_a_second_service_have_the_name_of_its_profile(desk: Desk) -> None:
    """Here the second profile is at the same service, with the same clusters."""
    desk.merge(desk.first)
    desk.user.log_in("--profile", "work")
    desk.merge("--all", "--profile", "work")
    names = [each["name"] for each in desk.read()["contexts"]]
    assert names == [desk.first, f"work/{desk.first}", desk.second]


def test_labels_select_clusters_and_the_new_contexts_are_printed(desk: Desk) -> None:
    desk.config.parent.mkdir()
    desk.config.write_text("current-context: other\n")
    done = desk.user.run("kubeconfig", "merge", "--label", "env=test", "-o", "json")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert {**row, "project_id": "", "domain": ""} == {
        "current": None,
        "context": desk.second,
        "cluster": desk.second,
        "project": "eu-de",
        "domain": "",
        "profile": "default",
        "login": f"Default/{desk.user.name}",
        "needs_login": None,
        "credential": "exec",
        "expires": None,
        "access_request": None,
        "server": "https://203.0.113.5:6443",
        "cluster_id": desk.ids[desk.second],
        "project_id": "",
        "file": str(desk.config),
    }
    assert desk.read()["current-context"] == "other"
    [found] = json.loads(desk.user.output("clusters", "--label", "env=test", "-o", "json"))
    assert (found["name"], found["groups"]) == (desk.second, ["clustercert:admins"])
    assert "with env=prod in the project Default/eu-de" in desk.error("merge", "--label", "env=prod")
    assert "--label" in desk.error("merge", desk.first, "--label", "env=test")


def test_use_switches_to_the_context_that_a_part_of_the_name_matches(desk: Desk) -> None:
    assert "wrote no context prod" in desk.error("use", "prod")
    desk.config.parent.mkdir()
    desk.config.write_text((SAMPLES / "kind.yaml").read_text())
    desk.merge("--all", "--context-name", "x-{cluster}")
    before = desk.read()
    for name, context in (
        (f"x-{desk.first}", f"x-{desk.first}"),
        (desk.second, f"x-{desk.second}"),
        (desk.first[-4:].upper(), f"x-{desk.first}"),
        (desk.ids[desk.second], f"x-{desk.second}"),
    ):
        done = desk.user.run("kubeconfig", "use", name)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(
            f"Switched to the context {context}: the cluster Default/eu-de/{context[2:]} at https://"
        )
        assert desk.read() == {**before, "current-context": context}

    refused = desk.error("use", "x-")
    assert f"Several contexts match x-: x-{desk.first}, x-{desk.second}." in refused
    assert "Did you mean" in desk.error("use", f"{desk.first}x")
    # Contexts of other programs are not offered.
    assert "wrote no context kind" in desk.error("use", "kind")


def test_list_and_use_say_which_contexts_need_the_login_of_another_user(desk: Desk) -> None:
    operator, other = desk.user.operator, f"{desk.user.name}-2"
    operator.output("user", "create", other, "--password-file", desk.user.home / "password")
    operator.output("role", "assign", "admin", "--user", other, "--project", "eu-de")
    desk.merge(desk.first)
    desk.merge(desk.second, "--embed")
    assert "NEEDS-LOGIN" not in desk.user.output("kubeconfig", "list")
    desk.user.output("login", "--user", other, "--password-file", "password")

    listed = json.loads(desk.user.output("kubeconfig", "list", "-o", "json"))
    who = f"Default/{desk.user.name}"
    # An embedded certificate works without a login.
    assert {row["cluster"]: row["needs_login"] for row in listed} == {desk.first: who, desk.second: None}
    assert "NEEDS-LOGIN" in desk.user.output("kubeconfig", "list").splitlines()[0]
    used = desk.user.run("kubeconfig", "use", desk.first)
    assert used.returncode == 0, used.stderr
    assert f", as {who}\nDefault/{other} is logged in at {desk.user.url} (profile default)." in used.stderr
    assert f"The context needs the login of {who}: run `clustercert login" in used.stderr
    assert "needs the login" not in desk.user.run("kubeconfig", "use", desk.second).stderr
    operator.output("user", "delete", other, "--yes")


def test_80_columns_show_what_you_get_and_a_choice_of_contexts(desk: Desk) -> None:
    code, screen = desk.user.in_terminal("clusters")
    assert code == 0, screen
    assert "Columns that do not fit: labels." in screen
    assert re.search(rf"{desk.first} +clustercert:admins +1825 days\r\n", screen), screen

    desk.merge("--all")
    code, screen = desk.user.in_terminal("kubeconfig", "use", desk.user.name, typed="7\nx\n2\n")
    assert code == 0, screen
    assert f"  2  {desk.second}: the cluster" in screen
    assert "'x' is not in the list. Type a number from 1 to 2." in screen
    assert desk.read()["current-context"] == desk.second


def test_a_second_merge_changes_nothing_but_keeps_additions(desk: Desk) -> None:
    desk.merge(desk.first)
    before = desk.config.read_bytes()
    desk.merge(desk.first)
    assert desk.config.read_bytes() == before
    assert not desk.config.with_name("config.clustercert-backup").exists()
    text = desk.config.read_text().replace("    user: ", "    namespace: shop\n    user: ")
    desk.config.write_text(text)

    desk.merge(desk.first, "--expires-in", "1h")

    (context,) = by_name(desk.read(), "contexts", "context").values()
    assert context["namespace"] == "shop"
    assert "1h" in desk.read()["users"][0]["user"]["exec"]["args"]
    assert desk.config.with_name("config.clustercert-backup").read_text() == text


@pytest.mark.parametrize("sample", sorted(SAMPLES.iterdir()), ids=lambda path: path.stem)
def test_entries_of_other_tools_stay(desk: Desk, sample: Path) -> None:
    desk.config.parent.mkdir()
    desk.config.write_text(sample.read_text())
    original = desk.read()

    desk.merge("--all", "--context-name", "{project}/{cluster}@{profile}")
    assert by_name(desk.read(), "contexts", "context").keys() >= {f"eu-de/{desk.first}@default"}
    done = desk.user.run("kubeconfig", "unmerge", "--all")

    assert done.returncode == 0, done.stderr
    left = desk.read()
    assert {key: value for key, value in left.items() if value} == {
        key: value for key, value in original.items() if value
    }
    assert list(desk.user.cache.glob("default,*,*[0-9a-f]")) == []


def test_certificates_can_be_embedded(desk: Desk) -> None:
    desk.merge(desk.first, "--embed", "--use")
    document = desk.read()
    assert document["current-context"] == desk.first
    assert document["users"][0]["user"].keys() == {"client-certificate-data", "client-key-data", "extensions"}
    assert desk.key_origins(desk.first) == ["csr"]
    (row,) = json.loads(desk.user.output("kubeconfig", "list", "-o", "json"))
    assert (row["credential"], row["current"], row["cluster"]) == ("embedded", "*", desk.first)
    assert row["expires"] > "2026"

    done = desk.user.run("kubeconfig", "unmerge", desk.first)
    assert "no current context" in done.stderr
    assert "config.clustercert-backup still has private keys or tokens" in done.stderr
    assert not desk.read()["current-context"]


@pytest.fixture
def third(shared: Desk) -> Iterator[tuple[str, str]]:
    """The name and the id of a cluster that one test may change."""
    operator, name = shared.user.operator, f"{shared.user.name}-c"
    cluster_id = add_cluster(operator, name, operator.folder / SERVICE_CA)
    yield name, cluster_id
    operator.output("cluster", "remove", cluster_id, "--yes")


def test_list_tells_whose_ca_is_being_replaced(own_desk: Desk, third: tuple[str, str]) -> None:
    def states() -> list[tuple[str, str | None]]:
        listed = json.loads(own_desk.user.output("kubeconfig", "list", "--check-ca", "-o", "json"))
        return sorted((row["cluster"], row["client_ca"]) for row in listed)

    own_desk.merge(third[0], "--embed")
    own_desk.merge(own_desk.second)
    # The plugin renews the certificate of the second context.
    assert states() == [(own_desk.second, None), (third[0], "current")]
    other = new_client_ca("other", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    execute(
        own_desk.user.operator.folder / "data" / "clustercert.db",
        "UPDATE client_ca SET certificate_der = ? WHERE cluster_id = ?",
        certificate_der(other),
        third[1],
    )
    assert states() == [(own_desk.second, None), (third[0], "being replaced")]
    own_desk.user.output("logout")
    listed = own_desk.user.run("kubeconfig", "list", "--check-ca")
    assert (listed.returncode, "Could not check the contexts of the profile default" in listed.stderr) == (
        0,
        True,
    )


def test_the_private_or_unverified_address_is_a_choice(desk: Desk) -> None:
    desk.merge(desk.second, "--internal")
    assert desk.read()["clusters"][0]["cluster"]["server"] == "https://10.0.0.5:6443"
    said = desk.merge(desk.second, "--insecure")
    assert by_name(desk.read(), "clusters", "cluster")[desk.second]["insecure-skip-tls-verify"] is True
    assert "Warning: kubectl will not check the certificate of https://203.0.113.5:6443" in said


def test_a_name_of_another_entry_is_refused(desk: Desk) -> None:
    desk.config.parent.mkdir()
    desk.config.write_text((SAMPLES / "kind.yaml").read_text())
    before = desk.config.read_bytes()
    assert "--context-name" in desk.error("merge", desk.first, "--context-name", "kind-kind")
    assert "Two clusters would get the name x" in desk.error("merge", "--all", "--context-name", "x")
    assert "not a template" in desk.error("merge", desk.first, "--context-name", "{nope}")
    assert "no cluster nope" in desk.error("merge", "nope")
    assert desk.config.read_bytes() == before
    assert desk.key_origins(desk.first) == []
    for wrong in (("merge",), ("merge", "--all", "a"), ("merge", "a", "b", "--use"), ("unmerge",)):
        assert desk.user.run("kubeconfig", *wrong).returncode == 2
    assert "wrote no such context" in desk.error("unmerge", "kind-kind")


def test_kubeconfig_files_are_chosen_like_kubectl(desk: Desk) -> None:
    home = desk.user.home
    (home / "b").write_text((SAMPLES / "k3s.yaml").read_text())
    desk.merge(desk.first, KUBECONFIG=f"{home}/a:{home}/b:{home}/c")
    assert desk.first in (home / "b").read_text()
    (home / "a").write_text("")

    # The entry stays where it is, although new ones go into the first file.
    desk.merge("--all", "--expires-in", "1h", KUBECONFIG=f"{home}/a:{home}/b:{home}/c")

    assert "1h" in (home / "b").read_text()
    assert desk.first not in (home / "a").read_text()
    assert desk.second in (home / "a").read_text()
    assert not (home / "c").exists()


def test_the_backup_is_the_file_from_before_the_command(desk: Desk) -> None:
    desk.config.parent.mkdir()
    text = (SAMPLES / "kind.yaml").read_text()
    desk.config.write_text(text)
    desk.merge(desk.first, "--use")
    assert desk.read()["current-context"] == desk.first
    assert desk.config.with_name("config.clustercert-backup").read_text() == text


def test_the_project_decides_between_clusters_of_one_name(own_desk: Desk) -> None:
    operator = own_desk.user.operator
    project = f"{own_desk.user.name[-20:]}-other"
    operator.output("project", "create", project)
    operator.output("role", "assign", "admin", "--user", own_desk.user.name, "--project", project)
    other = str(
        operator.output_json(
            *("cluster", "add", own_desk.first, "--project", project),
            *("--internal-url", "https://10.0.0.7:6443", "--server-ca", operator.folder / SERVICE_CA),
        )["id"]
    )
    try:
        own_desk.user.output("login", "--password-file", "password")
        assert f" or Default/{project}/{own_desk.first}." in own_desk.error("merge", own_desk.first)
        own_desk.merge(own_desk.first, "--project", project)
        assert own_desk.read()["clusters"][0]["cluster"]["server"] == "https://10.0.0.7:6443"
        own_desk.merge("--all", "--project", "eu-de")
        servers = [entry["cluster"]["server"] for entry in own_desk.read()["clusters"]]
        assert "https://203.0.113.5:6443" in servers
        assert servers.count("https://10.0.0.7:6443") == 1
    finally:
        operator.output("cluster", "remove", other, "--yes")
        operator.output("project", "delete", project, "--yes")


@pytest.fixture
def namesake(own_desk: Desk) -> Iterator[tuple[str, str]]:
    """A second project eu-de, in another domain, with a second cluster of the same name: domain and cluster id."""
    operator, domain = own_desk.user.operator, f"{own_desk.user.name[-20:]}-acme"
    operator.output("domain", "create", domain)
    project = str(operator.output_json("project", "create", "eu-de", "--domain", domain)["id"])
    operator.output("role", "assign", "admin", "--user", own_desk.user.name, "--project", project)
    address = ("--internal-url", "https://10.0.0.7:6443", "--server-ca", operator.folder / SERVICE_CA)
    cluster = str(
        operator.output_json("cluster", "add", own_desk.first, "--project", project, *address)["id"]
    )
    own_desk.user.output("login", "--password-file", "password")
    yield domain, cluster
    operator.output("cluster", "remove", cluster, "--yes")
    operator.output("project", "delete", project, "--yes")
    operator.output("domain", "delete", domain, "--yes")


def test_two_projects_and_clusters_of_one_name_are_told_apart(
    own_desk: Desk, namesake: tuple[str, str], tmp_path: Path
) -> None:
    (domain, cluster), first = namesake, own_desk.ids[own_desk.first]
    listed = own_desk.user.output("clusters", "-o", "wide").splitlines()
    assert listed[0].split()[:5] == ["NAME", "PROJECT", "DOMAIN", "GROUPS", "LIFETIME"]
    assert [own_desk.first, "eu-de", domain, cluster] in [
        [*line.split()[:3], line.split()[-1]] for line in listed
    ]
    projects = json.loads(own_desk.user.output("status", "-o", "json"))["projects"]
    assert {(each["domain"], each["name"]) for each in projects} == {("Default", "eu-de"), (domain, "eu-de")}
    [found] = json.loads(own_desk.user.output("clusters", "--domain", domain, "-o", "json"))
    assert found["id"] == cluster

    own_desk.user.output("login", "--password-file", "password", "--project", f"{domain}/eu-de")
    own_desk.user.output("kubeconfig", "get", own_desk.first, "--out", tmp_path / "chosen")
    chosen = yaml.safe_load((tmp_path / "chosen").read_text())
    assert "https://10.0.0.7:6443" in [each["cluster"]["server"] for each in chosen["clusters"]]
    own_desk.user.output("login", "--password-file", "password")

    for where in ("Default", domain):
        name = f"{where}/eu-de/{own_desk.first}"
        explained = own_desk.user.output("explain", name)
        assert explained.replace("\n", " ").startswith(
            f"Allowed: {own_desk.user.name} gets a certificate for the cluster {name}. "
        )
    refused = own_desk.error("merge", own_desk.first)
    both = sorted(f"{each}/eu-de" for each in ("Default", domain))
    clusters = " or ".join(f"{each}/{own_desk.first}" for each in both)
    assert f"have a cluster named {own_desk.first}. Write {clusters}." in refused
    assert f"Write {' or '.join(both)}." in own_desk.error("merge", f"eu-de/{own_desk.first}")
    own_desk.merge("--all")
    servers = {name: each["server"] for name, each in by_name(own_desk.read(), "clusters", "cluster").items()}
    assert servers == {
        f"{domain}/eu-de/{own_desk.first}": "https://10.0.0.7:6443",
        f"Default/eu-de/{own_desk.first}": "https://10.0.0.5:6443",
        own_desk.second: "https://203.0.113.5:6443",
    }
    assert "DOMAIN" in own_desk.user.output("kubeconfig", "list").splitlines()[0]
    # The name of a project chooses a context, too.
    assert f"{domain}/eu-de/{own_desk.first}" in own_desk.user.run("kubeconfig", "use", domain).stderr
    # A short name means each of the two clusters, a full one means one of them.
    own_desk.user.output("kubeconfig", "unmerge", f"{domain}/eu-de/{own_desk.first}")
    assert len(own_desk.read()["contexts"]) == 2

    names = set()
    for number, where in enumerate(("Default", domain)):
        options = ("--project", "eu-de", "--domain", where, "--out", tmp_path / str(number))
        own_desk.user.output("kubeconfig", "get", own_desk.first, *options)
        names.add(yaml.safe_load((tmp_path / str(number)).read_text())["current-context"])
    assert names == {f"default-{own_desk.first}-{key[:8]}" for key in (first, cluster)}


def test_operators_tell_clusters_of_one_name_apart(
    own_desk: Desk, namesake: tuple[str, str], tmp_path: Path
) -> None:
    (domain, cluster), operator = namesake, own_desk.user.operator
    assert "DOMAIN" in operator.output("cluster", "list").splitlines()[0]
    assert operator.output_json("cluster", "show", own_desk.first, "--domain", domain)["id"] == cluster
    for command in (("cluster", "show"), ("cluster", "ca", "show"), ("kubernetes", "verify")):
        refused = operator.error(*command, own_desk.first)
        assert f" {domain}/eu-de/{own_desk.first}" in refused
    assert "BEGIN CERTIFICATE" in operator.output(
        "cluster", "ca", "show", own_desk.first, "--project", "eu-de", "--domain", domain, "--bundle"
    )
    full = f"{domain}/eu-de/{own_desk.first}"
    assert f"remove the cluster {full} ({cluster})" in operator.run("cluster", "remove", full).err
    assert f"remove the cluster {own_desk.second} (" in operator.run("cluster", "remove", own_desk.second).err
    own_desk.user.output("kubeconfig", "get", full, "--out", tmp_path / "out")
    [issued] = operator.output_json("certificate", "list", "--cluster", full)
    assert f" for the cluster {full} (" in operator.run("certificate", "revoke", issued["fingerprint"]).err
    assert f"Delete the project {domain}/eu-de (" in operator.run("project", "delete", f"{domain}/eu-de").err
    done = operator.run(
        *("kubernetes", "setup", own_desk.first, "--domain", domain, "--out", tmp_path / "cp"),
        *("--webhook-url", "https://10.0.0.9:8444", "--webhook-ca", operator.folder / SERVICE_CA),
    )
    assert done.code == 0, done.err
    assert f"then run `clustercert kubernetes verify {cluster}`." in done.err
    assert f"clustercert kubernetes verify {cluster}" in (tmp_path / "cp" / "README.md").read_text()


def test_a_symbolic_link_is_followed(desk: Desk) -> None:
    target = desk.user.home / "dotfiles"
    target.write_text((SAMPLES / "aws.yaml").read_text())
    desk.config.parent.mkdir()
    desk.config.symlink_to(target)
    desk.merge(desk.first)
    assert desk.config.is_symlink()
    assert desk.first in target.read_text()


@pytest.mark.full
def test_the_lock_of_kubectl_is_waited_for(desk: Desk) -> None:
    desk.config.parent.mkdir()
    lock = desk.config.with_name("config.lock")
    lock.touch()
    released = threading.Timer(2, lock.unlink)
    released.start()
    desk.merge(desk.first)
    released.join()
    assert not lock.exists()
    lock.touch()
    assert f"The lock {lock} exists" in desk.error("merge", desk.second)
    assert desk.second not in desk.config.read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]\n", "a node that contains the alias"),
        ("a: b: c", "not valid YAML"),
        ("clusters: {}", "not a list"),
        ("#" * 5_000_000, "larger than"),
    ],
)
def test_a_file_that_is_no_kubeconfig_stays_as_it_is(desk: Desk, text: str, reason: str) -> None:
    desk.config.parent.mkdir()
    desk.config.write_text(text)
    said = desk.error("merge", desk.first)
    assert reason in said
    assert len(said.splitlines()) == 1
    assert desk.config.read_text() == text
    assert desk.key_origins(desk.first) == []


def test_a_full_disk_leaves_the_file_as_it_is(desk: Desk) -> None:
    desk.config.parent.mkdir()
    text = (SAMPLES / "gcloud.yaml").read_text()
    desk.config.write_text(text)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(text) + 10, len(text) + 10))

    done = desk.user.run("kubeconfig", "merge", desk.first, env=desk.user.uncovered, preexec=no_room)

    assert (done.returncode, done.stdout) == (1, "")
    assert "can't be written: File too large. It was not changed." in done.stderr
    assert desk.config.read_text() == text
    assert sorted(path.name for path in desk.config.parent.iterdir()) == [
        "config",
        "config.clustercert-backup",
    ]


def test_without_a_login_nothing_is_written(desk: Desk) -> None:
    done = desk.user.run("kubeconfig", "merge", desk.first, "--profile", "nope")
    assert done.returncode != 0
    assert "clustercert login" in done.stderr
    assert not desk.config.exists()


def test_clusters_without_rights_are_skipped_with_all(own_desk: Desk) -> None:
    own_desk.user.lose_role("admin", own_desk.ids[own_desk.first])
    said = own_desk.error("merge", "--all")
    assert f"Skipped Default/eu-de/{own_desk.first}: " in said
    assert "`clustercert explain" in said
    assert "You get no certificate for any of the clusters." in said
    assert not own_desk.config.exists()


def test_certificate_files_are_renewed_and_removed(own_desk: Desk) -> None:
    own_desk.merge(own_desk.first, "--files")
    user = own_desk.read()["users"][0]["user"]
    path = Path(user["client-certificate"])
    assert user["client-key"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    first = path.read_bytes()
    x509.load_pem_x509_certificate(first)
    load_pem_private_key(first[first.index(b"-----BEGIN PRIVATE KEY") :], password=None)

    assert own_desk.user.run("refresh").stderr == ""
    assert path.read_bytes() == first, "it is not due"
    assert own_desk.user.run("refresh", "--all").stderr == f"Renewed {path}\n"
    assert path.read_bytes() != first
    path.write_bytes(b"")
    assert own_desk.user.run("refresh").returncode == 0
    assert path.read_bytes() != b""

    logout = own_desk.user.run("logout")
    assert logout.returncode == 0
    assert f"Files with private keys or tokens remain in {path.parent}" in logout.stderr
    failed = own_desk.user.run("refresh", "--all")
    assert failed.returncode == 3
    assert "Run `clustercert login`." in failed.stderr
    assert own_desk.user.run("kubeconfig", "unmerge", own_desk.first).returncode == 0
    assert list(path.parent.iterdir()) == []


@contextmanager
def answering(body: dict[str, object]) -> Iterator[str]:
    """The address of a server that answers each GET with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_ids_of_a_hostile_service_overwrite_no_file(desk: Desk) -> None:
    """A service whose ids are parts of a path, as names of the certificate files of --files are."""
    victim = desk.user.home / "victim.pem"
    victim.write_text("mine")
    cluster: dict[str, object] = {
        "id": "../../../../victim",
        "project_id": "x",
        "name": "prod",
        "project": "eu-de",
        "domain": "Default",
        "labels": {},
        "internal_url": "https://10.0.0.5:6443",
        "external_url": None,
        "server_ca": "",
        "requestable_groups": [],
        "longest_lifetime_seconds": 3600,
    }
    with answering({"clusters": [cluster], "next": None}) as url:
        file = desk.user.home / ".config" / "clustercert" / "profiles" / "default.json"
        login = json.loads(file.read_text()) | {"url": url, "ca_pem": None, "chosen_project": False}
        file.write_text(json.dumps(login))
        refused = desk.error("merge", "--all", "--files")
    assert f"{url} sent a response that is not in this service's format" in refused
    assert victim.read_text() == "mine"
    assert not (desk.user.home / ".local").exists()


def test_a_mark_of_somebody_else_deletes_no_file(desk: Desk) -> None:
    desk.merge(desk.first, "--files")
    data = desk.user.home / ".local" / "share" / "clustercert"
    victim = desk.user.home / "victim.pem"
    victim.write_text("mine")
    (data / "certificates" / "default,x").mkdir()
    document = desk.read()
    for entry, noun in ((document["clusters"][0], "cluster"), (document["contexts"][0], "context")):
        mark = entry[noun]["extensions"][0]["extension"]
        mark["project_id"], mark["cluster_id"] = "x", "../../../../../victim"
    desk.config.write_text(yaml.safe_dump(document))

    assert "no such context" in desk.error("unmerge", desk.first)
    assert desk.user.run("kubeconfig", "unmerge", "--all").returncode == 0
    assert victim.read_text() == "mine"


def test_a_list_reads_only_small_regular_files(desk: Desk) -> None:
    desk.merge("--all", "--files")
    os.mkfifo(desk.user.home / "pipe")
    document = desk.read()
    certificate = Path(document["users"][0]["user"]["client-certificate"]).read_bytes()
    (desk.user.home / "large").write_bytes(certificate.rjust(10**7, b"\n"))
    listed = json.loads(desk.user.output("kubeconfig", "list", "-o", "json"))
    assert [row["expires"] is None for row in listed] == [False, False], "the named files are read"

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    for files in (("/dev/zero", "pipe"), ("large", "large")):
        for user, file in zip(document["users"], files, strict=True):
            user["user"]["client-certificate"] = str(desk.user.home / file)
        desk.config.write_text(yaml.safe_dump(document))
        done = desk.user.run("kubeconfig", "list", "-o", "json", preexec=limit_memory)
        shown = [(row["context"], row["expires"]) for row in json.loads(done.stdout)]
        assert sorted(shown) == [(desk.first, None), (desk.second, None)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_backup_follows_no_link(desk: Desk) -> None:
    desk.merge(desk.first)
    mine, backup = desk.user.home / "bashrc", desk.config.with_name("config.clustercert-backup")
    mine.write_text("mine")
    backup.symlink_to(mine)
    os.chown(backup, 65534, -1, follow_symlinks=False)

    desk.merge(desk.second)

    assert mine.read_text() == "mine"
    assert not backup.is_symlink()
    assert desk.first in backup.read_text()


def test_a_file_that_expires_soon_is_renewed_while_watching(desk: Desk) -> None:
    desk.merge(desk.first, "--files", "--expires-in", "15m")
    path = Path(desk.read()["users"][0]["user"]["client-certificate"])
    # A file is due when half of the lifetime is left: empty it instead.
    path.write_bytes(b"")
    process = subprocess.Popen(
        [*COMMAND, "refresh", "--watch"], env=desk.user.uncovered, stderr=subprocess.PIPE, text=True
    )
    try:
        assert line_with(process.stderr, "Renewed") == f"Renewed {path}\n"
    finally:
        interrupted(process)
    assert process.returncode == 130


def test_refresh_lets_the_service_create_keys_if_asked(desk: Desk) -> None:
    desk.merge(desk.first, "--files", "--service-key")
    desk.user.output("refresh", "--all", "--service-key")
    desk.user.output("refresh", "--all")
    assert sorted(map(str, desk.key_origins(desk.first))) == ["csr", "generated", "generated"]


def test_the_timer_runs_refresh(desk: Desk) -> None:
    text = desk.user.output("refresh", "--print-timer", "--expires-in", "1h", "--service-key")
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=/")]
    assert command.endswith("refresh --expires-in 1h --service-key")
    assert "OnUnitActiveSec=5min" in text
    refused = desk.user.run("refresh", "--print-timer", "--expires-in", "14m")
    assert refused.returncode == 2
    assert "The timer runs every 5 minutes" in refused.stderr
    assert desk.user.run("kubeconfig", "merge", desk.first, "--files", "--embed").returncode == 2
