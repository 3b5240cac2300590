"""Queries for enforcing revocations in clusters: affected clusters, live certificates and revoked certificates."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select

from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked, revoked_later
from clustercert.store.engine.queries import Queries

_certificate, _revocation = tables.certificate, tables.revocation

# If more revocations than this have changed, every cluster is checked, and not only the affected clusters.
MAX_CHANGES = 1000
PAGE = 1000
_TOKEN = "token"


@dataclass(frozen=True, slots=True)
class AffectedClusters:
    """The clusters with changed revocations, and the generation number from which the next query starts.

    `cluster_ids` is None after too many changes, because then any cluster may be affected.
    """

    cluster_ids: frozenset[str] | None
    newest: int


@dataclass(frozen=True, slots=True)
class LiveCertificate:
    """The fields of a live certificate that its binding depends on. See `CertificateView`."""

    id: int
    fingerprint: bytes
    credential_number: str
    groups: tuple[str, ...]
    rule: str | None
    not_after: datetime


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """A revoked certificate that has not expired. See `CertificateView`."""

    credential_number: str
    not_after: datetime


class EnforcementQueries(Queries):
    """Reads which certificates clusters must accept or reject."""

    async def newest(self) -> int:
        """Return the current generation number."""
        return await self._database.read_generation()

    async def affected_clusters(self, since: int, now: datetime) -> AffectedClusters:
        """Return the clusters with revocations that were made or undone since a given generation number."""
        columns = (_revocation.c.cluster_id, _revocation.c.user_id, _revocation.c.changed)
        query = (
            select(*columns)
            .where(_revocation.c.changed > since)
            .order_by(_revocation.c.changed)
            .limit(MAX_CHANGES + 1)
        )
        async with self._database.read() as connection:
            changes = (await connection.execute(query)).all()
            if len(changes) > MAX_CHANGES:
                newest = (await connection.execute(select(func.max(_revocation.c.changed)))).scalar_one()
                return AffectedClusters(None, newest)
            found = {row.cluster_id for row in changes if row.cluster_id}
            if everywhere := {row.user_id for row in changes if not row.cluster_id}:
                theirs = select(_certificate.c.cluster_id).where(
                    _certificate.c.user_id.in_(everywhere), _certificate.c.not_after > now
                )
                found |= set((await connection.execute(theirs.distinct())).scalars())
        return AffectedClusters(frozenset(found), max((row.changed for row in changes), default=since))

    async def live(
        self, cluster_id: str, now: datetime, after: LiveCertificate | None
    ) -> tuple[LiveCertificate, ...]:
        """Return a page of live certificates for a cluster, sorted by expiry."""
        not_after, row_id = _certificate.c.not_after, _certificate.c.id
        # The first condition is a range in the index, and the second condition excludes the rows of the previous page.
        behind = (
            and_(not_after >= max(after.not_after, now), or_(not_after > after.not_after, row_id > after.id))
            if after
            else not_after > now
        )
        names = ("id", "fingerprint", "credential_number", "groups", "rule", "not_after")
        query = (
            select(*(_certificate.c[name] for name in names))
            .where(_certificate.c.cluster_id == cluster_id, behind, ~is_revoked())
            .order_by(not_after, row_id)
            .limit(PAGE)
        )
        return tuple(map(_live_certificate, await self._rows(query)))

    async def ended(self, fingerprints: Collection[bytes], now: datetime) -> dict[bytes, bool]:
        """Return, for each fingerprint in the ledger, whether the certificate is revoked or expired."""
        ended = or_(_certificate.c.not_after <= now, is_revoked()).label("ended")
        query = select(_certificate.c.fingerprint, ended).where(_certificate.c.fingerprint.in_(fingerprints))
        return {row.fingerprint: bool(row.ended) for row in await self._rows(query)}

    async def expired_clusters(self, since: datetime, now: datetime) -> frozenset[str]:
        """Return the clusters with tokens whose validity has ended since a time."""
        over = and_(_certificate.c.not_after > since, _certificate.c.not_after <= now)
        query = select(_certificate.c.cluster_id).where(_certificate.c.kind == _TOKEN, over)
        return frozenset(row.cluster_id for row in await self._rows(query.distinct()))

    async def ended_tokens(
        self, cluster_id: str, generation: int, since: datetime, now: datetime
    ) -> tuple[str, ...]:
        """Return the credential numbers of a cluster's tokens that have ended recently.

        Args:
            generation: return the tokens of revocations that were made or undone after this generation.
            since: return the tokens whose validity has ended after this time.
        """
        not_after = _certificate.c.not_after
        own = select(_revocation.c.fingerprint).where(
            _revocation.c.changed > generation, _revocation.c.fingerprint.is_not(None)
        )
        wider = (
            select(_revocation.c.id)
            .where(
                _revocation.c.changed > generation,
                _revocation.c.user_id.in_((_certificate.c.user_id, "")),
                _revocation.c.cluster_id.in_((_certificate.c.cluster_id, "")),
                revoked_later(),
            )
            .correlate(_certificate)
            .exists()
        )
        is_ended = or_(
            not_after <= now,
            and_(_certificate.c.revoked_at.is_not(None), _certificate.c.fingerprint.in_(own)),
            wider,
        )
        query = select(_certificate.c.credential_number).where(
            _certificate.c.cluster_id == cluster_id,
            not_after > since,
            _certificate.c.kind == _TOKEN,
            is_ended,
        )
        return tuple(row.credential_number for row in await self._rows(query))

    async def token_states(self, numbers: Collection[str], now: datetime) -> dict[str, bool]:
        """Return, for each credential number of a token in the ledger, whether the token is revoked or has ended."""
        ended = or_(_certificate.c.not_after <= now, is_revoked()).label("ended")
        query = select(_certificate.c.credential_number, ended).where(
            _certificate.c.credential_number.in_(numbers), _certificate.c.kind == _TOKEN
        )
        return {row.credential_number: bool(row.ended) for row in await self._rows(query)}

    async def is_revoked(self, fingerprint: bytes) -> bool:
        """Whether the certificate is in the ledger and revoked."""
        query = select(_certificate.c.id).where(_certificate.c.fingerprint == fingerprint, is_revoked())
        return await self._row(query) is not None

    async def revoked(self, cluster_id: str, now: datetime, limit: int) -> tuple[RevokedCertificate, ...]:
        """Return the revoked, unexpired certificates for a cluster, most recently revoked first."""
        query = _revoked(cluster_id, now).order_by(_revoked_at().desc(), _certificate.c.id.desc())
        rows = await self._rows(query.limit(limit))
        return tuple(RevokedCertificate(row.credential_number, row.not_after) for row in rows)

    async def count_revoked(self, cluster_id: str, now: datetime) -> int:
        """Return how many certificates `revoked` would return without a limit."""
        query = select(func.count()).select_from(_revoked(cluster_id, now).subquery())
        return await self._scalar(query) or 0


def _live_certificate(row: Row[Any]) -> LiveCertificate:
    return LiveCertificate(
        row.id, row.fingerprint, row.credential_number, tuple(row.groups), row.rule, row.not_after
    )


def _revoked(cluster_id: str, now: datetime) -> Select[Any]:
    return select(_certificate.c.credential_number, _certificate.c.not_after).where(
        _certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now, is_revoked()
    )


def _revoked_at() -> ColumnElement[datetime]:
    """Return an SQL expression for the time when a certificate was revoked.

    This is the time of the certificate's own revocation, or else the time of the last user or cluster revocation that
    covers the certificate.
    """
    wider = (
        select(func.max(_revocation.c.at))
        .where(
            _revocation.c.user_id.in_((_certificate.c.user_id, "")),
            _revocation.c.cluster_id.in_((_certificate.c.cluster_id, "")),
            revoked_later(),
        )
        .correlate(_certificate)
        .scalar_subquery()
    )
    return func.coalesce(_certificate.c.revoked_at, wider)
