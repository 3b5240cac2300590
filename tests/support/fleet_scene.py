"""Clusters of two projects in a bare store, in the states that the overview and the page Fleet show."""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, update

from clustercert.model import CertificateRecord, ClientCA, Cluster
from clustercert.model.ids import new_cluster_id, new_id
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.clusters.ca_rotations import CaRotationQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from support.samples import OTHER_PROJECT_ID, PROJECT_ID, client_ca, cluster
from support.stores import NOW, certificate_record, event

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass
class FleetScene:
    """A store with two projects, `one` and `two`, in the domain `d`.

    Attributes:
        clusters: the clusters, by name.
    """

    database: Database
    clusters: dict[str, Cluster] = field(default_factory=dict)

    async def add_projects(self) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(insert(tables.domain).values(id="d" * 32, name="d", enabled=True))
            for project_id, name in ((PROJECT_ID, "one"), (OTHER_PROJECT_ID, "two")):
                row = {"id": project_id, "domain_id": "d" * 32, "name": name, "description": ""}
                await connection.execute(insert(tables.project).values(**row, enabled=True, labels={}))

    async def add(self, name: str, project_id: str = PROJECT_ID, **changes: object) -> Cluster:
        """Add a cluster. `options` has changes of the options."""
        cluster_id, sample = new_cluster_id(), cluster()
        ca = changes.pop("client_ca", sample.client_ca)
        assert isinstance(ca, ClientCA)
        options = replace(sample.options, **changes.pop("options", {}))  # type: ignore[arg-type] # names of fields
        added = replace(
            sample,
            id=cluster_id,
            project_id=project_id,
            name=name,
            client_ca=replace(ca, id=new_id(), cluster_id=cluster_id),
            options=options,
            **changes,  # type: ignore[arg-type] # names of fields
        )
        await ClusterQueries(self.database).add(added, event("cluster.added"), 100_000)
        self.clusters[name] = added
        return added

    async def verified(self, name: str, at: datetime = NOW) -> None:
        await ClusterQueries(self.database).record_verification(self.clusters[name], at)

    async def called(self, name: str, at: datetime | None, used: datetime | None = None) -> None:
        """Add a webhook token, with which the API server called the webhook and reported a use at these times."""
        token_id = new_id()
        row = {
            "id": token_id,
            "cluster_id": self.clusters[name].id,
            "hash": hashlib.sha256(token_id.encode()).digest(),
            "created_at": NOW,
            "last_asked_at": at,
            "last_use_at": used,
        }
        async with self.database.transaction() as connection:
            await connection.execute(insert(tables.webhook_token).values(row))

    async def issue(
        self, name: str, user_id: str, method: str = "token", hours: float = 8, **changes: object
    ) -> CertificateRecord:
        """Record a certificate for a cluster, which ends in so many hours."""
        record, issued = certificate_record()
        at = self.clusters[name]
        values: dict[str, Any] = {
            "cluster_id": at.id,
            "project_id": at.project_id,
            "ca_id": at.client_ca.id,
            "user_id": user_id,
            "auth_method": method,
            "not_after": NOW + hours * HOUR,
        }
        record = replace(record, **(values | changes))
        await Ledger(self.database).record(record, issued)
        return record

    async def used(self, record: CertificateRecord, at: datetime) -> None:
        """Note that an API server accepted a certificate after its revocation."""
        used = update(tables.certificate).where(tables.certificate.c.fingerprint == record.fingerprint)
        async with self.database.transaction() as connection:
            await connection.execute(used.values(revoked_used_at=at))

    async def saw_unknown(self, name: str, username: str, first: datetime) -> None:
        """Note that an API server reported a certificate that is not in the ledger."""
        row = {
            "cluster_id": self.clusters[name].id,
            "identity": hashlib.sha256(username.encode()).digest(),
            "username": username,
            "groups": [],
            "hashes": 1,
            "fingerprints": [],
            "first_seen_at": first,
            "last_seen_at": NOW,
            "last_alert_at": first,
            "alerts_of_each": False,
        }
        async with self.database.transaction() as connection:
            await connection.execute(insert(tables.unknown_identity).values(row))

    async def rotate(self, name: str, state: str, problem: str | None = None, *, asked: bool = False) -> None:
        """Add a rotation in this state, from another client CA to the cluster's."""
        row = {
            "cluster_id": self.clusters[name].id,
            "old_ca_id": f"old {name}",
            "new_ca_id": self.clusters[name].client_ca.id,
            "state": state,
            "since": NOW,
            "started_at": NOW,
            "started_by": "cli:test",
            "auto_complete": False,
            "deny_old": False,
            "reverses": False,
            "completion_asked_at": NOW if asked else None,
            "forced": False,
            "addresses": [],
            "proofs": [],
            "problem": problem,
            "version": 0,
        }
        async with self.database.transaction() as connection:
            await connection.execute(insert(tables.ca_rotation).values(row))
        assert await CaRotationQueries(self.database).rotation(self.clusters[name].id) is not None


def ca_ending(at: datetime) -> ClientCA:
    """A client CA that ends at a time."""
    from_start = client_ca().ca_certificate.not_valid_before_utc
    return client_ca(lifetime=at - from_start)
