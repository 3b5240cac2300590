"""A service for pages about its use: its clusters and users, and somebody who follows a page at a shell."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.command_line import Operator, new_operator
from support.operated_cluster import SERVICE_CA, tls_service
from support.page_steps import PASSWORD, Reader, Step, blocks_with_output, run
from support.samples import server_ca_pem

URL = "https://clustercert.example.com"
CLUSTERS = {
    "prod": ("--external-url", "https://203.0.113.5:6443", "--internal-url", "https://10.0.0.5:6443"),
    "staging": ("--internal-url", "https://10.0.0.6:6443", "--label", "env=test"),
}


@dataclass(frozen=True)
class PageSite:
    """A running service with the clusters prod and staging in the project eu-de."""

    operator: Operator
    url: str

    def add_user(self, name: str, role: str | None, *groups: str) -> None:
        """A user with a role in the project, or in the service if it is `operator`."""
        password = self.operator.folder / "password"
        password.write_text(PASSWORD)
        self.operator.output("user", "create", name, "--password-file", password)
        if role is not None:
            scope = ("--service",) if role == "operator" else ("--project", "eu-de")
            self.operator.create_role(role)
            self.operator.output("role", "assign", role, "--user", name, *scope)
        for group in groups:
            if f"Default/{group}" not in self.operator.output("group", "list", "-o", "name").split():
                self.operator.output("group", "create", group)
            self.operator.output("group", "add-user", group, name)

    def reader(self, home: Path, words: Mapping[str, str] | None = None) -> Reader:
        """Somebody without a login, whose home is `home`."""
        known = {f"{URL}:8443": self.url, URL: self.url, **(words or {}), "/home/alice": str(home)}
        following = reader(home)
        following.words |= known
        return following

    def log_in(self, reader: Reader, user: str) -> None:
        """Log in before the page begins."""
        (reader.home / "password").write_text(PASSWORD)
        ca = self.operator.folder / SERVICE_CA
        login = f"clustercert login {self.url} --user {user} --password-file password --ca-file {ca}"
        run(Step(login, ()), reader.home, reader.env)


def reader(home: Path, **variables: str) -> Reader:
    """Somebody with a new home, and these variables."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "COVERAGE"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Reader(home, {}, {**kept, "PATH": path, "HOME": str(home), **variables}, columns=100)


@contextmanager
def page_site(folder: Path, settings: str = "") -> Iterator[PageSite]:
    folder.mkdir(exist_ok=True)
    operator = new_operator(folder)
    operator.configure(settings)
    (folder / "api-ca.pem").write_bytes(server_ca_pem())
    operator.output("project", "create", "eu-de")
    for name, options in CLUSTERS.items():
        ca = ("--server-ca", folder / "api-ca.pem")
        operator.output("cluster", "add", name, "--project", "eu-de", *options, *ca)
    with tls_service(operator) as url:
        yield PageSite(operator, url)


def steps_below(page: str, heading: str) -> Sequence[Sequence[Step]]:
    """The steps of each block with output below a heading."""
    return [block.steps for block in blocks_with_output(page, heading)]
