"""`clustercert kubernetes import-audit-log`: credential usage from a kube-apiserver's audit log."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import ClusterArgument, CommandError, InProjectOption, ProjectDomainOption
from clustercert.cli.output import Output, OutputOption, note, row_of, show_one
from clustercert.cli.session import Operator
from clustercert.model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.kubernetes.webhook.audit_events import AuditedRequest

# Longer lines are parsed in chunks of this size.
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

    The log shows when certificates were used, and which client certificates came from other issuers. Only the audit log
    shows members of system:masters, since no webhook is called for them. Importing a log twice changes nothing. A file
    without any audit event is rejected, unless it is empty.
    """
    from clustercert.kubernetes.webhook.audit_events import API_VERSION

    cluster = await operator.cluster(name, project, domain)
    log = _AuditLog(file)
    webhook = operator.parts.webhook
    webhook_config, events = await webhook.tokens.webhook_config(cluster.id), log.events()
    while batch := list(islice(events, BATCH_SIZE)):
        await webhook.audit_batches.ingest(webhook_config, batch, operator.actor.origin, "import-audit-log")
        await webhook.credential_usage.flush()
    if log.lines and log.lines == log.skipped:
        raise CommandError(
            f"None of the {log.lines} lines is an event of {API_VERSION}. Name the file written by the API"
            " server's --audit-log-path, in the format json."
        )
    show_one({"cluster": cluster.name, **row_of(log, "lines", "uses", "skipped")}, output, name="cluster")
    if not log.lines:
        # An empty log is normal after a rotation, so it is not an error.
        note("The log is empty.")
    if log.skipped:
        note(f"Skipped {log.skipped} lines that are not audit events.")


class _AuditLog:
    """Reads the events of an audit log.

    Attributes:
        lines: number of lines read so far, without empty lines.
        uses: number of lines that show the use of a client certificate.
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
        """Parse the line that begins with `chunk`, and read it to its end. Raises InvalidRequest for other lines."""
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
