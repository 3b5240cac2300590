"""`clustercert apply`, `diff` and `export`: administration with YAML documents."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import CommandError, InvalidOption, UsageError, YesOption, parse_pairs
from clustercert.cli.terminal.output import Output, Progress, document, print_note, write_out
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.cli.apply.desired_state import PlannedChange, Planner
    from clustercert.cli.apply.documents import Document
    from clustercert.cli.terminal.output import Row
    from clustercert.client.administration import AdministrationClient

FileOption = Annotated[
    list[Path],
    typer.Option(
        "--file",
        "-f",
        metavar="FILE|DIR|-",
        help="YAML file, folder with YAML files, or standard input (-). Repeatable.",
    ),
]
_DONE = {"create": "created", "change": "changed", "delete": "deleted", "rotate": "rotation started"}
_SIGNS = {"create": "+", "change": "~", "delete": "-", "rotate": "~"}


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """The options `--prune` and `--selector`, for deletions of objects that have no document."""

    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Also delete objects that have the labels of --selector but no document."
        ),
    ] = False
    selector: Annotated[
        list[str] | None,
        typer.Option("--selector", metavar="KEY=VALUE", help="Label of the objects to delete. Repeatable."),
    ] = None

    def __post_init__(self) -> None:
        if self.prune != bool(self.labels):
            raise InvalidOption("Give --prune and --selector together.")

    @property
    def labels(self) -> dict[str, str]:
        """The labels that an object to delete must have. Empty without `--prune`."""
        return parse_pairs(self.selector, "KEY=VALUE", "--selector")


def _name_diff(is_given: bool) -> None:
    if is_given:
        raise UsageError("There is no option --dry-run. `clustercert diff` shows what `apply` would change.")


@on_service
def apply(
    client: "AdministrationClient",
    file: FileOption,
    pruning: PruneOptions,
    yes: YesOption = False,
    dry_run: Annotated[  # noqa: ARG001 - only the option's callback uses it
        bool, typer.Option("--dry-run", hidden=True, callback=_name_diff, is_eager=True, help="See `diff`.")
    ] = False,
) -> None:
    """Create and change domains, projects, users, groups, roles and clusters, as described in YAML documents.

    Everything is checked before the first change. Applying the same documents again changes nothing. If a document
    changes the signer of a cluster, a rotation of the client CA starts: see `clustercert cluster ca status`.

    Examples:
        clustercert apply -f site.yaml
        clustercert apply -f site/ --prune --selector managed-by=git
    """
    documents = _read(file)
    planner, changes = _plan(client, documents)
    deleted = planner.deletions(pruning.labels) if pruning.labels else []
    if deleted:
        _show(deleted)
        confirm(
            "Delete this object?" if len(deleted) == 1 else f"Delete these {len(deleted)} objects?", yes=yes
        )
    _make(client, planner, [*changes, *deleted])


@on_service
def diff(
    client: "AdministrationClient",
    file: FileOption,
    pruning: PruneOptions,
    output: Annotated[
        Literal["table", "json", "yaml"],
        typer.Option("--output", "-o", metavar="FORMAT", help="table, json or yaml."),
    ] = "table",
) -> None:
    """Show what `apply` would change with the same options.

    Examples:
        clustercert diff -f site.yaml
    """
    documents = _read(file)
    planner, changes = _plan(client, documents)
    changes += planner.deletions(pruning.labels) if pruning.labels else []
    if output == "table":
        _show(changes)
    else:
        write_out(document([_row(change) for change in changes], Output(output)))
    print_note(f"{_count(changes)}." if changes else "Nothing to change.")


@on_service
def export(client: "AdministrationClient") -> None:
    """Print all domains, projects, users, groups, roles and clusters as documents for `apply`.

    Examples:
        clustercert export > site.yaml
    """
    from clustercert.cli.apply.documents import write_documents
    from clustercert.cli.apply.export import exported

    documents = []
    with Progress("documents") as progress:
        for each in exported(client):
            documents.append(each)
            progress.advance()
    write_out(write_documents(documents))


def _read(files: list[Path]) -> "list[Document]":
    from clustercert.cli.apply.documents import read_documents

    return read_documents(files)


def _plan(
    client: "AdministrationClient", documents: "Sequence[Document]"
) -> "tuple[Planner, list[PlannedChange]]":
    """Plan the changes that the documents require. The service checks the changes without applying them."""
    from clustercert.cli.apply.desired_state import Planner

    with Progress("documents compared", len(documents)) as progress:
        planner = Planner(client, documents)
        changes = planner.changes(progress.advance)
        planner.check(changes)
    return planner, changes


def _make(client: "AdministrationClient", planner: "Planner", changes: "Sequence[PlannedChange]") -> None:
    """Apply and print the changes one by one. Raises CommandError with the number of changes applied so far."""
    from clustercert.client.connection import ClientError

    with Progress("changes", len(changes)) as progress:
        for number, change in enumerate(changes):
            try:
                _make_one(client, planner, change)
            except ClientError as error:
                raise CommandError(
                    f"{change.title}: {error.message} Applied {number} of {len(changes)} changes, which are printed"
                    " above. Correct the cause and apply again."
                ) from error
            progress.print(f"{change.title} {_DONE[change.action]}\n")
    print_note(f"{_count(changes)} applied." if changes else "Nothing to change.")


def _make_one(client: "AdministrationClient", planner: "Planner", change: "PlannedChange") -> None:
    path = planner.full_path(change)
    if change.body is None:
        client.delete(path, change.etag)
        return
    made = planner.send(change, path)
    if change.creates is not None:
        planner.ids[change.creates] = str(made["id"])


def _count(changes: "Sequence[PlannedChange]") -> str:
    return f"{len(changes)} change{'' if len(changes) == 1 else 's'}"


def _row(change: "PlannedChange") -> "Row":
    differences = {name: {"old": old, "new": new} for name, (old, new) in change.differences.items()}
    return {"action": change.action, "object": change.title, "differences": differences}


def _show(changes: "Sequence[PlannedChange]") -> None:
    for change in changes:
        write_out(f"{_SIGNS[change.action]} {change.title}\n")
        for name, (old, new) in change.differences.items():
            write_out(f"    {name}: {_shown(old)} -> {_shown(new)}\n")


def _shown(value: object) -> str:
    """Return a value of a field for people: certificates as fingerprints and end dates."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    if isinstance(value, str) and "-----BEGIN CERTIFICATE-----" in value:
        with contextlib.suppress(ValueError):
            return ", ".join(
                f"SHA-256 {each.fingerprint(SHA256()).hex()} (valid until {rfc3339(each.not_valid_after_utc)})"
                for each in x509.load_pem_x509_certificates(value.encode())
            )
    return repr(value)
