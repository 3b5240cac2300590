"""Users of a cluster whose credentials are tokens: `kubeconfig get`, `merge`, the exec plugin and `refresh`."""

import json
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert.cli.cluster.token_access import CLIENTS_OF_CCE
from clustercert.issuance.signers.account_tokens import AccountToken, parse_token
from clustercert.model.ids import new_id
from support.apiserver import ApiServer
from support.command_line import Operator, new_operator
from support.exec_plugin import Done, User, status_of
from support.operated_cluster import SERVICE_CA, tls_service
from support.token_site import accounts_in
from support.token_site import status_of as answer_of
from support.wait import eventually

RULES = """
[[policy.rules]]
name = "admin"
when.roles = ["admin"]
grant.groups = ["admins", "devs"]
grant.max_lifetime = "1h"

[[policy.rules]]
name = "writers"
when.roles = ["admin"]
offer.groups = ["writers"]
offer.max_lifetime = "1h"
offer.approvals = []

[[policy.rules]]
name = "hurried"
when.roles = ["hurried"]
grant.groups = ["admins"]
grant.max_lifetime = "5m"
"""
USAGE = 2
LEFT_OUT = "The token lacks the groups devs, which have no role in this cluster."


@dataclass(frozen=True)
class Site:
    """A service with the cluster `tokens`, in which the group admins may read, and devs may do nothing."""

    operator: Operator
    url: str
    double: ApiServer
    cluster_id: str


@dataclass(frozen=True)
class Person:
    """A user who is logged in at the service."""

    site: Site
    user: User

    @property
    def config(self) -> Path:
        return self.user.home / ".kube" / "config"

    def run(self, *arguments: str | Path) -> Done:
        """Run a command that succeeds. No token is in its messages."""
        done = self.user.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "eyJ" not in done.stderr
        return done

    def refusal(self, *arguments: str) -> str:
        """The message of a command that is refused as a wrong use."""
        done = self.user.run(*arguments)
        assert (done.returncode, done.stdout) == (USAGE, ""), done.stderr
        return done.stderr

    @property
    def plugin(self) -> tuple[str, ...]:
        """The arguments of the exec plugin that `kubeconfig merge` wrote."""
        (user,) = yaml.safe_load(self.config.read_text())["users"]
        arguments = user["user"]["exec"]["args"]
        return tuple(arguments[arguments.index("credential") :])

    async def may_read_secrets(self, token: str) -> bool:
        """Whether a token lets read Secrets in the namespace `shop`, as only the group writers may."""
        return await answer_of(self.site.double, token, "/api/v1/namespaces/shop/secrets") == 200

    async def may_read(self, token: str) -> bool:
        """Whether the API server accepts a token, and lets it read namespaces."""
        return await answer_of(self.site.double, token) == 200

    @property
    def recorded(self) -> list[tuple[object, ...]]:
        """The kinds and key origins of the user's credentials, in the database."""
        with closing(sqlite3.connect(self.site.operator.folder / "data" / "clustercert.db")) as store:
            query = (
                "SELECT kind, key_origin FROM certificate JOIN user ON user.id = user_id WHERE user.name = ?"
            )
            return store.execute(query, (self.user.name,)).fetchall()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    operator = new_operator(tmp_path_factory.mktemp("service"))
    operator.configure(RULES)
    operator.output("project", "create", "eu-de")
    with tls_service(operator) as url, ApiServer(tmp_path_factory.mktemp("cluster")) as double:
        double.add_namespace("shop")
        added = operator.run(
            *("cluster", "add", "tokens", "--project", "eu-de", "--credential", "token", "--yes"),
            *("--from-kubeconfig", double.admin_kubeconfig(), "--output", "json"),
            *("--group-role", "admins=clusterrole/view", "--group-role", "writers=clusterrole/edit@shop"),
        )
        assert added.code == 0, added.err
        assert CLIENTS_OF_CCE in added.err
        yield Site(operator, url, double, json.loads(added.out)["id"])


def person_of(site: Site, home: Path, role: str) -> Person:
    name = f"{role}-{new_id()[:8]}"
    user = User.create(site.operator, site.url, home, name, role)
    user.log_in()
    return Person(site, user)


@pytest.fixture
def alice(site: Site, tmp_path: Path) -> Person:
    return person_of(site, tmp_path / "home", "admin")


@pytest.fixture
def job(alice: Person) -> dict[str, str]:
    """The variables of a job with alice's login."""
    profile = alice.user.home / ".config" / "clustercert" / "profiles" / "default.json"
    return {
        "CLUSTERCERT_URL": alice.site.url,
        "CLUSTERCERT_TOKEN": json.loads(profile.read_text())["token"],
        "CLUSTERCERT_CA_FILE": str(alice.site.operator.folder / SERVICE_CA),
    }


@pytest.fixture
def hurried(site: Site, tmp_path: Path) -> Person:
    return person_of(site, tmp_path / "home", "hurried")


def token_in(kubeconfig: Any) -> AccountToken:
    (user,) = kubeconfig["users"]
    (field,) = user["user"]
    assert field == "token"
    return parse_token(user["user"]["token"].encode())


async def test_a_kubeconfig_has_a_token_that_works(alice: Person) -> None:
    out = alice.user.home / "prod.yaml"
    asked_at = datetime.now(UTC)

    done = alice.run("kubeconfig", "get", "tokens", "--out", out, "--expires-in", "20m")

    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    kubeconfig = yaml.safe_load(out.read_text())
    (cluster,) = kubeconfig["clusters"]
    assert cluster["cluster"].keys() == {"server", "certificate-authority-data"}
    token = token_in(kubeconfig)
    assert re.fullmatch(f"{alice.user.name}-[0-9a-f]{{40}}", token.name)
    assert timedelta(minutes=19) < token.expires_at - asked_at < timedelta(minutes=21)
    assert await alice.may_read(token.text)
    assert LEFT_OUT in done.stderr.splitlines()
    assert f"({token.username}), valid until " in done.stderr
    assert alice.recorded == [("token", "none")]


@pytest.mark.parametrize(
    ("option", "message"),
    [("--local-key", "which have no key. Leave out --local-key."), ("--insecure", "Leave out --insecure.")],
)
def test_options_that_make_no_sense_for_tokens_are_refused(alice: Person, option: str, message: str) -> None:
    before = accounts_in(alice.site.double)
    assert message in alice.refusal("kubeconfig", "get", "tokens", option)
    if option == "--insecure":
        assert message in alice.refusal("kubeconfig", "merge", "tokens", option)
        assert not alice.config.exists()
    assert accounts_in(alice.site.double) == before


async def test_the_plugin_caches_and_renews_a_token(alice: Person) -> None:
    merged = alice.run("kubeconfig", "merge", "tokens", "--use")
    assert "eyJ" not in alice.config.read_text() + merged.stdout

    first = alice.run(*alice.plugin)
    status = status_of(first.stdout)
    assert status.keys() == {"token", "expirationTimestamp"}
    assert await alice.may_read(status["token"])
    assert first.stderr == f"clustercert: {LEFT_OUT}\n"
    (cached,) = (each for each in alice.user.cache.iterdir() if each.suffix != ".lock")
    assert stat.S_IMODE(cached.stat().st_mode) == 0o600

    again = alice.run(*alice.plugin)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert len(alice.recorded) == 1

    renewed = alice.run(*alice.plugin, "--refresh")
    assert await alice.may_read(status_of(renewed.stdout)["token"])
    assert status_of(renewed.stdout)["token"] != status["token"]
    assert LEFT_OUT not in renewed.stderr, "it was said once"
    assert alice.recorded == [("token", "none")] * 2


async def test_a_merged_file_has_the_token_if_the_user_asks_for_it(alice: Person) -> None:
    alice.run("kubeconfig", "merge", "tokens", "--embed")
    user = yaml.safe_load(alice.config.read_text())["users"][0]["user"]
    assert await alice.may_read(user["token"])
    assert stat.S_IMODE(alice.config.stat().st_mode) == 0o600
    (row,) = json.loads(alice.run("kubeconfig", "list", "--output", "json").stdout)
    assert row["credential"] == "embedded"
    assert datetime.fromisoformat(row["expires"]) == parse_token(user["token"].encode()).expires_at


async def test_files_with_tokens_are_renewed_and_removed(alice: Person) -> None:
    alice.run("kubeconfig", "merge", "tokens", "--files")
    user = yaml.safe_load(alice.config.read_text())["users"][0]["user"]
    path = Path(user["tokenFile"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert await alice.may_read(first)

    assert alice.run("refresh").stderr == ""
    assert path.read_text() == first, "it is not due"
    assert f"Renewed {path}\n" in alice.run("refresh", "--all").stderr
    assert path.read_text() != first
    assert await alice.may_read(path.read_text())
    alice.run("kubeconfig", "unmerge", "tokens")
    assert list(path.parent.iterdir()) == []


def test_a_token_that_outlives_its_access_is_named_once(hurried: Person) -> None:
    hurried.run("kubeconfig", "merge", "tokens")

    first = hurried.run(*hurried.plugin)

    said = re.fullmatch(
        r"clustercert: The service ends the token at (\S+); if the service is down then, the token works until"
        r" (\S+)\.\n",
        first.stderr,
    )
    assert said is not None, first.stderr
    ends, expires = map(datetime.fromisoformat, said.groups())
    assert timedelta(minutes=4) < expires - ends < timedelta(minutes=6)
    status = status_of(first.stdout)
    assert parse_token(status["token"].encode()).expires_at == expires
    # kubectl asks again before the service ends the token.
    assert datetime.fromisoformat(status["expirationTimestamp"]) < ends


def test_the_list_shows_when_the_service_ends_a_token(hurried: Person) -> None:
    hurried.run("kubeconfig", "merge", "tokens", "--files")
    path = Path(yaml.safe_load(hurried.config.read_text())["users"][0]["user"]["tokenFile"])
    expires = parse_token(path.read_bytes()).expires_at
    (row,) = json.loads(hurried.run("kubeconfig", "list", "--output", "json").stdout)
    assert timedelta(minutes=4) < expires - datetime.fromisoformat(row["expires"]) < timedelta(minutes=6)


async def test_an_access_request_raises_and_ends_rights_without_a_change_of_the_file(alice: Person) -> None:
    alice.run("kubeconfig", "merge", "tokens")
    before = alice.config.read_bytes()
    standing = status_of(alice.run(*alice.plugin).stdout)["token"]
    assert not await alice.may_read_secrets(standing)

    create = ("request", "create", "tokens", "--group", "writers", "--for", "30m", "--reason", "a fault")
    request_id = json.loads(alice.run(*create, "--output", "json").stdout)["id"]
    raised = alice.run(*alice.plugin)
    token = status_of(raised.stdout)["token"]
    assert await alice.may_read_secrets(token)
    assert f"kubectl uses the access request {request_id[:8]} now." in raised.stderr

    alice.run("request", "end", request_id)
    eventually(lambda: status_of(alice.run(*alice.plugin).stdout)["token"] != token)
    assert not await alice.may_read_secrets(status_of(alice.run(*alice.plugin).stdout)["token"])
    assert alice.config.read_bytes() == before


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by id"])
async def test_a_job_gets_a_token(alice: Person, job: dict[str, str], named: bool) -> None:
    given = ("tokens",) if named else (alice.site.cluster_id, "--project", alice.user.project_id)
    done = alice.user.run("credential", *given, env=alice.user.environment | job)
    assert (done.returncode, done.stderr) == (0, f"clustercert: {LEFT_OUT}\n")
    assert await alice.may_read(status_of(done.stdout)["token"])
