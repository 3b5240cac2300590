"""`cluster`, `access-key` and `kubernetes token` with logins, over HTTPS."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificate_authority import kubeconfig_document
from support.command_line import CommandResult
from support.remote_site import COLUMNS, RemoteSite, remote_site
from support.remote_user import RemoteUser
from support.samples import server_ca_pem
from support.wait import eventually

pytestmark = pytest.mark.slow
URL = "https://10.0.0.7:6443"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteSite]:
    with remote_site(tmp_path_factory) as site:
        yield site


@pytest.fixture
def server_ca(tmp_path: Path) -> Path:
    path = tmp_path / "server-ca.pem"
    path.write_bytes(server_ca_pem())
    return path


def with_input(
    monkeypatch: pytest.MonkeyPatch, text: bytes, user: RemoteUser, *command: str
) -> CommandResult:
    """Run a command that reads standard input."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        return user.run(*command)


def test_operators_manage_clusters(place: RemoteSite, monkeypatch: pytest.MonkeyPatch) -> None:
    carol, kubeconfig = place.carol, kubeconfig_document(URL, server_ca_pem(), b"")
    add = ("cluster", "add", "shop", "--project", "eu-de", "--from-kubeconfig", "-", "--label", "env=test")
    done = with_input(monkeypatch, kubeconfig, carol, *add)
    assert done.code == 0, done.err
    assert "clustercert kubernetes setup" in done.err
    shown = carol.output_json("cluster", "show", "shop")
    assert (shown["internal_url"], shown["labels"], shown["project"]) == (URL, {"env": "test"}, "eu-de")
    assert len(shown["client_ca_sha256"]) == 64
    again = with_input(monkeypatch, kubeconfig, carol, *add)
    assert again.code == 1
    assert "There is already a cluster shop." in again.err
    changed = carol.output_json(
        *("cluster", "update", "shop", "--exempt", "ops", "--rename", "store", "--label", "team=web")
    )
    assert (changed["name"], changed["exemptions"]) == ("store", ["system:nodes", "ops"])
    assert changed["labels"] == {"env": "test", "team": "web"}
    listed = set(carol.output("cluster", "list", "-o", "name").split())
    assert {"Default/eu-de/prod", "Default/eu-nl/staging", "Default/eu-de/store"} <= listed
    assert "has 0 live certificates" in carol.failure(2, "cluster", "remove", "store")
    assert "Removed the cluster store" in carol.run("cluster", "remove", "store", "--yes").err
    assert "Did you mean staging?" in carol.failure(5, "cluster", "show", "stagin")


def test_admins_manage_the_clusters_of_their_projects(place: RemoteSite, server_ca: Path) -> None:
    bob = place.bob
    address = ("--internal-url", URL, "--server-ca", server_ca)
    refused = bob.failure(4, "cluster", "add", "dev", "--project", "eu-nl", *address, "--label", "env=dev")
    assert "labels: only operators may set or change this." in refused
    added = bob.output_json("cluster", "add", "dev", "--project", "eu-nl", *address)
    seen = {"enforcement": "none", "webhook_called_at": None, "use_after_revocation": "not seen"}
    assert bob.output_json("cluster", "show", added["id"]) == added | seen
    assert bob.output_json("cluster", "update", "dev", "--version", "v1.33")["version"] == "v1.33"
    made = bob.output_json("kubernetes", "token", "create", "dev")
    assert made["token"].startswith("ccw_")
    [listed] = bob.output_json("kubernetes", "token", "list", "dev")
    assert listed["id"] == made["id"]
    assert "--yes" in bob.failure(2, "kubernetes", "token", "remove", "dev", made["id"])
    assert "no such webhook token" in bob.failure(
        5, "kubernetes", "token", "remove", "dev", "0" * 32, "--yes"
    )
    assert bob.run("kubernetes", "token", "remove", "dev", made["id"], "--yes").code == 0
    assert bob.output_json("kubernetes", "token", "list", "dev") == []
    assert bob.run("cluster", "remove", "dev", "--project", "eu-nl", "--yes").code == 0


def test_developers_list_their_clusters_and_change_none(place: RemoteSite, server_ca: Path) -> None:
    alice = place.alice
    rows = alice.output_json("cluster", "list")
    assert {(row["project"], row["name"]) for row in rows} >= {("eu-de", "prod"), ("eu-nl", "staging")}
    in_one = [row["name"] for row in alice.output_json("cluster", "list", "--project", "eu-nl")]
    assert ("staging" in in_one, "prod" in in_one) == (True, False)
    address = ("--internal-url", URL, "--server-ca", server_ca)
    for command in (
        ("show", "prod"),
        ("update", "prod", "--version", "v1.33"),
        ("remove", "prod", "--yes"),
        ("add", "mine", "--project", "eu-de", *address),
    ):
        assert "Only admins of the project and operators" in alice.failure(4, "cluster", *command)
    assert alice.failure(4, "kubernetes", "token", "list", "prod")
    assert alice.failure(4, "access-key", "create", "--user", "alice")


def test_without_a_login_no_database_is_asked_for(tmp_path: Path) -> None:
    for command in (
        ("cluster", "list"),
        ("access-key", "list", "--user", "a"),
        ("kubernetes", "token", "list", "c"),
    ):
        said = RemoteUser(tmp_path).failure(3, *command)
        assert "clustercert login" in said
        assert "database" not in said


def test_projects_of_one_name_in_two_domains_are_told_apart(place: RemoteSite, server_ca: Path) -> None:
    carol = place.carol
    place.operator.output("domain", "create", "other")
    other = place.operator.output_json("project", "create", "eu-de", "--domain", "other")["id"]
    add = ("cluster", "add", "theirs", "--project", "eu-de", "--internal-url", URL, "--server-ca", server_ca)
    said = carol.failure(2, *add)
    both = "Several domains have a project named eu-de. Write Default/eu-de or other/eu-de."
    assert said.startswith(both)
    assert place.operator.usage_error("project", "show", "eu-de") == f"Error: {both}\n"
    ambiguous = place.operator.error("kubernetes", "verify", "prod", "--project", "eu-de")
    assert f"other/eu-de ({other})" in ambiguous
    theirs = carol.output_json(*add, "--domain", "other")
    assert carol.output_json("cluster", "show", "theirs")["project_id"] == theirs["project_id"]
    carol.output("cluster", "add", "prod", *add[3:], "--domain", "other")
    ambiguous = carol.failure(2, "cluster", "show", "prod")
    assert "named prod. Write Default/eu-de/prod or other/eu-de/prod." in ambiguous
    for form in ("other/eu-de/prod", f"{theirs['project_id']}/prod"):
        assert carol.output_json("cluster", "show", form)["project_id"] == theirs["project_id"]
    twice = carol.failure(2, "cluster", "show", "other/eu-de/prod", "--project", "eu-de")
    assert twice == "other/eu-de/prod names the project of the cluster already. Leave out --project eu-de."
    for project in (theirs["project_id"], "other/eu-de"):
        shown = carol.output_json("cluster", "show", "prod", "--project", project)
        assert shown["project_id"] == theirs["project_id"]
    there = ("--project", "other/eu-de")
    assert carol.output_json("certificate", "list", *there) == []
    assert "There is no cluster staging in the project other/eu-de." in carol.failure(
        5, "certificate", "access", "--cluster", "staging", *there
    )
    for name in ("theirs", "prod"):
        assert carol.run("cluster", "remove", name, "--project", theirs["project_id"], "--yes").code == 0
    place.operator.output("project", "delete", "eu-de", "--domain", "other", "--yes")
    place.operator.output("domain", "delete", "other", "--yes")


def test_operators_manage_access_keys(place: RemoteSite) -> None:
    carol = place.carol
    made = carol.output_json("access-key", "create", "--user", "alice", "--description", "ci")
    key = made["access_key"]
    assert made["secret_key"]
    [listed] = carol.output_json("access-key", "list", "--user", "alice")
    assert (listed["access_key"], listed["enabled"], listed["description"]) == (key, True, "ci")
    assert "secret_key" not in listed
    carol.output("access-key", "disable", key)
    assert carol.output_json("access-key", "list", "--user", "alice")[0]["enabled"] is False
    carol.output("access-key", "enable", key)
    assert f"Delete the access key {key} (ci)" in carol.failure(2, "access-key", "delete", key)
    carol.output("access-key", "delete", key, "--yes")
    assert carol.output_json("access-key", "list", "--user", "alice") == []
    assert carol.failure(5, "access-key", "delete", key)


def test_tables_fit_into_eighty_columns(place: RemoteSite) -> None:
    for command in (
        ("cluster", "list"),
        ("cluster", "show", "prod"),
        ("kubernetes", "token", "list", "prod"),
    ):
        code, lines = place.terminal(place.bob, *command)
        assert code == 0, lines
        # The terminal wraps notes, which have no gaps between columns.
        assert [line for line in lines if len(line) > COLUMNS and "   " in line] == []
    _, lines = place.terminal(place.bob, "cluster", "list")
    assert any(line.startswith("prod ") for line in lines)


def test_everybody_asks_which_certificate_they_would_get(place: RemoteSite) -> None:
    done = place.alice.run("explain", "prod", "--expires-in", "1h")
    lines = done.out.splitlines()
    assert (done.code, lines[0]) == (
        0,
        "Allowed: alice gets a certificate for the cluster Default/eu-de/prod.",
    )
    assert any(line.startswith("  groups      clustercert:editors, clustercert:") for line in lines)
    assert any(line.endswith("Z (1 hour)") for line in lines)
    assert lines[lines.index("Rules that you may see:") + 1 :] == [
        "  no    admin   needs role is admin (found: member)",
        "  yes   member  gives clustercert:editors",
        "  no    reader  needs role is reader (found: member)",
    ]
    assert place.alice.output_json("explain", "prod")["would_sign"]["common_name"]
    assert place.alice.output_json("explain", "prod", "--domain", "Default")["would_sign"]["common_name"]
    assert "There is no cluster prod" in place.alice.failure(5, "explain", "prod", "--domain", "acme")
    refused = place.carol.run("explain", "prod")
    assert (refused.code, refused.out) == (
        1,
        "Refused (404): carol has no role in the project of the cluster\nDefault/eu-de/prod.\n",
    )
    assert "Did you mean prod?" in place.alice.failure(5, "explain", "prd")
    assert "`clustercert cluster list` lists the clusters." in place.alice.failure(5, "explain", "nosuch")
    wrong = place.alice.run("explain", "prod", "--expires-in", "8")
    assert (wrong.code, "--expires-in: Write it like 30m, 8h or 30d" in wrong.err) == (2, True)


def test_operators_and_admins_ask_about_others(place: RemoteSite, tmp_path: Path) -> None:
    asked = ("policy", "explain", "prod", "--user", "alice")
    done = place.carol.run(*asked, "--source", "192.0.2.7")
    assert (done.code, done.out.splitlines()[0]) == (
        0,
        "Allowed: alice gets a certificate for the cluster Default/eu-de/prod.",
    )
    assert "\nRules:\n" in done.out
    place.issue(place.alice)
    assert place.bob.output_json(*asked)["complete"] is False
    assert place.alice.failure(4, "policy", "explain", "prod", "--user", "bob")
    elsewhere = place.carol.run(*asked, "--policy", tmp_path / "policy.toml")
    assert (elsewhere.code, "--policy needs --local" in elsewhere.err) == (2, True)


def test_operators_let_the_service_explain_a_token(place: RemoteSite) -> None:
    command = ("--verbose", "identity", "explain", "--token-file", "-")
    done = place.carol.run(*command, stdin="a.b.c\n")
    assert (done.code, "[[identity.issuers]]" in done.out) == (1, True)
    assert "would be refused by the check iss" in done.err
    assert "a.b.c" not in done.out + done.err
    refused = place.alice.run(*command, stdin="a.b.c\n")
    assert (refused.code, "Only operators" in refused.err) == (4, True)


def test_operators_replay_recorded_decisions_on_their_own_machine(place: RemoteSite, tmp_path: Path) -> None:
    place.issue(place.alice)
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rules]]\nname = "freeze"\ndeny = "Frozen."\n', encoding="utf-8")
    command = ("policy", "replay", "--policy", policy, "--cluster", "prod")

    def denied(user: RemoteUser, *more: str) -> Any:
        return user.output_json(*command, *more)["changes"]["allow_to_deny"]

    issued = len(place.own(place.alice, "--cluster", "prod"))
    # The service lists an event after a second or two, also those of other tests.
    found = eventually(lambda: (found := denied(place.carol))["decisions"] == issued and found)
    assert {each["name"] for each in found["users"]} == {"Default/alice"}
    assert [each["name"] for each in found["recorded_rules"]] == ["member"]
    assert denied(place.bob, "--project", "eu-de")["decisions"] == found["decisions"]
    assert denied(place.carol, "--project", "eu-nl")["decisions"] == 0
    assert "Add --project PROJECT." in place.bob.failure(4, *command)
    assert "admins" in place.alice.failure(4, *command, "--project", "eu-de")
    assert "Did you mean prod?" in place.carol.failure(
        5, "policy", "replay", "--policy", policy, "--cluster", "prd"
    )
    assert place.carol.failure(2, "policy", "replay").startswith("Give --policy FILE")
