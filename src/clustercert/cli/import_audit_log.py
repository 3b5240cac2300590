"""`clustercert kubernetes import-audit-log`: learn from a kube-apiserver's audit log which credentials were used."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_one
from clustercert.cli.session import Operator, operate
from clustercert.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    # The commands load the nouns only when they are run.
    from clustercert.webhook.audit_events import Observed

# A line may be longer than this: it is parsed in pieces.
PIECE = 256 * 1024
AT_ONCE = 5000


def import_audit_log(
    context: typer.Context,
    name: ClusterArgument,
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE", help="The log, a JSON event a line; - for stdin."),
    ],
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read a kube-apiserver's audit log: when each certificate was used, and which ones the ledger doesn't know.

    Members of system:masters are seen nowhere else: an API server asks nobody about them. Reading a log twice changes
    nothing. A file in which nothing is an audit event is refused; an empty one is not.
    """
    from clustercert.webhook.audit_events import API_VERSION

    async def work(operator: Operator) -> Row:
        cluster = await cluster_commands.find(operator, name, project)
        webhook = operator.parts.webhook
        gate = await webhook.tokens.gate(cluster.id)
        lines = _Lines(file)
        while events := list(islice(lines.events(), AT_ONCE)):
            await webhook.observation.observe(gate, events, operator.who["origin"], "import-audit-log")
            await webhook.sightings.flush()
        if lines.read and lines.read == lines.skipped:
            raise InvalidRequest(
                f"None of the {lines.read} lines is an event of {API_VERSION}. Name the file that the API server's"
                " --audit-log-path names, in the format json."
            )
        return {
            "cluster": cluster.name,
            "lines": lines.read,
            "uses": lines.uses,
            "skipped": lines.skipped,
        }

    row = operate(context, work)
    show_one(row, output, name="cluster")
    if not row["lines"]:
        # As it is right after it was rotated.
        note("The log is empty.")
    if row["skipped"]:
        note(f"{row['skipped']} lines are no audit events and were skipped.")


class _Lines:
    """The events of a log.

    Attributes:
        read: lines so far, the empty ones aside.
        uses: those that tell of a client certificate.
        skipped: those that are no audit events.
    """

    def __init__(self, file: typer.FileBinaryRead) -> None:
        self._file = file
        self.read = self.uses = self.skipped = 0

    def events(self) -> "Iterator[Observed]":
        while piece := self._file.readline(PIECE):
            if not piece.strip() and _ends_line(piece):
                continue
            self.read += 1
            try:
                event = self._event(piece)
            except InvalidRequest:
                self.skipped += 1
            else:
                if event is not None:
                    self.uses += 1
                    yield event

    def _event(self, piece: bytes) -> "Observed | None":
        """The event of the line that a piece begins, which is read to its end. Raises InvalidRequest."""
        from clustercert.webhook.audit_events import EventParser

        parser = EventParser()
        try:
            parser.feed(piece)
            while not _ends_line(piece) and (piece := self._file.readline(PIECE)):
                parser.feed(piece)
        except InvalidRequest:
            while not _ends_line(piece) and (piece := self._file.readline(PIECE)):
                pass
            raise
        return parser.close()


def _ends_line(piece: bytes) -> bool:
    """Whether a piece is the last one of its line."""
    return piece.endswith(b"\n") or len(piece) < PIECE
