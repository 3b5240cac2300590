"""Whose login a profile is."""

import json
import uuid
from pathlib import Path

import pytest

from support import shifted_clock
from support.command_line import PASSWORD, CommandResult, Operator
from support.exec_plugin import User
from support.operated_cluster import SERVICE_CA
from support.stores import execute
from support.wait import eventually

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
    assert f"The profile default was the login of Default/{first} at {made[1]}." in replaced
    assert "gets no new certificates for the contexts that were merged with that login." in replaced
    assert (
        f"If Default/{second} has a role in the project of a context, you can instead merge that context again."
        in replaced
    )
    assert f"`clustercert login {made[1]} --profile NAME --user Default/{first}`" in replaced
    assert "was the login of" not in log_in(made, home, first, "--profile", "other").err
    assert made[0].output_json("status")["user"] == second
    assert made[0].output_json("status", "--profile", "other")["user"] == first


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (25, "25 h ahead of the service's. "),
        pytest.param(-3, "3 h behind the service's. ", marks=pytest.mark.full),
        (0, None),
    ],
)
def test_a_login_says_that_the_clock_is_wrong(
    made: tuple[Operator, str], tmp_path: Path, hours: int, said: str | None
) -> None:
    operator, url = made
    user = User.create(operator, url, tmp_path / "home", f"clock{hours}")
    done = user.run(
        *("login", url, "--user", user.name, "--password-file", "password"),
        *("--ca-file", operator.folder / SERVICE_CA),
        command=shifted_clock.command(hours),
    )
    assert done.returncode == 0
    assert (done.stderr.startswith("The clock of this machine is ")) is (said is not None)
    assert (said or "Logged in as ") in done.stderr
    assert ("timedatectl" in done.stderr) is (said is not None)


def test_verbose_shows_the_requests_of_each_login_without_secrets(
    made: tuple[Operator, str], home: Path, users: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, url = made
    user, _ = users
    key = operator.output_json("access-key", "create", "--user", user)
    (home / "secret").write_text(key["secret_key"])
    by_password = log_in(made, home, user, "--verbose")
    trust = ("--ca-file", operator.folder / SERVICE_CA)
    by_key = operator.run(
        *("login", url, *trust, "--profile", "key", "--verbose"),
        *("--access-key", key["access_key"], "--secret-file", home / "secret"),
    )
    saved = json.loads((home / "config" / "clustercert" / "profiles" / "default.json").read_text())
    variables = {
        "OS_AUTH_URL": f"{url}/v3",
        "OS_CACERT": str(operator.folder / SERVICE_CA),
        "OS_PROJECT_NAME": "eu-de",
        "OS_USERNAME": user,
        "OS_PASSWORD": PASSWORD,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    by_variables = operator.run("status", "--from-env", "--verbose")
    monkeypatch.setenv("OS_TOKEN", saved["token"])
    by_token = operator.run("status", "--from-env", "--verbose")

    for done, request in (
        (by_password, f"POST {url}/v3/auth/tokens: 201, "),
        (by_key, f"GET {url}/clustercert/v1/caller: 200, "),
        (by_variables, f"POST {url}/v3/auth/tokens: 201, "),
        (by_token, f"GET {url}/v3/auth/tokens: 200, "),
    ):
        assert done.code == 0, done.err
        assert request in done.err
        for secret in (PASSWORD, key["secret_key"], saved["token"]):
            assert secret not in done.err + done.out


def test_a_user_changes_their_password_and_stays_logged_in(
    made: tuple[Operator, str], home: Path, users: tuple[str, str]
) -> None:
    operator, _ = made
    user, _ = users
    log_in(made, home, user)
    log_in(made, home, user, "--profile", "laptop")
    for name, text in (("wrong", "wrong horse"), ("new", "battery staple")):
        (home / name).write_text(text)
    files = ("--password-file", home / "password", "--new-password-file", home / "new")

    refused = operator.run("password", "--password-file", home / "wrong", "--new-password-file", home / "new")
    assert (refused.code, refused.out) == (3, "")
    assert refused.err == "Error: The old password is wrong. The password was not changed.\n"
    assert operator.run("password").err.startswith(
        "Error: There is no terminal to ask for the old password: add --password-file FILE"
    )
    done = operator.run("password", *files)
    assert (done.code, done.out) == (0, ""), done.err
    assert f"Changed the password of Default/{user} at {made[1]}." in done.err
    assert operator.output_json("status")["user"] == user
    eventually(lambda: operator.run("status", "--profile", "laptop").code == 3)
    log_in(made, home, user, "--password-file", str(home / "new"))


def test_a_user_with_an_access_key_changes_their_password(
    made: tuple[Operator, str], home: Path, users: tuple[str, str]
) -> None:
    operator, url = made
    user, _ = users
    key = operator.output_json("access-key", "create", "--user", user)
    (home / "secret").write_text(key["secret_key"])
    (home / "new").write_text("battery staple")
    trust = ("--ca-file", operator.folder / SERVICE_CA)
    options = ("--access-key", key["access_key"], "--secret-file", home / "secret")
    assert operator.run("login", url, *trust, *options).code == 0
    files = ("--password-file", home / "password", "--new-password-file", home / "new")
    assert operator.run("password", *files).code == 0
    assert operator.output_json("status")["user"] == user


def test_a_lost_laptop_is_logged_out_everywhere(
    made: tuple[Operator, str], home: Path, users: tuple[str, str]
) -> None:
    operator, url = made
    user, _ = users
    key = operator.output_json("access-key", "create", "--user", user, "--description", "pipeline")
    log_in(made, home, user, "--profile", "laptop")
    log_in(made, home, user)
    assert "--keys needs --everywhere" in operator.usage_error("logout", "--keys")
    question = operator.run("logout", "--everywhere")
    assert (question.code, question.out) == (2, "")
    assert f"This ends all logins of Default/{user} (" in question.err
    assert "0 certificates" in question.err
    assert operator.run("status").code == 0
    execute(
        operator.folder / "data" / "clustercert.db",
        "INSERT INTO console_session (id, user_id, issuer, method, address, created_at, seen_at)"
        " SELECT id, id, 'built-in', 'token', '192.0.2.1', created_at, created_at FROM user WHERE name = ?",
        user,
    )

    done = operator.run("logout", "--everywhere", "--yes")
    assert (done.code, done.out) == (0, ""), done.err
    assert "Ended 1 session in the console." in done.err
    assert f"Ended all logins of Default/{user} at {url}, and revoked 0 certificates." in done.err
    assert f"These access keys still work: {key['access_key']} (pipeline)." in done.err
    assert "could not be revoked" not in done.err
    for options in ((), ("--profile", "laptop")):
        assert operator.run("status", *options).code == 3
    assert operator.output_json("access-key", "list", "--user", user) != []

    log_in(made, home, user)
    ended = operator.run("logout", "--everywhere", "--keys", "--yes")
    assert (ended.code, f"Deleted the access keys {key['access_key']} (pipeline)." in ended.err) == (0, True)
    assert operator.output_json("access-key", "list", "--user", user) == []
    assert "Run `clustercert login`" in operator.run("logout", "--everywhere", "--yes").err
