"""`clustercert login` at real OIDC issuers, in a real browser."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clustercert.client.oidc.tokens import claims_of
from support import chromium
from support.command_line import new_operator
from support.exec_plugin import PATIENT, Done, User, add_cluster, status_of
from support.issuer_login import Login
from support.oidc_users import EXEC_INFO, logging_in
from support.operated_cluster import SERVICE_CA, tls_service
from support.real_issuers import RealIssuer, mock_provider, oidc_provider
from support.wait import eventually, line_with

pytestmark = pytest.mark.slow
PARALLEL = 8
SETTINGS = """
[[identity.issuers]]
name = "sso"
issuer = "{issuer.url}"
audiences = ["clustercert"]
ca_file = "{issuer.ca_file}"
username = "preferred_username"
groups = "groups"
domain = "Default"
client_id = "clustercert"
roles = [{{role = "admin", groups = ["team-blue"]}}]
"""
needs_chromium = pytest.mark.skipif(chromium.program() is None, reason="needs Debian's chromium")


@dataclass(frozen=True)
class Person(User):
    """Alice, who is in the group team-blue of the issuer."""

    issuer: RealIssuer
    cluster_id: str

    @property
    def log(self) -> Path:
        return self.home / "windows"

    @property
    def windows(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def browser(self, *command: str | Path) -> dict[str, str]:
        """The variable for a browser that is this command with the address."""
        script = self.home / "browser"
        script.write_text(f'#!/bin/sh\nexec {" ".join(map(str, command))} "$1"\n')
        script.chmod(0o700)
        return {"BROWSER": str(script)}

    @property
    def chromium(self) -> dict[str, str]:
        return self.browser(sys.executable, Path(chromium.__file__), self.log, "alice")

    @property
    def counting(self) -> dict[str, str]:
        """A browser that only counts. A test completes the login."""
        script = self.home / "count"
        script.write_text(f'#!/bin/sh\necho "$1" >> {self.log}\n')
        script.chmod(0o700)
        return self.browser(script)

    def log_in_at(self, *options: str | Path, **variables: str) -> Done:
        ca = ("--ca-file", self.operator.folder / SERVICE_CA, "--allow-service", self.url)
        return self.run("login", self.url, *ca, *options, env=self.environment | variables)

    @property
    def tokens_file(self) -> Path:
        return self.home / ".config" / "clustercert" / "tokens" / "default.json"

    @property
    def refresh_token(self) -> str:
        return str(json.loads(self.tokens_file.read_text())["refresh_token"])

    def expire(self) -> None:
        tokens = json.loads(self.tokens_file.read_text())
        self.tokens_file.write_text(json.dumps(tokens | {"expires_at": "2020-01-01T00:00:00+00:00"}))

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.output("status", "-o", "json"))
        return found


@pytest.fixture(params=[oidc_provider, mock_provider], ids=["oidc-provider", "mock"])
def person(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Person]:
    with at_issuer(request.param, tmp_path, SETTINGS) as found:
        yield found


@contextlib.contextmanager
def at_issuer(
    running: Callable[[Path], AbstractContextManager[RealIssuer]], tmp_path: Path, settings: str
) -> Iterator[Person]:
    operator = new_operator(tmp_path)
    operator.output("project", "create", "eu-de")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with running(tmp_path) as issuer:
        operator.configure(settings.format(issuer=issuer))
        with tls_service(operator) as url:
            cluster_id = add_cluster(operator, "prod", operator.folder / SERVICE_CA)
            yield Person(operator, url, home, "sso/alice", issuer, cluster_id)


only_oidc_provider = pytest.mark.parametrize("person", [oidc_provider], ids=["oidc-provider"], indirect=True)


@needs_chromium
@only_oidc_provider
def test_chromium_logs_in_and_the_login_is_renewed_and_ended(person: Person) -> None:
    done = person.log_in_at(**person.chromium)
    assert done.returncode == 0, done.stderr
    assert "Logged in as sso/alice" in done.stderr
    assert len(person.windows) == 1
    assert "current-context" in person.output("kubeconfig", "get", "prod", "--insecure")
    first = person.refresh_token
    person.expire()
    assert person.status()["user"] == "sso/alice"
    assert person.refresh_token != first
    last = person.refresh_token
    assert person.run("logout").returncode == 0
    with pytest.raises(AssertionError, match="invalid_grant"):
        Login(person.issuer).tokens(grant_type="refresh_token", refresh_token=last)


@needs_chromium
@only_oidc_provider
def test_a_device_code_is_entered_in_chromium(person: Person) -> None:
    with logging_in(person, "--device") as process:
        code = line_with(process.stderr, "enter the code").rpartition(" ")[2].strip()
        address = line_with(process.stderr, "https://").strip()
        with chromium.chromium() as browser:
            browser.open(address)
            browser.fill_in("Success", user_code=code, login="alice", password="any")
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert person.status()["user"] == "sso/alice"


def test_people_log_in_at_both_issuers(person: Person) -> None:
    with logging_in(person) as process:
        address = line_with(process.stderr, "http://127.0.0.1:").strip()
        page = Login(person.issuer).follow(address, "alice")
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "You are logged in" in page.text
    assert person.status()["user"] == "sso/alice"


FOR_RESOURCE = """
[[identity.issuers]]
name = "sso"
issuer = "{issuer.url}"
audiences = ["urn:example:clustercert"]
resource = "urn:example:clustercert"
login_token = "access"
algorithms = ["ES256"]
ca_file = "{issuer.ca_file}"
domain = "Default"
client_id = "clustercert"
roles = [{{role = "admin"}}]
"""


def test_access_tokens_are_for_the_resource_and_id_tokens_are_refused(tmp_path: Path) -> None:
    with at_issuer(oidc_provider, tmp_path, FOR_RESOURCE) as person:
        with logging_in(person) as process:
            address = line_with(process.stderr, "http://127.0.0.1:").strip()
            Login(person.issuer).follow(address, "alice")
            _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert person.status()["user"] == "sso/alice"
        token = str(json.loads(person.tokens_file.read_text())["token"])
        assert claims_of(token)["aud"] == "urn:example:clustercert"
        first = person.refresh_token
        person.expire()
        assert person.status()["user"] == "sso/alice"
        assert person.refresh_token != first
        id_token = Login(person.issuer).by_code("alice")["id_token"]
        done = person.run("login", "--token-file", "-", stdin=id_token)
        assert (done.returncode, "does not accept the token" in done.stderr) == (3, True)


@only_oidc_provider
def test_many_plugins_open_one_window(person: Person) -> None:
    with logging_in(person) as process:
        address = line_with(process.stderr, "http://127.0.0.1:").strip()
        Login(person.issuer).follow(address, "alice")
        process.communicate(timeout=300)
    Login(person.issuer).http.post(
        Login(person.issuer).discovery["revocation_endpoint"],
        data={"client_id": "clustercert", "token": person.refresh_token},
    ).raise_for_status()
    person.expire()
    plugin = ("credential", person.cluster_id, "--profile", "default", "--project", person.project_id)
    variables = person.environment | person.counting | {"KUBERNETES_EXEC_INFO": EXEC_INFO}
    with ThreadPoolExecutor(PARALLEL) as pool:
        running = [pool.submit(person.run, *plugin, env=variables, command=PATIENT) for _ in range(PARALLEL)]
        [window] = eventually(lambda: person.windows)
        Login(person.issuer).follow(window, "alice")
        outputs = [each.result(300) for each in running]
    assert {done.returncode for done in outputs} == {0}, outputs
    assert len({done.stdout for done in outputs}) == 1
    status_of(outputs[0].stdout)
    assert person.windows == [window]


# Without a difference of clocks, the next login is accepted at once.
WITH_LOGIN_TIME = f"""{SETTINGS}
leeway = "0s"
login_parameters = {{{{ max_age = "86400" }}}}
"""


def log_in_at_the_issuer(person: Person, *options: str) -> None:
    with logging_in(person, *options) as process:
        address = line_with(process.stderr, "http://127.0.0.1:").strip()
        Login(person.issuer).follow(address, "alice")
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def test_a_refreshed_login_keeps_its_time_so_it_stays_ended(tmp_path: Path) -> None:
    with at_issuer(oidc_provider, tmp_path, WITH_LOGIN_TIME) as person:
        laptop = replace(person, home=tmp_path / "laptop")
        laptop.home.mkdir(mode=0o700)
        for machine in (laptop, person):
            log_in_at_the_issuer(machine)
        before = claims_of(str(json.loads(laptop.tokens_file.read_text())["token"]))

        done = person.run("logout", "--everywhere", "--yes")
        assert done.returncode == 0, done.stderr
        assert f"Log out at {person.issuer.url} too." in done.stderr
        # The refresh token of the laptop still gives tokens, because only the issuer could end it.
        laptop.expire()
        assert laptop.run("status").returncode == 3
        after = claims_of(str(json.loads(laptop.tokens_file.read_text())["token"]))
        assert after["iat"] != before["iat"]
        assert after["auth_time"] == before["auth_time"]
        log_in_at_the_issuer(person, "--reauthenticate")
        assert person.status()["user"] == "sso/alice"
        assert laptop.run("status").returncode == 3
