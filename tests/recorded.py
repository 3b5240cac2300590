"""Certificates in the ledger, and whether they are revoked."""

import uuid
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import insert, select

from clustercert.model import CertificateRecord, Revocation
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations, is_revoked
from stores import NOW, certificate_record, event

LATER = NOW + timedelta(minutes=1)


async def issue(
    database: Database, user_id: str, cluster_id: str, *, serial: str | None = None
) -> CertificateRecord:
    record, issued = certificate_record()
    record = replace(record, user_id=user_id, cluster_id=cluster_id, serial=serial or record.serial)
    await Ledger(database).record(record, issued)
    return record


async def revoked(database: Database, record: CertificateRecord) -> bool:
    query = select(is_revoked()).where(tables.certificate.c.fingerprint == record.fingerprint)
    async with database.read() as connection:
        return bool((await connection.execute(query)).scalar_one())


async def undo(database: Database, made: Revocation) -> Revocation:
    return await Revocations(database).undo(
        made.id, by="cli:other", at=LATER, event=event("revocation.undone")
    )


def cluster_id() -> str:
    return str(uuid.uuid4())


def user_id() -> str:
    return uuid.uuid4().hex


async def new_user(database: Database) -> str:
    """A user in a domain of their own."""
    domain, user = uuid.uuid4().hex, user_id()
    async with database.write() as connection:
        await connection.execute(insert(tables.domain).values(id=domain, name=domain, enabled=True))
        row = {"id": user, "domain_id": domain, "name": user, "enabled": True, "created_at": NOW}
        await connection.execute(insert(tables.user).values(row))
    return user
