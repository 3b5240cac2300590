"""A service over HTTPS with the logins of a developer, a project's admin, an operator and an auditor."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from clustercert.model.rights import SERVICE_ROLES
from support.command_line import Operator, new_operator
from support.operated_cluster import tls_service
from support.remote_user import RemoteUser, new_remote_user
from support.samples import server_ca_pem

COLUMNS = 80


@dataclass(frozen=True)
class RemoteSite:
    """A service with the clusters prod in eu-de and staging in eu-nl.

    Alice is a member of both projects, bob their admin, carol an operator, and dora an auditor.
    """

    operator: Operator
    url: str
    alice: RemoteUser
    bob: RemoteUser
    carol: RemoteUser
    dora: RemoteUser

    def issue(self, user: RemoteUser, cluster: str = "prod") -> str:
        """Issue a certificate with `kubeconfig get`, and return its fingerprint."""
        user.output("kubeconfig", "get", cluster, "--expires-in", "1h")
        newest: str = self.own(user)[0]["fingerprint"]
        return newest

    def own(self, user: RemoteUser, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = user.output_json("certificate", "list", *options)
        return found

    def names(self, user: RemoteUser, *options: str) -> set[str]:
        return set(user.output("certificate", "list", *options, "-o", "name").split())

    def state(self, name: str) -> str:
        return str(self.operator.output_json("certificate", "show", name)["state"])

    def terminal(self, user: RemoteUser, *command: str, typed: str = "") -> tuple[int, list[str]]:
        """The exit code of a command in a terminal, and the lines on the screen."""
        code, screen = user.in_terminal(*command, typed=typed, columns=COLUMNS)
        plain = re.sub(r"\x1b\[\d+m", "", screen)
        return code, [line.strip("\r\n") for line in plain.splitlines() if "do not fit" not in line]


@contextmanager
def remote_site(factory: pytest.TempPathFactory) -> Iterator[RemoteSite]:
    """Create the service, its clusters and its users."""
    operator = new_operator(factory.mktemp("certificates"))
    ca = operator.folder / "server-ca.pem"
    ca.write_bytes(server_ca_pem())
    for project, cluster in (("eu-de", "prod"), ("eu-nl", "staging")):
        operator.output("project", "create", project)
        options = ("--project", project, "--internal-url", "https://10.0.0.5:6443", "--server-ca", ca)
        operator.output("cluster", "add", cluster, *options)
    with tls_service(operator) as url:
        people = []
        roles = {"alice": "member", "bob": "admin", "carol": "operator", "dora": "auditor"}
        for name, role in roles.items():
            home = factory.mktemp(name)
            person = new_remote_user(operator, url, name, home)
            if role in SERVICE_ROLES:
                operator.output("role", "assign", role, "--user", name, "--service")
            else:
                for project in ("eu-de", "eu-nl"):
                    operator.output("role", "assign", role, "--user", name, "--project", project)
            person.output("login", "--password-file", home / "password")
            people.append(person)
        yield RemoteSite(operator, url, *people)
