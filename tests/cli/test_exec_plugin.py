"""`clustercert credential`, the exec plugin, against a running service."""

import json
import os
import resource
import shutil
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clustercert.model import rfc3339
from support import shifted_clock
from support.command_line import Operator
from support.exec_plugin import COMMAND, PATIENT, User, add_cluster, status_of
from support.leaf_checks import BACKDATE
from support.operated_cluster import SERVICE_CA
from support.wait import SECONDS

INFO = '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/%s","spec":{"interactive":false}}'


@dataclass(frozen=True)
class Plugin:
    """A user with a cluster of the same name, and the arguments that `kubeconfig merge` writes.

    Attributes:
        earlier: the number of certificates that the user had before the test.
    """

    user: User
    cluster_id: str
    project_id: str
    earlier: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("credential", self.cluster_id, "--profile", "default", "--project", self.project_id)

    @property
    def cache_file(self) -> Path:
        return self.user.cache / f"default,{self.project_id},{self.cluster_id}"

    @property
    def issued(self) -> int:
        """The number of certificates that the test got."""
        return self.user.issued(self.cluster_id) - self.earlier

    def credential(self, *options: str, **variables: str) -> str:
        return self.user.output(*self.arguments, *options, **variables)

    @property
    def times(self) -> tuple[int, int]:
        """When the cached credential is renewed, and when it expires."""
        _, _, renew, expires, *_ = self.cache_file.read_text().partition("\n")[0].split(" ")
        return int(renew), int(expires)

    def age(self, *, is_due: bool = True) -> None:
        """Make the cached credential due for renewal, or else for the question about its CA. It stays valid."""
        header, _, body = self.cache_file.read_text().partition("\n")
        fields, now = header.split(" "), int(time.time())
        if is_due:
            # A tenth of the lifetime is left.
            fields[1] = str(now - 9 * (int(fields[3]) - now))
        fields[2] = str(now - 1)
        self.cache_file.write_text(f"{' '.join(fields)}\n{body}")


def new_plugin(operator: Operator, url: str, home: Path, name: str) -> Plugin:
    """A new user who is logged in, with a new cluster."""
    user = User.create(operator, url, home, name)
    cluster_id = add_cluster(operator, name, operator.folder / SERVICE_CA)
    user.log_in()
    return Plugin(user, cluster_id, user.project_id)


@pytest.fixture(scope="module")
def shared(made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """A user with a cluster. Only `plugin` uses the home directory."""
    found = new_plugin(*made, tmp_path_factory.mktemp("shared") / "home", "plugin")
    yield found
    made[0].output("cluster", "remove", found.cluster_id, "--yes")


@pytest.fixture
def plugin(shared: Plugin, tmp_path: Path) -> Plugin:
    """The user on a new machine, with the same login."""
    home = tmp_path / "home"
    shutil.copytree(shared.user.home, home)
    return replace(shared, user=replace(shared.user, home=home), earlier=shared.issued)


@pytest.fixture
def own_plugin(made: tuple[Operator, str], tmp_path: Path) -> Iterator[Plugin]:
    """A new user, whose role and login a test can change, with a cluster."""
    name = f"user-{tmp_path.name[-40:].strip('-').lower()}"
    found = new_plugin(*made, tmp_path / "home", name)
    yield found
    made[0].output("cluster", "remove", found.cluster_id, "--yes")


def make_unreachable(plugin: Plugin) -> None:
    """Let the login name a port on which nothing listens, as if the cached certificate came from there."""
    path = plugin.user.home / ".config" / "clustercert" / "profiles" / "default.json"
    path.write_text(path.read_text().replace(plugin.user.url, "https://127.0.0.1:9"))
    if plugin.cache_file.exists():
        header, _, body = plugin.cache_file.read_text().partition("\n")
        status = path.stat()
        fields = [*header.split(" ")[:10], f"{status.st_mtime_ns}:{status.st_ino}", str(path)]
        plugin.cache_file.write_text(f"{' '.join(fields)}\n{body}")


def test_the_plugin_gets_a_certificate_with_the_arguments_of_the_services_kubeconfig(plugin: Plugin) -> None:
    profile = plugin.user.home / ".config" / "clustercert" / "profiles" / "default.json"
    headers = {"X-Auth-Token": json.loads(profile.read_text())["token"]}
    context = ssl.create_default_context(cafile=plugin.user.operator.folder / SERVICE_CA)
    path = f"{plugin.user.url}/clustercert/v1/clusters/{plugin.cluster_id}/kubeconfig"
    document = httpx2.get(path, headers=headers, verify=context, timeout=SECONDS).raise_for_status().json()

    arguments = document["users"][0]["user"]["exec"]["args"]
    leaf = x509.load_pem_x509_certificate(
        status_of(plugin.user.output(*arguments))["clientCertificateData"].encode()
    )
    assert leaf.not_valid_after_utc > datetime.now(UTC)
    assert plugin.cache_file.exists()


def test_a_long_lived_certificate_is_renewed_when_its_ca_is_replaced(plugin: Plugin) -> None:
    long = ("--expires-in", "30d")
    first = plugin.credential(*long)
    renew, expires = plugin.times
    assert renew - time.time() <= timedelta(hours=8).total_seconds()
    assert expires - renew > timedelta(days=29).total_seconds()
    plugin.age(is_due=False)
    assert plugin.credential(*long) == first
    assert (plugin.issued, plugin.times[0] > time.time()) == (1, True)

    # The certificate of another cluster stands for one from the CA that was replaced.
    operator = plugin.user.operator
    other = add_cluster(operator, f"{plugin.user.name}-2", operator.folder / SERVICE_CA)
    try:
        old = plugin.user.output(*("credential", other, *plugin.arguments[2:]), *long)
        plugin.cache_file.write_bytes(
            plugin.cache_file.with_name(f"default,{plugin.project_id},{other}").read_bytes()
        )
        assert plugin.credential(*long) == old
        plugin.age(is_due=False)
        assert plugin.credential(*long) not in (first, old)
        assert plugin.issued == 2
    finally:
        operator.output("cluster", "remove", other, "--yes")

    # Without the service, the certificate stays in use.
    newest = plugin.cache_file.read_text().partition("\n")[2]
    make_unreachable(plugin)
    plugin.age(is_due=False)
    assert plugin.credential(*long) == newest


def test_the_second_call_comes_from_the_cache(own_plugin: Plugin) -> None:
    first = own_plugin.credential()

    status = status_of(first)
    leaf = x509.load_pem_x509_certificate(status["clientCertificateData"].encode())
    key = load_pem_private_key(status["clientKeyData"].encode(), password=None)
    assert key.public_key() == leaf.public_key()
    early = leaf.not_valid_after_utc - datetime.fromisoformat(status["expirationTimestamp"])
    assert timedelta(0) < early < timedelta(minutes=5)
    assert stat.S_IMODE(own_plugin.user.cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in own_plugin.user.cache.iterdir()} == {0o600}
    second = own_plugin.user.run(*own_plugin.arguments)
    assert (second.returncode, second.stdout, second.stderr) == (0, first, "")
    assert own_plugin.issued == 1
    assert own_plugin.user.key_origins(own_plugin.cluster_id) == ["csr"]


@pytest.mark.parametrize("hours", [5, pytest.param(-5, marks=pytest.mark.full)])
def test_a_wrong_clock_changes_neither_the_lifetime_nor_the_time_of_renewal(
    plugin: Plugin, hours: int
) -> None:
    """The clock of the user's machine is hours ahead of the service's clock, or behind."""
    clock, wrong = shifted_clock.command(hours), timedelta(hours=hours)
    arguments = (*plugin.arguments, "--expires-in", "1h")

    first, second = (plugin.user.run(*arguments, command=clock) for _ in range(2))

    assert (first.returncode, first.stderr) == (0, "")
    assert second.stdout == first.stdout
    assert plugin.issued == 1
    status = status_of(first.stdout)
    leaf = x509.load_pem_x509_certificate(status["clientCertificateData"].encode())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE == timedelta(hours=1)
    shown = datetime.fromisoformat(status["expirationTimestamp"])
    assert abs(shown - wrong - leaf.not_valid_after_utc) < timedelta(minutes=5)
    issued, renew, expires = map(int, plugin.cache_file.read_text().split(" ")[1:4])
    assert (renew - issued, expires - issued) == (48 * 60, 3600)


@pytest.mark.parametrize("hours", [pytest.param(500 * 24, marks=pytest.mark.full), 25, 2])
def test_a_failure_ends_when_a_clock_that_was_ahead_is_set(plugin: Plugin, hours: int) -> None:
    """With a login that seemed to have expired, or a proxy that was down at that moment."""
    is_expired = hours > 24
    proxy = "" if is_expired else "http://127.0.0.1:9"
    failed = plugin.user.run(*plugin.arguments, command=shifted_clock.command(hours), https_proxy=proxy)
    assert failed.returncode == (3 if is_expired else 6)

    status_of(plugin.credential())


@pytest.mark.parametrize("remedy", ["login", "merge", "--refresh"])
def test_a_remembered_failure_is_deleted(plugin: Plugin, remedy: str) -> None:
    lock = plugin.cache_file.with_name(f"{plugin.cache_file.name}.lock")
    assert plugin.user.run(*plugin.arguments, https_proxy="http://127.0.0.1:9").returncode == 6
    assert "127.0.0.1:9" in lock.read_text()
    match remedy:
        case "login":
            plugin.user.log_in()
        case "merge":
            plugin.user.output("kubeconfig", "merge", plugin.cluster_id)
        case _:
            plugin.credential("--refresh")
    assert lock.read_text() == ""


@pytest.mark.parametrize("calls", [3, pytest.param(50, marks=pytest.mark.long)])
def test_parallel_calls_cause_one_request(plugin: Plugin, calls: int) -> None:
    with ThreadPoolExecutor(calls) as pool:
        outputs = list(pool.map(lambda _: plugin.user.run(*plugin.arguments, command=PATIENT), range(calls)))

    assert {done.returncode for done in outputs} == {0}
    assert len({done.stdout for done in outputs}) == 1
    assert plugin.issued == 1


def test_the_end_of_a_login_is_said_once(plugin: Plugin) -> None:
    def said(*options: str) -> str:
        done = plugin.user.run(*plugin.arguments, *options)
        assert done.returncode == 0
        return done.stderr

    file = plugin.user.home / ".config" / "clustercert" / "profiles" / "default.json"
    saved = json.loads(file.read_text())
    ends_at = datetime.fromisoformat(saved["expires_at"])
    assert said() == ""
    # The last hour of the login begins while its certificate is cached.
    header, _, body = plugin.cache_file.read_text().partition("\n")
    fields = header.split(" ")
    assert datetime.fromtimestamp(int(fields[4]), UTC) == ends_at.replace(microsecond=0) - timedelta(hours=1)
    plugin.cache_file.write_text(f"{' '.join([*fields[:4], '1', *fields[5:]])}\n{body}")
    reminder = f"clustercert: Your login at {plugin.user.url} ends at %s. Run `clustercert login`.\n"
    assert said() == reminder % rfc3339(ends_at)
    # Later calls don't import the modules that print the reminder.
    assert plugin.cache_file.read_text() == f"{' '.join([*fields[:4], '0', *fields[5:]])}\n{body}"
    assert (said(), "ends at" in said("--refresh")) == ("", False)
    # The next login is short.
    ends_at = datetime.now(UTC) + timedelta(minutes=50)
    file.write_text(json.dumps(saved | {"expires_at": ends_at.isoformat()}))
    assert said() == reminder % rfc3339(ends_at)
    assert (said(), "ends at" in said("--refresh")) == ("", False)


def test_parallel_calls_share_a_failure(plugin: Plugin) -> None:
    make_unreachable(plugin)

    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(lambda _: plugin.user.run(*plugin.arguments, command=PATIENT), range(3)))

    assert {(done.returncode, done.stdout) for done in outputs} == {(6, "")}
    assert all("https://127.0.0.1:9" in done.stderr for done in outputs)


def test_a_cache_hit_imports_only_cheap_modules(plugin: Plugin) -> None:
    cached = plugin.credential()
    script = (
        f"import sys; sys.argv[1:] = {list(plugin.arguments)!r}; before = set(sys.modules)\n"
        "from clustercert.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted(set(sys.modules) - before), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        # Coverage would import its own modules.
        env={k: v for k, v in plugin.user.environment.items() if not k.startswith("COVERAGE")},
    )

    assert done.stdout == cached
    assert [name for name in json.loads(done.stderr.replace("'", '"')) if name != "time"] == [
        "clustercert",
        "clustercert.__main__",
        "clustercert.cli",
        "clustercert.cli.clock",
        "clustercert.cli.credential",
        "clustercert.cli.credential.cache",
        "clustercert.cli.credential.entry",
        "clustercert.cli.credential.request",
        "clustercert.file_names",
    ]


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_the_version_that_kubectl_asks_for_is_answered(plugin: Plugin, version: str) -> None:
    for _ in range(2):
        output = plugin.credential(KUBERNETES_EXEC_INFO=INFO % version)
        assert json.loads(output)["apiVersion"] == f"client.authentication.k8s.io/{version}"


@pytest.mark.parametrize("info", [INFO % "v1alpha1", "{", "[]", '{"kind": "ExecCredential"}'])
def test_an_unknown_exec_info_is_refused(plugin: Plugin, info: str) -> None:
    done = plugin.user.run(*plugin.arguments, KUBERNETES_EXEC_INFO=info)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_the_cluster_can_come_from_provide_cluster_info(plugin: Plugin) -> None:
    config = {"profile": "default", "project_id": plugin.project_id, "cluster_id": plugin.cluster_id}
    info = json.loads(INFO % "v1")
    info["spec"]["cluster"] = {"server": "https://10.0.0.5:6443", "config": config}

    first = plugin.user.output("credential", KUBERNETES_EXEC_INFO=json.dumps(info))

    assert plugin.credential() == first
    nameless = plugin.user.run("credential", KUBERNETES_EXEC_INFO=INFO % "v1")
    assert nameless.returncode == 2
    assert "provideClusterInfo" in nameless.stderr


def test_the_service_can_create_the_key(own_plugin: Plugin) -> None:
    status_of(own_plugin.credential("--service-key"))
    assert own_plugin.user.key_origins(own_plugin.cluster_id) == ["generated"]


def test_refresh_replaces_a_cached_certificate(plugin: Plugin) -> None:
    first = plugin.credential()
    renewed = plugin.user.run(*plugin.arguments, "--refresh")
    name = plugin.user.name
    assert renewed.stderr == f"clustercert: Renewed for Default/{name} in Default/eu-de/{name}.\n"
    second = renewed.stdout
    assert second != first
    assert plugin.credential() == second
    assert plugin.issued == 2


def test_a_cluster_has_one_certificate_however_it_is_named(plugin: Plugin) -> None:
    first = plugin.credential("--service-key")
    name = plugin.user.name
    calls = (
        (name,),
        (name, "--project", plugin.project_id),
        (name, "--project", "eu-de", "--profile", "default"),
        (plugin.cluster_id,),
    )
    assert {plugin.user.output("credential", *call) for call in calls} == {first}
    for number, call in enumerate(calls):
        refreshed = plugin.user.output("credential", *call, "--refresh")
        assert plugin.credential() == plugin.credential("--service-key") == refreshed
        assert plugin.issued == number + 2
    assert [path for path in plugin.user.cache.iterdir() if path.suffix != ".lock"] == [plugin.cache_file]


def test_a_misspelled_variable_is_a_warning_if_the_service_is_asked(plugin: Plugin) -> None:
    misspelled = {"CLUSTERCERT_PROFLE": "work"}
    asked, cached = (
        plugin.user.run(*plugin.arguments, env=plugin.user.environment | misspelled) for _ in range(2)
    )
    assert asked.returncode == 0
    assert asked.stderr == (
        "Warning: The environment variable CLUSTERCERT_PROFLE is not a setting and has no effect. "
        "Did you mean CLUSTERCERT_PROFILE?\n"
    )
    assert (cached.returncode, cached.stdout, cached.stderr) == (0, asked.stdout, "")


def test_a_due_certificate_is_renewed(plugin: Plugin) -> None:
    first = plugin.credential()
    plugin.age()
    assert plugin.credential() != first
    assert plugin.issued == 2


def test_a_due_certificate_is_used_while_the_service_is_unreachable(plugin: Plugin) -> None:
    first = plugin.credential()
    plugin.age()
    due = int(plugin.cache_file.read_text().split(" ")[2])
    make_unreachable(plugin)

    assert plugin.credential() == first
    assert int(plugin.cache_file.read_text().split(" ")[2]) > due, "the next call would try at once"


def test_without_a_login_it_names_the_command_and_ends(own_plugin: Plugin) -> None:
    own_plugin.credential()
    assert own_plugin.user.run("logout").returncode == 0
    assert list(own_plugin.user.cache.iterdir()) == []

    done = own_plugin.user.run(*own_plugin.arguments)

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"clustercert: You are not logged in at {own_plugin.user.url}. Run `clustercert login`.\n"
    )


def test_a_refused_login_names_the_command(own_plugin: Plugin) -> None:
    operator = own_plugin.user.operator
    operator.output(
        "user", "set-password", own_plugin.user.name, "--password-file", own_plugin.user.home / "password"
    )
    done = own_plugin.user.run(*own_plugin.arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"clustercert: {own_plugin.user.url} refused your login. Run `clustercert login`.\n"


def test_a_login_of_another_user_is_named_with_the_login_that_the_context_needs(plugin: Plugin) -> None:
    user, operator, domain = plugin.user, plugin.user.operator, f"{plugin.user.name[-20:]}-acme"
    user.output("kubeconfig", "merge", plugin.cluster_id)
    operator.output("domain", "create", domain)
    other = operator.output_json(
        "user", "create", user.name, "--domain", domain, "--password-file", user.home / "password"
    )
    try:
        user.output("login", "--user", f"{domain}/{user.name}", "--password-file", "password")
        wrong = user.run(*plugin.arguments)
        user.log_in("--profile", "first")
        saved = user.run(*plugin.arguments)
        (user.home / ".kube" / "config").unlink()
        unknown = user.run(*plugin.arguments)
    finally:
        operator.output("user", "delete", other["id"], "--yes")
        operator.output("domain", "delete", domain, "--yes")

    who, cluster = f"Default/{user.name}", f"Default/eu-de/{user.name}"
    problem = (
        f"clustercert: {domain}/{user.name} is logged in at {user.url} (profile default), and has no role in"
    )
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert wrong.stderr == (
        f"{problem} the project Default/eu-de. The context needs the login of {who}: run `clustercert login {user.url} "
        f"--profile NAME --user {who}`, and then `clustercert kubeconfig merge {cluster} --profile NAME`.\n"
    )
    assert saved.stderr == (
        f"{problem} the project Default/eu-de. The context needs the login of {who}, which is the profile first: run "
        f"`clustercert kubeconfig merge {cluster} --profile first`.\n"
    )
    assert unknown.stderr.startswith(f"{problem} the project {plugin.project_id}. Ask an operator for a role")


@pytest.fixture
def second(plugin: Plugin) -> Iterator[str]:
    """The name of a second user, who has the same role in the project."""
    user, operator = plugin.user, plugin.user.operator
    name = f"{user.name}-2"
    operator.output("user", "create", name, "--password-file", user.home / "password")
    operator.output("role", "assign", "admin", "--user", name, "--project", "eu-de")
    yield name
    operator.output("user", "delete", name, "--yes")


def test_a_context_gives_no_certificate_to_another_user_than_the_one_who_merged_it(
    plugin: Plugin, second: str
) -> None:
    user, config = plugin.user, plugin.user.home / ".kube" / "config"

    def merged() -> list[str]:
        user.output("kubeconfig", "merge", plugin.cluster_id)
        arguments = yaml.safe_load(config.read_text())["users"][0]["user"]["exec"]["args"]
        return list(arguments[arguments.index("credential") :])

    def owner(output: str) -> object:
        leaf = x509.load_pem_x509_certificate(status_of(output)["clientCertificateData"].encode())
        [name] = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return user.operator.output_json("user", "show", str(name.value))["name"]

    first = merged()
    assert owner(user.output(*first)) == user.name
    log_in = ("login", "--user", second, "--password-file", "password")
    user.output(*log_in)
    refused = user.run(*first)
    info = json.loads(INFO % "v1")
    config_of_cluster = yaml.safe_load(config.read_text())["clusters"][0]["cluster"]["extensions"][0][
        "extension"
    ]
    info["spec"]["cluster"] = {"server": "https://10.0.0.5:6443", "config": config_of_cluster}
    from_info = user.run("credential", KUBERNETES_EXEC_INFO=json.dumps(info))
    again = merged()
    assert owner(user.output(*again)) == second
    cached = user.run(*first)
    user.output("login", "--user", user.name, "--password-file", "password")
    other = user.run(*again)

    who, cluster = f"Default/{user.name}", f"Default/eu-de/{user.name}"
    assert (refused.returncode, refused.stdout) == (from_info.returncode, from_info.stdout) == (4, "")
    assert refused.stderr == from_info.stderr
    assert refused.stderr == (
        f"clustercert: Default/{second} is logged in at {user.url} (profile default). The context needs the login "
        f"of {who}: run `clustercert login {user.url} --profile NAME --user {who}`, and then `clustercert kubeconfig "
        f"merge {cluster} --profile NAME`. If Default/{second} has a role in the project, you can instead run "
        f"`clustercert kubeconfig merge {cluster} --profile default`.\n"
    )
    assert (cached.returncode, cached.stdout) == (other.returncode, other.stdout) == (4, "")
    assert owner(user.output(*first)) == user.name


def test_refresh_writes_no_certificate_of_another_user_than_the_one_who_merged_the_file(
    plugin: Plugin, second: str
) -> None:
    user = plugin.user
    user.output("kubeconfig", "merge", plugin.cluster_id, "--files")
    [file] = (user.home / ".local" / "share" / "clustercert" / "certificates").glob("*.pem")
    before = file.read_bytes()
    user.output("login", "--user", second, "--password-file", "password")

    done = user.run("refresh", "--all")

    assert done.returncode == 4
    assert f"The context needs the login of Default/{user.name}" in done.stderr
    assert file.read_bytes() == before


def test_a_new_login_gets_a_new_certificate(plugin: Plugin) -> None:
    first = plugin.credential()
    plugin.user.log_in()
    assert plugin.credential() != first


@pytest.mark.parametrize("options", [("--profile",), ("--nonsense",), ("a", "b")])
def test_wrong_usage_is_explained(plugin: Plugin, options: tuple[str, ...]) -> None:
    done = plugin.user.run("credential", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_unknown_and_forbidden_clusters_have_exit_codes(own_plugin: Plugin) -> None:
    project = ("--profile", "default", "--project", own_plugin.project_id)
    missing = own_plugin.user.run("credential", "00000000-0000-4000-8000-000000000000", *project)
    assert (missing.returncode, missing.stdout) == (5, "")
    own_plugin.user.lose_role("admin", own_plugin.cluster_id)
    forbidden = own_plugin.user.run(*own_plugin.arguments)
    assert (forbidden.returncode, forbidden.stdout) == (4, ""), forbidden.stderr


def test_an_empty_environment_is_no_login(plugin: Plugin) -> None:
    python = {key: value for key, value in plugin.user.environment.items() if key.startswith("PYTHON")}
    done = plugin.user.run("credential", "prod", "--profile", "only-in-tests", env=python)
    assert (done.returncode, done.stdout) == (3, "")
    assert "clustercert login URL --profile only-in-tests" in done.stderr


@pytest.mark.parametrize("profile", ["../../etc", ".", "a b"])
def test_an_impossible_profile_is_an_error_of_usage(plugin: Plugin, profile: str) -> None:
    done = plugin.user.run("credential", plugin.cluster_id, "--profile", profile, "--project", "p")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"clustercert: {profile!r} is not a valid profile name.")


def test_an_empty_exec_info_is_none(plugin: Plugin) -> None:
    status_of(plugin.credential(KUBERNETES_EXEC_INFO=""))


def test_it_works_without_a_home(plugin: Plugin) -> None:
    env = {key: value for key, value in plugin.user.environment.items() if key.startswith("PYTHON")}
    home = plugin.user.home
    folders = {"XDG_CONFIG_HOME": f"{home}/.config", "XDG_CACHE_HOME": f"{home}/.cache"}
    done = plugin.user.run(*plugin.arguments, env=env | folders)
    assert done.returncode == 0, done.stderr
    assert plugin.credential() == done.stdout


def test_it_works_without_a_cache(plugin: Plugin) -> None:
    not_a_folder = plugin.user.home / "password"
    for _ in range(2):
        done = plugin.user.run(*plugin.arguments, XDG_CACHE_HOME=str(not_a_folder))
        assert (done.returncode, done.stderr) == (0, "")
        status_of(done.stdout)
    assert plugin.issued == 2


def test_a_full_disk_leaves_no_half_written_file(plugin: Plugin) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = plugin.user.run(*plugin.arguments, env=plugin.user.uncovered, preexec=no_room)

    assert (done.returncode, done.stderr) == (0, "")
    status_of(done.stdout)
    assert [path.name for path in plugin.user.cache.iterdir()] == [f"{plugin.cache_file.name}.lock"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "public", "link"])
def test_a_damaged_or_foreign_cache_file_is_not_used(plugin: Plugin, damage: str) -> None:
    first = plugin.credential()
    file = plugin.cache_file
    if damage == "truncated":
        file.write_text(file.read_text()[:-10])
    elif damage == "empty":
        file.write_text("")
    elif damage == "public":
        file.chmod(0o644)
    else:
        file.rename(file.with_name("elsewhere"))
        file.symlink_to("elsewhere")

    second = plugin.credential()

    assert second != first
    if damage != "link":
        assert plugin.credential() == second


def test_a_closed_standard_output_ends_with_a_message(plugin: Plugin) -> None:
    plugin.credential()
    done = plugin.user.run(*plugin.arguments, env=plugin.user.uncovered, preexec=lambda: os.close(1))
    assert done.returncode == 1
    assert done.stderr == "clustercert: The credential could not be written: standard output is closed.\n"


def test_a_closed_pipe_ends_with_a_message(plugin: Plugin) -> None:
    plugin.credential()
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *plugin.arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=plugin.user.environment,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
