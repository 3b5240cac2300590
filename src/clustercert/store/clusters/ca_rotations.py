"""Queries for the rotation of client CAs."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update

from clustercert.model import AuditEvent, ClientCA
from clustercert.model.ca_rotation import CaHolder, CaProof, CaRotation, Holders
from clustercert.model.choices import RotationState
from clustercert.model.errors import ConcurrentChange, Conflict, NotFound
from clustercert.model.kubernetes import CA_PROVER, SERVICE, VERIFIER
from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked
from clustercert.store.clusters.client_cas import add_ca, discard_cas
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction

_rotation, _ca, _cluster = tables.ca_rotation, tables.client_ca, tables.cluster
_certificate = tables.certificate

RUNNING: tuple[RotationState, ...] = ("planned", "distributed", "issuing", "draining")
# The users of the service's own certificates, which nobody misses: the service issues new ones.
OWN_USERS = (SERVICE, VERIFIER, CA_PROVER)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class RunningRotation:
    """A running rotation, for the choice of the next ones to advance.

    Attributes:
        has_problem: whether the last attempt to advance the rotation failed.
    """

    cluster_id: str
    version: int
    has_problem: bool


@dataclass(frozen=True, slots=True)
class RotationCounts:
    """Figures for the metrics.

    Attributes:
        states: the number of running rotations in each state.
        failing: the number of running rotations with a problem.
        oldest: when the oldest running rotation started; None if none is running.
        first_ca_end: when the first of all active client CAs expires; None without clusters.
        discarded_keys: the number of keys that their signers have not deleted yet.
    """

    states: Mapping[str, int]
    failing: int
    oldest: datetime | None
    first_ca_end: datetime | None
    discarded_keys: int


class CaRotationQueries(Queries):
    """Reads and changes rotations of client CAs."""

    async def rotation(self, cluster_id: str) -> CaRotation | None:
        """Return the cluster's running rotation, or else its last one, or None."""
        row = await self._row(select(_rotation).where(_rotation.c.cluster_id == cluster_id))
        return None if row is None else _parsed(row)

    async def page(
        self,
        after: str,
        limit: int,
        *,
        project_id: str | None = None,
        states: Collection[RotationState] | None = None,
    ) -> tuple[CaRotation, ...]:
        """Return at most `limit` rotations of clusters with ids above `after`, sorted by the cluster's id."""
        query = select(_rotation).join(_cluster, _cluster.c.id == _rotation.c.cluster_id)
        query = query.where(_rotation.c.cluster_id > after)
        if project_id is not None:
            query = query.where(_cluster.c.project_id == project_id)
        if states is not None:
            query = query.where(_rotation.c.state.in_(states))
        rows = await self._rows(query.order_by(_rotation.c.cluster_id).limit(limit))
        return tuple(map(_parsed, rows))

    async def running(self) -> tuple[RunningRotation, ...]:
        """Return all running rotations."""
        columns = (_rotation.c.cluster_id, _rotation.c.version, _rotation.c.problem.is_not(None))
        rows = await self._rows(select(*columns).where(_rotation.c.state.in_(RUNNING)))
        return tuple(RunningRotation(*row) for row in rows)

    async def counts(self) -> RotationCounts:
        """Return the figures for the metrics."""
        running = _rotation.c.state.in_(RUNNING)
        states = select(_rotation.c.state, func.count()).where(running).group_by(_rotation.c.state)
        figures = select(func.min(_rotation.c.started_at), func.count(_rotation.c.problem)).where(running)
        first_end = select(func.min(_ca.c.not_after)).where(_ca.c.state == "active")
        async with self._database.read() as connection:
            found = {row[0]: row[1] for row in await connection.execute(states)}
            oldest, failing = (await connection.execute(figures)).one()
            end = (await connection.execute(first_end)).scalar_one()
            discarded = select(func.count()).select_from(tables.discarded_ca)
            keys = (await connection.execute(discarded)).scalar_one()
        return RotationCounts(found, failing, oldest, end, keys)

    async def start(self, rotation: CaRotation, ca: ClientCA, event: AuditEvent) -> None:
        """Add a rotation and its new CA. The CA's signer becomes the signer of the cluster.

        Raises NotFound if the cluster was removed, Conflict if a rotation of the cluster is running or the key of the
        new CA was deleted, or ConcurrentChange if the old CA does not sign any more.
        """
        this = _rotation.c.cluster_id == rotation.cluster_id
        async with self._database.transaction(event, invalidate=True) as connection:
            await _lock_cluster(connection, rotation.cluster_id)
            before = (await connection.execute(select(_rotation).where(this))).first()
            if before is not None and _parsed(before).is_running:
                raise Conflict(
                    f"A rotation of the cluster's client CA is running: it is {before.state}. Wait until it is"
                    " complete, or abort it."
                )
            active = select(_ca.c.id).where(_ca.c.cluster_id == rotation.cluster_id, _ca.c.state == "active")
            if (await connection.execute(active)).scalar() != rotation.old_ca_id:
                raise ConcurrentChange
            await connection.execute(delete(_rotation).where(this))
            await add_ca(connection, ca)
            await connection.execute(insert(_rotation).values(_row(rotation)))
            await connection.execute(
                update(_cluster).where(_cluster.c.id == rotation.cluster_id).values(signer=ca.signer)
            )

    async def save(
        self,
        before: CaRotation,
        after: CaRotation,
        *events: AuditEvent,
        holders: int | None = None,
        now: datetime | None = None,
    ) -> CaRotation:
        """Replace a rotation, and set the states of its CAs. Returns the rotation with its new version.

        The signer of the CA that remains becomes the signer of the cluster. When the rotation ends, the unused CA loses
        its sealed key, and waits for the deletion of the key at its signer.

        Args:
            holders: raise Conflict unless this many certificates of the old CA are valid at `now`.

        Raises ConcurrentChange if the rotation differs from `before`, or if the API servers of the cluster have changed
        since they were proved. Raises NotFound if the cluster was removed.
        """
        values = _row(after) | {"version": before.version + 1}
        this = _rotation.c.cluster_id == before.cluster_id
        invalidate = _cached_values(before) != _cached_values(after)
        async with self._database.transaction(*events, invalidate=invalidate) as connection:
            cluster = await _lock_cluster(connection, before.cluster_id)
            is_proved = after.state in ("distributed", "issuing", "complete")
            if is_proved and cluster.api_servers and set(cluster.api_servers) != set(after.addresses):
                raise ConcurrentChange
            if holders is not None and now is not None:
                await _require_holders(connection, before, holders, now)
            saved = update(_rotation).where(this, _rotation.c.version == before.version).values(values)
            if not (await connection.execute(saved)).rowcount:
                raise ConcurrentChange
            for ca_id, state in after.ca_states().items():
                await connection.execute(update(_ca).where(_ca.c.id == ca_id).values(state=state))
            if after.remaining_ca_id != before.remaining_ca_id:
                signer = select(_ca.c.signer).where(_ca.c.id == after.remaining_ca_id).scalar_subquery()
                await connection.execute(
                    update(_cluster).where(_cluster.c.id == before.cluster_id).values(signer=signer)
                )
            if before.is_running and after.discarded_ca_id is not None:
                await discard_cas(connection, [after.discarded_ca_id], cluster.project_id)
        return replace(after, version=before.version + 1)

    async def holders(
        self, ca_ids: Collection[str], cluster_ids: Collection[str], now: datetime
    ) -> dict[str, Holders]:
        """Count the valid certificates of CAs, by CA. Reads all unexpired certificates for the clusters."""
        seen = _certificate.c.last_seen_at >= now - _HOUR
        query = (
            select(
                _certificate.c.ca_id,
                func.count(),
                func.count().filter(seen),
                func.max(_certificate.c.not_after),
            )
            .where(_certificate.c.cluster_id.in_(cluster_ids), _held(ca_ids, now))
            .group_by(_certificate.c.ca_id)
        )
        found = {ca_id: Holders(*figures) for ca_id, *figures in await self._rows(query)}
        return {ca_id: found.get(ca_id, Holders()) for ca_id in ca_ids}

    async def holders_of_ca(self, ca: ClientCA, now: datetime, limit: int) -> tuple[CaHolder, ...]:
        """Return at most `limit` users with valid certificates of a CA, the longest-lived first."""
        until = func.max(_certificate.c.not_after)
        columns = (_certificate.c.user_id, func.max(_certificate.c.user_name), func.count(), until)
        query = (
            select(*columns, func.max(_certificate.c.last_seen_at))
            .where(_certificate.c.cluster_id == ca.cluster_id, _held([ca.id], now))
            .group_by(_certificate.c.user_id)
            .order_by(until.desc(), _certificate.c.user_id)
            .limit(limit)
        )
        return tuple(CaHolder(*row) for row in await self._rows(query))


async def _require_holders(
    connection: Transaction, rotation: CaRotation, expected: int, now: datetime
) -> None:
    query = select(func.count()).where(
        _certificate.c.cluster_id == rotation.cluster_id, _held([rotation.old_ca_id], now)
    )
    found = (await connection.execute(query)).scalar_one()
    if found != expected:
        raise Conflict(
            f"Valid certificates of the old CA: {found}, not {expected}. Wait until none is valid. To take access from"
            f" their holders now, add `--force --holders {found}` (in the API: `force`, and `holders`: {found})."
        )


def _held(ca_ids: Collection[str], now: datetime) -> ColumnElement[bool]:
    """Return a condition that matches valid certificates of these CAs, without those of the service itself."""
    return (
        _certificate.c.ca_id.in_(ca_ids)
        & (_certificate.c.not_after > now)
        & _certificate.c.user_id.not_in(OWN_USERS)
        & ~is_revoked()
    )


async def _lock_cluster(connection: Transaction, cluster_id: str) -> Row[str, list[str]]:
    """Lock the row of a cluster, so that one change at a time decides about its CAs. Raises NotFound."""
    columns = (_cluster.c.project_id, _cluster.c.api_servers)
    query = select(*columns).where(_cluster.c.id == cluster_id).with_for_update()
    row = (await connection.execute(query)).first()
    if row is None:
        raise NotFound("The cluster was removed.")
    return row


def _cached_values(rotation: CaRotation) -> tuple[object, ...]:
    """Return the values that workers cache: the CA that signs, and the CA that the webhook denies."""
    return dict(rotation.ca_states()), rotation.denied_ca_id


_NAMES = [each.name for each in fields(CaRotation)]


def _row(rotation: CaRotation) -> dict[str, object]:
    return {name: getattr(rotation, name) for name in _NAMES} | {
        "addresses": list(rotation.addresses),
        "proofs": [asdict(proof) | {"at": proof.at.isoformat()} for proof in rotation.proofs],
    }


def _parsed(row: Row[Any]) -> CaRotation:
    values = {name: getattr(row, name) for name in _NAMES}
    values["addresses"] = tuple(row.addresses)
    values["proofs"] = tuple(
        CaProof(**{**proof, "at": datetime.fromisoformat(proof["at"])}) for proof in row.proofs
    )
    return CaRotation(**values)
