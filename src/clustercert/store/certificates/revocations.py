"""Queries that record, undo, list and end revocations, and queries for certificate revocation lists.

Every write transaction in this module first raises the generation, and the generation's row stays locked until the
commit. So these transactions run one after another on every database engine. Until such a transaction commits, the
revocations that it has read stay unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from clustercert.model import AuditEvent, ClientCA, Revocation
from clustercert.model.errors import Conflict, NotFound, UnknownUser
from clustercert.model.events.administration import DirectoryChange
from clustercert.pki.crl import CrlEntry
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.certificates.views import (
    CertificateLookup,
    CertificateView,
    is_revoked,
    revocation_of,
    revocations_by_id,
    wider_revocation_id,
)
from clustercert.store.clusters.ca_rotations import OWN_USERS
from clustercert.store.clusters.client_cas import ca_of
from clustercert.store.engine.database import Database, raise_generation
from clustercert.store.engine.queries import Queries, exists
from clustercert.store.engine.transaction import Transaction

_certificate, _revocation, _cluster = tables.certificate, tables.revocation, tables.cluster
_ca, _username = tables.client_ca, tables.username

NO_END = 2**63 - 1
"""The epoch of the revocation of a disabled, blocked or deleted user. The revocation also covers later certificates.

For up to a second, a worker may still treat a disabled user as enabled and issue a certificate. Enabling the user sets
the epoch to the current generation.
"""

# The notes of revocations of users in the built-in identity service: the kinds of the events that caused them.
ACCOUNT_ENDED: tuple[DirectoryChange, ...] = ("user.disabled", "user.removed")

# Every API server rejects certificates that expired longer ago than this, even if its clock is behind.
CLOCK_MARGIN = timedelta(days=1)

_GIVEN = {each.name for each in fields(Revocation)} - {"id", "epoch", "undone_at", "undone_by"}


class RevocationQueries(CertificateLookup):
    """Records, undoes and lists revocations of certificates, users and clusters."""

    async def revoke(self, revocation: Revocation, event: AuditEvent) -> Revocation:
        """Record a revocation with a new epoch.

        A revocation of a single certificate also updates the certificate's row. Raises Unavailable. The revocation
        covers all certificates that were recorded before the revocation, and none that are requested afterwards.
        """
        async with self._database.transaction(event) as connection:
            epoch = await raise_generation(connection)
            made = await add_revocation(connection, revocation, epoch=epoch, changed=epoch)
            if made.fingerprint is not None:
                await _mark_certificate(connection, made.fingerprint)
        return made

    async def revoke_user(
        self, revocation: Revocation, event: Callable[[Revocation], AuditEvent], *, only_known: bool
    ) -> Revocation:
        """Record a revocation of a user's certificates. See `revoke`.

        If the service has never seen `revocation.user_id`, but a user has this name in certificates, revokes the
        certificates of this user.

        Args:
            event: creates the audit event of the revocation.
            only_known: raises UnknownUser, and records nothing, if the service has never seen the user.
        """
        async with self._database.transaction() as connection:
            # Until the commit, no user becomes known, and no name gets an owner: see `hold_generation`. A certificate
            # is recorded only after its user is known, so this transaction misses no certificate that is on its way.
            epoch = await raise_generation(connection)
            is_seen = select(literal(1)).where(seen_user(literal(revocation.user_id)))
            if not await exists(connection, is_seen):
                owner = select(_username.c.user_id).where(_username.c.name == revocation.user_id)
                owner_id = (await connection.execute(owner)).scalar()
                if owner_id is None and only_known:
                    raise UnknownUser(revocation.user_id)
                revocation = replace(revocation, user_id=owner_id or revocation.user_id)
            made = await add_revocation(connection, revocation, epoch=epoch, changed=epoch)
            await record_events(connection, (event(made),))
        return made

    async def revoke_all(self, revocations: Sequence[Revocation], events: Sequence[AuditEvent]) -> None:
        """Record revocations of users or clusters in one transaction, with the same new epoch. See `revoke`."""
        async with self._database.transaction(*events) as connection:
            epoch = await raise_generation(connection)
            rows = [_row(each, epoch=epoch, changed=epoch) for each in revocations]
            await connection.execute(insert(_revocation), rows)

    async def undo(self, revocation_id: int, *, by: str, at: datetime, event: AuditEvent) -> Revocation:
        """Undo a revocation. Certificates that another revocation covers stay revoked.

        The caller must check that the revocation may be undone. Raises NotFound if the revocation does not exist, or
        Conflict if it is already undone, if its user is disabled or blocked, or if it is of one token.
        """
        this = _revocation.c.id == revocation_id
        async with self._database.transaction(event) as connection:
            epoch = await raise_generation(connection)
            found = (await connection.execute(select(_revocation).where(this))).mappings().first()
            if found is None:
                raise NotFound("There is no such revocation.")
            if found["undone_at"] is not None:
                raise Conflict("This revocation was already undone.")
            if found["epoch"] == NO_END:
                raise Conflict(
                    "This revocation stays in force while its user is disabled or blocked."
                    " Enable or unblock the user first."
                )
            if await exists(connection, _of_closed_request(found["fingerprint"])):
                raise Conflict(
                    "The certificate belongs to an access request that has ended. Create a new request."
                )
            if await exists(connection, _of_token(found["fingerprint"])):
                raise Conflict(
                    "The revoked token's service account is deleted, so this can't be undone. Get a new token."
                )
            undone = {"undone_at": at, "undone_by": by, "changed": epoch}
            await connection.execute(update(_revocation).where(this).values(undone))
            if found["fingerprint"] is not None:
                await _mark_certificate(connection, found["fingerprint"])
        return revocation_of({**found, **undone})

    async def revocation(self, revocation_id: int) -> Revocation | None:
        return next(iter(await self._all(_newest(1).where(_revocation.c.id == revocation_id))), None)

    async def revocations_of_certificate(self, fingerprint: bytes) -> tuple[Revocation, ...]:
        """Return the revocations of this individual certificate that have not been undone, newest first."""
        return await self._all(_newest(16).where(_in_force(fingerprint)))

    async def revocations_covering(self, certificate: CertificateView) -> tuple[Revocation, ...]:
        """Return the revocations in force that cover a certificate, newest first."""
        user, cluster = _revocation.c.user_id, _revocation.c.cluster_id
        scope = or_(
            and_(user == certificate.user_id, cluster.in_((certificate.cluster_id, ""))),
            and_(user == "", cluster == certificate.cluster_id),
        )
        epoch = select(_certificate.c.epoch).where(_certificate.c.id == certificate.id).scalar_subquery()
        wider = and_(
            scope,
            _revocation.c.fingerprint.is_(None),
            _revocation.c.epoch > epoch,
            _revocation.c.undone_at.is_(None),
        )
        return await self._all(_newest(16).where(or_(wider, _in_force(certificate.fingerprint))))

    async def revocations_of_scope(self, user_id: str, cluster_id: str) -> tuple[Revocation, ...]:
        """Return the revocations of exactly this user and cluster that are in force, newest first.

        An empty string means all users or clusters. Omits revocations with the epoch `NO_END`.
        """
        scope = and_(
            _revocation.c.user_id == user_id,
            _revocation.c.cluster_id == cluster_id,
            _revocation.c.fingerprint.is_(None),
            _revocation.c.undone_at.is_(None),
            _revocation.c.epoch != NO_END,
        )
        return await self._all(
            select(_revocation).where(scope).order_by(_revocation.c.epoch.desc()).limit(16)
        )

    async def any_since(self, revocation: Revocation, now: datetime) -> bool:
        """Whether a certificate that may still be valid was recorded for the user and cluster since the revocation."""
        conditions = [
            _certificate.c.epoch >= revocation.epoch,
            _certificate.c.not_after > now - CLOCK_MARGIN,
        ]
        if revocation.user_id:
            conditions.append(_certificate.c.user_id == revocation.user_id)
        if revocation.cluster_id:
            conditions.append(_certificate.c.cluster_id == revocation.cluster_id)
        return await self._row(select(_certificate.c.id).where(*conditions).limit(1)) is not None

    async def revocations_of_cluster(
        self, project_id: str, cluster_id: str, *, limit: int, before: int | None = None
    ) -> tuple[Revocation, ...]:
        """Return a page of revocations in a cluster, including undone ones, newest first, with ids below `before`."""
        here = and_(_revocation.c.project_id == project_id, _revocation.c.cluster_id == cluster_id)
        return await self._all(_page(limit, before).where(here))

    async def revocations_of_project(
        self, project_id: str | None, *, limit: int, before: int | None = None
    ) -> tuple[Revocation, ...]:
        """Return a page of revocations in a project or, with None, in the whole service.

        Otherwise like `revocations_of_cluster`.
        """
        page = _page(limit, before)
        return await self._all(
            page if project_id is None else page.where(_revocation.c.project_id == project_id)
        )

    async def revocations_of_user(
        self, user_id: str, *, limit: int, before: int | None = None
    ) -> tuple[Revocation, ...]:
        """Return a page of revocations that cover a user in all clusters. Otherwise like `revocations_of_cluster`."""
        return await self._all(_page(limit, before).where(_everywhere(user_id)))

    async def _all(self, query: Select[Any]) -> tuple[Revocation, ...]:
        return tuple(revocation_of(row._asdict()) for row in await self._rows(query))


async def add_revocation(
    connection: Transaction, revocation: Revocation, *, epoch: int, changed: int
) -> Revocation:
    """Insert a revocation in the caller's transaction. `changed` is the generation number of that transaction."""
    query = insert(_revocation).values(_row(revocation, epoch=epoch, changed=changed)).returning(_revocation)
    return revocation_of((await connection.execute(query)).mappings().one())


async def revoke_unrevoked(connection: Transaction, revocations: Sequence[Revocation], *, epoch: int) -> None:
    """Revoke certificates in the caller's transaction, which has raised the generation to `epoch`.

    The certificates have no revocation of their own that is in force. The revocations have one time, actor and reason.
    Runs two statements for all certificates: two for each would hold the generation's lock for too long.
    """
    if not revocations:
        return
    await connection.execute(
        insert(_revocation), [_row(each, epoch=epoch, changed=epoch) for each in revocations]
    )
    first = revocations[0]
    these = _certificate.c.fingerprint.in_([each.fingerprint for each in revocations])
    marked = {"revoked_at": first.at, "revoked_by": first.by, "revoked_why": first.reason}
    await connection.execute(update(_certificate).where(these).values(marked))


def _row(revocation: Revocation, *, epoch: int, changed: int) -> dict[str, object]:
    return {name: getattr(revocation, name) for name in _GIVEN} | {"epoch": epoch, "changed": changed}


async def revoke_disabled(connection: Transaction, revocation: Revocation, changed: int) -> None:
    """Revoke a user's existing and future certificates, in the transaction that disables or deletes the user.

    Does nothing if the user's future certificates are revoked already.
    """
    if not await exists(connection, blocking(revocation.user_id)):
        await add_revocation(connection, revocation, epoch=NO_END, changed=changed)


async def end_disabled(connection: Transaction, user_id: str, epoch: int) -> None:
    """Limit a disabled user's revocation to existing certificates, in the transaction that enables the user again."""
    query = update(_revocation).where(_without_end(user_id))
    await connection.execute(query.values(epoch=epoch, changed=epoch))


def seen_user(user_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return a condition that is true if the service has seen the user, or has a revocation of the user."""
    return or_(
        seen_account(user_id), select(_revocation.c.id).where(_revocation.c.user_id == user_id).exists()
    )


def seen_account(user_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return a condition that is true if the service has seen the user: an account, a login or a certificate.

    Also true for a deleted account, which left a revocation.
    """
    ids = (tables.user.c.id, tables.federated_user.c.id, _certificate.c.user_id)
    ended = _revocation.alias()
    account = select(ended.c.id).where(
        ended.c.user_id == user_id,
        ended.c.cluster_id == "",
        ended.c.fingerprint.is_(None),
        ended.c.epoch == NO_END,
        ended.c.note.in_(ACCOUNT_ENDED),
    )
    return or_(
        user_id.in_(OWN_USERS),
        *(select(each).where(each == user_id).exists() for each in ids),
        account.exists(),
    )


def blocking(user_id: str, note: str | None = None) -> Select[Any]:
    """Select the revocation of a user who is disabled, deleted or blocked, optionally only one with a given note."""
    query = select(_revocation.c.id).where(_without_end(user_id))
    return query if note is None else query.where(_revocation.c.note == note)


def _of_token(fingerprint: bytes | None) -> Select[Any]:
    """Select a credential that is a token."""
    return select(_certificate.c.id).where(
        _certificate.c.fingerprint == fingerprint, _certificate.c.kind == "token"
    )


def _of_closed_request(fingerprint: bytes | None) -> Select[Any]:
    """Select a certificate whose access request is closed. The request may have been deleted since."""
    request = tables.access_request
    is_open = select(request.c.id).where(
        request.c.id == _certificate.c.access_request_id, request.c.open_for.is_not(None)
    )
    return select(_certificate.c.id).where(
        _certificate.c.fingerprint == fingerprint,
        _certificate.c.access_request_id.is_not(None),
        ~is_open.exists(),
    )


def _everywhere(user_id: str) -> ColumnElement[bool]:
    return and_(
        _revocation.c.user_id == user_id,
        _revocation.c.cluster_id == "",
        _revocation.c.fingerprint.is_(None),
    )


def _without_end(user_id: str) -> ColumnElement[bool]:
    return and_(_everywhere(user_id), _revocation.c.epoch == NO_END)


def _in_force(fingerprint: bytes) -> ColumnElement[bool]:
    return and_(_revocation.c.fingerprint == fingerprint, _revocation.c.undone_at.is_(None))


async def _mark_certificate(connection: Transaction, fingerprint: bytes) -> None:
    """Copy a certificate's first revocation in force into the certificate's row.

    If no revocation is in force, clear the row's revocation columns.
    """
    query = select(_revocation).where(_in_force(fingerprint)).order_by(_revocation.c.id).limit(1)
    first: Row[Any] | None = (await connection.execute(query)).first()
    at, by, reason = (first.at, first.by, first.reason) if first is not None else (None, None, None)
    row = update(_certificate).where(_certificate.c.fingerprint == fingerprint)
    await connection.execute(row.values(revoked_at=at, revoked_by=by, revoked_why=reason))


def _newest(limit: int) -> Select[Any]:
    return select(_revocation).order_by(_revocation.c.id.desc()).limit(limit)


def _page(limit: int, before: int | None) -> Select[Any]:
    query = _newest(limit)
    return query if before is None else query.where(_revocation.c.id < before)


_last_change = select(func.coalesce(func.max(_revocation.c.changed), 0))


@dataclass(frozen=True, slots=True)
class RevokedByCA:
    """The revoked, unexpired certificates from a client CA, read in one snapshot.

    `generation` is the generation number in that snapshot, and `changed` is the generation number at the last change of
    a revocation.
    """

    entries: tuple[CrlEntry, ...]
    generation: int
    changed: int


class CrlQueries(Queries):
    """Reads the revoked certificates of a client CA."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.generation = database.generation

    async def authority(self, cluster_id: str, ca_id: str) -> ClientCA | None:
        """Return a cluster's client CA, in any state, or None."""
        row = await self._row(select(_ca).where(_ca.c.id == ca_id, _ca.c.cluster_id == cluster_id))
        return None if row is None else ca_of(row)

    async def last_change(self) -> int:
        """Return the generation number of the last change to any revocation."""
        return await self._scalar(_last_change) or 0

    async def revoked(self, ca: ClientCA, now: datetime, *, limit: int) -> RevokedByCA:
        """Return the CA's revoked certificates. Reads only unexpired certificates for the CA's cluster."""
        query = (
            select(
                _certificate.c.serial,
                _certificate.c.revoked_at,
                _certificate.c.revoked_why,
                wider_revocation_id().label("wider_revocation_id"),
            )
            .where(
                _certificate.c.cluster_id == ca.cluster_id,
                _certificate.c.not_after > now,
                _certificate.c.ca_id == ca.id,
                is_revoked(),
            )
            .limit(limit)
        )
        async with self._database.read() as connection:
            generation = (await connection.execute(select(tables.generation.c.value))).scalar_one()
            changed = (await connection.execute(_last_change)).scalar_one()
            rows = (await connection.execute(query)).all()
            wider = await revocations_by_id(connection, {row.wider_revocation_id for row in rows} - {None})
        return RevokedByCA(tuple(_entry(row, wider) for row in rows), generation, changed)


def _entry(row: Row[Any], wider: Mapping[int, Revocation]) -> CrlEntry:
    if row.revoked_at is not None:
        return CrlEntry(row.serial, row.revoked_at, row.revoked_why)
    revocation = wider[row.wider_revocation_id]
    return CrlEntry(row.serial, revocation.at, revocation.reason)
