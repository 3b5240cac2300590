"""Queries for signers that connect to clusters: a CA's cluster, and the CA's sealed secret."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Update, select, update

from clustercert.model import AuditEvent, ClientCA
from clustercert.model.errors import Unavailable
from clustercert.model.kubernetes import installation_id
from clustercert.pki.signer import LOCAL, SigningCluster
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.clusters.client_cas import ca_of
from clustercert.store.engine.queries import Queries

_cluster, _ca = tables.cluster, tables.client_ca
_found = select(
    _ca.c.cluster_id,
    _cluster.c.internal_url.label("url"),
    _cluster.c.server_ca_pem,
    _ca.c.id.label("ca_id"),
    _ca.c.sealed_key,
    _ca.c.problem,
).join(_cluster, _cluster.c.id == _ca.c.cluster_id)


@dataclass(frozen=True, slots=True)
class UnknownTokens:
    """Credentials in a cluster that are not in the ledger, and that the service does not delete by itself.

    Attributes:
        waiting: how many there are; 0 if there are none.
        confirmed: how many the service may delete, as an operator confirmed.
    """

    waiting: int
    confirmed: int


class SigningClusterQueries(Queries):
    """Finds the clusters of CAs, and stores renewed secrets. Caches nothing, because signing takes much longer."""

    async def of_ca(self, ca_id: str) -> SigningCluster | None:
        """Return a CA's cluster as stored now, or None if the CA was deleted."""
        return _parsed(await self._row(_found.where(_ca.c.id == ca_id)))

    async def signed_by(self, cluster_id: str, signer: str) -> SigningCluster | None:
        """Return a cluster with its newest CA of a signer that has a sealed secret, or None."""
        query = _found.where(
            _ca.c.cluster_id == cluster_id, _ca.c.signer == signer, _ca.c.sealed_key.is_not(None)
        )
        return _parsed(await self._row(query.order_by(_ca.c.not_after.desc(), _ca.c.id).limit(1)))

    async def exchange_secret(self, ca_id: str, before: bytes, after: bytes) -> bool:
        """Replace a CA's sealed secret if it is still `before`. Returns whether it was replaced."""
        async with self._database.transaction() as connection:
            query = update(_ca).where(_ca.c.id == ca_id, _ca.c.sealed_key == before)
            return (await connection.execute(query.values(sealed_key=after))).rowcount == 1

    async def note_problem(self, ca_id: str, problem: str | None, event: AuditEvent | None = None) -> bool:
        """Record why a cluster gets no tokens now, or None. Returns whether this changed anything.

        Args:
            event: recorded if this changed anything.
        """
        is_other = _ca.c.problem.is_distinct_from(problem)
        query = update(_ca).where(_ca.c.id == ca_id, is_other).values(problem=problem)
        return await self._change_with_event(query, event)

    async def note_access(self, ca_id: str, expires_at: datetime) -> None:
        """Record when the token expires with which a CA's signer logs in to the cluster."""
        async with self._database.transaction() as connection:
            query = update(_ca).where(_ca.c.id == ca_id)
            await connection.execute(query.values(access_expires_at=expires_at))

    async def unknown_tokens(self, ca_id: str) -> UnknownTokens:
        """Return how many credentials of a cluster wait for an operator to confirm their deletion."""
        row = await self._row(select(_ca.c.unknown_tokens, _ca.c.unknown_confirmed).where(_ca.c.id == ca_id))
        return UnknownTokens(0, 0) if row is None else UnknownTokens(row[0] or 0, row[1] or 0)

    async def note_unknown_tokens(self, ca_id: str, count: int, event: AuditEvent | None = None) -> None:
        """Record how many credentials of a cluster wait. 0 also removes the operator's confirmation."""
        values = {"unknown_tokens": count} if count else {"unknown_tokens": None, "unknown_confirmed": None}
        await self._change_with_event(update(_ca).where(_ca.c.id == ca_id).values(values), event)

    async def confirm_unknown_tokens(self, ca_id: str, count: int, event: AuditEvent) -> bool:
        """Record that an operator confirmed the deletion. Returns False if another number of credentials waits."""
        query = update(_ca).where(_ca.c.id == ca_id, _ca.c.unknown_tokens == count)
        return await self._change_with_event(query.values(unknown_confirmed=count), event)

    async def _change_with_event(self, query: Update, event: AuditEvent | None) -> bool:
        """Run the update. Records the event, if there is one, in the same transaction if a row changed."""
        async with self._database.transaction() as connection:
            has_changed = (await connection.execute(query)).rowcount == 1
            if has_changed and event is not None:
                await record_events(connection, (event,))
        return has_changed

    async def installation(self) -> str:
        """Return the id of this installation. Raises Unavailable if there is no audit log yet."""
        public_key = await self._scalar(select(tables.audit_log.c.public_key))
        if public_key is None:
            raise Unavailable("The audit log has no key yet. Start the service, and try again.")
        return installation_id(bytes(public_key))

    async def cas_with_secrets(self, after: str, limit: int) -> tuple[ClientCA, ...]:
        """Return at most `limit` CAs in use for which a signer has stored a credential, sorted by id.

        `after`: return only CAs with larger ids.
        """
        query = select(_ca).where(
            _ca.c.signer != LOCAL, _ca.c.sealed_key.is_not(None), _ca.c.state != "retired", _ca.c.id > after
        )
        return tuple(map(ca_of, await self._rows(query.order_by(_ca.c.id).limit(limit))))


def _parsed(row: Row[Any] | None) -> SigningCluster | None:
    return None if row is None else SigningCluster(**row._asdict())
