"""Administration with a login at a running service: operators, project admins and others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import Operator
from support.operated_cluster import SERVICE_CA
from support.remote_user import RemoteUser, new_remote_user
from support.samples import server_ca_pem
from support.stores import rows

pytestmark = pytest.mark.slow

ONLY_OPERATORS = "Only operators can do this."


@pytest.fixture(scope="module")
def root(made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteUser]:
    """An operator with a login, who has no role in a project."""
    local, url = made
    user = new_remote_user(local, url, "remote-root", tmp_path_factory.mktemp("root"))
    local.output("role", "assign", "operator", "--user", "remote-root", "--service")
    user.output("login", "--password-file", user.home / "password")
    yield user
    local.output("user", "delete", "remote-root", "--yes")


@pytest.fixture(scope="module")
def admin(made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteUser]:
    """An admin of the projects `remote-1` and `remote-2`."""
    local, url = made
    for project in ("remote-1", "remote-2", "remote-3"):
        local.output("project", "create", project)
    user = new_remote_user(local, url, "remote-admin", tmp_path_factory.mktemp("admin"))
    for project in ("remote-1", "remote-2"):
        local.output("role", "assign", "admin", "--user", "remote-admin", "--project", project)
    user.output("login", "--password-file", user.home / "password")
    local.output("user", "create", "remote-member", "--no-password")
    yield user
    for name in ("remote-admin", "remote-member"):
        local.output("user", "delete", name, "--yes")
    for project in ("remote-1", "remote-2", "remote-3"):
        local.output("project", "delete", project, "--yes")


class Events:
    """The audit events since the object was made."""

    def __init__(self, local: Operator) -> None:
        self._database = local.folder / "data" / "clustercert.db"
        ((self._last,),) = rows(self._database, "SELECT max(id) FROM audit_event")

    def of(self, actor: str) -> list[str]:
        """The kinds of administrative events by an actor, oldest first."""
        query = f"SELECT kind FROM audit_event WHERE id > {self._last} AND actor = '{actor}' ORDER BY id"
        return [str(kind) for (kind,) in rows(self._database, query) if not str(kind).startswith("token.")]


@pytest.fixture
def events(root: RemoteUser, made: tuple[Operator, str]) -> Iterator[list[str]]:
    """The kinds of events that the test expects, in which the operator is the actor."""
    recorded = Events(made[0])
    expected: list[str] = []
    yield expected
    assert recorded.of(root.output_json("user", "show", "remote-root")["id"]) == expected


def test_the_life_of_a_domain(root: RemoteUser, events: list[str]) -> None:
    made = root.output_json("domain", "create", "remote")
    assert made in root.output_json("domain", "list")
    assert (
        root.failure(1, "domain", "create", "remote")
        == "There is already a domain remote. Choose a different name."
    )
    root.output("domain", "disable", "remote", "--yes")
    (shown,) = [each for each in root.output_json("domain", "list") if each["name"] == "remote"]
    assert shown == made | {"enabled": False}
    root.output("domain", "enable", made["id"])
    assert "remote" in root.failure(2, "domain", "delete", "remote")
    root.output("domain", "delete", "remote", "--yes")
    assert root.failure(5, "domain", "delete", "remote", "--yes").startswith("There is no domain remote.")
    events += [f"domain.{each}" for each in ("created", "disabled", "enabled", "removed")]


def test_the_life_of_a_project(root: RemoteUser, events: list[str]) -> None:
    made = root.output_json("project", "create", "remote", "--description", "first")
    assert root.output_json("project", "show", "remote") == made
    assert made in root.output_json("project", "list", "--domain", "Default")
    root.output("project", "disable", "remote", "--yes")
    shown = root.output_json("project", "show", made["id"])
    assert shown == made | {"enabled": False}
    root.output("project", "enable", "remote")
    root.output("project", "delete", "remote", "--yes")
    root.failure(5, "project", "show", "remote")
    events += [f"project.{each}" for each in ("created", "disabled", "enabled", "removed")]


def test_the_life_of_a_user(root: RemoteUser, events: list[str], made: tuple[Operator, str]) -> None:
    password = root.home / "password"
    created = root.output_json("user", "create", "remote-user", "--password-file", password)
    assert root.output_json("user", "show", "remote-user") == created | {"projects": []}
    assert created in root.output_json("user", "list")
    login = ("login", made[1], "--user", "remote-user", "--ca-file", made[0].folder / SERVICE_CA)
    (root.home / "new").write_text("battery staple")
    for file, code in ((password, 0), (root.home / "new", 3)):
        assert root.run(*login, "--password-file", file, "--profile", "other").code == code
    root.output("user", "set-password", "remote-user", "--password-file", root.home / "new")
    assert root.run(*login, "--password-file", root.home / "new", "--profile", "other").code == 0

    assert "no valid certificates" in root.failure(2, "user", "disable", "remote-user")
    root.output("user", "disable", "remote-user", "--yes")
    assert root.output_json("user", "show", "remote-user")["enabled"] is False
    root.output("user", "enable", "remote-user")
    assert "no valid certificates" in root.failure(2, "user", "delete", "remote-user")
    root.output("user", "delete", created["id"], "--yes")
    root.failure(5, "user", "show", "remote-user")
    events += [
        *("user.created", "user.password_changed", "user.disabled", "user.revoked"),
        *("user.enabled", "user.removed", "user.revoked"),
    ]


def test_the_life_of_a_group(root: RemoteUser, events: list[str]) -> None:
    made = root.output_json("group", "create", "remote-group")
    root.output("group", "add-user", "remote-group", "remote-root")
    root.output("group", "add-user", "remote-group", "remote-root")
    assert root.output_json("group", "show", "remote-group") == made | {"members": ["remote-root"]}
    assert "has 1 member." in root.failure(2, "group", "delete", "remote-group")
    root.output("group", "remove-user", "remote-group", "remote-root")
    assert "not a member" in root.failure(5, "group", "remove-user", "remote-group", "remote-root")
    assert made in root.output_json("group", "list")
    root.output("group", "delete", "remote-group", "--yes")
    events += [f"group.{each}" for each in ("created", "member_added", "member_removed", "removed")]


def test_the_life_of_a_role_and_its_assignments(root: RemoteUser, events: list[str]) -> None:
    to_root = ("--user", "remote-root", "--project", "eu-de")
    suggestion = root.failure(5, "role", "assign", "memeber", *to_root)
    assert suggestion.startswith("There is no role memeber. Did you mean member?")
    made = root.output_json("role", "create", "remote-role")
    assert {"role": "remote-role", "id": made["id"]} in root.output_json("role", "list", "--names")
    assert "grants no certificates" in root.run("role", "assign", "remote-role", *to_root).err
    (assigned,) = root.output_json("role", "list", *to_root)
    assert (assigned["role"], assigned["user"], assigned["project"], assigned["service"]) == (
        *("remote-role", "remote-root", "eu-de"),
        False,
    )
    everywhere = root.output_json("role", "list", "--user", "remote-root")
    assert [each["role"] for each in everywhere] == ["operator", "remote-role"]
    assert all(each in root.output_json("role", "list") for each in everywhere)
    root.output("role", "unassign", "remote-role", *to_root)
    assert "is not assigned to this user or group" in root.failure(
        5, "role", "unassign", "remote-role", *to_root
    )
    root.output("role", "delete", "remote-role", "--yes")
    events += ["role.created", "role.assigned", "role.unassigned", "role.removed"]


def test_blocking_asks(root: RemoteUser, events: list[str]) -> None:
    user_id = "0123456789abcdef" * 2
    assert "no valid certificates" in root.failure(2, "user", "block", user_id)
    root.output("user", "block", user_id, "--yes")
    root.output("user", "unblock", user_id)
    events += ["user.blocked", "user.revoked", "user.unblocked"]


@pytest.mark.parametrize(
    "command",
    [
        "domain create x",
        "domain list",
        "domain disable Default",
        "domain delete Default --yes",
        "project create x",
        "project list",
        "project show eu-de",
        "project disable remote-1",
        "project delete remote-1 --yes",
        "user create x --no-password",
        "user list",
        "user show remote-member",
        "user disable remote-member --yes",
        "user delete remote-member --yes",
        "user block 0123456789abcdef0123456789abcdef --yes",
        "group create x",
        "group list",
        "group show x",
        "group delete x --yes",
        "role create x",
        "role delete reader --yes",
        "role list",
        "role list --names",
        "role assign operator --user remote-admin --service",
    ],
)
def test_an_admin_of_projects_is_no_operator(admin: RemoteUser, command: str) -> None:
    assert admin.failure(4, *command.split()).startswith(ONLY_OPERATORS)


def test_an_admin_assigns_roles_in_all_their_projects(admin: RemoteUser, made: tuple[Operator, str]) -> None:
    recorded = Events(made[0])
    for project in ("remote-1", "remote-2"):
        to_member = ("--user", "remote-member", "--project", project)
        done = admin.run("role", "assign", "reader", *to_member)
        assert done.err == f"Assigned the role reader in the project {project} to remote-member.\n"
        (assigned,) = admin.output_json("role", "list", *to_member)
        assert (assigned["role"], assigned["project"]) == ("reader", project)
        users = [each["user"] for each in admin.output_json("role", "list", "--project", project)]
        assert users == ["remote-admin", "remote-member"]
        admin.output("role", "unassign", "reader", *to_member)
        assert "may assign this role" in admin.failure(4, "role", "assign", "operator", *to_member)
        assert "Did you mean member?" in admin.failure(4, "role", "assign", "memeber", *to_member)
    elsewhere = admin.failure(
        5, "role", "assign", "reader", "--user", "remote-member", "--project", "remote-3"
    )
    assert "Your projects: Default/remote-1" in elsewhere
    kinds = recorded.of(made[0].output_json("user", "show", "remote-admin")["id"])
    assert [kind for kind in kinds if kind.startswith("role.")] == ["role.assigned", "role.unassigned"] * 2


def test_a_project_of_others_does_not_exist(admin: RemoteUser, made: tuple[Operator, str]) -> None:
    other = made[0].output_json("project", "show", "remote-3")["id"]
    assert admin.failure(4, "project", "show", other).startswith(ONLY_OPERATORS)
    admin.failure(5, "role", "list", "--project", other)


def test_a_person_is_asked_about_the_certificates(root: RemoteUser, made: tuple[Operator, str]) -> None:
    local, url = made
    ca = root.home / "server-ca.pem"
    ca.write_bytes(server_ca_pem())
    options = ("--project", "eu-de", "--internal-url", "https://10.0.0.5:6443", "--server-ca", ca)
    local.output("cluster", "add", "remote-cluster", *options)
    leaving_home = root.home / "leaving"
    leaving_home.mkdir()
    leaving = new_remote_user(local, url, "remote-leaving", leaving_home)
    root.output("role", "assign", "admin", "--user", "remote-leaving", "--project", "eu-de")
    leaving.output("login", "--password-file", leaving_home / "password")
    for _ in range(2):
        leaving.output("kubeconfig", "get", "remote-cluster")
    local.output("cluster", "remove", "remote-cluster", "--yes")

    command = ("user", "delete", "remote-leaving")
    code, screen = root.in_terminal(*command, typed="n\n", columns=200)
    assert code == 1
    assert "has 2 valid certificates, which are permanently revoked. Delete the user" in screen
    assert root.output_json("user", "show", "remote-leaving")["name"] == "remote-leaving"
    code, screen = root.in_terminal(*command, typed="y\n", columns=200)
    assert code == 0, screen
    assert "Deleted the user remote-leaving. Their certificates are revoked." in screen


def test_without_a_login_the_message_names_both_ways(tmp_path: Path) -> None:
    message = RemoteUser(tmp_path).failure(3, "user", "list")
    assert "Run `clustercert login URL`" in message
    assert "add --local" in message
