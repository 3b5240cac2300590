"""`clustercert kubernetes`: prepares clusters to accept issued certificates and to enforce revocations."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_service, on_store
from clustercert.cli.kubernetes import remove as leave
from clustercert.cli.kubernetes import setup, unknown, verify
from clustercert.cli.lookup import cluster_path, find_cluster, full_name
from clustercert.cli.options import (
    ClusterArgument,
    CommandError,
    InProjectOption,
    InvalidOption,
    ProjectDomainOption,
    UnknownName,
    YesOption,
)
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    print_note,
    row_of,
    show_list,
    show_one,
    with_times,
    write_out,
)
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.client.administration import AdministrationClient
    from clustercert.kubernetes.webhook.audit_events import AuditedRequest


# Lines of an audit log that are longer than this are parsed in chunks of this size.
CHUNK_BYTES = 256 * 1024
BATCH_SIZE = 5000


@on_store
async def import_audit_log(
    operator: Operator,
    name: ClusterArgument,
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE", help="Audit log with one JSON event per line; - for standard input."),
    ],
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import a kube-apiserver's audit log.

    The log shows when certificates and tokens were used, and which client certificates came from other issuers. Only
    the audit log shows members of system:masters, since no webhook is called for them. Importing a log twice changes
    nothing. A file without any audit event is rejected, unless it is empty.

    Examples:
        clustercert kubernetes import-audit-log prod audit.log
    """
    from clustercert.kubernetes.webhook.audit_events import API_VERSION

    cluster = await operator.cluster(name, project, domain)
    log = _AuditLog(file)
    webhook = operator.components.webhook
    webhook_config, events = await webhook.tokens.webhook_config(cluster.id), log.events()
    while batch := list(islice(events, BATCH_SIZE)):
        await webhook.audit_batches.ingest(
            webhook_config, batch, operator.actor.origin, None, "import-audit-log"
        )
        await webhook.credential_usage.flush()
    if log.lines and log.lines == log.skipped:
        raise CommandError(
            f"None of the {log.lines} lines is an event of {API_VERSION}. Give the audit log of the API server:"
            " the file in --audit-log-path, with --audit-log-format=json."
        )
    show_one({"cluster": cluster.name, **row_of(log, "lines", "uses", "skipped")}, output, name="cluster")
    if not log.lines:
        # An empty log is normal after a rotation, so it is not an error.
        print_note("The log is empty.")
    if log.skipped:
        print_note(f"Skipped {log.skipped} lines that are not audit events.")


class _AuditLog:
    """Reads the events of an audit log.

    Attributes:
        lines: number of lines read so far, without empty lines.
        uses: number of lines that show the use of a client certificate, or of a token of clustercert-users.
        skipped: number of lines that are not audit events.
    """

    def __init__(self, file: typer.FileBinaryRead) -> None:
        self._file = file
        self.lines = self.uses = self.skipped = 0

    def events(self) -> "Iterator[AuditedRequest]":
        while chunk := self._file.readline(CHUNK_BYTES):
            if not chunk.strip() and _ends_line(chunk):
                continue
            self.lines += 1
            try:
                event = self._parse_line(chunk)
            except InvalidRequest:
                self.skipped += 1
            else:
                if event is not None:
                    self.uses += 1
                    yield event

    def _parse_line(self, chunk: bytes) -> "AuditedRequest | None":
        """Read and parse the line that begins with `chunk`. Raises InvalidRequest if the line is not an audit event."""
        from clustercert.kubernetes.webhook.audit_events import EventParser

        parser = EventParser()
        try:
            parser.feed(chunk)
            while not _ends_line(chunk) and (chunk := self._file.readline(CHUNK_BYTES)):
                parser.feed(chunk)
        except InvalidRequest:
            while not _ends_line(chunk) and (chunk := self._file.readline(CHUNK_BYTES)):
                pass
            raise
        return parser.close()


def _ends_line(chunk: bytes) -> bool:
    """Whether the chunk is the last part of its line."""
    return chunk.endswith(b"\n") or len(chunk) < CHUNK_BYTES


token = typer.Typer(
    name="token", help="Manage webhook tokens: at most two for each cluster.", no_args_is_help=True
)


@token.command()
@on_service
def create(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a token. Shows the token once, and never again.

    Examples:
        clustercert kubernetes token create prod
    """
    if output is Output.NAME:
        raise InvalidOption("The format `name` would not show the token. Choose a different format.")
    made = client.post(cluster_path(find_cluster(client, name, project, domain), "webhook-tokens"))
    row = {"id": made.pop("id"), "token": made.pop("token"), **made}
    show_one(with_times(row), output, name="id")
    print_note(
        "Next: give the token to every API server of the cluster, as docs/kubernetes.md describes under Exchange the "
        "token. Then remove the old token."
    )


@token.command("list")
@on_service
def list_tokens(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a cluster's tokens.

    Shows each token's id, and when an API server last used the token. The tokens themselves are not stored.

    Examples:
        clustercert kubernetes token list prod
    """
    path = cluster_path(find_cluster(client, name, project, domain), "webhook-tokens")
    found = sorted(client.list_all(path, "webhook_tokens"), key=lambda each: str(each["created_at"]))
    columns = ("id", "created_at", "last_asked_at", "last_events_at")
    show_list(
        [with_times(each) for each in found], output, columns=columns, name="id", keep=("last_asked_at",)
    )


@token.command()
@on_service
def remove(
    client: "AdministrationClient",
    name: ClusterArgument,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, from `list`.")],
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Remove a token. An API server that still uses the token receives errors, and applies its failurePolicy.

    Examples:
        clustercert kubernetes token remove prod 9d41c07be25f8a36
    """
    cluster = find_cluster(client, name, project, domain)
    path = cluster_path(cluster, "webhook-tokens")
    if token_id not in {each["id"] for each in client.list_all(path, "webhook_tokens")}:
        raise UnknownName(
            f"The cluster {cluster['name']} has no such webhook token. Run `clustercert kubernetes token list` "
            "to see the tokens' ids."
        )
    confirm(f"Remove the token {token_id} of the cluster {full_name(cluster)} ({cluster['id']})?", yes=yes)
    client.delete(cluster_path(cluster, "webhook-tokens", token_id))
    print_note(f"Removed the token {token_id}. It is rejected within a second.")


app = typer.Typer(
    name="kubernetes",
    help="Set up clusters for issued certificates and revocation.",
    no_args_is_help=True,
)
app.command("setup")(setup.setup)
app.command("verify")(verify.verify)
app.command("remove")(leave.remove)
app.command("import-audit-log")(import_audit_log)
app.command("accept-unknown")(unknown.accept_unknown)
app.add_typer(token)


@app.command("signer-access")
def signer_access() -> None:
    """Print the service account and the rights that the signer csr_api needs in a cluster, and an admission policy.

    Pipe the output into `kubectl apply -f -`, before you register the cluster with `--signer csr_api`. The admission
    policy limits which certificates the account can approve, and needs Kubernetes 1.30 or newer.

    Examples:
        clustercert kubernetes signer-access
    """
    from clustercert.kubernetes.setup import signer_access as access
    from clustercert.kubernetes.setup.documents import to_yaml

    write_out(to_yaml(access.signer_access()))
