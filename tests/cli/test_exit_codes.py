"""The exit code of every kind of failure, by command."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.cli.options import FAILED, FORBIDDEN, NOT_FOUND, NOT_LOGGED_IN, UNAVAILABLE, USAGE
from support.command_line import PASSWORD, Operator, new_operator
from support.operated_cluster import SERVICE_CA

NOBODY_LISTENS = "https://127.0.0.1:1"
ABSENT_USER = "0" * 32
# The options of `login` that name something, besides --profile.
NAMING_OPTIONS = ("--user", "--domain", "--access-key", "--issuer", "--allow-service", "--project")

ON_THE_STORE = {
    USAGE: [
        "user block ''",
        "user create x",
        "user create x --password-file /missing",
        "user create x --password-file /",
        "user create x --no-password --password-file x",
        "group create ''",
        "project create ''",
        "domain create ''",
        "role assign member --user alice",
        "role assign '' --user alice --project eu-de",
        "access-key create",
        "cluster add c --project eu-de",
        "cluster add c --project eu-de --internal-url https://x:1 --server-ca /missing",
        "cluster add c --project eu-de --from-kubeconfig /missing",
        "certificate revoke",
        "certificate list --expires-before soon",
        "kubernetes import-audit-log prod /missing",
        "kubernetes setup prod --out /tmp",
        "policy replay --from /missing",
        "policy replay --since junk",
        "audit show x",
        "audit verify --key junk",
        "audit verify --export /missing",
        "audit verify --checkpoint /missing",
        "audit prune --older-than junk",
        "audit prune --older-than 10d",
        "db prune --older-than 10d",
        "keys generate",
        "apply -f /missing --local",
        "diff -f /missing --local",
        "serve --port 99999",
        "demo --port 99999",
        "nonsense",
        "user nonsense",
        "--nonsense",
    ],
    NOT_FOUND: [
        "user show nope",
        "user delete nope",
        "user enable nope",
        "user list --domain nope",
        "group show nope",
        "group add-user nope alice",
        "group delete nope",
        "project show nope",
        "project delete nope",
        "project enable nope",
        "domain enable nope",
        "role assign member --user nope --project eu-de",
        "role assign member --user alice --project nope",
        "role unassign nope --user alice --project eu-de",
        "role list --user nope",
        "access-key create --user nope",
        "access-key list --user nope",
        "access-key disable nope",
        "access-key delete nope",
        "cluster show nope",
        "cluster update nope",
        "cluster remove nope",
        "cluster list --project nope",
        "certificate list --cluster nope",
        "user block nope",
        "user block sso/nope --yes",
        "user unblock nope",
        "certificate list --user nope",
        "certificate revoke --user sso/nope --everywhere --yes",
        "certificate revocations --user nope",
        "certificate show nope",
        "certificate show deadbeefdeadbeef",
        "certificate revoke deadbeefdeadbeef --yes",
        "certificate revoke --user nope --everywhere --yes",
        "certificate access --cluster nope",
        "cluster ca show nope --bundle",
        "kubernetes token list nope",
        "kubernetes token create nope",
        "kubernetes verify nope",
        "policy explain nope --user nope",
        "audit show 999",
        "audit erase 999 --reason x --yes",
    ],
    FAILED: [
        "user create alice --no-password",
        "audit export --out /",
        "keys generate --out /missing/kek",
        f"--config /missing user show {ABSENT_USER} --local",
    ],
}
WITHOUT_LOGIN = {
    USAGE: [
        "login",
        "login ftp://x",
        "login https://x/path",
        "login http://203.0.113.1",
        "login https://x --user a --access-key b",
        f"login {NOBODY_LISTENS} --profile ../x",
        f"login {NOBODY_LISTENS} --ca-file /missing",
        "status --profile ../x",
        "clusters --from-env",
        "profile use ../x",
        "kubeconfig get prod --context-name {foo}",
        "kubeconfig get prod --expires-in junk",
        "kubeconfig get prod --duration 99999",
        "kubeconfig get prod --reason",
        "kubeconfig merge",
        "kubeconfig merge prod --context-name {foo}",
        "kubeconfig merge prod --embed --files",
        "kubeconfig unmerge",
        "credential",
        "credential prod --profile ../x",
        "refresh --expires-in junk",
    ],
    NOT_LOGGED_IN: [
        "status",
        "status --profile nope",
        "clusters",
        "logout",
        "kubeconfig get prod",
        "kubeconfig merge --all",
        "credential prod",
        "export",
    ],
    NOT_FOUND: ["profile use nope", "kubeconfig unmerge nope"],
    UNAVAILABLE: [f"login {NOBODY_LISTENS} --user a --password-file {{password}}"],
}
LOGGED_IN = {
    USAGE: [
        "login --user exit-codes",
        *(f"login {option} '' --password-file {{password}}" for option in NAMING_OPTIONS),
        "login --profile '' --password-file {password}",
        "logout --profile ''",
        "kubeconfig get exit-codes --duration 0",
    ],
    NOT_FOUND: [
        "clusters --project nope",
        "kubeconfig get nope",
        "kubeconfig get exit-codes --project nope",
        "kubeconfig get exit-codes --context nope",
        "kubeconfig merge nope",
        "credential nope",
    ],
    FORBIDDEN: ["kubeconfig get exit-codes", "kubeconfig merge exit-codes --embed", "export"],
    NOT_LOGGED_IN: ["login --user exit-codes --password-file {wrong}"],
    FAILED: ["kubeconfig get exit-codes --out {password}"],
}


def cases(table: dict[int, list[str]]) -> list[tuple[str, int]]:
    return [(command, code) for code, commands in table.items() for command in commands]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    operator = new_operator(tmp_path_factory.mktemp("store"))
    operator.output("project", "create", "eu-de")
    operator.output("user", "create", "alice", "--no-password")
    return operator


@pytest.fixture(scope="module")
def site(made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A service with a cluster, and a user whose role gets no certificates."""
    operator, _ = made
    password = tmp_path_factory.mktemp("site") / "password"
    password.write_text(PASSWORD)
    operator.output("user", "create", "exit-codes", "--password-file", password)
    operator.create_role("nothing")
    operator.output("role", "assign", "nothing", "--user", "exit-codes", "--project", "eu-de")
    ca = operator.folder / SERVICE_CA
    options = ("--project", "eu-de", "--internal-url", "https://10.0.0.5:6443", "--server-ca", ca)
    operator.output("cluster", "add", "exit-codes", *options)
    yield operator
    operator.output("cluster", "remove", "exit-codes", "--yes")
    operator.output("user", "delete", "exit-codes", "--yes")


@pytest.fixture
def reader(site: Operator, made: tuple[Operator, str], home: Path) -> Operator:
    operator, url = site, made[1]
    login = ("login", url, "--ca-file", operator.folder / SERVICE_CA, "--user", "exit-codes")
    operator.output(*login, "--password-file", home / "password")
    return operator


def check(operator: Operator, command: str, code: int, home: Path) -> None:
    (home / "wrong").write_text("not the password")
    paths = {"{password}": str(home / "password"), "{wrong}": str(home / "wrong")}
    done = operator.run(*(paths.get(each, each) for each in shlex.split(command)))
    assert (done.code, done.out) == (code, ""), done.err
    assert "rror: " in done.err or done.err.startswith("clustercert: ")


@pytest.mark.parametrize(("command", "code"), cases(ON_THE_STORE))
def test_commands_on_the_store(store: Operator, home: Path, command: str, code: int) -> None:
    check(store, command, code, home)


@pytest.mark.parametrize(("command", "code"), cases(WITHOUT_LOGIN))
def test_commands_without_a_login(store: Operator, home: Path, command: str, code: int) -> None:
    check(store, command, code, home)


@pytest.mark.parametrize("option", NAMING_OPTIONS)
def test_a_login_refuses_an_empty_name(store: Operator, home: Path, option: str) -> None:
    done = store.run("login", NOBODY_LISTENS, option, "")
    assert (done.code, done.out) == (USAGE, "")
    assert f"{option} is empty. Give a value, or leave the option out." in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), cases(LOGGED_IN))
def test_commands_that_the_service_answers(reader: Operator, home: Path, command: str, code: int) -> None:
    check(reader, command, code, home)
