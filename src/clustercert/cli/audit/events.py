"""`clustercert audit tail` and `show`: read audit events over the API."""

import contextlib
import hashlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import urlencode

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.lookup import find_project, find_user, named_users, own_projects
from clustercert.cli.options import UNAVAILABLE, CommandError, InvalidOption, OnlyProjectOption, exit_code
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Table,
    csv,
    document,
    is_wide,
    print_note,
    show_one,
    with_times,
    write_out,
)
from clustercert.cli.terminal.printable import printable
from clustercert.client.administration import path_of
from clustercert.client.connection import OWN, ApiError, ClientError
from clustercert.model.errors import Forbidden, LogDamaged
from clustercert.model.events.names import CLUSTER_ACTOR, shown_name, subject_name
from clustercert.model.ids import is_id
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

_DEFAULT_LINES, _MAX_LINES = 20, 1000
# The maximum number of events in a page of the API.
_PAGE = 500
# The maximum number of pages to read from a log at once: for 500 million events.
_MAX_PAGES = 1_000_000
# The time between two requests of `tail --follow` for new events: normally, and while the service is unavailable.
_WAIT_SECONDS, _RETRY_SECONDS = 1.0, 5.0
# Names longer than this are shown without their domain and project.
_SHOWN_NAME = 32
# The fields of an event. They are the header of CSV output. `place` is the leaf index.
_FIELDS = (
    *("place", "at", "kind", "version", "project_id", "actor", "subject"),
    *("source", "request_id", "detail"),
)

PlaceArgument = Annotated[
    int, typer.Argument(metavar="PLACE", min=0, max=2**63 - 1, help="The event's leaf index, from `tail`.")
]


@on_service
def tail(
    client: "AdministrationClient",
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            metavar="N",
            min=1,
            max=_MAX_LINES,
            help=f"Number of past events to show. [default: {_DEFAULT_LINES}]",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new events.")] = False,
    cursor_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Continue after the last event of the previous run, whose position is in FILE. Without this file, "
            "begin with the first event, and create the file.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="List only events of this kind. certificate.* means all kinds that begin with certificate.",
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="USER|ID",
            help="List only events about this user (name or id) or object (id).",
        ),
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="USER", help="List only events by this user (name or id).")
    ] = None,
    verifications: Annotated[
        bool,
        typer.Option(
            "--verifications", help="Also list events from the verification of clusters and client CAs."
        ),
    ] = False,
    project: OnlyProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the last events, oldest first. Only for operators, auditors and admins of the project.

    JSON output has one object per line. In a terminal, the table shows names, or the first digits of ids and
    fingerprints; -o wide shows all digits and ids, as in the log. Only the table leaves out the events that each
    `kubernetes verify` causes.

    Examples:
        clustercert audit tail --follow
        clustercert audit tail --subject alice -n 100
        clustercert audit tail --kind 'certificate.*' --output json
    """
    if lines is not None and cursor_file is not None:
        raise InvalidOption("Give either --lines or --cursor-file.")
    given = {
        "kind": kind,
        "subject": _id_of(client, subject),
        "actor": _id_of(client, actor),
    }
    query = {name: value for name, value in given.items() if value is not None}
    hides = output is Output.TABLE and not (verifications or subject or actor)
    reader = _EventReader(client, _events_path(client, project), query, hides_verifications=hides)
    printer, cursor = EventPrinter(output), None
    if cursor_file is not None:
        cursor = _Cursor(cursor_file, reader.name)
        reader.next = cursor.next
        _end_cut_line()
    if output is Output.CSV and not reader.next:
        write_out(",".join(_FIELDS) + "\r\n")
    if cursor is None:
        events, names = reader.last(lines or _DEFAULT_LINES)
        printer.print(events, names)
        if not events and not follow and output is Output.TABLE:
            hint = "" if client.reads_everything else " Give ids to --subject and --actor, not names."
            print_note(f"No events found.{hint if subject or actor else ''}")
    if cursor is not None or follow:
        _print_new_events(reader, printer, cursor, follow=follow)
    if reader.hidden:
        print_note(
            f"Left out {reader.hidden} events of certificates used to verify clusters and client CAs. To "
            "list these events, add --verifications."
        )


def _id_of(client: "AdministrationClient", text: str | None) -> str | None:
    """Return the id of the user with a name, or the text itself if it names no user.

    Only operators and auditors can look up users. Raises ClientError, or CommandError if several users have the name.
    """
    if text is None or not client.reads_everything or not named_users(client, text):
        return text
    return str(find_user(client, text)["id"])


def _print_new_events(
    reader: "_EventReader", printer: "EventPrinter", cursor: "_Cursor | None", *, follow: bool
) -> None:
    """Print the events from leaf index `reader.next` on.

    With `follow`, waits for new events, even while the service is unavailable.
    """
    is_checked = is_available = False
    while True:
        try:
            if cursor is not None and not is_checked:
                # The service may have failed after a page was requested, and before the page was printed.
                reader.next = cursor.next
                cursor.require_log(reader)
                is_checked = True
            for events, names in reader.pages():
                is_available = True
                moves = cursor is not None and cursor.next != reader.next
                leaf = reader.last_leaf() if moves else None
                with whole_pages():
                    printer.print(events, names)
                    if cursor is not None and moves:
                        cursor.write(reader.next, leaf)
        except ClientError as error:
            if not follow or exit_code(error) != UNAVAILABLE:
                raise
            if is_available or not is_checked:
                print_note(f"{error.message} Waiting for the service.")
            # Check the log again: an older copy of the database may be restored while the service is unavailable.
            is_available, is_checked = False, cursor is None
        if not follow:
            return
        time.sleep(_WAIT_SECONDS if is_available else _RETRY_SECONDS)


@on_service
def show(
    client: "AdministrationClient",
    place: PlaceArgument,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Project of the event, by name, DOMAIN/NAME or id. [default: your project; for operators, "
            "all projects]",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show an event with its salt and its inclusion proof.

    Operators and auditors also see the names of users, clusters and projects in the table. Only for operators, auditors
    and admins of the project. Exits with status 1 if the proof is wrong.

    Examples:
        clustercert audit show 4711
    """
    path = f"{_events_path(client, project)}/{place}"
    event, proof = client.get(path), client.get(f"{path}/proof")
    with client.check_format():
        row = _proved_row(place, event, proof)
        if output is Output.TABLE:
            row = _with_name_fields(row, cast("dict[str, str]", event["names"]))
    show_one(with_times(row), output, name="place")


def _events_path(client: "AdministrationClient", project: str | None) -> str:
    """Return the API path of the events of a project.

    By default, this is the path for all projects, or for the only project of a caller who can't see all projects.
    """
    if project is not None:
        # Don't look up an id, so that the id of a deleted project is accepted.
        project_id = project if is_id(project) else str(find_project(client, project)["id"])
    elif client.reads_everything:
        return "/events"
    else:
        projects = own_projects(client)
        if len(projects) != 1:
            raise Forbidden(
                "Only operators and auditors can see the events of all projects. Add --project PROJECT, to see the "
                "events of a project that you administer."
            )
        project_id = projects[0].id
    return path_of("projects", project_id, "events")


class _EventReader:
    """Reads pages of audit events from the API.

    Attributes:
        next: the leaf index of the first event that `pages` reads.
        name: the API path of the events, with the filters.
        hidden: the number of events that were left out.
    """

    def __init__(
        self,
        client: "AdministrationClient",
        path: str,
        query: Mapping[str, str],
        *,
        hides_verifications: bool = False,
    ) -> None:
        self.client = client
        self.next = self.hidden = 0
        self._hides_verifications = hides_verifications
        self.name = f"{path}?{urlencode(query)}" if query else path
        self._path, self._query = path, query

    def last(self, count: int) -> "tuple[list[JsonObject], Mapping[str, str]]":
        """Return the last events, oldest first, and the names of objects by id.

        After this call, `pages` returns only newer events.
        """
        found: list[JsonObject] = []
        names: dict[str, str] = {}
        for body in self._bodies("newest", min(count, _PAGE)):
            events, hidden, more_names, _ = self._parsed(body)
            if events and not self.next:
                self.next = _place(events[0]) + 1
            found += islice(self._shown(events, hidden), count - len(found))
            names |= more_names
            if len(found) == count:
                break
        return found[::-1], names

    def pages(self) -> "Iterator[tuple[list[JsonObject], Mapping[str, str]]]":
        """Yield pages of events, from leaf index `next` to the end of the log, with the names of objects by id."""
        for body in self._bodies("oldest", _PAGE, str(self.next - 1) if self.next else None):
            events, hidden, names, following = self._parsed(body)
            last = _place(events[-1]) if events else self.next - 1
            # With a filter, `following` may be the leaf index of a later event, which does not match the filter.
            self.next = (last if following is None else following) + 1
            yield list(self._shown(events, hidden)), names

    def _bodies(self, order: str, first: int, start: str | None = None) -> "Iterator[JsonObject]":
        """Request pages of events. The first page begins after the cursor `start`, and has at most `first` events."""

        def page(cursor: str | None) -> "JsonObject":
            limit = first if cursor is None else _PAGE
            after = start if cursor is None else cursor
            more = {"cursor": after} if after is not None else {}
            return self.client.get(self._path, order=order, limit=str(limit), **self._query, **more)

        return self.client.follow(page, _MAX_PAGES)

    def last_leaf(self) -> str | None:
        """Return the leaf hash before leaf index `next`, in hexadecimal. Returns `None` if the log is shorter.

        The hash is in a public tile, so admins of a project, who can't see all events, also get this hash.
        """
        from clustercert.merkle.tiles import WIDTH, TileId, TilePath
        from clustercert.merkle.tree import HASH_BYTES

        if not self.next:
            return None
        index, within = divmod(self.next - 1, WIDTH)
        path = TilePath(TileId(0, index), within + 1)
        try:
            content = self.client.download(
                f"{OWN}/audit/log/tile/{path}", {"Accept": "application/octet-stream"}
            )
        except ApiError as error:
            if error.http_status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return content[-HASH_BYTES:].hex()

    def _parsed(
        self, body: "JsonObject"
    ) -> "tuple[list[JsonObject], Collection[int], Mapping[str, str], int | None]":
        """Return the events of a page, the leaf indexes to hide, names by id, and the cursor of the next page."""
        with self.client.check_format():
            events: Any = body["events"]
            verifications: Any = body["verifications"] if self._hides_verifications else ()
            names: Any = body["names"]
            following: Any = body["next"]
            return (
                list(events),
                frozenset(verifications),
                dict(names),
                None if following is None else int(following),
            )

    def _shown(self, events: "Sequence[JsonObject]", hidden: Collection[int]) -> "Iterator[JsonObject]":
        for each in events:
            if _place(each) in hidden:
                self.hidden += 1
            else:
                yield each


class _Cursor:
    """A file that remembers the next event to print.

    Attributes:
        next: the leaf index of the next event.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Read the cursor file. Creates a missing file. Raises CommandError.

        Args:
            name: the API path of the events, with the filters. A file for other events is refused.
        """
        self._path, self._name = path, name
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            # Create the file now: if the folder can't be written, the error comes before any event is printed.
            self.write(0, None)
            return
        except (OSError, ValueError) as error:
            raise CommandError(
                f"--cursor-file: {path} can't be read: {error}. Name a file that you can read and write."
            ) from error
        try:
            found = json.loads(text)
            events, self.next, self._leaf = str(found["events"]), int(found["next"]), found["leaf"]
            if self.next < 0:
                raise ValueError
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CommandError(
                f"--cursor-file: {path} is not a cursor file, or is damaged. Name another file, or delete this file "
                "to begin with the first event."
            ) from error
        if events != name:
            raise CommandError(
                f"--cursor-file: {path} belongs to the events {events}, but this command lists {name}. Name another "
                "file for each project and each filter."
            )

    def write(self, place: int, leaf: str | None) -> None:
        """Write the position to the cursor file, after the printed events are on disk. Raises CommandError.

        Args:
            place: the leaf index of the next event.
            leaf: the leaf hash before the next event.
        """
        from clustercert.secure_file import write_private

        # Ignore errors, because `fsync` fails for pipes and terminals.
        with contextlib.suppress(OSError):
            os.fsync(sys.stdout.fileno())
        try:
            write_private(self._path, json.dumps({"events": self._name, "next": place, "leaf": leaf}) + "\n")
        except OSError as error:
            raise CommandError(
                f"--cursor-file: {self._path} can't be written: {error.strerror}. Name a "
                "file in a folder that you can write to."
            ) from error
        self.next, self._leaf = place, leaf

    def require_log(self, reader: _EventReader) -> None:
        """Raise CommandError if the log does not continue the events before the cursor.

        Otherwise events would be missed.
        """
        if reader.last_leaf() != self._leaf:
            raise CommandError(
                f"--cursor-file: {self._path} says that the first {self.next} events of a log were read, but this log "
                "does not begin with these events. This is another log, or an older copy of the database was "
                "restored. Delete the file to begin with the first event."
            )


@contextlib.contextmanager
def whole_pages() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the `with` block. A second signal takes effect at once."""
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _end_cut_line() -> None:
    """Write a line feed if standard output is a file with an incomplete last line, as after a power failure."""
    with contextlib.suppress(OSError):
        descriptor = sys.stdout.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with Path(f"/dev/fd/{descriptor}").open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    write_out("\n")


class EventPrinter:
    """Prints events as they arrive: each on one line, or as a YAML document. CSV output has no header.

    In a terminal, a table shows names instead of ids, and relative times.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._table = Table(("place", "at", "kind", "subject", "actor"), "kind", keep=("actor",))

    def print(self, events: "Sequence[JsonObject]", names: Mapping[str, str]) -> None:
        """Print events.

        Args:
            names: names of users, clusters and projects, by id.
        """
        rows = [event_row(event) for event in events]
        if self._output is Output.TABLE and sys.stdout.isatty():
            named = rows if is_wide() else [_with_names(row, names) for row in rows]
            for row, event in zip(named, rows, strict=True):
                if (change := _changed_right(event)) is not None:
                    row["subject"] = f"{row['subject']} ({change})"
            self._table.print([with_times(row) for row in named])
        else:
            for row in rows:
                write_out(_event_line(row, self._output))
        # Flush, so that the reader of a pipe receives each event immediately.
        sys.stdout.flush()


def event_row(event: "JsonObject") -> "JsonObject":
    """Return the output fields of an event that the API sent, or that was parsed from canonical JSON."""
    fields = {name: event[name] for name in _FIELDS if name != "place"}
    return {"place": event["leaf_index"], **fields, "at": rfc3339(datetime.fromisoformat(str(event["at"])))}


def _with_names(row: "JsonObject", names: Mapping[str, str]) -> "JsonObject":
    """Replace ids by names. Shortens fingerprints, hashes, ids without a name, and long names."""
    subject = subject_name(str(row["subject"]), row["detail"], names, _SHOWN_NAME)
    return {**row, "subject": subject, "actor": shown_name(str(row["actor"]), names, _SHOWN_NAME)}


def _changed_right(row: "JsonObject") -> str | None:
    """Return the role or the member of a group that an event changed; None for other events."""
    detail: Any = row["detail"]
    if row["kind"] in ("role.assigned", "role.unassigned"):
        return f"role {detail['role']} in {detail['project'] or 'the whole service'}"
    if row["kind"] in ("group.member_added", "group.member_removed"):
        return f"member {detail['user_name']}"
    return None


def _with_name_fields(row: "JsonObject", names: Mapping[str, str]) -> "JsonObject":
    """Add the names of the project, the actor and the subject, if they are known, after their ids."""
    fields: JsonObject = {}
    for field, value in row.items():
        fields[field] = value
        if (name := names.get(str(value).removeprefix(CLUSTER_ACTOR))) is not None:
            fields[f"{field.removesuffix('_id')}_name"] = name
    return fields


def _event_line(row: "JsonObject", output: Output) -> str:
    match output:
        case Output.JSON:
            return json.dumps(row, ensure_ascii=True) + "\n"
        case Output.YAML:
            return "---\n" + document(row, output)
        case Output.CSV:
            return csv([row], _FIELDS).partition("\r\n")[2]
        case Output.NAME:
            return f"{row['place']}\n"
        case _:
            fields = [str(row[name]) for name in ("at", "place", "kind", "actor", "subject")]
            if (change := _changed_right(row)) is not None:
                fields.append(change)
            return printable("   ".join(fields)).replace("\n", "\\n") + "\n"


def _place(event: "JsonObject") -> int:
    return int(str(event["leaf_index"]))


def _proved_row(place: int, event: "JsonObject", proof: Any) -> "JsonObject":
    """Return the fields of an event, its salt and its proof. Raises LogDamaged if the inclusion proof is wrong."""
    from clustercert.merkle.tree import ProofError, leaf_hash, verify_inclusion

    canonical, salt = str(event["canonical"]), bytes.fromhex(str(event["salt"]))
    commitment = hashlib.sha256(salt + canonical.encode()).digest()
    hashes = [bytes.fromhex(each) for each in proof["hashes"]]
    size, root = int(proof["tree_size"]), bytes.fromhex(proof["root"])
    try:
        verify_inclusion(leaf_hash(commitment), place, size, hashes, root)
    except ProofError as error:
        raise LogDamaged(
            f"The event at leaf index {place} differs from the sealed event: {error}. "
            "Run `clustercert audit verify`."
        ) from error
    return {
        **event_row({**json.loads(canonical), "leaf_index": place}),
        "salt": salt.hex(),
        "commitment": commitment.hex(),
        "proof": [each.hex() for each in hashes],
        "proved_in": size,
    }
