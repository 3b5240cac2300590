"""Verifies the stored log for `clustercert audit verify`, with the most trustworthy key available."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.audit_output import parse_key, trusted_heads
from clustercert.cli.options import CommandError
from clustercert.cli.progress import Progress
from clustercert.model.errors import CustodyError, UnsealError

if TYPE_CHECKING:
    from clustercert.audit.findings import Finding, VerificationReport
    from clustercert.merkle.notes import VerifierKey
    from clustercert.settings import Settings
    from clustercert.store.engine.database import Database
    from clustercert.store.evidence import EvidenceQueries

EVENTS = "events checked"


async def verify_stored_log(
    settings: "Settings", files: Sequence[Path], given: str | None
) -> "tuple[VerificationReport, str]":
    """Verify the log with the given key, or with the public key of the sealed private key.

    If neither is available, verifies it with the stored public key, and also returns why; otherwise "". Raises
    CommandError, SchemaError, LogDamaged or Unavailable.
    """
    from clustercert.audit.findings import FindingKind, VerificationReport
    from clustercert.audit.verification import verify
    from clustercert.merkle.notes import NoteError
    from clustercert.store.evidence import EvidenceQueries
    from clustercert.wiring import opened_database

    async with opened_database(settings) as database:
        queries = EvidenceQueries(database)
        if given is not None:
            key, found, untrusted = parse_key(given), None, ""
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
    """Return the log's key, a finding if the stored key is wrong, and why the returned key can't be trusted or ""."""
    from clustercert.audit.findings import Finding, FindingKind
    from clustercert.audit.log_key import unseal_private_key
    from clustercert.custody import Custody
    from clustercert.merkle.notes import VerifierKey
    from clustercert.settings import SettingsError
    from clustercert.wiring import kek_source

    stored = await queries.verifier()
    if stored is None:
        raise CommandError("There is no audit log in the store yet.")
    try:
        custody = Custody(database, kek_source(settings))
        await custody.open()
    except (SettingsError, CustodyError) as error:
        return stored, None, error.message
    try:
        private = await unseal_private_key(await queries.sealed_key(), custody)
    except UnsealError as error:
        return stored, Finding(FindingKind.KEY_UNREADABLE, facts={"reason": error.reason}), ""
    derived = VerifierKey(stored.name, private.public_key().public_bytes_raw())
    if derived == stored:
        return derived, None, ""
    facts = {"stored": str(stored), "derived": str(derived)}
    return derived, Finding(FindingKind.KEY_REPLACED, facts=facts), ""
