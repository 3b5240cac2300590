"""login, kubeconfig get and logout against a served store, as a user of the service has them."""

import base64
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clustercert.certificate import chain_pem, new_client_ca
from clustercert.keypair import new_key
from operating import Operator, new_operator
from stores import execute, rows

COMMAND = (sys.executable, "-m", "clustercert")
PASSWORD = "correct horse"
OURS = ("CLUSTERCERT", "OS_", "XDG_")
RULES = """
[[policy.rules]]
role = "admin"
groups = ["clustercert:admins"]

[[policy.rules]]
role = "reader"
groups = ["clustercert:viewers"]
max_lifetime = "1h"
"""


@dataclass(frozen=True)
class World:
    """A served store, and the home of somebody who uses it."""

    operator: Operator
    url: str
    project_id: str
    cluster_id: str
    keys: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.operator.folder

    def user(
        self, *arguments: str | Path, stdin: str = "", **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env=kept | {"HOME": str(self.folder / "home")} | variables,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def database(self, query: str) -> list[tuple[object, ...]]:
        return rows(self.folder / "data" / "clustercert.db", query)

    def log_in(self, user: str = "alice", **variables: str) -> None:
        done = self.user(
            "login",
            self.url,
            "--user",
            user,
            "--password-file",
            "-",
            "--project",
            "eu-de",
            stdin=PASSWORD,
            **variables,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert PASSWORD not in done.stderr


def prepare(folder: Path) -> World:
    """What an operator makes before there is anything to use; not served yet."""
    operator = new_operator(folder)
    operator.configure(RULES)
    password = folder / "password"
    password.write_text(PASSWORD)
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    (folder / "server-ca.pem").write_bytes(chain_pem((ca,)))
    project = operator.gets_json("project", "create", "eu-de")
    for user, role in (("alice", "admin"), ("bob", "reader"), ("eve", "nothing")):
        operator.gets("user", "create", user, "--password-file", password)
        operator.gets("role", "assign", role, "--user", user, "--project", "eu-de")
    operator.gets("project", "create", "eu-nl")
    operator.gets("role", "assign", "admin", "--user", "alice", "--project", "eu-nl")
    options = ("--internal-url", "https://10.0.0.5:6443", "--external-url", "https://203.0.113.5:6443")
    cluster = operator.gets_json(
        "cluster", "add", "prod", "--project", "eu-de", *options, "--server-ca", folder / "server-ca.pem"
    )
    key = operator.gets_json("access-key", "create", "--user", "alice")
    return World(operator, "", project["id"], cluster["id"], key)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    made = prepare(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "--config", made.operator.config, "serve", "--port", "0"],
            cwd=folder,
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("Listening on "), line + process.stderr.read()
        try:
            yield replace(made, url=line.split()[-1])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            process.stderr.close()


def leaf_of(kubeconfig: dict[str, Any]) -> x509.Certificate:
    """The certificate, whose key is the one beside it."""
    user = kubeconfig["users"][0]["user"]
    leaf = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    key = load_pem_private_key(base64.b64decode(user["client-key-data"]), password=None)
    assert key.public_key() == leaf.public_key()
    return leaf


def lifetime(kubeconfig: dict[str, Any]) -> timedelta:
    return leaf_of(kubeconfig).not_valid_after_utc - datetime.now(UTC)


def test_a_login_by_password_keeps_a_token_and_no_password(world: World) -> None:
    world.log_in()

    kept = world.folder / "home" / ".config" / "clustercert" / "profiles" / "default.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    profile = json.loads(kept.read_text())
    assert (profile["user"], profile["project_id"]) == ("alice", world.project_id)
    assert PASSWORD not in kept.read_text()
    done = world.user("kubeconfig", "get", "prod")
    assert done.returncode == 0, done.stderr
    kubeconfig = yaml.safe_load(done.stdout)
    assert [cluster["name"] for cluster in kubeconfig["clusters"]] == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
    ]
    assert timedelta(hours=7) < lifetime(kubeconfig) <= timedelta(hours=8)
    assert "clustercert:admins" in done.stderr

    assert world.user("logout").returncode == 0
    assert not kept.exists()
    assert (
        world.database(
            "SELECT count(*) FROM token JOIN user ON user.id = token.user_id WHERE user.name = 'alice'"
        )[0][0]
        == 0
    )
    assert "clustercert login" in world.user("kubeconfig", "get", "prod").stderr


def test_whoever_is_not_known_any_more_is_told_to_log_in_again(world: World) -> None:
    world.log_in()
    execute(world.folder / "data" / "clustercert.db", "DELETE FROM token")
    done = world.user("kubeconfig", "get", world.cluster_id)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Run `clustercert login` again." in done.stderr
    assert world.user("logout").returncode == 0


def test_a_login_by_access_key_signs_each_request(world: World) -> None:
    secret = world.folder / "secret"
    secret.write_text(world.keys["secret_key"])
    options = ("--access-key", world.keys["access_key"], "--secret-file", secret)
    ambiguous = world.user("login", world.url, *options)
    assert ambiguous.returncode == 1
    assert "--project" in ambiguous.stderr
    done = world.user("login", world.url, *options, "--project", world.project_id, "--profile", "key")
    assert done.returncode == 0, done.stderr
    assert world.keys["secret_key"] not in done.stderr

    got = world.user(
        "kubeconfig", "get", world.cluster_id, "--profile", "key", "--duration", "1", "-o", "json"
    )

    assert got.returncode == 0, got.stderr
    assert timedelta(hours=23) < lifetime(json.loads(got.stdout)) <= timedelta(days=1)
    assert world.user("logout", CLUSTERCERT_PROFILE="key").returncode == 0


def test_a_key_made_here_never_goes_to_the_service(world: World) -> None:
    world.log_in()
    out = world.folder / "kubeconfig"
    arguments = (
        "kubeconfig",
        "get",
        "prod",
        "--local-key",
        "--expires-in",
        "15m",
        "--reason",
        "test",
        "--out",
        out,
    )

    done = world.user(*arguments, "--context", "externalTLSVerify")

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    kubeconfig = yaml.safe_load(out.read_text())
    assert kubeconfig["current-context"] == "externalTLSVerify"
    assert timedelta(minutes=14) < lifetime(kubeconfig) < timedelta(minutes=16)
    ((origin, reason),) = world.database(
        "SELECT key_origin, reason FROM certificate ORDER BY issued_at DESC, id DESC LIMIT 1"
    )
    assert (origin, reason) == ("csr", "test")

    before = out.read_bytes()
    assert "--force" in world.user(*arguments).stderr
    assert out.read_bytes() == before
    assert world.user(*arguments, "--force").returncode == 0
    assert out.read_bytes() != before


def test_less_is_had_where_nothing_was_said_and_the_policy_allows_less(world: World) -> None:
    world.log_in("bob")
    done = world.user("kubeconfig", "get", "prod")
    assert done.returncode == 0, done.stderr
    assert timedelta(minutes=59) < lifetime(yaml.safe_load(done.stdout)) <= timedelta(hours=1)
    exact = world.user("kubeconfig", "get", "prod", "--expires-in", "1h")
    assert exact.returncode == 0, exact.stderr


@pytest.mark.parametrize(
    "wish", [("--expires-in", "2h"), ("--duration", "1"), ("--expire-at", "2100-01-01T00:00:00Z")]
)
def test_a_longer_wish_is_refused_in_the_services_words(world: World, wish: tuple[str, str]) -> None:
    world.log_in("bob")
    done = world.user("kubeconfig", "get", "prod", *wish)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "CCE.0140" in done.stderr
    assert "request " in done.stderr


def test_a_role_without_a_rule_gets_nothing(world: World) -> None:
    world.log_in("eve")
    done = world.user("kubeconfig", "get", "prod")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CCE.01403001" in done.stderr


def test_what_is_not_there_is_said(world: World) -> None:
    world.log_in()
    assert "no cluster nope" in world.user("kubeconfig", "get", "nope").stderr
    missing = world.user("kubeconfig", "get", "00000000-0000-4000-8000-000000000000")
    assert "CCE.01404001" in missing.stderr
    assert "no folder" in world.user("kubeconfig", "get", "prod", "--out", "nowhere/x").stderr
    assert world.user("kubeconfig", "get", "prod", "--out", "-").stdout.startswith("kind: Config")


def test_nothing_is_issued_for_a_context_that_is_not_there(world: World) -> None:
    world.log_in()
    count = "SELECT count(*) FROM certificate"
    before = world.database(count)
    done = world.user("kubeconfig", "get", "prod", "--context", "nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no context nope. They have: internal, external, externalTLSVerify" in done.stderr
    assert world.database(count) == before


def test_what_was_issued_is_handed_over_though_a_further_address_is_not_there(world: World) -> None:
    world.log_in()
    done = world.user("kubeconfig", "get", "prod", "--context", "customSAN-7")
    assert done.returncode == 1
    assert "no context customSAN-7: its current one is external" in done.stderr
    kubeconfig = yaml.safe_load(done.stdout)
    assert kubeconfig["current-context"] == "external"
    assert lifetime(kubeconfig) > timedelta(hours=7)


def test_a_wrong_password_says_what_to_check(world: World) -> None:
    done = world.user("login", world.url, "--user", "alice", CLUSTERCERT_PASSWORD="wrong horse")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Check the user, their domain, the password and the project" in done.stderr
    assert "wrong horse" not in done.stderr


def test_without_a_terminal_nobody_is_asked(world: World) -> None:
    assert "--user" in world.user("login", world.url).stderr
    assert "CLUSTERCERT_PASSWORD" in world.user("login", world.url, "--user", "alice").stderr
    both = world.user("login", world.url, "--user", "alice", "--access-key", "AK")
    assert both.returncode == 2


def openstack(world: World, **more: str) -> dict[str, str]:
    return {"OS_AUTH_URL": f"{world.url}/v3", "OS_USER_DOMAIN_NAME": "Default", **more}


def test_the_variables_of_openstack_are_a_login(world: World) -> None:
    get = ("kubeconfig", "get", "prod", "-o", "json")
    by_name = openstack(world, OS_USERNAME="alice", OS_PASSWORD=PASSWORD, OS_PROJECT_NAME="eu-de")
    by_id = openstack(world, OS_USERNAME="alice", OS_PASSWORD=PASSWORD, OS_PROJECT_ID=world.project_id)
    by_key = openstack(
        world,
        OS_ACCESS_KEY=world.keys["access_key"],
        OS_SECRET_KEY=world.keys["secret_key"],
        OS_PROJECT_NAME="eu-de",
    )
    for variables in (by_name, by_id, by_key):
        done = world.user(*get, **variables)
        assert done.returncode == 0, done.stderr
        leaf_of(json.loads(done.stdout))
    world.log_in()
    kept = world.folder / "home" / ".config" / "clustercert" / "profiles" / "default.json"
    token = json.loads(kept.read_text())["token"]
    done = world.user(*get, **openstack(world, OS_TOKEN=token))
    assert done.returncode == 0, done.stderr
    bob = openstack(world, OS_USERNAME="bob", OS_PASSWORD=PASSWORD)
    assert "clustercert:viewers" in world.user(*get, **bob).stderr
    assert "clustercert:admins" in world.user(*get, "--profile", "default", **bob).stderr


def test_half_of_the_variables_are_not_enough(world: World) -> None:
    done = world.user("kubeconfig", "get", "prod", **openstack(world, OS_USERNAME="alice"))
    assert "OS_PASSWORD" in done.stderr
    without_project = openstack(world, OS_USERNAME="alice", OS_PASSWORD=PASSWORD)
    assert "eu-nl" in world.user("kubeconfig", "get", "prod", **without_project).stderr


def test_a_revoked_token_does_not_keep_anybody_from_logging_out(world: World) -> None:
    world.log_in()
    world.operator.gets("user", "set-password", "alice", "--password-file", world.folder / "password")
    done = world.user("logout")
    assert done.returncode == 0
    assert "could not be revoked" in done.stderr
