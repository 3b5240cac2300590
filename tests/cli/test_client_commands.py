"""`login`, `status` and `logout` against a running service."""

import json
import os
import resource
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from support.command_line import PASSWORD
from support.stores import execute
from support.user_site import UserSite, assert_lives, leaf_of
from support.wait import SECONDS


def test_a_login_by_password_keeps_a_token_and_no_password(world: UserSite) -> None:
    world.log_in()

    kept = world.folder / "home" / ".config" / "clustercert" / "profiles" / "default.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    profile = json.loads(kept.read_text())
    assert (profile["user"], profile["project_id"]) == ("alice", world.project_id)
    assert PASSWORD not in kept.read_text()
    done = world.user("kubeconfig", "get", "prod")
    assert done.code == 0, done.err
    kubeconfig = yaml.safe_load(done.out)
    for field in ("clusters", "users", "contexts"):
        assert [entry["name"] for entry in kubeconfig[field]] == [f"default-prod-{world.cluster_id[:8]}"]
    assert "insecure-skip-tls-verify" not in done.out
    asked_at = datetime.now(UTC)
    done = world.user("kubeconfig", "get", "prod", "--cce-names")
    assert "will not check the certificate of https://203.0.113.5:6443" in done.err
    kubeconfig = yaml.safe_load(done.out)
    assert [cluster["name"] for cluster in kubeconfig["clusters"]] == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
    ]
    assert_lives(kubeconfig, timedelta(hours=8), asked_at)
    assert "clustercert:admins" in done.err

    assert world.user("logout").code == 0
    assert json.loads(kept.read_text())["token"] is None
    assert (
        world.database(
            "SELECT count(*) FROM token JOIN user ON user.id = token.user_id WHERE user.name = 'alice'"
        )[0][0]
        == 0
    )
    refused = world.user("kubeconfig", "get", "prod")
    assert (refused.code, refused.out) == (3, "")
    assert "Run `clustercert login`" in refused.err
    # The address and the user are remembered.
    again = world.user("login", CLUSTERCERT_PASSWORD=PASSWORD)
    assert again.code == 0, again.err
    assert f"Logging in to {world.url} as Default/alice." in again.err
    assert world.user("logout", "--forget").code == 0
    assert not kept.exists()
    assert "clustercert login URL" in world.user("login").err


def test_a_revoked_login_asks_for_a_new_login(world: UserSite) -> None:
    world.log_in()
    execute(world.folder / "data" / "clustercert.db", "DELETE FROM token")
    done = world.user("kubeconfig", "get", world.cluster_id)
    assert (done.code, done.out) == (3, "")
    assert "Run `clustercert login` again, or ask an operator" in done.err
    assert world.user("status").code == 3
    assert world.user("logout").code == 0


def test_a_login_by_access_key_signs_each_request(world: UserSite) -> None:
    secret = world.folder / "secret"
    secret.write_text(world.keys["secret_key"])
    options = ("--access-key", world.keys["access_key"], "--secret-file", secret)
    everywhere = world.user("login", world.url, *options, "--profile", "everywhere")
    assert everywhere.code == 0
    assert "Logged in as Default/alice in all your projects" in everywhere.err
    shown = json.loads(world.user("status", "--profile", "everywhere", "-o", "json").out)
    assert (shown["user"], shown["method"]) == ("alice", "access key")
    assert world.user("kubeconfig", "get", "prod", "--profile", "everywhere").code == 0
    done = world.user("login", world.url, *options, "--project", world.project_id, "--profile", "key")
    assert done.code == 0, done.err
    assert world.keys["secret_key"] not in done.err

    asked_at = datetime.now(UTC)
    got = world.user(
        "kubeconfig", "get", world.cluster_id, "--profile", "key", "--duration", "1", "-o", "json"
    )

    assert got.code == 0, got.err
    assert_lives(json.loads(got.out), timedelta(days=1), asked_at)
    assert world.user("logout", CLUSTERCERT_PROFILE="key").code == 0


def test_status_shows_the_saved_login_without_the_service(world: UserSite, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    world.log_in(**home)
    key = ("--access-key", world.keys["access_key"], "--secret-file", "-")
    made = world.user(
        *("login", world.url, *key, "--profile", "key", "--output", "json"),
        stdin=world.keys["secret_key"],
        **home,
    )
    printed = json.loads(made.out)
    assert (printed["user"], printed["profile"], printed["method"]) == ("alice", "key", "access key")
    assert (printed["expires_at"], printed["renewal"]) == (None, "not needed")
    assert world.keys["secret_key"] not in made.out
    saved = tmp_path / ".config" / "clustercert" / "profiles" / "default.json"
    online = json.loads(world.user("status", "-o", "json", **home).out)
    assert (online["checked"], online["service_roles"]) == (True, [])
    assert [(each["domain"], each["name"], each["roles"]) for each in online["projects"]] == [
        ("Default", "eu-de", ["admin"]),
        ("Default", "eu-nl", ["admin"]),
    ]
    assert online["projects"][0]["id"] == world.project_id
    assert (online["user_domain"], online["project_domain"]) == ("Default", "Default")
    assert online["renewal"] == "with `clustercert login`"

    saved.write_text(saved.read_text().replace(world.url, "http://127.0.0.1:9"))
    done = world.user("status", "-o", "json", **home)
    assert done.code == 6
    assert done.err == (
        "Error: Can't connect to http://127.0.0.1:9 (Connection refused). Check the address, and that the service is "
        "running. Only the saved login is shown.\n"
    )
    shown = json.loads(done.out)
    assert (shown["user"], shown["project"], shown["checked"]) == ("alice", "eu-de", False)
    assert (shown["expires_at"], shown["projects"]) == (online["expires_at"], None)
    fields = [line.split()[0] for line in world.user("status", **home).out.splitlines()[1:]]
    assert fields == [
        *("service", "user", "profile", "method", "expires_at", "renewal", "user_domain", "project"),
        *("project_domain", "checked", "cached_credentials", "access_requests", "other_logins"),
    ]
    other = {"service": world.url, "user": "alice", "user_domain": "Default", "logged_in": True}
    assert shown["other_logins"] == [{"profile": "key", **other}]
    saved.unlink()
    missing = world.user("status", **home)
    assert (missing.code, missing.out) == (3, "")
    assert f"Other saved logins: key: Default/alice at {world.url}. Choose one with" in missing.err


def test_a_failed_login_elsewhere_keeps_the_saved_login(world: UserSite, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    world.log_in(**home)
    file = tmp_path / ".config" / "clustercert" / "profiles" / "default.json"
    saved = file.read_bytes()
    # The same service has another address here.
    elsewhere = world.url.replace("127.0.0.1", "localhost")
    refused = world.user(
        *("login", elsewhere, "--user", "alice", "--profile", "default"), CLUSTERCERT_PASSWORD="bad", **home
    )
    assert (refused.code, file.read_bytes()) == (3, saved)
    # Without --profile, the address is saved in a new profile.
    refused = world.user("login", elsewhere, "--user", "alice", CLUSTERCERT_PASSWORD="bad", **home)
    assert (refused.code, file.read_bytes()) == (3, saved)
    name = elsewhere.removeprefix("http://").replace(":", "-")
    listed = {
        each["name"]: each for each in json.loads(world.user("profile", "list", "-o", "json", **home).out)
    }
    assert (listed[name]["service"], listed[name]["logged_in"]) == (elsewhere, False)
    assert listed["default"]["current"] is True


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (["alice"], "Default. For a user of another domain, add --user DOMAIN/alice."),
        (["alice", "--domain", "Default"], "Default. Check the spelling of the domain too."),
        (["globex/alice"], "globex. Check the spelling of the domain too."),
    ],
)
def test_a_wrong_password_says_what_to_check(world: UserSite, user: list[str], said: str) -> None:
    done = world.user("login", world.url, "--user", *user, CLUSTERCERT_PASSWORD="wrong horse")
    assert (done.code, done.out) == (3, "")
    assert done.err.endswith(
        f"Error: Wrong user name or password. The user was looked up in the domain {said}\n"
    )
    assert "wrong horse" not in done.err


def test_the_domain_can_be_written_before_the_user(world: UserSite, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "CLUSTERCERT_PASSWORD": PASSWORD}
    saved_in = tmp_path / ".config" / "clustercert" / "profiles" / "default.json"
    world.operator.output("domain", "create", "globex")
    world.operator.output(
        "user", "create", "mira", "--domain", "globex", "--password-file", world.folder / "password"
    )
    for user in (["globex/mira"], ["globex/mira", "--domain", "globex"], ["mira", "--domain", "globex"]):
        done = world.user("login", world.url, "--user", *user, **home)
        assert done.code == 0, done.err
        saved = json.loads(saved_in.read_text())
        assert (saved["user"], saved["domain"]) == ("mira", "globex")
    both = world.user("login", world.url, "--user", "globex/mira", "--domain", "Default", **home)
    assert both.code == 2
    assert "--user and --domain name different domains." in " ".join(both.err.split())


def test_without_a_terminal_login_names_the_missing_option(world: UserSite) -> None:
    assert "--user" in world.user("login", world.url, HOME=str(world.folder / "nobody")).err
    assert "CLUSTERCERT_PASSWORD" in world.user("login", world.url, "--user", "alice").err
    both = world.user("login", world.url, "--user", "alice", "--access-key", "AK")
    assert both.code == 2


def openstack(world: UserSite, **more: str) -> dict[str, str]:
    return {"OS_AUTH_URL": f"{world.url}/v3", "OS_USER_DOMAIN_NAME": "Default", **more}


def test_openstack_variables_are_a_login(world: UserSite) -> None:
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
    assert elsewhere.code == 3, elsewhere.err
    for variables in (by_name, by_id, by_key, by_domain_id):
        done = world.user(*get, **variables)
        assert done.code == 0, done.err
        assert "Using the login in OpenStack's variables: " in done.err
        leaf_of(json.loads(done.out))
    world.log_in()
    kept = world.folder / "home" / ".config" / "clustercert" / "profiles" / "default.json"
    token = json.loads(kept.read_text())["token"]
    done = world.user(*get, "--from-env", **openstack(world, OS_TOKEN=token))
    assert done.code == 0, done.err
    bob = openstack(world, OS_USERNAME="bob", OS_PASSWORD=PASSWORD)
    assert "clustercert:viewers" in world.user(*get, "--from-env", **bob).err
    saved = world.user(*get, **bob)
    assert "clustercert:admins" in saved.err
    assert "OpenStack's variables are ignored. To use them, add --from-env." in saved.err
    assert world.user(*get, "--from-env").code == 2


def test_incomplete_openstack_variables_are_refused(world: UserSite) -> None:
    get = ("kubeconfig", "get", "prod", "--from-env")
    assert "OS_PASSWORD" in world.user(*get, **openstack(world, OS_USERNAME="alice")).err


def test_one_login_serves_all_projects(world: UserSite) -> None:
    done = world.user("login", world.url, "--user", "alice", CLUSTERCERT_PASSWORD=PASSWORD)
    assert done.code == 0, done.err
    assert "in all your projects" in done.err
    test = world.operator.output_json(
        *("cluster", "add", "test", "--project", "eu-nl", "--internal-url", "https://10.0.0.6:6443"),
        *("--server-ca", world.folder / "server-ca.pem"),
    )
    listed = json.loads(world.user("clusters", "--output", "json").out)
    assert [(each["name"], each["project"]) for each in listed] == [("prod", "eu-de"), ("test", "eu-nl")]
    for cluster in ("prod", "test", test["id"]):
        got = world.user("kubeconfig", "get", cluster)
        assert got.code == 0, got.err

    twin = ("prod", "--project", "eu-nl", "--internal-url", "https://10.0.0.7:6443")
    world.operator.output("cluster", "add", *twin, "--server-ca", world.folder / "server-ca.pem")
    ambiguous = world.user("kubeconfig", "get", "prod")
    assert ambiguous.code == 2
    assert (
        "Several projects have a cluster named prod. Write Default/eu-de/prod or Default/eu-nl/prod."
        in ambiguous.err
    )
    assert world.user("explain", "prod").err == ambiguous.err
    foreign = world.user("kubeconfig", "get", "acme/eu-nl/prod")
    assert (foreign.code, foreign.out) == (5, "")
    assert foreign.err == (
        "Error: You have no role in a project of the domain acme. Your projects are in Default. You are logged in as "
        "Default/alice.\n"
    )
    for name in ("eu-nl/prod", "Default/eu-nl/prod"):
        assert world.user("kubeconfig", "get", name).code == 0
    for project in ("eu-nl", "Default/eu-nl"):
        assert world.user("kubeconfig", "get", "prod", "--project", project).code == 0
    world.log_in()
    assert world.user("kubeconfig", "get", "prod").code == 0
    explained = json.loads(world.user("explain", "prod", "--output", "json").out)
    chosen = world.operator.output_json("cluster", "show", "prod", "--project", "eu-de")
    assert explained["cluster"]["id"] == chosen["id"]
    for name in ("prod", "test"):
        world.operator.output("cluster", "remove", name, "--project", "eu-nl", "--yes")


def test_a_merge_that_the_policy_would_refuse_writes_nothing(world: UserSite) -> None:
    config = world.folder / "home" / ".kube" / "config"
    world.log_in("bob")
    refused = world.user("kubeconfig", "merge", "prod", "--expires-in", "2h")
    assert refused.code == 4
    assert "--expires-in 2h is longer than the longest lifetime for prod (1 hour)." in refused.err
    world.log_in("eve")
    refused = world.user("kubeconfig", "merge", "prod")
    assert refused.code == 4
    assert f"`clustercert explain {world.cluster_id} --csr` says why." in refused.err
    shown = world.user("clusters", "-o", "csv").out.splitlines()
    assert dict(zip(shown[0].split(","), shown[1].split(","), strict=False))["groups"] == "[]"
    assert not config.exists()


def test_status_and_profiles_show_the_login(world: UserSite) -> None:
    world.log_in()
    shown = world.user("status", "-o", "json", "--verbose")
    assert shown.code == 0, shown.err
    row = json.loads(shown.out)
    assert (row["service"], row["user"]) == (world.url, "alice")
    assert [each["name"] for each in row["projects"]] == ["eu-de", "eu-nl"]
    assert row["cached_credentials"] == 0
    assert row["user_id"] == world.operator.output_json("user", "show", "alice")["id"]
    assert f"GET {world.url}/clustercert/v1/caller: 200, " in shown.err
    assert (
        world.user("login", world.url, "--user", "bob", "--profile", "b", CLUSTERCERT_PASSWORD=PASSWORD).code
        == 0
    )
    profiles = {each["name"]: each for each in json.loads(world.user("profile", "list", "-o", "json").out)}
    assert (profiles["b"]["user"], profiles["b"]["current"], profiles["default"]["current"]) == (
        "bob",
        False,
        True,
    )
    assert world.user("profile", "use", "b").code == 0
    assert json.loads(world.user("status", "-o", "json").out)["user"] == "bob"
    assert world.user("profile", "use", "default").code == 0
    assert "Did you mean default?" in world.user("profile", "use", "defult").err


def test_an_unreachable_service_has_its_own_exit_code(world: UserSite) -> None:
    done = world.user("login", "http://127.0.0.1:1", "--user", "alice", CLUSTERCERT_PASSWORD=PASSWORD)
    assert done.code == 6
    assert "(Connection refused)" in done.err


def test_logout_works_with_a_revoked_token(world: UserSite) -> None:
    world.log_in()
    world.operator.output("user", "set-password", "alice", "--password-file", world.folder / "password")
    done = world.user("logout")
    assert done.code == 0
    assert "could not be revoked" in done.err


def test_logout_revokes_the_token_although_the_disk_is_full(world: UserSite) -> None:
    world.log_in()
    before = world.database("SELECT * FROM token")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-m", "clustercert", "logout"],
        env={"HOME": str(world.folder / "home"), "PATH": os.environ["PATH"]},
        preexec_fn=no_room,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert len(world.database("SELECT * FROM token")) == len(before) - 1
