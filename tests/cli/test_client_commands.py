"""`login`, `kubeconfig get` and `logout` against a running service."""

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

from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from support.command_line import Operator, new_operator
from support.stores import execute, rows
from support.wait import line_with

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
    """A running service with a user's home directory."""

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
    """A store with users, roles, a cluster and an access key; not served yet."""
    operator = new_operator(folder)
    operator.configure(RULES)
    password = folder / "password"
    password.write_text(PASSWORD)
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    (folder / "server-ca.pem").write_bytes(chain_pem((ca,)))
    project = operator.output_json("project", "create", "eu-de")
    for user, role in (("alice", "admin"), ("bob", "reader"), ("eve", "nothing")):
        operator.output("user", "create", user, "--password-file", password)
        operator.create_role(role)
        operator.output("role", "assign", role, "--user", user, "--project", "eu-de")
    operator.output("project", "create", "eu-nl")
    operator.output("role", "assign", "admin", "--user", "alice", "--project", "eu-nl")
    options = ("--internal-url", "https://10.0.0.5:6443", "--external-url", "https://203.0.113.5:6443")
    cluster = operator.output_json(
        "cluster", "add", "prod", "--project", "eu-de", *options, "--server-ca", folder / "server-ca.pem"
    )
    key = operator.output_json("access-key", "create", "--user", "alice")
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
        line = line_with(process.stderr, "Listening on ")
        try:
            yield replace(made, url=line.split()[-1])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            process.stderr.close()


def leaf_of(kubeconfig: dict[str, Any]) -> x509.Certificate:
    """The certificate; checks that it belongs to the private key."""
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
    for field in ("clusters", "users", "contexts"):
        assert [entry["name"] for entry in kubeconfig[field]] == ["default-prod"]
    assert "insecure-skip-tls-verify" not in done.stdout
    done = world.user("kubeconfig", "get", "prod", "--cce-names")
    assert "will not check the certificate of https://203.0.113.5:6443" in done.stderr
    kubeconfig = yaml.safe_load(done.stdout)
    assert [cluster["name"] for cluster in kubeconfig["clusters"]] == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
    ]
    assert timedelta(hours=7) < lifetime(kubeconfig) <= timedelta(hours=8)
    assert "clustercert:admins" in done.stderr

    assert world.user("logout").returncode == 0
    assert json.loads(kept.read_text())["token"] is None
    assert (
        world.database(
            "SELECT count(*) FROM token JOIN user ON user.id = token.user_id WHERE user.name = 'alice'"
        )[0][0]
        == 0
    )
    refused = world.user("kubeconfig", "get", "prod")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "Run `clustercert login`" in refused.stderr
    # The address and the user are remembered.
    again = world.user("login", CLUSTERCERT_PASSWORD=PASSWORD)
    assert again.returncode == 0, again.stderr
    assert f"Logging in to {world.url} as alice." in again.stderr
    assert world.user("logout", "--forget").returncode == 0
    assert not kept.exists()
    assert "clustercert login URL" in world.user("login").stderr


def test_a_revoked_login_asks_for_a_new_login(world: World) -> None:
    world.log_in()
    execute(world.folder / "data" / "clustercert.db", "DELETE FROM token")
    done = world.user("kubeconfig", "get", world.cluster_id)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Run `clustercert login` again." in done.stderr
    assert world.user("status").returncode == 3
    assert world.user("logout").returncode == 0


def test_a_login_by_access_key_signs_each_request(world: World) -> None:
    secret = world.folder / "secret"
    secret.write_text(world.keys["secret_key"])
    options = ("--access-key", world.keys["access_key"], "--secret-file", secret)
    everywhere = world.user("login", world.url, *options, "--profile", "everywhere")
    assert everywhere.returncode == 0
    assert "Logged in as alice in all your projects" in everywhere.stderr
    shown = json.loads(world.user("status", "--profile", "everywhere", "-o", "json").stdout)
    assert (shown["user"], shown["method"]) == ("alice", "access key")
    assert world.user("kubeconfig", "get", "prod", "--profile", "everywhere").returncode == 0
    done = world.user("login", world.url, *options, "--project", world.project_id, "--profile", "key")
    assert done.returncode == 0, done.stderr
    assert world.keys["secret_key"] not in done.stderr

    got = world.user(
        "kubeconfig", "get", world.cluster_id, "--profile", "key", "--duration", "1", "-o", "json"
    )

    assert got.returncode == 0, got.stderr
    assert timedelta(hours=23) < lifetime(json.loads(got.stdout)) <= timedelta(days=1)
    assert world.user("logout", CLUSTERCERT_PROFILE="key").returncode == 0


def test_a_local_key_is_not_sent_to_the_service(world: World) -> None:
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

    done = world.user(*arguments, "--context", "externalTLSVerify", "--cce-names")

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


def test_the_default_lifetime_is_shortened_to_the_policys_limit(world: World) -> None:
    world.log_in("bob")
    done = world.user("kubeconfig", "get", "prod")
    assert done.returncode == 0, done.stderr
    assert timedelta(minutes=59) < lifetime(yaml.safe_load(done.stdout)) <= timedelta(hours=1)
    exact = world.user("kubeconfig", "get", "prod", "--expires-in", "1h")
    assert exact.returncode == 0, exact.stderr


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--expires-in", "2h", "Give a shorter --expires-in, or leave it out."),
        ("--duration", "1", "Request less, or --duration -1 for the longest allowed."),
        ("--expire-at", "2100-01-01T00:00:00Z", "--expire-at: must be 15 minutes to 5 years"),
    ],
)
def test_a_longer_lifetime_is_refused_with_advice_about_the_option(
    world: World, option: str, value: str, advice: str
) -> None:
    world.log_in("bob")
    done = world.user("kubeconfig", "get", "prod", option, value)
    assert done.returncode in {2, 4}
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert advice in done.stderr
    assert "CCE.0140" in done.stderr
    assert "request " in done.stderr


def test_a_role_without_a_rule_gets_no_certificate(world: World) -> None:
    world.log_in("eve")
    done = world.user("kubeconfig", "get", "prod")
    assert (done.returncode, done.stdout) == (4, "")
    assert "CCE.01403001" in done.stderr


def test_missing_clusters_and_folders_are_named(world: World) -> None:
    world.log_in()
    unknown = world.user("kubeconfig", "get", "prd")
    assert unknown.returncode == 5
    assert "There is no cluster prd in your projects. Did you mean prod?" in unknown.stderr
    missing = world.user("kubeconfig", "get", "00000000-0000-4000-8000-000000000000")
    assert missing.returncode == 5
    assert "does not exist" in world.user("kubeconfig", "get", "prod", "--out", "nowhere/x").stderr
    assert world.user("kubeconfig", "get", "prod", "--out", "-").stdout.startswith("kind: Config")


def test_nothing_is_issued_for_an_unknown_context(world: World) -> None:
    world.log_in()
    count = "SELECT count(*) FROM certificate"
    before = world.database(count)
    done = world.user("kubeconfig", "get", "prod", "--context", "nope")
    assert (done.returncode, done.stdout) == (5, "")
    assert "no context nope. They have: internal, external, externalTLSVerify" in done.stderr
    assert world.database(count) == before


def test_a_kubeconfig_without_the_wanted_san_context_is_written(world: World) -> None:
    world.log_in()
    done = world.user("kubeconfig", "get", "prod", "--context", "customSAN-7")
    assert done.returncode == 1
    assert "no context customSAN-7. The current context is default-prod" in done.stderr
    kubeconfig = yaml.safe_load(done.stdout)
    assert kubeconfig["current-context"] == "default-prod"
    assert lifetime(kubeconfig) > timedelta(hours=7)


def test_the_address_and_the_name_can_be_chosen(world: World) -> None:
    world.log_in()
    template = ("--context-name", "{cluster}.{project}.{user}")
    done = world.user("kubeconfig", "get", world.cluster_id, "--context", "internal", *template)
    kubeconfig = yaml.safe_load(done.stdout)
    assert kubeconfig["current-context"] == "prod.eu-de.alice"
    assert kubeconfig["clusters"][0]["cluster"]["server"] == "https://10.0.0.5:6443"

    refused = world.user("kubeconfig", "get", "prod", "--context", "external")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--insecure" in refused.stderr
    unsafe = world.user("kubeconfig", "get", "prod", "--context", "external", "--insecure")
    assert yaml.safe_load(unsafe.stdout)["clusters"][0]["cluster"]["insecure-skip-tls-verify"] is True
    assert "Warning: kubectl will not check the certificate" in unsafe.stderr


def test_a_wrong_password_says_what_to_check(world: World) -> None:
    done = world.user("login", world.url, "--user", "alice", CLUSTERCERT_PASSWORD="wrong horse")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Check the user, their domain, the password and the project" in done.stderr
    assert "wrong horse" not in done.stderr


def test_without_a_terminal_login_names_the_missing_option(world: World) -> None:
    assert "--user" in world.user("login", world.url, HOME=str(world.folder / "nobody")).stderr
    assert "CLUSTERCERT_PASSWORD" in world.user("login", world.url, "--user", "alice").stderr
    both = world.user("login", world.url, "--user", "alice", "--access-key", "AK")
    assert both.returncode == 2


def openstack(world: World, **more: str) -> dict[str, str]:
    return {"OS_AUTH_URL": f"{world.url}/v3", "OS_USER_DOMAIN_NAME": "Default", **more}


def test_openstack_variables_are_a_login(world: World) -> None:
    get = ("kubeconfig", "get", "prod", "-o", "json")
    by_name = openstack(world, OS_USERNAME="alice", OS_PASSWORD=PASSWORD, OS_PROJECT_NAME="eu-de")
    by_id = openstack(world, OS_USERNAME="alice", OS_PASSWORD=PASSWORD, OS_PROJECT_ID=world.project_id)
    by_key = openstack(
        world,
        OS_ACCESS_KEY=world.keys["access_key"],
        OS_SECRET_KEY=world.keys["secret_key"],
        OS_PROJECT_NAME="eu-de",
    )
    by_domain_id = {**by_name, "OS_USER_DOMAIN_NAME": "", "OS_USER_DOMAIN_ID": "default"}
    world.user("logout", "--forget")
    elsewhere = world.user(*get, **{**by_domain_id, "OS_USER_DOMAIN_ID": "0" * 32})
    assert elsewhere.returncode == 3, elsewhere.stderr
    for variables in (by_name, by_id, by_key, by_domain_id):
        done = world.user(*get, **variables)
        assert done.returncode == 0, done.stderr
        assert "Using the login in OpenStack's variables: " in done.stderr
        leaf_of(json.loads(done.stdout))
    world.log_in()
    kept = world.folder / "home" / ".config" / "clustercert" / "profiles" / "default.json"
    token = json.loads(kept.read_text())["token"]
    done = world.user(*get, "--from-env", **openstack(world, OS_TOKEN=token))
    assert done.returncode == 0, done.stderr
    bob = openstack(world, OS_USERNAME="bob", OS_PASSWORD=PASSWORD)
    assert "clustercert:viewers" in world.user(*get, "--from-env", **bob).stderr
    saved = world.user(*get, **bob)
    assert "clustercert:admins" in saved.stderr
    assert "OpenStack's variables are ignored: they need --from-env." in saved.stderr
    assert world.user(*get, "--from-env").returncode == 2


def test_incomplete_openstack_variables_are_refused(world: World) -> None:
    get = ("kubeconfig", "get", "prod", "--from-env")
    assert "OS_PASSWORD" in world.user(*get, **openstack(world, OS_USERNAME="alice")).stderr


def test_one_login_serves_all_projects(world: World) -> None:
    done = world.user("login", world.url, "--user", "alice", CLUSTERCERT_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert "in all your projects" in done.stderr
    test = world.operator.output_json(
        *("cluster", "add", "test", "--project", "eu-nl", "--internal-url", "https://10.0.0.6:6443"),
        *("--server-ca", world.folder / "server-ca.pem"),
    )
    listed = json.loads(world.user("clusters", "--output", "json").stdout)
    assert [(each["name"], each["project"]) for each in listed] == [("prod", "eu-de"), ("test", "eu-nl")]
    for cluster in ("prod", "test", test["id"]):
        got = world.user("kubeconfig", "get", cluster)
        assert got.returncode == 0, got.stderr

    twin = ("prod", "--project", "eu-nl", "--internal-url", "https://10.0.0.7:6443")
    world.operator.output("cluster", "add", *twin, "--server-ca", world.folder / "server-ca.pem")
    ambiguous = world.user("kubeconfig", "get", "prod")
    assert ambiguous.returncode == 1
    assert (
        "Several of your projects have a cluster named prod: eu-de, eu-nl. Add --project" in ambiguous.stderr
    )
    assert world.user("kubeconfig", "get", "prod", "--project", "eu-nl").returncode == 0
    world.log_in()
    assert world.user("kubeconfig", "get", "prod").returncode == 0
    for name in ("prod", "test"):
        world.operator.output("cluster", "remove", name, "--project", "eu-nl", "--yes")


def test_status_and_profiles_show_the_login(world: World) -> None:
    world.log_in()
    shown = world.user("status", "-o", "json", "--verbose")
    assert shown.returncode == 0, shown.stderr
    row = json.loads(shown.stdout)
    assert (row["service"], row["user"], row["projects"]) == (world.url, "alice", ["eu-de", "eu-nl"])
    assert row["cached_credentials"] == 0
    assert f"GET {world.url}/v3/auth/projects: 200, " in shown.stderr
    assert (
        world.user(
            "login", world.url, "-u", "bob", "--profile", "b", CLUSTERCERT_PASSWORD=PASSWORD
        ).returncode
        == 0
    )
    profiles = {each["name"]: each for each in json.loads(world.user("profile", "list", "-o", "json").stdout)}
    assert (profiles["b"]["user"], profiles["b"]["current"], profiles["default"]["current"]) == (
        "bob",
        False,
        True,
    )
    assert world.user("profile", "use", "b").returncode == 0
    assert json.loads(world.user("status", "-o", "json").stdout)["user"] == "bob"
    assert world.user("profile", "use", "default").returncode == 0
    assert "Did you mean default?" in world.user("profile", "use", "defult").stderr


def test_an_unreachable_service_has_its_own_exit_code(world: World) -> None:
    done = world.user("login", "http://127.0.0.1:1", "--user", "alice", CLUSTERCERT_PASSWORD=PASSWORD)
    assert done.returncode == 6
    assert "(Connection refused)" in done.stderr


def test_logout_works_with_a_revoked_token(world: World) -> None:
    world.log_in()
    world.operator.output("user", "set-password", "alice", "--password-file", world.folder / "password")
    done = world.user("logout")
    assert done.returncode == 0
    assert "could not be revoked" in done.stderr
