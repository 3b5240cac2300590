"""Clusters, users and certificates in a bare store."""

import uuid
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import insert, select

from clustercert.model import CertificateRecord, Cluster, Revocation
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.certificates.views import is_revoked
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from support.samples import PROJECT_ID, cluster
from support.stores import NOW, Store, certificate_record, event

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
    return await RevocationQueries(database).undo(
        made.id, by="cli:other", at=LATER, event=event("revocation.undone")
    )


def cluster_id() -> str:
    return str(uuid.uuid4())


def user_id() -> str:
    return uuid.uuid4().hex


async def new_user(database: Database) -> str:
    """A user in a new domain."""
    domain, user = uuid.uuid4().hex, user_id()
    async with database.transaction() as connection:
        await connection.execute(insert(tables.domain).values(id=domain, name=domain, enabled=True))
        row = {
            "id": user,
            "domain_id": domain,
            "name": user,
            "enabled": True,
            "created_at": NOW,
            "labels": {},
        }
        await connection.execute(insert(tables.user).values(row))
    return user


async def register_cluster(database: Database, store: Store, registered: Cluster | None = None) -> Cluster:
    """A cluster, by default the sample cluster, with the project that it belongs to."""
    store.execute("INSERT INTO domain (id, name, enabled) VALUES ('d', 'd', true)")
    store.execute(
        "INSERT INTO project (id, domain_id, name, description, enabled, labels)"
        f" VALUES ('{PROJECT_ID}', 'd', 'p', '', true, '{{}}')"
    )
    registered = registered or cluster()
    await ClusterQueries(database).add(registered, event("cluster.added"), 1)
    return registered
