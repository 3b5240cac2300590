"""`clustercert keystone`: the steps that an administrator of Keystone takes for this service."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from clustercert.cli.options import CommandError, UsageError
from clustercert.cli.output import note
from clustercert.cli.session import settings
from clustercert.client import CCE_SERVICE

if TYPE_CHECKING:
    from clustercert.authn.keystone.settings import Keystone, ServiceCredential

keystone = typer.Typer(name="keystone", help="Register the service in Keystone's catalog.", no_args_is_help=True)


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
    note(
        "Nothing was changed. Run the commands as an administrator of Keystone."
        f" Skip the first one if `openstack service show {CCE_SERVICE}` finds a service."
    )


def _base_url(url: str | None) -> str:
    if url is None:
        raise UsageError("Give the address of this service with --url, or set server.public_url.")
    # Clients append paths to the address, some with a slash and some without.
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
    """Return the fewest roles with which the service can read all that it needs, by Keystone's default policy."""
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
