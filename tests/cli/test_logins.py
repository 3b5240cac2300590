"""Whose login a profile is."""

import uuid
from pathlib import Path

import pytest

from support.command_line import CommandResult, Operator
from support.operated_cluster import SERVICE_CA

pytestmark = pytest.mark.slow


@pytest.fixture
def users(made: tuple[Operator, str], home: Path) -> tuple[str, str]:
    """Two users of the service."""
    operator, _ = made
    names = (f"first-{uuid.uuid4()}", f"second-{uuid.uuid4()}")
    for name in names:
        operator.output("user", "create", name, "--password-file", home / "password")
        operator.output("role", "assign", "reader", "--user", name, "--project", "eu-de")
    return names


def log_in(made: tuple[Operator, str], home: Path, user: str, *options: str) -> CommandResult:
    operator, url = made
    trust = ("--ca-file", operator.folder / SERVICE_CA)
    done = operator.run("login", url, *trust, "--user", user, "--password-file", home / "password", *options)
    assert done.code == 0, done.err
    return done


def test_a_login_as_another_user_says_whose_login_it_replaces(
    made: tuple[Operator, str], home: Path, users: tuple[str, str]
) -> None:
    first, second = users
    assert "was the login of" not in log_in(made, home, first).err
    assert "was the login of" not in log_in(made, home, first).err
    replaced = log_in(made, home, second).err
    assert f"The profile default was the login of {first} at {made[1]}." in replaced
    assert f"now act as {second}." in replaced
    assert "--profile NAME" in replaced
    assert "was the login of" not in log_in(made, home, first, "--profile", "other").err
    assert made[0].output_json("status")["user"] == second
    assert made[0].output_json("status", "--profile", "other")["user"] == first
