"""Verifies and exports the audit log. `clustercert audit verify` uses the most trustworthy key available."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.audit.events import event_row
from clustercert.cli.audit.output import (
    parse_key,
    read_text,
    show_report,
    translate_note_errors,
    trusted_heads,
)
from clustercert.cli.commands import on_store
from clustercert.cli.options import CommandError, UsageError, error_text
from clustercert.cli.session import Operator, require_database, settings
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Progress,
    print_note,
    row_of,
    show_one,
    with_times,
    write_out,
)
from clustercert.model.errors import CustodyError, KeysUnavailable, LogDamaged, UnsealError

if TYPE_CHECKING:
    from clustercert.audit.findings import Finding, VerificationReport
    from clustercert.merkle.notes import VerifierKey
    from clustercert.settings import Settings
    from clustercert.store.audit.evidence import EvidenceQueries
    from clustercert.store.engine.database import Database


EVENTS = "events checked"
# The salt of an event, at the start of the extra data of a proof.
_SALT_BYTES = 16


async def verify_stored_log(
    settings: "Settings", files: Sequence[Path], given: str | None
) -> "tuple[VerificationReport, str]":
    """Verify the log with the given key, or with the public key derived from the sealed private key.

    If neither key is available, verifies the log with the stored public key. Returns the report, and the reason why
    the key can't be trusted (empty for a trusted key). Raises CommandError, SchemaError, LogDamaged or Unavailable.
    """
    from clustercert.audit.findings import Finding, FindingKind, VerificationReport
    from clustercert.audit.verification import verify
    from clustercert.merkle.notes import NoteError
    from clustercert.store.audit.evidence import EvidenceQueries
    from clustercert.store.engine import migrate

    async with migrate.opened(settings.store_url, settings.data_dir) as database:
        queries = EvidenceQueries(database)
        if given is not None:
            key, found, untrusted = parse_key(given), None, ""
            if (stored := await queries.verifier()) is not None and stored != key:
                facts = {"stored": str(stored), "given": str(key)}
                found = Finding(FindingKind.KEY_DIFFERS, facts=facts)
        else:
            key, found, untrusted = await _own_key(settings, database, queries)
        trusted = trusted_heads(files, key)
        try:
            with Progress(EVENTS) as progress:
                report = await verify(queries, key, trusted, progress.reach)
        except NoteError as error:
            report = VerificationReport()
            report.add(FindingKind.NEWEST_INVALID, reason=error)
    if found is not None:
        report.findings.append(found)
        report.found += 1
    return report, untrusted


async def _own_key(
    settings: "Settings", database: "Database", queries: "EvidenceQueries"
) -> "tuple[VerifierKey, Finding | None, str]":
    """Return the log's key, a finding if the stored key is wrong, and the reason why the key can't be trusted.

    For a trusted key, the returned reason is empty.
    """
    from clustercert.audit.findings import Finding, FindingKind
    from clustercert.audit.log import unseal_private_key
    from clustercert.custody import Custody
    from clustercert.merkle.notes import VerifierKey
    from clustercert.settings import SettingsError

    stored = await queries.verifier()
    if stored is None:
        raise CommandError(
            "There is no audit log in the store yet. Start the service, which creates the log."
        )
    try:
        custody = Custody(database, *settings.kek_sources())
        try:
            await custody.open()
        finally:
            await custody.close()
    except (SettingsError, CustodyError, KeysUnavailable) as error:
        return stored, None, error_text(error)
    try:
        private = await unseal_private_key(await queries.sealed_key(), custody)
    except UnsealError as error:
        return stored, Finding(FindingKind.KEY_UNREADABLE, facts={"reason": error.reason}), ""
    derived = VerifierKey(stored.name, private.public_key().public_bytes_raw())
    if derived == stored:
        return derived, None, ""
    facts = {"stored": str(stored), "derived": str(derived)}
    return derived, Finding(FindingKind.KEY_REPLACED, facts=facts), ""


def verify(
    context: typer.Context,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="File with saved checkpoints, which the log must extend. Repeatable."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Verify this exported folder instead of the store.")
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verify this proof of one event instead of the store.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Saved verifier key, or a file that contains it.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify the whole log: events, tree and checkpoint.

    Without --key, derives the key from the store's sealed private key, which needs the key-encryption key. Exits with
    status 1 if the log was changed, or if no key can be trusted. With --key, an exported folder or a proof from the
    console or the API can be verified without store and settings.

    Examples:
        clustercert audit verify
        clustercert audit verify --key log.key --checkpoint saved-checkpoints.txt
        clustercert audit verify --export log --key log.key
    """
    files = checkpoint or []
    if proof is not None:
        if files or export is not None or key is None:
            raise UsageError("--proof needs --key, and excludes --export and --checkpoint.")
        _verify_proof(proof, key, output)
        return
    if export is not None:
        report, untrusted = _verified_export(export, files, key)
    else:
        report, untrusted = _verified_store(context, files, key)
    show_report(report, output)
    if untrusted:
        print_note(untrusted)
    if output is Output.TABLE:
        print_note(_verdict(report, is_trusted=not untrusted))
    if report.found or untrusted:
        raise typer.Exit(1)
    if not files:
        print_note("The log was not compared with a saved checkpoint. Name one with --checkpoint.")


def _verdict(report: "VerificationReport", *, is_trusted: bool) -> str:
    """Return a sentence that says whether the log was changed."""
    if report.found:
        return (
            f"The audit log is not intact: {report.found} {'finding' if report.found == 1 else 'findings'}."
        )
    if not is_trusted:
        return "Nothing wrong was found, but the log is not proved to be intact."
    deleted = f", except {report.deleted} whose deletion is recorded" if report.deleted else ""
    return f"The audit log is intact: all {report.size} events are as they were sealed{deleted}."


@on_store
async def export(
    operator: Operator,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write. An older export is updated.")],
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Write all events again, to remove deleted ones from the folder."),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Export the log to a folder.

    `verify --export` and other tools for transparency logs can verify the folder.

    Examples:
        clustercert audit export --out log
    """
    from clustercert.audit.export import Exporter, has_foreign_files
    from clustercert.store.audit.evidence import EvidenceQueries

    if out.exists() and (not out.is_dir() or has_foreign_files(out)):
        raise CommandError(
            f"{out} contains files that don't belong to an export. Specify a new or empty folder."
        )
    components = operator.components
    await components.log_sealer.seal_all()
    queries, seal = EvidenceQueries(components.database), components.log_sealer.seal_all
    with Progress("events exported") as progress:
        exporter = Exporter(queries, components.audit_log, seal, progress.reach)
        done = await exporter.export(out, refresh=refresh)
    row = {"folder": str(out), "size": done.size, "tiles": done.tiles, "events": done.events}
    show_one(row, output, name="folder")


@on_store
async def checkpoint(
    operator: Operator,
    verifier_key: Annotated[
        bool,
        typer.Option(
            "--verifier-key",
            help="Show the log's verifier key instead. Keep the key with your saved checkpoints.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a new checkpoint of the log.

    Keep the checkpoint where nobody with access to the database can change it.

    Examples:
        clustercert audit checkpoint >> kept-checkpoints
        clustercert audit checkpoint --verifier-key > clustercert.key
    """
    if verifier_key:
        write_out(f"{await operator.components.log_sealer.verifier_key()}\n")
        return
    components = operator.components
    await components.log_sealer.seal_all()
    found = await components.audit_log.checkpoint()
    if output is Output.TABLE:
        write_out(found.note)
        return
    key = str(await components.audit_log.verifier_key())
    row = {"size": found.size, "root": found.root.hex(), **row_of(found, "at", "note"), "verifier_key": key}
    show_one(row, output, name="root")


def _verify_proof(file: Path, given: str, output: Output) -> None:
    """Show the event in a proof file if the log contains it. Raises LogDamaged, UsageError or CommandError."""
    from clustercert.merkle.proof_files import ProofFile
    from clustercert.merkle.tree import ProofError

    key, text = parse_key(given), read_text(file)
    with translate_note_errors():
        try:
            proof = ProofFile.parse(text)
            checkpoint = proof.verify(hashlib.sha256(proof.extra).digest(), key)
        except ProofError as error:
            raise LogDamaged(
                f"The file {file} proves nothing: {error}. Copy the whole proof, or download the proof again."
            ) from error
    try:
        row = event_row({**json.loads(proof.extra[_SALT_BYTES:]), "leaf_index": proof.leaf_index})
    except (ValueError, TypeError, KeyError) as error:
        raise LogDamaged(
            f"The file {file} proves an entry of the log that is not an event. Name a file "
            "with the proof of an event."
        ) from error
    show_one(with_times(row | {"proved_in": checkpoint.size}), output, name="place")
    print_note(
        f"Proved: the log {checkpoint.origin} contains this event at leaf index {proof.leaf_index}. A "
        f"checkpoint of size {checkpoint.size}, signed with the given key, covers this event."
    )


def _verified_store(
    context: typer.Context, files: list[Path], key: str | None
) -> "tuple[VerificationReport, str]":
    """Verify the stored log. Also returns why the log's key can't be trusted (empty for a trusted key)."""
    import asyncio

    from clustercert.observability import log

    loaded = settings(context)
    require_database(loaded, context.obj.config)
    log.configure_command()
    report, reason = asyncio.run(verify_stored_log(loaded, files, key))
    if not reason:
        return report, ""
    return report, (
        f"Not proved: {reason} The log was checked with the public key in the database, but anyone who can "
        "write to the database can replace both the key and the log. Give --key with the key that you "
        "saved, or set kek_file or CLUSTERCERT_KEK, and verify again."
    )


def _verified_export(folder: Path, files: list[Path], key: str | None) -> "tuple[VerificationReport, str]":
    """Verify an exported log. Also returns why the log's key can't be trusted (empty for a trusted key)."""
    import asyncio

    from clustercert.audit.export import VERIFIER_KEY, ExportedLog
    from clustercert.audit.verification import verify as verified

    if not folder.is_dir() or (key is None and not (folder / VERIFIER_KEY).is_file()):
        raise UsageError(f"{folder} is not an exported log. See `clustercert audit export`.")
    verifier = parse_key(key or str(folder / VERIFIER_KEY))
    with translate_note_errors(), Progress(EVENTS) as progress:
        heads = trusted_heads(files, verifier)
        report = asyncio.run(verified(ExportedLog(folder), verifier, heads, progress.reach))
    untrusted = (
        f"Not proved: the log was checked with the key in {folder}, which the folder's creator chose. Give "
        "--key with the key that you saved, and verify again."
    )
    return report, "" if key is not None else untrusted
