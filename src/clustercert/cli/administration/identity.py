"""`clustercert identity` and `keystone`: checks tokens from OIDC issuers, and prints commands for Keystone."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import CommandError, UsageError
from clustercert.cli.session import settings
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Row,
    print_note,
    show_list,
    show_one,
    write_out,
)
from clustercert.cli.terminal.prompts import read_secret
from clustercert.client import CCE_SERVICE

if TYPE_CHECKING:
    from clustercert.authn.keystone.settings import Keystone, ServiceCredential
    from clustercert.client.administration import AdministrationClient


identity = typer.Typer(name="identity", help="Check tokens from OIDC issuers.", no_args_is_help=True)

_CHECK_COLUMNS = ("check", "passed", "came", "expected")
_RULE_COLUMNS = ("rule", "role", "given", "condition", "came", "expected", "projects")
# The maximum number of characters to read from the token file. The service accepts only shorter tokens, and its report
# says if a token is too long. A text of this length still fits into a request.
_MAX_CHARACTERS = 60 * 1024


@identity.callback()
def _identity_group() -> None:
    """Check tokens from OIDC issuers."""


@identity.command()
@on_service
def explain(
    client: "AdministrationClient",
    token_file: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Read the token from FILE, or from standard input (-)."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain whether a token would be accepted: each check, and the user, groups and roles that the token gives.

    Only for operators. The token is neither stored nor logged. Exits with status 1 if the token would be refused.

    Examples:
        clustercert identity explain --token-file token.jwt
    """
    text = read_secret("Token", token_file, "add --token-file FILE", longest=_MAX_CHARACTERS)
    report = client.post("/identity/explain", {"token": text})
    with client.check_format():
        _show(report, output)
    if not report["accepted"]:
        raise typer.Exit(1)


def _show(report: "dict[str, Any]", output: Output) -> None:
    if output is not Output.TABLE:
        if output in (Output.JSON, Output.YAML):
            show_one(report, output)
        else:
            show_list(report["checks"], output, columns=_CHECK_COLUMNS, name="check")
        return
    show_list(report["checks"], output, columns=_CHECK_COLUMNS, name="check", keep=_CHECK_COLUMNS)
    if user := report["user"]:
        roles = [f"{project}: {', '.join(names)}" for project, names in user["roles"].items()]
        show_one({"issuer": report["issuer"], **user, "roles": "; ".join(roles)}, output)
    if rules := report["role_rules"]:
        write_out("\n")
        failed = ("condition", "came", "expected")
        show_list(list(_rule_rows(rules)), output, columns=_RULE_COLUMNS, name="role", keep=failed)
    if missing := report["missing"]:
        print_note(
            f"Warning: The settings of this issuer name objects that do not exist: {', '.join(missing)}. Create them,"
            " or correct the settings."
        )
    if report["accepted"]:
        print_note("The token would be accepted.")
    else:
        issuer = f", from the issuer {report['issuer']}," if report["issuer"] is not None else ""
        print_note(f"The token{issuer} would be refused by the check {report['failed']}.")


def _rule_rows(rules: "list[dict[str, Any]]") -> "Iterator[Row]":
    """Yield a row for each unmet condition of each rule, and one row for a rule that gives its role."""
    for number, rule in enumerate(rules, 1):
        where = "service" if rule["service"] else ", ".join(rule["projects"] or ()) or "all"
        conditions: list[dict[str, Any]] = rule["unmet"] or [{}]
        for unmet in conditions:
            yield {
                "rule": number,
                "role": rule["role"],
                "given": not rule["unmet"],
                "condition": unmet.get("check"),
                "came": unmet.get("came"),
                "expected": unmet.get("expected"),
                "projects": where,
            }


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
