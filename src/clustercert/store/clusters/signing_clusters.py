"""Queries for signers that connect to clusters: a CA's cluster, and the CA's sealed secret."""

from typing import Any

from sqlalchemy import Row, select, update

from clustercert.model import ClientCA
from clustercert.model.errors import Unavailable
from clustercert.model.kubernetes import installation_id
from clustercert.pki.signer import LOCAL, SigningCluster
from clustercert.store import tables
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

    async def note_problem(self, ca_id: str, problem: str | None) -> bool:
        """Record why a cluster gets no tokens now, or None. Returns whether this changed anything."""
        async with self._database.transaction() as connection:
            is_other = _ca.c.problem.is_distinct_from(problem)
            query = update(_ca).where(_ca.c.id == ca_id, is_other).values(problem=problem)
            return (await connection.execute(query)).rowcount == 1

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
