"""`clustercert explain` and `clustercert policy explain`: what the policy decides on a request, and why."""

from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.commands import expand_options, on_policy
from clustercert.cli.credential.access_request import full_id
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.lookup import find_cluster, find_user
from clustercert.cli.options import (
    ClusterArgument,
    DomainOption,
    InProjectOption,
    InvalidOption,
    ProjectDomainOption,
    UnknownName,
)
from clustercert.cli.policy.output import explanation_lines
from clustercert.cli.terminal.output import Output, OutputOption, show_list, show_one, write_out
from clustercert.client.connection import ApiError
from clustercert.model.choices import KeyType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clustercert.client.administration import AdministrationClient

_RULE_COLUMNS = ("name", "outcome", "first_false")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options that describe the request to explain."""

    expires_in: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Lifetime such as 30m or 8h. [default: the longest]"),
    ] = None
    duration: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="Lifetime in whole days, or -1 for the longest allowed lifetime."),
    ] = None
    csr: Annotated[bool, typer.Option("--csr", help="The request has a CSR.")] = False
    key_type: Annotated[
        KeyType | None,
        typer.Option(help="Type of the CSR's key. [default: ec-p256 with --csr]", show_choices=True),
    ] = None
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="The request's reason.")] = None
    auth_method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How the user authenticates: token or access_key. [default: as the user logged in]",
        ),
    ] = None
    access_request: Annotated[
        str | None,
        typer.Option(
            "--request", metavar="REQUEST", help="Id of the access request whose groups are requested."
        ),
    ] = None

    def query(self, client: "AdministrationClient") -> dict[str, str]:
        """Return the query parameters that describe to the service which request to explain.

        Raises ClientError, UnknownName or CommandError if the access request is not found.
        """
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "csr"}
        texts = {name: str(value) for name, value in given.items() if value is not None}
        if self.access_request is not None:
            texts["access_request"] = full_id(client, self.access_request)
        return texts | {"csr": "true"} if self.csr else texts


@expand_options
def explain(
    cluster: ClusterArgument,
    request: RequestOptions,
    login: LoginOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain which access you would get in a cluster, and what limits the access.

    Issues and records nothing. Exits with status 1 if your request would be refused.

    Examples:
        clustercert explain prod
        clustercert explain prod --expires-in 30d --csr
    """
    chosen = login.profile()
    with chosen.explain_rejection(), chosen.administration_client() as client:
        # Choose the cluster in the same way as `kubeconfig merge`.
        preferred = chosen.project_id if chosen.chosen_project else None
        found = find_cluster(client, cluster, project, domain, preferred=preferred)
        _show(client, {"cluster": str(found["id"]), **request.query(client)}, output)


@on_policy
def explain_user(
    client: "AdministrationClient",
    cluster: ClusterArgument,
    user: Annotated[str, typer.Option(metavar="USER", help="The user, by name or id.")],
    request: RequestOptions,
    source: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="IP address of the request. [default: your address]"),
    ] = None,
    project: InProjectOption = None,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain what the policy decides on a user's request. Exits with status 1 if the request is refused.

    Shows the certificate, what each rule needs, and for a refused request, the rule that would allow it after the
    fewest changes. Issues and records nothing. Only for operators, auditors and admins of the project.

    Examples:
        clustercert policy explain prod --user alice
        clustercert policy explain prod --user alice --csr
    """
    found = find_cluster(client, cluster, project)
    # Project admins may search only for users who have certificates for the cluster.
    asked = find_user(client, user, cluster=None if client.reads_everything else found, domain=domain)
    query = {"cluster": str(found["id"]), "user": str(asked["id"]), **request.query(client)}
    if source is not None:
        query["source"] = source
    try:
        _show(client, query, output)
    except ApiError as error:
        if error.http_status != HTTPStatus.NOT_FOUND or request.access_request is not None:
            raise
        raise UnknownName(
            f"{user} has no role in the project of the cluster {found['name']}, or has made no recorded request for"
            " this cluster. The groups and roles of users of OIDC issuers and Keystone are known only from their"
            " requests. Let the user request a certificate first."
        ) from None


def _show(client: "AdministrationClient", query: dict[str, str], output: Output) -> None:
    """Print the explanation. Raises ClientError, or typer.Exit if the request would be refused."""
    try:
        body: dict[str, Any] = client.get("/policy/explain", **query)
    except ApiError as error:
        if error.http_status == HTTPStatus.BAD_REQUEST:
            raise bad_option(error.message, query) from None
        raise
    with client.check_format():
        if output in (Output.JSON, Output.YAML):
            show_one(body, output)
        elif output is Output.TABLE:
            write_out("".join(f"{line}\n" for line in explanation_lines(body)))
        else:
            show_list(body["rules"], output, columns=_RULE_COLUMNS, keep=_RULE_COLUMNS[1:])
    if not body["allowed"]:
        raise typer.Exit(1)


def bad_option(message: str, names: "Iterable[str]") -> InvalidOption:
    """Return the error for wrong options. Replaces API field names at the start of the message by option names."""
    text, _, rest = message.partition(": ")
    found = text.split(", ")
    if not rest or not set(found) <= set(names):
        return InvalidOption(message)
    options = ", ".join(f"--{field.replace('_', '-')}" for field in found)
    return InvalidOption(rest[:1].upper() + rest[1:], param_hint=options)
