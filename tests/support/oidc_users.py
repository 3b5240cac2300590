"""Users of the command line who log in at an OIDC issuer, with browsers that count their windows."""

import contextlib
import json
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustercert.authn.oidc.issuers import derived_id
from support.command_line import Operator, new_operator
from support.exec_plugin import COMMAND, Done, User, add_cluster
from support.oauth_issuer import Behavior, OAuthIssuer
from support.operated_cluster import SERVICE_CA, tls_service
from support.stores import rows

# What kubectl sets for a plugin that it runs.
EXEC_INFO = (
    '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"interactive":false}}'
)
_SETTINGS = """
[server]
other_urls = {other_urls}

[[identity.issuers]]
name = "sso"
issuer = "{issuer.url}"
audiences = ["clustercert"]
ca_file = "{issuer.ca_file}"
username = "preferred_username"
domain = "Default"
client_id = "clustercert"
scopes = ["openid", "profile"]
roles = [{{role = "admin"}}]
"""
_BROWSER = """#!{python}
import http.cookiejar, ssl, sys, urllib.request
with open({windows!r}, "a") as file:
    file.write(sys.argv[1] + chr(10))
tls = ssl.create_default_context(cafile={ca_file!r})
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({{}}),
    urllib.request.HTTPSHandler(context=tls),
    urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
)
opener.open(sys.argv[1], timeout=300).read()
"""


@dataclass(frozen=True)
class Site:
    """A running TLS service with one issuer, and a cluster."""

    operator: Operator
    url: str
    issuer: OAuthIssuer
    project_id: str
    cluster_id: str


@contextlib.contextmanager
def running_site(folder: Path, *other_urls: str) -> Iterator[Site]:
    operator = new_operator(folder)
    project = operator.output_json("project", "create", "eu-de")
    with OAuthIssuer(folder).running() as issuer:
        operator.configure(_SETTINGS.format(issuer=issuer, other_urls=json.dumps(other_urls)))
        with tls_service(operator) as url:
            cluster_id = add_cluster(operator, "prod", operator.folder / SERVICE_CA)
            yield Site(operator, url, issuer, str(project["id"]), cluster_id)


@contextlib.contextmanager
def logging_in(
    user: User, *options: str, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run `login` of a user without a browser, by default in their environment. Ends it after an error of the test."""
    ca_file = str(user.operator.folder / SERVICE_CA)
    command = [*COMMAND, "login", user.url, "--ca-file", ca_file, "--allow-service", user.url, *options]
    with subprocess.Popen(command, env=env or user.environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@dataclass(frozen=True)
class OidcUser(User):
    """A user of the issuer. `name` is their subject and name there."""

    site: Site

    @classmethod
    def at(cls, site: Site, folder: Path, name: str) -> "OidcUser":
        """Become the one whom the issuer logs in."""
        home = folder / name
        home.mkdir(mode=0o700)
        user = cls(site.operator, site.url, home, name, site)
        browser = home / "browser"
        browser.write_text(
            _BROWSER.format(
                python=sys.executable, windows=str(home / "windows"), ca_file=str(site.issuer.ca_file)
            )
        )
        browser.chmod(0o700)
        user.be_logged_in()
        return user

    def be_logged_in(self) -> None:
        """Let the issuer log in this user, and forget all other changes of its behavior."""
        self.site.issuer.behavior = Behavior(claims={"sub": self.name, "preferred_username": self.name})

    @property
    def browser(self) -> dict[str, str]:
        """The variable for a browser that logs in."""
        return {"BROWSER": str(self.home / "browser")}

    @property
    def windows(self) -> list[str]:
        """The addresses that the browser opened."""
        file = self.home / "windows"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def ca_option(self) -> tuple[str, ...]:
        return ("--ca-file", str(self.operator.folder / SERVICE_CA))

    @property
    def trust(self) -> tuple[str, ...]:
        """The options of a first login at an issuer that asks nothing."""
        return (*self.ca_option, "--allow-service", self.url)

    @property
    def tokens_file(self) -> Path:
        return self.home / ".config" / "clustercert" / "tokens" / "default.json"

    @property
    def tokens(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.tokens_file.read_text())
        return found

    def in_terminal(
        self, *arguments: str | Path, typed: str = "", columns: int = 200, **variables: str
    ) -> tuple[int, str]:
        """Run a command as if in a terminal, with the browser. Returns its exit code and the screen."""
        return super().in_terminal(*arguments, typed=typed, columns=columns, **(self.browser | variables))

    def log_in_by_browser(self, *options: str) -> Done:
        done = self.run("login", self.url, *self.trust, *options, env=self.environment | self.browser)
        assert done.returncode == 0, done.stderr
        return done

    def expire(self) -> None:
        """Let the saved token be expired. Its refresh token stays."""
        changed = self.tokens | {"expires_at": "2020-01-01T00:00:00+00:00"}
        self.tokens_file.write_text(json.dumps(changed))

    def end_at_the_issuer(self) -> None:
        """Let the issuer refuse all refresh tokens."""
        self.site.issuer.refresh_tokens.clear()

    @property
    def plugin(self) -> tuple[str, ...]:
        """The arguments that `kubeconfig merge` writes."""
        return ("credential", self.site.cluster_id, "--profile", "default", "--project", self.site.project_id)

    @property
    def issued_here(self) -> int:
        """The number of this user's certificates, in the database."""
        user_id = derived_id("user", self.site.issuer.url, self.name)
        database = self.operator.folder / "data" / "clustercert.db"
        [(count,)] = rows(database, f"SELECT count(*) FROM certificate WHERE user_id = '{user_id}'")
        assert isinstance(count, int)
        return count

    @property
    def by_kubectl(self) -> dict[str, str]:
        """The environment of the exec plugin."""
        return self.environment | {"KUBERNETES_EXEC_INFO": EXEC_INFO}

    def credential(self, *options: str, command: Sequence[str] | None = None, **variables: str) -> Done:
        """Run the exec plugin as kubectl does."""
        return self.run(*self.plugin, *options, env=self.by_kubectl | variables, command=command)


def private_files(folder: Path) -> dict[str, str]:
    """The modes of all files in a folder, by name."""
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*") if path.is_file()}
