"""A service over http, with users and a cluster, and the commands of a user on their own machine."""

import base64
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from support.command_line import PASSWORD, CommandResult, Operator, new_operator
from support.remote_user import RemoteUser
from support.stores import rows
from support.wait import SECONDS, line_with

COMMAND = (sys.executable, "-m", "clustercert")
RULES = """
[[policy.rules]]
name = "admin"
when.roles = ["admin"]
grant.groups = ["clustercert:admins"]

[[policy.rules]]
name = "reader"
when.roles = ["reader"]
grant.groups = ["clustercert:viewers"]
grant.max_lifetime = "1h"
"""


@dataclass(frozen=True)
class UserSite:
    """A running service with a user's home directory."""

    operator: Operator
    url: str
    project_id: str
    cluster_id: str
    keys: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.operator.folder

    def user(self, *arguments: str | Path, stdin: str = "", **variables: str) -> CommandResult:
        """Run a command of the user."""
        return RemoteUser(self.folder / "home").run(*arguments, stdin=stdin, **variables)

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
        assert done.code == 0, done.err
        assert done.out == ""
        assert PASSWORD not in done.err


@contextmanager
def served(folder: Path) -> Iterator[UserSite]:
    """Run the service on a new store in the folder."""
    made = _prepared(folder)
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
            process.wait(SECONDS)
            process.stderr.close()


def leaf_of(kubeconfig: dict[str, Any]) -> x509.Certificate:
    """The certificate; checks that it belongs to the private key."""
    user = kubeconfig["users"][0]["user"]
    leaf = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    key = load_pem_private_key(base64.b64decode(user["client-key-data"]), password=None)
    assert key.public_key() == leaf.public_key()
    return leaf


def assert_lives(kubeconfig: dict[str, Any], lifetime: timedelta, asked_at: datetime) -> None:
    """Assert that the certificate ends one lifetime after a moment between `asked_at` and now, to the second."""
    asked_for = leaf_of(kubeconfig).not_valid_after_utc - lifetime
    second = timedelta(seconds=1)
    assert asked_at - second <= asked_for <= datetime.now(UTC) + second


def _prepared(folder: Path) -> UserSite:
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
    return UserSite(operator, "", project["id"], cluster["id"], key)
