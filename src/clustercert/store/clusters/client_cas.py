"""Queries for client CAs, and for discarded CAs: those whose keys have to be deleted."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from sqlalchemy import Row, delete, insert, select, update

from clustercert.model import AuditEvent, ClientCA
from clustercert.model.errors import Conflict
from clustercert.pki.certificates import certificate_der
from clustercert.pki.signer import LOCAL
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction

_PAGE = 100

_ca, _discarded = tables.client_ca, tables.discarded_ca


@dataclass(frozen=True, slots=True)
class DiscardedCa:
    """A client CA whose key still has to be deleted. Its cluster and project may not exist any more.

    Attributes:
        project_id: `None` if the project was removed, or if the CA was created but not added to its cluster.
    """

    ca: ClientCA
    project_id: str | None


class ClientCaQueries(Queries):
    """Reads client CAs, and deletes discarded ones."""

    async def cas(self, ids: Collection[str]) -> dict[str, ClientCA]:
        """Return client CAs by id. Ignores ids that do not exist."""
        rows = await self._rows(select(_ca).where(_ca.c.id.in_(ids)))
        return {row.id: ca_of(row) for row in rows}

    async def clock_offset(self) -> timedelta:
        """Return how far this machine's clock is ahead of the database server's. Raises Unavailable."""
        return await self._database.clock_offset()

    async def of_cluster(self, cluster_id: str) -> tuple[ClientCA, ...]:
        """Return a cluster's client CAs in all states, oldest first."""
        query = select(_ca).where(_ca.c.cluster_id == cluster_id).order_by(_ca.c.not_after, _ca.c.id)
        return tuple(map(ca_of, await self._rows(query)))

    async def discarded(self, cluster_id: str | None = None, *, after: str = "") -> tuple[DiscardedCa, ...]:
        """Return a page of the discarded CAs of one cluster or all clusters, with ids above `after`, sorted by id."""
        query = select(_discarded).where(_discarded.c.id > after).order_by(_discarded.c.id).limit(_PAGE)
        if cluster_id is not None:
            query = query.where(_discarded.c.cluster_id == cluster_id)
        return tuple(map(_discarded_ca, await self._rows(query)))

    async def note_created(self, ca: ClientCA) -> None:
        """Note that the key of a new CA must be deleted, unless `add_ca` adds the CA."""
        async with self._database.transaction() as connection:
            values = {name: value for name, value in ca_row(ca).items() if name in _discarded.c}
            await connection.execute(insert(_discarded).values(values | {"project_id": ""}))

    async def forget(self, ca_id: str, event: AuditEvent) -> None:
        """Record that the key of a discarded CA was deleted. Does nothing if another process has recorded this."""
        async with self._database.transaction() as connection:
            if (await connection.execute(delete(_discarded).where(_discarded.c.id == ca_id))).rowcount:
                await record_events(connection, (event,))


async def add_ca(connection: Transaction, ca: ClientCA) -> None:
    """Add a client CA, whose key must not be deleted from now on.

    Raises Conflict if the key was deleted before.
    """
    noted = (await connection.execute(delete(_discarded).where(_discarded.c.id == ca.id))).rowcount
    # If the CA has a sealed secret, its signer needs no other key. Dry runs note no CA of the built-in signer.
    if not noted and ca.signer != LOCAL and ca.sealed_key is None:
        raise Conflict(
            "The key of the new client CA was deleted meanwhile, because adding the CA seemed to take longer than 10"
            " minutes. Check that the clocks of all replicas agree, and try again."
        )
    await connection.execute(insert(_ca).values(ca_row(ca)))


async def discard_cas(connection: Transaction, ca_ids: Iterable[str], project_id: str) -> None:
    """Delete the sealed secrets of client CAs, and note that the signers have to delete the keys."""
    shared = [column.name for column in _discarded.c if column.name in _ca.c]
    for ca_id in ca_ids:
        row = (await connection.execute(select(_ca).where(_ca.c.id == ca_id))).one()
        values = {name: getattr(row, name) for name in shared} | {"project_id": project_id}
        await connection.execute(insert(_discarded).values(values))
        await connection.execute(update(_ca).where(_ca.c.id == ca_id).values(sealed_key=None))


def ca_of(row: Row[Any]) -> ClientCA:
    """Convert a row of the table `client_ca`."""
    return ClientCA(
        id=row.id,
        cluster_id=row.cluster_id,
        certificate=stored_certificate(row.certificate_der),
        sealed_key=row.sealed_key,
        state=row.state,
        signer=row.signer,
        key_reference=row.key_reference,
        problem=row.problem,
        access_expires_at=row.access_expires_at,
    )


def stored_certificate(der: bytes | None) -> x509.Certificate | None:
    """Parse the stored certificate of a client CA. The signer `token` has none."""
    return None if der is None else x509.load_der_x509_certificate(der)


def ca_row(ca: ClientCA) -> dict[str, object]:
    certificate = ca.certificate
    return {
        "id": ca.id,
        "cluster_id": ca.cluster_id,
        "certificate_der": None if certificate is None else certificate_der(certificate),
        "sealed_key": ca.sealed_key,
        "state": ca.state,
        "signer": ca.signer,
        "key_reference": ca.key_reference,
        "not_before": None if certificate is None else certificate.not_valid_before_utc,
        "not_after": None if certificate is None else certificate.not_valid_after_utc,
    }


def _discarded_ca(row: Row[Any]) -> DiscardedCa:
    ca = ClientCA(
        id=row.id,
        cluster_id=row.cluster_id,
        certificate=stored_certificate(row.certificate_der),
        sealed_key=None,
        state="retired",
        signer=row.signer,
        key_reference=row.key_reference,
    )
    return DiscardedCa(ca, row.project_id or None)
