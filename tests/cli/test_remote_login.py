"""Log-ins of operators, who need no role in a project."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.cli.lookup import NO_PROJECTS
from support.command_line import PASSWORD, Operator
from support.remote_user import RemoteUser, new_remote_user
from support.wait import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def newcomer(made: tuple[Operator, str], tmp_path: Path) -> Iterator[RemoteUser]:
    operator, url = made
    try:
        yield new_remote_user(operator, url, "newcomer", tmp_path)
    finally:
        operator.output("user", "delete", "newcomer", "--yes")


def test_an_operator_without_a_role_in_a_project_administers(
    newcomer: RemoteUser, made: tuple[Operator, str]
) -> None:
    assert newcomer.failure(4, "project", "list").startswith("Only operators can do this.")
    made[0].output("role", "assign", "operator", "--user", "newcomer", "--service")
    # The role counts at the next login at the latest.
    done = newcomer.run("login", "--password-file", newcomer.home / "password")
    assert done.code == 0
    assert NO_PROJECTS not in done.err
    assert "Default/eu-de" in newcomer.output("project", "list", "-o", "name").split()
    for command in (("clusters",), ("kubeconfig", "get", "prod", "--project", "eu-de")):
        advice = newcomer.failure(5, *command)
        assert "Ask an operator" not in advice
        assert "clustercert role assign ROLE --user newcomer --project PROJECT" in advice

    status = newcomer.output_json("status")
    assert (status["user"], status["projects"], status["project"]) == ("newcomer", [], None)
    assert status["service_roles"] == ["operator"]
    (saved,) = newcomer.output_json("profile", "list")
    assert saved["logged_in"] is True
    assert "Logged out" in newcomer.run("logout").err


def test_an_auditor_without_a_role_in_a_project_is_not_sent_to_an_operator(
    newcomer: RemoteUser, made: tuple[Operator, str]
) -> None:
    made[0].output("role", "assign", "auditor", "--user", "newcomer", "--service")
    done = newcomer.run("login", "--password-file", newcomer.home / "password")
    assert (done.code, NO_PROJECTS in done.err) == (0, False)
    assert newcomer.failure(5, "clusters").endswith(
        "`clustercert cluster list` lists the clusters of all projects."
    )


@pytest.mark.parametrize(
    "command",
    [
        ("clusters",),
        ("kubeconfig", "get", "prod"),
        ("kubeconfig", "merge", "--all"),
        ("clusters", "--project", "eu-de"),
    ],
)
def test_what_needs_a_project_says_so(newcomer: RemoteUser, command: tuple[str, ...]) -> None:
    assert newcomer.failure(5, *command) == NO_PROJECTS


def test_without_a_role_the_exec_plugin_says_so(newcomer: RemoteUser) -> None:
    done = newcomer.run("credential", "prod")
    assert done.code == 5
    assert "You have no role in any project. To use clusters, ask an operator for a role" in done.err


def test_a_log_in_without_a_project_says_so(newcomer: RemoteUser) -> None:
    done = newcomer.run("login", "--password-file", newcomer.home / "password")
    assert done.code == 0
    assert done.err.endswith(f"{NO_PROJECTS}\n")
    refused = newcomer.run("login", "--password-file", newcomer.home / "password", "--project", "eu-de")
    assert refused.code == 3
    assert PASSWORD not in done.err + refused.err


def test_a_role_that_is_assigned_later_needs_no_other_log_in(
    newcomer: RemoteUser, made: tuple[Operator, str]
) -> None:
    made[0].output("role", "assign", "reader", "--user", "newcomer", "--project", "eu-de")
    # The service remembers the roles of a token for up to a second.
    eventually(lambda: newcomer.run("clusters").code == 0)
    (project,) = newcomer.output_json("status")["projects"]
    assert (project["name"], project["roles"]) == ("eu-de", ["reader"])
