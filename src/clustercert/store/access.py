"""Queries for a cluster's access report: its certificates, unknown identities and webhook calls."""

from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import func, select

from clustercert.model import ClusterOptions
from clustercert.store import tables
from clustercert.store.certificate_view import CertificateView, certificate_views, view_query
from clustercert.store.clusters import options_of
from clustercert.store.engine.queries import Queries

_certificate, _cluster = tables.certificate, tables.cluster
_token, _unknown = tables.webhook_token, tables.unknown_identity


@dataclass(frozen=True, slots=True)
class UnknownIdentity:
    """A user name with groups, seen by the API server in client certificates that are not in the ledger.

    Attributes:
        fingerprints: of at most 16 certificates that were seen most recently, newest last, in lower-case hex.
        hashes: about how many different certificates were seen. Another encoding of a certificate counts again.
    """

    fingerprints: tuple[str, ...]
    hashes: int
    username: str
    groups: tuple[str, ...]
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class ClusterControls:
    """A cluster's name, and the options that say how it refuses revoked certificates."""

    name: str
    options: ClusterOptions


@dataclass(frozen=True, slots=True)
class CertifiedCluster:
    """A cluster for which a user has certificates. `until` is when the last one expires."""

    cluster_id: str
    project_id: str
    until: datetime


@dataclass(frozen=True, slots=True)
class WebhookContact:
    """When an API server last asked the webhook with a token, and when audit events last arrived; None for never."""

    asked_at: datetime | None
    events_at: datetime | None


class AccessQueries(Queries):
    """Reads the data for a cluster's access report."""

    async def clusters_of_user(
        self, user_id: str, now: datetime, *, limit: int
    ) -> tuple[CertifiedCluster, ...]:
        """Return the clusters for which a user has unexpired certificates, revoked or not, latest expiry first."""
        until = func.max(_certificate.c.not_after)
        query = (
            select(_certificate.c.cluster_id, _certificate.c.project_id, until)
            .where(_certificate.c.user_id == user_id, _certificate.c.not_after > now)
            .group_by(_certificate.c.cluster_id, _certificate.c.project_id)
            .order_by(until.desc(), _certificate.c.cluster_id)
            .limit(limit)
        )
        return tuple(CertifiedCluster(*row) for row in await self._rows(query))

    async def unexpired(
        self, cluster_id: str, now: datetime, *, limit: int, user_id: str | None = None
    ) -> tuple[CertificateView, ...]:
        """Return the unexpired certificates, including revoked ones, latest expiry first."""
        query = (
            view_query()
            .where(_certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now)
            .order_by(_certificate.c.not_after.desc())
            .limit(limit)
        )
        if user_id is not None:
            query = query.where(_certificate.c.user_id == user_id)
        async with self._database.read() as connection:
            return await certificate_views(connection, query)

    async def unknown(self, cluster_id: str, *, limit: int) -> tuple[UnknownIdentity, ...]:
        """Return the unknown identities, most recently seen first."""
        query = (
            select(*(_unknown.c[each.name] for each in fields(UnknownIdentity)))
            .where(_unknown.c.cluster_id == cluster_id)
            .order_by(_unknown.c.last_seen_at.desc(), _unknown.c.identity)
            .limit(limit)
        )
        return tuple(
            UnknownIdentity(tuple(fingerprints), hashes, username, tuple(groups), *seen)
            for fingerprints, hashes, username, groups, *seen in await self._rows(query)
        )

    async def never_called(self, *, limit: int) -> tuple[ClusterControls, ...]:
        """Return clusters whose API server has never called the webhook."""
        called = select(_token.c.cluster_id).where(_token.c.last_asked_at.is_not(None))
        without = select(_cluster.c.name, _cluster.c.options).where(_cluster.c.id.not_in(called))
        query = without.order_by(_cluster.c.id).limit(limit)
        return tuple(ClusterControls(name, options_of(options)) for name, options in await self._rows(query))

    async def webhook_contacts(self, cluster_id: str) -> tuple[WebhookContact, ...]:
        """Return when the API server last contacted the service, for each of the cluster's webhook tokens."""
        query = select(_token.c.last_asked_at, _token.c.last_events_at).where(
            _token.c.cluster_id == cluster_id
        )
        return tuple(WebhookContact(*row) for row in await self._rows(query))
