"""Helpers for tests of the credential cache: a clock, certificates, revocations."""

from dataclasses import replace

from clustercert.model import CertificateRecord, Revocation
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import Bounds, CachedCertificate, CredentialCache
from support.stores import NOW, certificate_record
from support.wait import SECONDS

# For a test that looks up something unknown more than once, or whose database is slow because the machine is busy.
PATIENT = Bounds(unknown_seconds=3600, read_seconds=SECONDS)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


async def recorded(database: Database, **changed: object) -> CertificateRecord:
    record, its_event = certificate_record()
    record = replace(record, **changed)  # type: ignore[arg-type] # as the tests say
    await Ledger(database).record(record, its_event)
    return record


def revocation(record: CertificateRecord, what: str) -> Revocation:
    everything = Revocation(
        id=0,
        epoch=0,
        fingerprint=None,
        user_id="",
        cluster_id="",
        at=NOW,
        by="cli:test",
        reason="unspecified",
    )
    match what:
        case "certificate":
            return replace(
                everything,
                fingerprint=record.fingerprint,
                user_id=record.user_id,
                cluster_id=record.cluster_id,
            )
        case "user in cluster":
            return replace(everything, user_id=record.user_id, cluster_id=record.cluster_id)
        case "user":
            return replace(everything, user_id=record.user_id)
        case _:
            return replace(everything, cluster_id=record.cluster_id)


SCOPES = ("certificate", "user in cluster", "user", "cluster")


async def look_up(known: CredentialCache, record: CertificateRecord) -> CachedCertificate | None:
    """Look up like the webhook: by credential number."""
    return await known.by_number(record.credential_number)


async def is_revoked(known: CredentialCache, record: CertificateRecord) -> bool:
    found = await look_up(known, record)
    assert found is not None
    return found.revoked
