"""Domains, projects, users, groups, roles and access keys, as an operator looks after them."""

import json
from pathlib import Path

import pytest
import yaml

from operating import Operator
from stores import execute, rows


def events(operator: Operator) -> list[tuple[object, ...]]:
    query = "SELECT kind, actor, body FROM audit_event ORDER BY id"
    return rows(operator.folder / "data" / "clustercert.db", query)


def test_from_nothing_to_a_user_with_a_role_and_a_key(operator: Operator) -> None:
    project = operator.gets_json("project", "create", "eu-de", "--description", "Frankfurt")
    user = operator.gets_json("user", "create", "alice", "--no-password")
    operator.gets("role", "assign", "admin", "--user", "alice", "--project", "eu-de")
    key = operator.gets_json("access-key", "create", "--user", "alice", "--description", "ci")

    assert project["description"] == "Frankfurt"
    assert (user["domain"], user["enabled"]) == ("Default", True)
    assert len(user["id"]) == len(project["id"]) == 32
    assert len(key["access_key"]) == 20
    assert len(key["secret_key"]) == 40
    assert operator.gets_json("user", "show", "alice")["projects"] == ["eu-de"]
    (assignment,) = operator.gets_json("role", "list", "--project", project["id"])
    assert (assignment["role"], assignment["user_id"], assignment["project"]) == (
        "admin",
        user["id"],
        "eu-de",
    )
    (listed,) = operator.gets_json("access-key", "list", "--user", user["id"])
    assert listed == {name: value for name, value in key.items() if name != "secret_key"}


def test_what_an_operator_does_is_audited_under_the_account_of_this_machine(operator: Operator) -> None:
    user = operator.gets_json("user", "create", "alice", "--no-password")
    key = operator.gets_json("access-key", "create", "--user", "alice")

    recorded = {str(kind): (str(actor), json.loads(bytes(body))) for kind, actor, body in events(operator)}  # type: ignore[call-overload] # a BLOB
    actor, body = recorded["user.created"]
    assert actor.startswith("cli:")
    assert actor != "cli:"
    assert (body["subject"], body["source"]) == (user["id"], "local")
    assert len(body["request_id"]) == 32
    assert key["secret_key"] not in json.dumps(recorded)


def test_a_password_comes_from_a_file_and_is_shown_nowhere(operator: Operator, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse\nsecond line\n")

    done = operator.types("user", "create", "alice", "--password-file", password)

    assert done.code == 0
    assert "horse" not in done.out + done.err
    ((kept,),) = rows(operator.folder / "data" / "clustercert.db", "SELECT password_hash FROM user")
    assert str(kept).startswith("$argon2id$")
    password.write_text("battery staple")
    operator.gets("user", "set-password", "alice", "--password-file", password)
    ((changed,),) = rows(operator.folder / "data" / "clustercert.db", "SELECT password_hash FROM user")
    assert changed != kept


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 9000, b"\xff\xfe\n"])
def test_a_file_that_holds_no_password_is_refused(operator: Operator, tmp_path: Path, content: bytes) -> None:
    password = tmp_path / "password"
    password.write_bytes(content)
    assert "password" in operator.is_refused("user", "create", "alice", "--password-file", password)


def test_without_a_terminal_a_password_is_not_waited_for(operator: Operator) -> None:
    assert "--password-file FILE or --no-password" in operator.is_refused("user", "create", "alice")
    operator.gets("user", "create", "alice", "--no-password")
    assert "--password-file FILE" in operator.is_refused("user", "set-password", "alice")


def test_users_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    operator.gets("user", "create", "alice", "--no-password")

    disabled = operator.types("user", "disable", "alice")
    assert operator.gets_json("user", "show", "alice")["enabled"] is False
    operator.gets("user", "enable", "alice")
    assert operator.gets_json("user", "show", "alice")["enabled"] is True
    operator.gets("user", "delete", "alice")

    assert "are revoked" in disabled.err
    assert operator.gets_json("user", "list") == []
    assert operator.is_refused("user", "show", "alice") == "There is no user alice."


def test_a_name_that_several_domains_have_needs_the_domain(operator: Operator) -> None:
    operator.gets("domain", "create", "other")
    operator.gets("user", "create", "alice", "--no-password")
    theirs = operator.gets_json("user", "create", "alice", "--no-password", "--domain", "other")

    assert "Say which domain" in operator.is_refused("user", "show", "alice")
    assert operator.gets_json("user", "show", "alice", "--domain", "other") == theirs | {"projects": []}
    assert [user["domain"] for user in operator.gets_json("user", "list", "--domain", "other")] == ["other"]
    assert operator.gets("user", "list", "--output", "name") == "alice\nalice\n"


def test_without_a_default_domain_one_has_to_be_named(operator: Operator) -> None:
    for name in ("one", "two"):
        operator.gets("domain", "create", name)
    rename = "UPDATE domain SET name = 'three' WHERE name = 'Default'"
    execute(operator.folder / "data" / "clustercert.db", rename)
    assert operator.is_refused("project", "create", "p") == "Say which domain with --domain: one, three, two."


def test_domains_are_enabled_and_disabled(operator: Operator) -> None:
    operator.gets("domain", "disable", "Default")
    assert operator.gets_json("domain", "list")[0]["enabled"] is False
    operator.gets("domain", "enable", "Default")
    assert operator.gets_json("domain", "list")[0]["enabled"] is True


def test_projects_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    operator.gets("project", "create", "eu-de")
    operator.gets("project", "disable", "eu-de")
    assert operator.gets_json("project", "show", "eu-de")["enabled"] is False
    operator.gets("project", "enable", "eu-de")
    assert operator.gets_json("project", "list")[0]["enabled"] is True
    operator.gets("project", "delete", "eu-de")
    assert operator.gets_json("project", "list") == []


def test_a_group_gives_its_members_its_roles(operator: Operator) -> None:
    operator.gets("project", "create", "eu-de")
    operator.gets("user", "create", "alice", "--no-password")
    operator.gets("group", "create", "ops")
    operator.gets("group", "add-user", "ops", "alice")
    operator.gets("role", "assign", "reader", "--group", "ops", "--project", "eu-de")

    assert operator.gets_json("group", "show", "ops")["members"] == ["alice"]
    assert operator.gets_json("user", "show", "alice")["projects"] == ["eu-de"]
    (assignment,) = operator.gets_json("role", "list", "--group", "ops")
    assert (assignment["group"], assignment["user"]) == ("ops", None)
    operator.gets("group", "remove-user", "ops", "alice")
    assert operator.gets_json("user", "show", "alice")["projects"] == []
    operator.gets("group", "delete", "ops")
    assert operator.gets_json("group", "list") == []


def test_a_role_in_the_whole_service_is_given_and_taken(operator: Operator) -> None:
    operator.gets("user", "create", "alice", "--no-password")
    operator.gets("role", "assign", "operator", "--user", "alice", "--service")
    (assignment,) = operator.gets_json("role", "list", "--user", "alice")
    assert (assignment["service"], assignment["project"]) == (True, None)
    operator.gets("role", "unassign", "operator", "--user", "alice", "--service")
    assert operator.gets_json("role", "list") == []
    assert "not assigned" in operator.is_refused(
        "role", "unassign", "operator", "--user", "alice", "--service"
    )
    names = [role["role"] for role in operator.gets_json("role", "list", "--names")]
    assert names == ["admin", "member", "operator", "reader"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--user", "alice"],
        ["--user", "alice", "--group", "ops", "--service"],
        ["--user", "alice", "--service", "--project", "eu-de"],
        ["--service"],
    ],
)
def test_a_role_needs_one_who_and_one_where(operator: Operator, options: list[str]) -> None:
    assert "say one of" in operator.misuses("role", "assign", "admin", *options)


def test_access_keys_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    operator.gets("user", "create", "alice", "--no-password")
    key = operator.gets_json("access-key", "create", "--user", "alice")["access_key"]

    operator.gets("access-key", "disable", key)
    assert operator.gets_json("access-key", "list", "--user", "alice")[0]["enabled"] is False
    operator.gets("access-key", "enable", key)
    assert operator.gets_json("access-key", "list", "--user", "alice")[0]["enabled"] is True
    operator.gets("access-key", "delete", key)
    assert operator.gets_json("access-key", "list", "--user", "alice") == []
    assert operator.is_refused("access-key", "enable", key) == f"There is no access key {key}."


def test_a_key_whose_secret_would_be_seen_by_nobody_is_not_made(operator: Operator) -> None:
    operator.gets("user", "create", "alice", "--no-password")
    operator.misuses("access-key", "create", "--user", "alice", "--output", "name")
    assert operator.gets_json("access-key", "list", "--user", "alice") == []


@pytest.mark.parametrize("name", ["[bold red]x[/]", "$(id)", "=1+1", "ü,+\"'", "..%2f", ":warning:"])
def test_a_name_is_data_in_every_form_of_the_answer(operator: Operator, name: str) -> None:
    created = operator.gets_json("user", "create", "--no-password", name)

    assert created["name"] == name
    assert operator.gets("user", "list", "--output", "name") == f"{name}\n"
    assert [user["name"] for user in yaml.safe_load(operator.gets("user", "list", "-o", "yaml"))] == [name]
    assert name in operator.gets("user", "list").splitlines()[1]
    assert name in operator.types("user", "disable", name).err


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\u202eb", "\udcff", " "])
def test_a_name_that_would_move_the_cursor_is_refused_without_doing_so(operator: Operator, name: str) -> None:
    said = operator.is_refused("user", "create", name, "--no-password")
    assert said.isprintable()
    said = operator.is_refused("user", "show", name)
    assert said.replace("\n", "").isprintable()


def test_a_role_that_the_policy_does_not_know_is_given_and_said_to_give_nothing(operator: Operator) -> None:
    operator.gets("project", "create", "eu-de")
    operator.gets("user", "create", "bob", "--no-password")
    to_bob = ("--user", "bob", "--project", "eu-de")
    assert "gives no certificates" in operator.types("role", "assign", "amdin", *to_bob).err
    assert "gives no certificates" not in operator.types("role", "assign", "admin", *to_bob).err
