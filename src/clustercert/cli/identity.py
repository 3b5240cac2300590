"""`clustercert identity` and `keystone`: checks tokens from OIDC issuers, and prints commands for Keystone."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from clustercert.cli.options import CommandError, UsageError
from clustercert.cli.output import Output, OutputOption, print_note, show_list, show_one
from clustercert.cli.prompts import read_secret
from clustercert.cli.session import settings, store_settings
from clustercert.client import CCE_SERVICE

if TYPE_CHECKING:
    from clustercert.authn.keystone.settings import Keystone, ServiceCredential
    from clustercert.identity.token_report import TokenReport
    from clustercert.settings import Settings


identity = typer.Typer(name="identity", help="Check tokens from OIDC issuers.", no_args_is_help=True)

# The maximum number of characters to read. It exceeds the limit for tokens, so that a check reports a longer token.
_MAX_CHARACTERS = 64 * 1024


@identity.callback()
def _identity_group() -> None:
    """Check tokens from OIDC issuers."""


@identity.command()
def explain(
    context: typer.Context,
    token_file: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Read the token from FILE, or from standard input (-)."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain whether a token would be accepted: each check, and the user, groups and roles that the token gives.

    Nothing is stored. Exits with status 1 if the token would be refused.
    """
    loaded = store_settings(context)
    # Imported only now, so that invalid settings are reported without delay.
    import asyncio

    from clustercert.observability import log

    log.configure_command()
    text = read_secret("Token", token_file, "add --token-file FILE", longest=_MAX_CHARACTERS)
    _show(asyncio.run(_report(loaded, text)), output)


def _show(report: "TokenReport", output: Output) -> None:
    """Print a report. Raises typer.Exit if the token would be refused."""
    from clustercert.http.identity import TokenExplanationBody

    body = TokenExplanationBody.render(report)
    if output in (Output.JSON, Output.YAML):
        show_one(body, output)
    else:
        rows = [
            {"check": each.check, "passed": each.passed, "came": each.came, "expected": each.expected}
            for each in report.explanation.checks
        ]
        show_list(rows, output, columns=("check", "passed", "came", "expected"), name="check")
    if output is Output.TABLE and isinstance(body["user"], dict):
        roles = [f"{project}: {', '.join(names)}" for project, names in body["user"]["roles"].items()]
        show_one({"issuer": body["issuer"], **body["user"], "roles": "; ".join(roles)}, output)
    if output is Output.TABLE and report.missing:
        print_note(
            f"Warning: The settings of this issuer name objects that do not exist: {', '.join(report.missing)}. Create "
            "them, or correct the settings."
        )
    if report.failed is not None:
        issuer = f", from the issuer {body['issuer']}," if body["issuer"] is not None else ""
        print_note(f"The token{issuer} would be refused by the check {report.failed.check}.")
        raise typer.Exit(1)
    if output is Output.TABLE:
        print_note("The token would be accepted.")


async def _report(settings: "Settings", text: str) -> "TokenReport":
    """Check a token, and return the report. Builds only the needed components: building all takes half a second."""
    from clustercert.identity.token_report import report_on_token

    if any(issuer.cluster for issuer in settings.identity.issuers):
        # A connection to a cluster needs all components, because the service issues itself a certificate for it.
        from clustercert.wiring import open_components

        async with open_components(settings) as opened:
            return await report_on_token(opened.oidc, opened.identity.federation, text)

    import httpx  # noqa: F401 - slow to import, and the later wait for the issuer's keys is short

    from clustercert.authn.oidc.authenticator import new_authenticator
    from clustercert.authn.oidc.token_reviews import NoClusters
    from clustercert.identity.federation import Federation
    from clustercert.model import utc_now
    from clustercert.store.engine import migrate
    from clustercert.store.engine.database import Database

    database = Database(settings.store_url)
    try:
        await migrate.check(database)
        federation = Federation(database, utc_now)
        issuers = settings.identity.issuers
        oidc = new_authenticator(issuers, federation, NoClusters(), utc_now) if issuers else None
        return await report_on_token(oidc, federation, text)
    finally:
        await database.close()


keystone = typer.Typer(
    name="keystone", help="Register the service in Keystone's catalog.", no_args_is_help=True
)


@keystone.callback()
def _keystone_group() -> None:
    """Register the service in Keystone's catalog."""


@keystone.command()
def register(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address of this service for its clients. [default: server.public_url]"
        ),
    ] = None,
) -> None:
    """Print the `openstack` commands that put the service into Keystone's catalog and create its user.

    Changes nothing. Run the commands as an administrator of Keystone.
    """
    loaded = settings(context)
    configured = loaded.identity.keystone
    if configured is None:
        raise CommandError("There is no Keystone in the settings. Add the table [identity.keystone].")
    address = _base_url(url or loaded.server.public_url)
    for line in (*_catalog(loaded.identity.region, address), *_user(configured)):
        typer.echo(line)
    print_note(
        "Nothing was changed. Run the commands as an administrator of Keystone."
        f" Skip the first command if `openstack service show {CCE_SERVICE}` finds a service."
    )


def _base_url(url: str | None) -> str:
    if url is None:
        raise UsageError("Give the address of this service with --url, or set server.public_url.")
    # Remove a slash at the end, because some clients add a slash before they append a path.
    base = url.rstrip("/")
    parts = urlsplit(base)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
    ):
        raise UsageError(f"{url}: expected an address without a path, like https://clustercert.example.com.")
    return base


def _catalog(region: str, url: str) -> Iterator[str]:
    yield _command("service", "create", "--name", "clustercert", CCE_SERVICE)
    yield _command("endpoint", "create", "--region", region, CCE_SERVICE, "public", url)


def _user(configured: "Keystone") -> Iterator[str]:
    service = configured.service
    if service.application_credential_id is not None:
        yield "# The user of the application credential:"
        yield _command("role", "add", "--user", "USER", "--project", "PROJECT", *_roles(configured))
        return
    user = [service.user_id]
    if service.username is not None:
        user = [service.username, "--user-domain", service.user_domain]
        domain = ("--domain", service.user_domain)
        yield _command("user", "create", *domain, "--password-prompt", service.username)
    named = [each for each in user if each is not None]
    for role in _roles(configured):
        yield _command("role", "add", "--user", *named, *_scope(service), role)


def _roles(configured: "Keystone") -> tuple[str, ...]:
    """Return the minimal roles that let the service read all that it needs under Keystone's default policy."""
    if configured.service.is_system_scoped:
        return ("reader",)
    return ("admin",) if configured.access_keys or configured.groups else ("service",)


def _scope(service: "ServiceCredential") -> tuple[str, ...]:
    if service.project_id is not None:
        return ("--project", service.project_id)
    if service.project is not None:
        return ("--project", service.project, "--project-domain", service.project_domain)
    if service.domain is not None:
        return ("--domain", service.domain)
    return ("--system", "all")


def _command(*arguments: str) -> str:
    return shlex.join(("openstack", *arguments))
