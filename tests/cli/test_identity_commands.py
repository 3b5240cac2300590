"""`clustercert domain`, `project`, `user`, `group`, `role` and `access-key`."""

import json
import os
from pathlib import Path

import pytest
import yaml

from support.command_line import Operator
from support.stores import execute, rows


def events(operator: Operator) -> list[tuple[object, ...]]:
    query = "SELECT kind, actor, body FROM audit_event ORDER BY id"
    return rows(operator.folder / "data" / "clustercert.db", query)


def test_from_nothing_to_a_user_with_a_role_and_a_key(operator: Operator) -> None:
    project = operator.output_json("project", "create", "eu-de", "--description", "Frankfurt")
    user = operator.output_json("user", "create", "alice", "--no-password")
    operator.output("role", "assign", "admin", "--user", "alice", "--project", "eu-de")
    key = operator.output_json("access-key", "create", "--user", "alice", "--description", "ci")

    assert project["description"] == "Frankfurt"
    assert (user["domain"], user["enabled"]) == ("Default", True)
    assert len(user["id"]) == len(project["id"]) == 32
    assert len(key["access_key"]) == 20
    assert len(key["secret_key"]) == 40
    assert operator.output_json("user", "show", "alice")["projects"] == ["eu-de"]
    (assignment,) = operator.output_json("role", "list", "--project", project["id"])
    assert (assignment["role"], assignment["user_id"], assignment["project"]) == (
        "admin",
        user["id"],
        "eu-de",
    )
    (listed,) = operator.output_json("access-key", "list", "--user", user["id"])
    assert listed == {name: value for name, value in key.items() if name != "secret_key"}


def test_a_project_can_have_the_id_that_it_has_in_keystone(operator: Operator) -> None:
    own_id = "3ee1d0b5d2ef4b8fa1b3b7b3c8f7a9d2"
    assert operator.output_json("project", "create", "eu-de", "--id", own_id)["id"] == own_id
    assert operator.output_json("project", "show", own_id)["name"] == "eu-de"
    taken = operator.error("project", "create", "eu-nl", "--id", own_id)
    assert f"A project with the id {own_id} already exists." in taken
    malformed = operator.error("project", "create", "eu-nl", "--id", own_id.upper())
    assert "a project id has 32 lower-case hex digits" in malformed


def test_events_name_the_account_of_the_operating_system(operator: Operator) -> None:
    user = operator.output_json("user", "create", "alice", "--no-password")
    key = operator.output_json("access-key", "create", "--user", "alice")

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

    done = operator.run("user", "create", "alice", "--password-file", password)

    assert done.code == 0
    assert "horse" not in done.out + done.err
    ((kept,),) = rows(operator.folder / "data" / "clustercert.db", "SELECT password_hash FROM user")
    assert str(kept).startswith("$argon2id$")
    password.write_text("battery staple")
    operator.output("user", "set-password", "alice", "--password-file", password)
    ((changed,),) = rows(operator.folder / "data" / "clustercert.db", "SELECT password_hash FROM user")
    assert changed != kept


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 9000, b"\xff\xfe\n"])
def test_a_file_that_holds_no_password_is_refused(operator: Operator, tmp_path: Path, content: bytes) -> None:
    password = tmp_path / "password"
    password.write_bytes(content)
    assert "password" in operator.error("user", "create", "alice", "--password-file", password)


def test_without_a_terminal_no_password_is_asked_for(operator: Operator) -> None:
    assert "--password-file FILE or --no-password" in operator.error("user", "create", "alice")
    operator.output("user", "create", "alice", "--no-password")
    assert "--password-file FILE" in operator.error("user", "set-password", "alice")


def test_users_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")

    disabled = operator.run("user", "disable", "alice", "--yes", "-o", "json")
    shown = operator.output_json("user", "show", "alice")
    assert shown["enabled"] is False
    assert json.loads(disabled.out) == {field: shown[field] for field in shown if field != "projects"}
    assert operator.output("user", "enable", "alice", "--output", "name") == "Default/alice\n"
    assert operator.output_json("user", "show", "alice")["enabled"] is True
    operator.output("user", "delete", "alice", "--yes")

    assert "are revoked" in disabled.err
    assert operator.output_json("user", "list") == []
    assert operator.error("user", "show", "alice") == "There is no user alice."


def test_an_ambiguous_name_requires_the_domain(operator: Operator) -> None:
    operator.output("domain", "create", "other")
    operator.output("user", "create", "alice", "--no-password")
    theirs = operator.output_json("user", "create", "alice", "--no-password", "--domain", "other")

    assert "domain" in operator.error("user", "show", "alice")
    assert (
        operator.error("user", "show", "bob", "--domain", "other")
        == "There is no user bob in the domain other."
    )
    for named in (["alice", "--domain", "other"], ["other/alice"]):
        assert operator.output_json("user", "show", *named) == theirs | {"projects": []}
    assert [user["domain"] for user in operator.output_json("user", "list", "--domain", "other")] == ["other"]
    names = operator.output("user", "list", "--output", "name").split()
    assert names == ["Default/alice", "other/alice"]
    # Commands accept what `-o name` prints.
    assert [operator.output("user", "show", name, "-o", "name").strip() for name in names] == names


def test_a_role_for_a_user_of_another_domain(operator: Operator) -> None:
    operator.output("domain", "create", "other")
    operator.output("user", "create", "alice", "--no-password")
    operator.output("project", "create", "eu-de", "--domain", "other")
    assign = ("role", "assign", "member", "--project", "eu-de", "--domain", "other")
    assert operator.error(*assign, "--user", "alice") == (
        "There is no user alice in the domain other. There is Default/alice: write it with its domain."
    )
    assert operator.error(*assign, "--user", "sso/alice") == (
        "There is no user sso/alice, because there is no domain sso. Users of an issuer or of Keystone get their roles "
        "from the settings."
    )
    operator.output(*assign, "--user", "Default/alice")
    listed = operator.output_json("role", "list", "--project", "other/eu-de", "--user", "Default/alice")
    assert [(row["role"], row["user"], row["project"]) for row in listed] == [("member", "alice", "eu-de")]
    for named in (["other/alice"], ["alice", "--domain", "other"]):
        assert operator.output_json("role", "list", "--project", "other/eu-de", "--user", *named) == []


def test_role_assignments_show_the_domains_of_projects_and_users_of_one_name(operator: Operator) -> None:
    operator.output("domain", "create", "other")
    operator.output("user", "create", "alice", "--no-password")
    operator.output("user", "create", "alice", "--no-password", "--domain", "other")
    ids = [
        operator.output_json("project", "create", "eu-de", "--domain", domain)["id"]
        for domain in ("Default", "other")
    ]
    operator.output("role", "assign", "member", "--user", "Default/alice", "--project", ids[0])
    listed = operator.output("role", "list").splitlines()
    assert listed[1].split() == ["member", "alice", "-", "eu-de"]
    wide = operator.output("role", "list", "-o", "wide").splitlines()
    assert wide[1].split() == ["member", "Default/alice", "-", "Default/eu-de"]
    operator.output("role", "assign", "member", "--user", "other/alice", "--project", ids[1])
    listed = operator.output("role", "list").splitlines()
    assert sorted(line.split()[1:] for line in listed[1:]) == [
        ["Default/alice", "-", "Default/eu-de"],
        ["other/alice", "-", "other/eu-de"],
    ]


def test_without_a_default_domain_the_option_is_required(operator: Operator) -> None:
    for name in ("one", "two"):
        operator.output("domain", "create", name)
    rename = "UPDATE domain SET name = 'three' WHERE name = 'Default'"
    execute(operator.folder / "data" / "clustercert.db", rename)
    assert operator.error("project", "create", "p").startswith("domain: you are in no domain")
    assert operator.error("project", "create", "p").partition(" (")[0].endswith(": one, three, two.")
    assert operator.output_json("project", "create", "p", "--domain", "two")["domain"] == "two"


def log_in(operator: Operator, user_id: str, project_id: str | None) -> None:
    execute(
        operator.folder / "data" / "clustercert.db",
        "INSERT INTO token (hash, user_id, project_id, methods, issued_at, expires_at) VALUES (?, ?, ?, '[]', ?, ?)",
        os.urandom(32),
        user_id,
        project_id,
        "2026-01-01 00:00:00.000000",
        "2999-01-01 00:00:00.000000",
    )


def test_domains_are_enabled_and_disabled(operator: Operator) -> None:
    alice = str(operator.output_json("user", "create", "alice", "--no-password")["id"])
    assert operator.error("domain", "disable", "Default").startswith(
        "The domain Default has 1 user, no projects, no clusters and no valid certificates. No logins end. Until"
    )
    log_in(operator, alice, None)
    assert "certificates. 1 token ends permanently. Until" in operator.error("domain", "disable", "Default")
    assert operator.output_json("domain", "list")[0]["enabled"] is True
    disabled = operator.run("domain", "disable", "Default", "--yes")
    assert disabled.err.startswith(
        "Disabled the domain Default. Certificates that were issued before stay valid"
    )
    assert operator.output_json("domain", "list")[0]["enabled"] is False
    operator.output("domain", "enable", "Default")
    assert operator.output_json("domain", "list")[0]["enabled"] is True


def test_an_empty_domain_is_deleted(operator: Operator) -> None:
    operator.output("domain", "create", "other")
    operator.output("project", "create", "eu-de", "--domain", "other")
    assert "add --yes" in operator.error("domain", "delete", "other")
    assert "still has projects" in operator.error("domain", "delete", "other", "--yes")
    operator.output("project", "delete", "eu-de", "--yes")
    operator.output("domain", "delete", "other", "--yes")
    assert operator.output("domain", "list", "--output", "name") == "Default\n"


def test_a_name_that_can_not_be_in_an_address_is_refused(operator: Operator) -> None:
    assert "slash" in operator.error("project", "create", "a/b")
    assert "not a name" in operator.error("domain", "create", "")


def test_projects_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    project = str(operator.output_json("project", "create", "eu-de")["id"])
    alice = str(operator.output_json("user", "create", "alice", "--no-password")["id"])
    for scope in (None, project, project):
        log_in(operator, alice, scope)
    assert operator.error("project", "disable", "eu-de").startswith(
        "The project eu-de has no clusters and no valid certificates. 2 tokens end permanently. Until you enable the"
        " project again"
    )
    disabled = operator.run("project", "disable", "eu-de", "--yes")
    assert "`clustercert certificate list --project PROJECT --state live`" in disabled.err
    assert operator.output_json("project", "show", "eu-de")["enabled"] is False
    operator.output("project", "enable", "eu-de")
    assert operator.output_json("project", "list")[0]["enabled"] is True
    operator.output("project", "delete", "eu-de", "--yes")
    assert operator.output_json("project", "list") == []


def test_a_group_gives_its_members_its_roles(operator: Operator) -> None:
    operator.output("project", "create", "eu-de")
    operator.output("user", "create", "alice", "--no-password")
    operator.output("group", "create", "ops")
    operator.output("group", "add-user", "ops", "alice")
    operator.output("role", "assign", "reader", "--group", "ops", "--project", "eu-de")

    assert operator.output_json("group", "show", "ops")["members"] == ["alice"]
    assert operator.output_json("user", "show", "alice")["projects"] == ["eu-de"]
    (assignment,) = operator.output_json("role", "list", "--group", "ops")
    assert (assignment["group"], assignment["user"]) == ("ops", None)
    operator.output("group", "remove-user", "ops", "alice")
    assert operator.output_json("user", "show", "alice")["projects"] == []
    operator.output("group", "delete", "ops", "--yes")
    assert operator.output_json("group", "list") == []


def test_a_role_in_the_whole_service_is_assigned_and_removed(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    operator.output("role", "assign", "operator", "--user", "alice", "--service")
    (assignment,) = operator.output_json("role", "list", "--user", "alice")
    assert (assignment["service"], assignment["project"]) == (True, None)
    operator.output("role", "unassign", "operator", "--user", "alice", "--service")
    assert operator.output_json("role", "list") == []
    assert "not assigned" in operator.error("role", "unassign", "operator", "--user", "alice", "--service")
    names = [role["role"] for role in operator.output_json("role", "list", "--names")]
    assert names == ["admin", "auditor", "member", "operator", "reader"]


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
def test_an_assignment_needs_one_assignee_and_one_scope(operator: Operator, options: list[str]) -> None:
    assert "Give either" in operator.usage_error("role", "assign", "admin", *options)


def test_access_keys_are_enabled_disabled_and_deleted(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    key = operator.output_json("access-key", "create", "--user", "alice")["access_key"]

    operator.output("access-key", "disable", key)
    assert operator.output_json("access-key", "list", "--user", "alice")[0]["enabled"] is False
    operator.output("access-key", "enable", key)
    assert operator.output_json("access-key", "list", "--user", "alice")[0]["enabled"] is True
    operator.output("access-key", "delete", key, "--yes")
    assert operator.output_json("access-key", "list", "--user", "alice") == []
    assert operator.error("access-key", "enable", key).startswith(f"There is no access key {key}.")


def test_a_key_is_not_created_without_showing_its_secret(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    operator.usage_error("access-key", "create", "--user", "alice", "--output", "name")
    assert operator.output_json("access-key", "list", "--user", "alice") == []


@pytest.mark.parametrize("name", ["[bold red]x[b]", "$(id)", "=1+1", "ü,+\"'", "..%2f", ":warning:"])
def test_a_name_is_data_in_every_output_format(operator: Operator, name: str) -> None:
    created = operator.output_json("user", "create", "--no-password", name)

    assert created["name"] == name
    assert operator.output("user", "list", "--output", "name") == f"Default/{name}\n"
    assert [user["name"] for user in yaml.safe_load(operator.output("user", "list", "-o", "yaml"))] == [name]
    assert name in operator.output("user", "list").splitlines()[1]
    assert name in operator.run("user", "disable", name, "--yes").err


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\u202eb", "\udcff", " "])
def test_control_characters_in_a_name_are_refused_and_escaped(operator: Operator, name: str) -> None:
    said = operator.error("user", "create", name, "--no-password")
    assert said.isprintable()
    said = operator.error("user", "show", name)
    assert said.replace("\n", "").isprintable()


def test_a_mistyped_role_is_refused(operator: Operator) -> None:
    operator.output("project", "create", "eu-de")
    operator.output("user", "create", "bob", "--no-password")
    to_bob = ("--user", "bob", "--project", "eu-de")
    assert "There is no role memeber. Did you mean member?" in operator.error(
        "role", "assign", "memeber", *to_bob
    )
    assert operator.output_json("role", "list") == []
    assert "memeber" not in operator.output("role", "list", "--names", "-o", "name")


def test_assigning_a_role_without_a_rule_prints_a_note(operator: Operator) -> None:
    operator.output("project", "create", "eu-de")
    operator.output("user", "create", "bob", "--no-password")
    to_bob = ("--user", "bob", "--project", "eu-de")
    operator.output("role", "create", "inspector")
    assert "so the role grants no certificates" in operator.run("role", "assign", "inspector", *to_bob).err
    in_service = operator.run("role", "assign", "inspector", "--user", "bob", "--service").err
    assert "Only the roles operator and auditor have rights in the whole service." in in_service
    assert "grants no certificates" not in operator.run("role", "assign", "admin", *to_bob).err


def test_a_role_that_is_not_assigned_is_deleted(operator: Operator) -> None:
    operator.output("group", "create", "ops")
    operator.output("role", "create", "inspector")
    operator.output("role", "assign", "inspector", "--group", "ops", "--service")
    assert "add --yes" in operator.error("role", "delete", "inspector")
    assert "is assigned" in operator.error("role", "delete", "inspector", "--yes")
    operator.output("role", "unassign", "inspector", "--group", "ops", "--service")
    operator.output("role", "delete", "inspector", "--yes")
    assert "inspector" not in operator.output("role", "list", "--names", "-o", "name")
    assert "built in" in operator.error("role", "delete", "admin", "--yes")


def test_answers_name_the_domain_if_it_is_not_the_callers(operator: Operator) -> None:
    (operator.folder / "password").write_text("correct horse battery staple\n")
    operator.output("domain", "create", "acme")
    for domain in ("Default", "acme"):
        operator.output("user", "create", "alice", "--no-password", "--domain", domain)
        operator.output("group", "create", "team", "--domain", domain)
        operator.output("project", "create", "eu-de", "--domain", domain)

    def said(*command: str | Path) -> str:
        return operator.run(*command).err

    def answers(domain: str) -> list[str]:
        place = ("--user", f"{domain}/alice", "--project", f"{domain}/eu-de")
        return [
            said("user", "set-password", f"{domain}/alice", "--password-file", operator.folder / "password"),
            said("group", "add-user", "team", "alice", "--domain", domain),
            said("role", "assign", "member", *place),
        ]

    assert answers("acme") == [
        "Changed the password of the user acme/alice.\n",
        "Added the user acme/alice to the group acme/team.\n",
        "Assigned the role member in the project acme/eu-de to acme/alice.\n",
    ]
    assert answers("Default") == [
        "Changed the password of the user alice.\n",
        "Added the user alice to the group team.\n",
        "Assigned the role member in the project eu-de to alice.\n",
    ]
