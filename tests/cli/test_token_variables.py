"""Jobs that use a token without a login: CLUSTERCERT_URL and CLUSTERCERT_TOKEN."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from clustercert.client.connection import presented_chain
from support.command_line import CommandResult, Operator
from support.exec_plugin import User, add_cluster, status_of
from support.operated_cluster import SERVICE_CA
from support.remote_user import RemoteUser
from support.user_site import UserSite, leaf_of

HOME = Path("home", ".config", "clustercert", "profiles", "default.json")


def token_of(world: UserSite, user: str) -> str:
    """Log in a user. Returns the token of the saved login."""
    world.log_in(user)
    return str(json.loads((world.folder / HOME).read_text())["token"])


@pytest.fixture
def job(world: UserSite, tmp_path: Path) -> "Job":
    home = tmp_path / "home"
    home.mkdir()
    return Job(world, home, token_of(world, "bob"))


class Job:
    """A job with an empty home directory and the token of bob."""

    def __init__(self, world: UserSite, home: Path, token: str) -> None:
        self.world, self.home, self.token = world, home, token

    def run(self, *arguments: str, **variables: str) -> CommandResult:
        pair = {"CLUSTERCERT_URL": self.world.url, "CLUSTERCERT_TOKEN": self.token}
        return RemoteUser(self.home).run(*arguments, **(pair | variables))


@pytest.mark.parametrize("shown", [("clusters",), ("certificate", "list"), ("project", "list"), ("status",)])
def test_commands_use_the_token_and_write_nothing(job: Job, shown: tuple[str, ...]) -> None:
    done = job.run(*shown, "--output", "json")
    # Bob is not an operator, which the service says after it accepted his token.
    assert done.code == (4 if shown[0] == "project" else 0), done.err
    assert f"Using the token in CLUSTERCERT_TOKEN: Default/bob at {job.world.url}.\n" in done.err
    assert job.token not in done.out + done.err
    assert list(job.home.iterdir()) == []


def test_a_kubeconfig_is_of_the_user_of_the_token(job: Job) -> None:
    done = job.run("kubeconfig", "get", "prod", "--local-key")
    assert done.code == 0, done.err
    kubeconfig = yaml.safe_load(done.out)
    assert kubeconfig["current-context"] == f"job-prod-{job.world.cluster_id[:8]}"
    assert "clustercert:viewers" in [
        each.value for each in leaf_of(kubeconfig).subject if each.oid == x509.NameOID.ORGANIZATION_NAME
    ]
    assert list(job.home.iterdir()) == []


def test_the_token_wins_over_a_saved_login_and_over_openstacks_variables(job: Job) -> None:
    token_of(job.world, "alice")
    home = str(job.world.folder / "home")
    for variables in ({}, {"OS_AUTH_URL": "https://127.0.0.1:9", "CLUSTERCERT_PROFILE": "default"}):
        done = job.run("status", "--output", "json", HOME=home, **variables)
        shown = json.loads(done.out)
        assert (shown["user"], shown["profile"], shown["other_logins"]) == ("bob", None, [])
        assert shown["renewal"] == "none, because the login is in environment variables"
    done = job.run("clusters", "--from-env", HOME=home, OS_AUTH_URL="https://127.0.0.1:9")
    assert (done.code, done.out) == (2, "")
    assert "--from-env excludes CLUSTERCERT_URL and CLUSTERCERT_TOKEN. Unset both." in done.err


def test_the_exec_plugin_uses_the_token_and_caches_nothing(job: Job) -> None:
    world = job.world
    alice = token_of(world, "alice")
    arguments = ("credential", world.cluster_id, "--profile", "default", "--project", world.project_id)
    assert alice != job.token
    home = world.folder / "home"
    assert world.user(*arguments).code == 0
    cached = {path: path.read_bytes() for path in (home / ".cache").rglob("*") if path.is_file()}

    certificates = set()
    for call in (arguments, arguments, ("credential", "prod"), ("credential", world.cluster_id)):
        done = job.run(*call, HOME=str(home))
        assert (done.code, done.err) == (0, "")
        pem = status_of(done.out)["clientCertificateData"]
        leaf = x509.load_pem_x509_certificate(pem.encode())
        assert "clustercert:viewers" in [attribute.value for attribute in leaf.subject]
        certificates.add(pem)

    assert len(certificates) == 4
    assert {path: path.read_bytes() for path in (home / ".cache").rglob("*") if path.is_file()} == cached


@pytest.mark.parametrize(
    ("given", "missing"),
    [("CLUSTERCERT_URL", "CLUSTERCERT_TOKEN"), ("CLUSTERCERT_TOKEN", "CLUSTERCERT_URL")],
)
@pytest.mark.parametrize("command", [("clusters",), ("credential", "prod"), ("login",)])
def test_one_variable_alone_is_an_error(job: Job, command: tuple[str, ...], given: str, missing: str) -> None:
    done = job.run(*command, **{missing: ""})
    assert (done.code, done.out) == (2, "")
    assert f"{given} is set, but not {missing}. Set {missing} too" in done.err


@pytest.mark.parametrize("command", ["clusters", "credential"])
@pytest.mark.parametrize(
    ("variables", "code", "text"),
    [
        ({"CLUSTERCERT_URL": "http://192.0.2.1"}, 2, "CLUSTERCERT_URL must begin with https://"),
        ({"CLUSTERCERT_TOKEN": "unknown"}, 3, "does not accept the token in CLUSTERCERT_TOKEN."),
        ({"CLUSTERCERT_TOKEN": "a.b.c"}, 1, "This is not a token of an OIDC issuer"),
        ({"CLUSTERCERT_CA_FILE": "a", "CLUSTERCERT_CA_FINGERPRINT": "b"}, 2, "are both set. Set only one"),
        ({"CLUSTERCERT_CA_FINGERPRINT": "b"}, 2, "must be a SHA-256 fingerprint: 64 hex digits."),
    ],
)
def test_wrong_variables_are_named(
    job: Job, command: str, variables: dict[str, str], code: int, text: str
) -> None:
    cluster = ("prod",) if command == "credential" else ()
    done = job.run(command, *cluster, **variables)
    assert (done.code, done.out) == (code, "")
    assert text in done.err


def test_there_is_nothing_to_log_in_to(job: Job) -> None:
    done = job.run("login", "https://192.0.2.1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "Error: CLUSTERCERT_URL and CLUSTERCERT_TOKEN are set, so commands need no login. Unset both to log in.\n"
    )


@pytest.fixture
def deployer(made: tuple[Operator, str], tmp_path: Path) -> Iterator[User]:
    """A user with a cluster, at a service whose CA is private."""
    operator, url = made
    name = f"user-{tmp_path.name[-40:].strip('-').lower()}"
    user = User.create(operator, url, tmp_path / "home", name)
    cluster_id = add_cluster(operator, name, operator.folder / SERVICE_CA)
    yield user
    operator.output("cluster", "remove", cluster_id, "--yes")


def test_a_job_trusts_the_service_by_fingerprint_or_file(deployer: User, tmp_path: Path) -> None:
    deployer.log_in()
    profile = deployer.home / ".config" / "clustercert" / "profiles" / "default.json"
    nowhere = tmp_path / "nowhere"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(nowhere),
        "CLUSTERCERT_URL": deployer.url,
        "CLUSTERCERT_TOKEN": json.loads(profile.read_text())["token"],
    }
    *_, root = presented_chain(deployer.url)
    for trust in (
        {"CLUSTERCERT_CA_FINGERPRINT": root.fingerprint},
        {"CLUSTERCERT_CA_FILE": str(deployer.operator.folder / SERVICE_CA)},
    ):
        plugin = deployer.run("credential", deployer.name, env=variables | trust)
        assert (plugin.returncode, plugin.stderr) == (0, "")
        x509.load_pem_x509_certificate(status_of(plugin.stdout)["clientCertificateData"].encode())
    assert deployer.issued(json.loads(deployer.output("clusters", "-o", "json"))[0]["id"]) == 2
    untrusted = deployer.run("credential", deployer.name, env=variables)
    assert (untrusted.returncode, untrusted.stdout) == (6, "")
    assert "is not trusted" in untrusted.stderr
    other = deployer.run(
        "credential", deployer.name, env=variables | {"CLUSTERCERT_CA_FINGERPRINT": "00" * 32}
    )
    assert (other.returncode, other.stdout) == (6, "")
    assert "sends no certificate with the fingerprint" in other.stderr
    assert not nowhere.exists()
