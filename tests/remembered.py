"""What the webhook's memory is tested with: a clock, another process, and how often the database is asked."""

from dataclasses import replace

from sqlalchemy import event as sqlalchemy_event

from clustercert.model import CertificateRecord, Revocation
from clustercert.store.credentials import Credential, Credentials
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from stores import NOW, certificate_record


class Statements:
    """How many statements a database was asked, by what they read."""

    def __init__(self, database: Database) -> None:
        self.texts: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
            self.texts.append(statement)

        sqlalchemy_event.listen(database.engine.sync_engine, "before_cursor_execute", note)

    def reading(self, table: str) -> int:
        return sum(f"FROM {table}" in text for text in self.texts)


class Clock:
    """A feed's time, in the hands of the test."""

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


WHATS = ("certificate", "user in cluster", "user", "cluster")


async def look_up(known: Credentials, record: CertificateRecord) -> Credential | None:
    """As the webhook finds it: by its credential number, or by its hash where it has none."""
    if record.credential_number is None:
        return await known.by_fingerprint(record.fingerprint)
    return await known.by_number(record.credential_number)


async def is_revoked(known: Credentials, record: CertificateRecord) -> bool:
    found = await look_up(known, record)
    assert found is not None
    return found.revoked
