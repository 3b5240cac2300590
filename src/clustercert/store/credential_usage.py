"""Queries that record the use of credentials, and webhook calls."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Row,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from clustercert.model import AuditEvent
from clustercert.model.events.operation import CredentialAlert
from clustercert.model.kubernetes import MASTERS
from clustercert.store import tables
from clustercert.store.certificate_views import certificate_views, is_verification, view_query
from clustercert.store.clusters import is_enforced_inside
from clustercert.store.engine.queries import Queries, exists
from clustercert.store.engine.transaction import Transaction
from clustercert.store.events import record_events

_certificate, _cluster, _unknown = tables.certificate, tables.cluster, tables.unknown_identity
_token = tables.webhook_token

# Resolution of the stored times of use. All workers together write the times of a credential at most once in this
# period.
RESOLUTION = timedelta(minutes=1)
# Number of rows per transaction. The number is small, so that other writers wait only briefly.
WRITTEN_AT_ONCE = 100
# Maximum number of unknown identities per cluster. Without this limit, any CA in the bundle could fill the table.
MAX_UNKNOWN = 10_000
# Number of additional rows per cluster that only exempt identities and members of `system:masters` may use, so that
# other identities do not take all rows.
RESERVED = 1_000
# When `MAX_UNKNOWN` is reached, identities that were not seen for this long are deleted. If a deleted identity is seen
# later, an event reports this identity as new.
DELETED_AFTER = timedelta(days=30)

# In this period, at most one event is recorded about the altered copies of a certificate, the use of a revoked
# certificate, a known member of `system:masters`, or a known exempt identity.
ALERT_EVERY = timedelta(hours=1)
# API servers cache an answer of the webhook for less than this time, and then ask the webhook again.
UNREVIEWED_FOR = timedelta(minutes=10)
# Number of fingerprints stored for an unknown identity, to recognize new certificates.
KEPT_HASHES = 16


@dataclass(frozen=True, slots=True)
class Use:
    """The first and last use of a certificate in a period. `id` is the id of the certificate's row."""

    id: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class UnknownUse:
    """One identity's use of client certificates that are not in the ledger for the cluster.

    Attributes:
        groups: as the API server reports them, including the groups that every user has.
        fingerprints: the fingerprints of the last certificates used, at most 16, newest last, in lower-case hex.
        exempt: whether the cluster denies unknown certificates, but exempts this identity.
        identity: SHA-256 of user name and groups, 32 bytes.
    """

    cluster_id: str
    username: str
    groups: tuple[str, ...]
    fingerprints: tuple[str, ...]
    first: datetime
    last: datetime
    exempt: bool = False
    identity: bytes = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.username, sorted(set(self.groups))])
        object.__setattr__(self, "identity", hashlib.sha256(text.encode()).digest())

    @property
    def alerts_of_each(self) -> bool:
        """Whether each new certificate of the identity causes an alert, not only the first one."""
        return self.exempt or MASTERS in self.groups

    def joined(self, other: "UnknownUse") -> "UnknownUse":
        """Combine this use with another use by the same identity."""
        fingerprints = tuple(dict.fromkeys((*self.fingerprints, *other.fingerprints)))
        first, last = min(self.first, other.first), max(self.last, other.last)
        return replace(self, fingerprints=fingerprints[-KEPT_HASHES:], first=first, last=last)


@dataclass(frozen=True, slots=True)
class Alerts:
    """How many alerts were recorded.

    Attributes:
        unknown: alerts about new identities.
        masters: alerts about members of `system:masters` that are new or have a new certificate.
        exempt: alerts about exempt identities that are new or have a new certificate.
        left_out: new identities that were not recorded because the cluster's limit was reached.
    """

    unknown: int = 0
    masters: int = 0
    exempt: int = 0
    left_out: int = 0


class CredentialUsageQueries(Queries):
    """Records the use of credentials."""

    async def add(self, uses: Sequence[Use]) -> None:
        """Update the certificates' times of first and last use."""
        # Sort the rows, so that concurrent workers lock them in the same order.
        rows = [
            {"row": use.id, "first": use.first, "last": use.last, "before": use.last - RESOLUTION}
            for use in sorted(uses, key=lambda use: use.id)
        ]
        for start in range(0, len(rows), WRITTEN_AT_ONCE):
            async with self._database.transaction() as connection:
                await connection.execute(_SEEN, rows[start : start + WRITTEN_AT_ONCE])

    async def add_webhook_calls(self, times: Mapping[tuple[str, bytes], datetime]) -> None:
        """Record when API servers last used their webhook tokens. `times` is keyed by cluster id and token hash."""
        # Lock the rows in the order of clusters and hashes, as `_add_times` does.
        rows = [
            {"token_hash": token, "at": at, "before": at - RESOLUTION}
            for (_, token), at in sorted(times.items())
        ]
        if rows:
            async with self._database.transaction() as connection:
                await connection.execute(_CALLED, rows)

    async def add_refused_calls(self, times: Mapping[str, datetime]) -> None:
        """Record when clusters' webhooks were last called with a wrong token. `times` is keyed by cluster id."""
        await self._add_times(_REFUSED, times)

    async def add_audit_reports(self, events: Mapping[str, datetime], uses: Mapping[str, datetime]) -> None:
        """Record when audit events last arrived, and when they last reported a use of a certificate, by cluster id."""
        await self._add_times(_EVENTS_ARRIVED, events)
        await self._add_times(_USE_REPORTED, uses)

    async def _add_times(self, statement: Update, times: Mapping[str, datetime]) -> None:
        rows = [{"cluster": each, "at": at, "before": at - RESOLUTION} for each, at in sorted(times.items())]
        if rows:
            async with self._database.transaction() as connection:
                await connection.execute(statement, rows)

    async def clusters_without_reviews(self, now: datetime) -> int:
        """Count clusters where audit events recently reported a use without a webhook call shortly before that use.

        Ignores members of `system:masters`, because API servers don't ask the webhook about them. Also ignores clusters
        that never called the webhook and enforce revocations by bindings or an admission policy instead.
        """
        used, asked = func.max(_token.c.last_use_at), func.max(_token.c.last_asked_at)
        elsewhere = select(_cluster.c.id).where(is_enforced_inside())
        needs_reviews = or_(asked.is_not(None), _token.c.cluster_id.not_in(elsewhere))
        query = (
            select(used.label("used"), asked.label("asked"))
            .group_by(_token.c.cluster_id)
            .having(used > now - UNREVIEWED_FOR, needs_reviews)
        )
        return sum(
            row.asked is None or row.asked <= row.used - UNREVIEWED_FOR for row in await self._rows(query)
        )

    async def record_first_use(self, use: Use, event: AuditEvent) -> bool:
        """Record the first use of a certificate, with an event. Returns False if the certificate was used before."""
        never = _certificate.c.first_seen_at.is_(None)
        query = update(_certificate).where(_certificate.c.id == use.id, never)
        return await self._update(query.values(first_seen_at=use.first, last_seen_at=use.last), event)

    async def report_altered(self, row: int, at: datetime, event: AuditEvent) -> bool:
        """Record that an altered copy of a certificate was used, with an event. Returns whether the use was recorded.

        Records at most one use per hour for each certificate.
        """
        due = or_(_certificate.c.altered_at.is_(None), _certificate.c.altered_at <= at - ALERT_EVERY)
        query = update(_certificate).where(_certificate.c.id == row, due)
        return await self._update(query.values(altered_at=at), event)

    async def is_verification(self, row: int) -> bool:
        """Whether `clustercert kubernetes verify` issued the certificate to itself."""
        query = select(_certificate.c.id).where(_certificate.c.id == row, is_verification())
        return await self._scalar(query) is not None

    async def report_revoked_use(
        self,
        row: int,
        used_at: datetime,
        revoked_before: datetime,
        event: Callable[[datetime], AuditEvent],
    ) -> Literal["before", "known", "recorded"]:
        """Record that an API server allowed a request with a revoked certificate, with an event at most once an hour.

        Returns `before` if the certificate was not revoked before the time `revoked_before`. Returns `known` if an
        event about the current revocation was recorded less than an hour ago. The function `event` creates the event
        from the time of the revocation.
        """
        query = view_query().where(_certificate.c.id == row)
        last = _certificate.c.revoked_used_at
        async with self._database.transaction() as connection:
            found = await certificate_views(connection, query)
            revoked_at = found[0].revoked_at if found else None
            if revoked_at is None or revoked_at >= revoked_before:
                return "before"
            due = or_(last.is_(None), last <= used_at - ALERT_EVERY, last <= revoked_at)
            report = update(_certificate).where(_certificate.c.id == row, due).values(revoked_used_at=used_at)
            if not (await connection.execute(report)).rowcount:
                return "known"
            await record_events(connection, (event(revoked_at),))
        return "recorded"

    async def record(self, event: AuditEvent) -> None:
        """Record an event. Raises Unavailable."""
        await self._database.record(event)

    async def _update(self, query: Update, event: AuditEvent) -> bool:
        """Run an UPDATE, and record the event if a row changed. Returns whether a row changed."""
        async with self._database.transaction() as connection:
            changed = (await connection.execute(query)).rowcount > 0
            if changed:
                await record_events(connection, (event,))
        return changed

    async def add_unknown(
        self,
        uses: Sequence[UnknownUse],
        now: datetime,
        event: Callable[[CredentialAlert, UnknownUse], AuditEvent],
    ) -> Alerts:
        """Record unknown identities seen by one cluster's API server, with an event for each new identity.

        Also records an event, at most once an hour, for new certificates of a known member of `system:masters` or of a
        known exempt identity. Records nothing for a deleted cluster, and no new identities beyond the cluster's limits.
        The function `event` creates an event from the event's kind and a use that contains only the fingerprints that
        cause the event.
        """
        cluster_id = uses[0].cluster_id
        async with self._database.transaction() as connection:
            # Lock the cluster's row, because workers may record the same identity at the same time.
            cluster = select(_cluster.c.id).where(_cluster.c.id == cluster_id)
            if not await exists(connection, cluster.with_for_update()):
                return Alerts()
            stored = await _stored_identities(connection, cluster_id, [use.identity for use in uses])
            unseen = [use for use in uses if use.identity not in stored]
            new = _first_within(await _remaining_capacity(connection, cluster_id, unseen), unseen)
            if new:
                await connection.execute(insert(_unknown), [_row(use, now) for use in new])
            known = [use for use in uses if use.identity in stored]
            due = [
                replace(use, fingerprints=tuple(_new_fingerprints(use, stored[use.identity])))
                for use in known
                if _is_alert_due(use, stored[use.identity], now)
            ]
            unknown = [use for use in new if not use.exempt]
            exempt = [use for use in (*new, *due) if use.exempt]
            masters = [use for use in (*new, *due) if MASTERS in use.groups]
            if updates := [_update_values(use, stored[use.identity], now) for use in known]:
                await connection.execute(_SEEN_AGAIN, updates)
            alerts: dict[CredentialAlert, list[UnknownUse]] = {
                "credential.unknown": unknown,
                "credential.masters": masters,
                "credential.exempt": exempt,
            }
            events = (event(kind, use) for kind, uses_of_kind in alerts.items() for use in uses_of_kind)
            await record_events(connection, tuple(events))
        return Alerts(len(unknown), len(masters), len(exempt), left_out=len(unseen) - len(new))


async def _remaining_capacity(connection: Transaction, cluster_id: str, uses: Sequence[UnknownUse]) -> int:
    """Return how many more identities may be added to the cluster.

    Deletes old identities if the new identities would exceed the limit.
    """
    query = select(func.count()).select_from(_unknown).where(_unknown.c.cluster_id == cluster_id)
    capacity: int = MAX_UNKNOWN - (await connection.execute(query)).scalar_one()
    if not uses or capacity >= len(uses):
        return capacity
    long_ago = max(use.last for use in uses) - DELETED_AFTER
    gone = delete(_unknown).where(_unknown.c.cluster_id == cluster_id, _unknown.c.last_seen_at < long_ago)
    return capacity + (await connection.execute(gone)).rowcount


def _first_within(capacity: int, uses: Sequence[UnknownUse]) -> list[UnknownUse]:
    """Return the first uses, at most as many as `capacity`.

    Uses with `alerts_of_each` may also take the reserved rows.
    """
    first = [use for use in uses if use.alerts_of_each][: max(0, capacity + RESERVED)]
    others = [use for use in uses if not use.alerts_of_each]
    return first + others[: max(0, capacity - len(first))]


async def _stored_identities(
    connection: Transaction, cluster_id: str, identities: Sequence[bytes]
) -> dict[bytes, Row[Any]]:
    query: Select[Any] = select(_unknown.c.identity, _unknown.c.fingerprints, _unknown.c.last_alert_at)
    these = (_unknown.c.cluster_id == cluster_id, _unknown.c.identity.in_(identities))
    return {row.identity: row for row in await connection.execute(query.where(*these))}


def _new_fingerprints(use: UnknownUse, stored: Row[Any]) -> list[str]:
    return [each for each in use.fingerprints if each not in stored.fingerprints]


def _is_alert_due(use: UnknownUse, stored: Row[Any], now: datetime) -> bool:
    # Use this service's clock, because an API server could report invented times, and so cause an event for each past
    # hour.
    return (
        use.alerts_of_each
        and bool(_new_fingerprints(use, stored))
        and now >= stored.last_alert_at + ALERT_EVERY
    )


def _row(use: UnknownUse, now: datetime) -> dict[str, object]:
    return {
        "cluster_id": use.cluster_id,
        "identity": use.identity,
        "username": use.username,
        "groups": list(use.groups),
        "hashes": len(use.fingerprints),
        "fingerprints": list(use.fingerprints),
        "first_seen_at": use.first,
        "last_seen_at": use.last,
        "last_alert_at": now,
    }


def _update_values(use: UnknownUse, stored: Row[Any], now: datetime) -> dict[str, object]:
    is_alert_due = _is_alert_due(use, stored, now)
    # If each new certificate of an identity causes an alert, store a new fingerprint only when the event about the
    # certificate is recorded. As long as the fingerprint is not stored, the certificate counts as new.
    new = _new_fingerprints(use, stored) if is_alert_due or not use.alerts_of_each else []
    return {
        "cluster": use.cluster_id,
        "who": use.identity,
        "new_hashes": len(new),
        "last_fingerprints": [*stored.fingerprints, *new][-KEPT_HASHES:],
        "alerted": now if is_alert_due else stored.last_alert_at,
        "first": use.first,
        "last": use.last,
        "before": use.last - RESOLUTION,
    }


def _time(name: str) -> ColumnElement[datetime]:
    return bindparam(name, type_=tables.Utc())


def _extended_times(table: Table) -> dict[str, ColumnElement[datetime]]:
    """Return the updated times of use. Uses `CASE`, because databases have different functions for a minimum."""
    first, last = table.c.first_seen_at, table.c.last_seen_at
    return {
        "first_seen_at": case((or_(first.is_(None), first > _time("first")), _time("first")), else_=first),
        "last_seen_at": case((or_(last.is_(None), last < _time("last")), _time("last")), else_=last),
    }


def _needs_update(table: Table) -> ColumnElement[bool]:
    """Return an SQL condition that is true if the times of use have changed enough to be written."""
    first, last = table.c.first_seen_at, table.c.last_seen_at
    return or_(last.is_(None), last < _time("before"), first > _time("first"))


_SEEN = (
    update(_certificate)
    .where(_certificate.c.id == bindparam("row"), _needs_update(_certificate))
    .values(_extended_times(_certificate))
)
_CALLED = (
    update(_token)
    .where(
        _token.c.hash == bindparam("token_hash"),
        or_(_token.c.last_asked_at.is_(None), _token.c.last_asked_at < _time("before")),
    )
    .values(last_asked_at=_time("at"))
)


def _time_of_cluster(column: ColumnElement[datetime], name: str) -> Update:
    is_older = or_(column.is_(None), column < _time("before"))
    this = _token.c.cluster_id == bindparam("cluster")
    # Lock a cluster's tokens in the order of their hashes, as `add_webhook_calls` does.
    due = select(_token.c.id).where(this, is_older).order_by(_token.c.hash).with_for_update().correlate(None)
    return update(_token).where(_token.c.id.in_(due)).values({name: _time("at")})


_REFUSED = _time_of_cluster(_token.c.refused_at, "refused_at")
_EVENTS_ARRIVED = _time_of_cluster(_token.c.last_events_at, "last_events_at")
_USE_REPORTED = _time_of_cluster(_token.c.last_use_at, "last_use_at")
_SEEN_AGAIN = (
    update(_unknown)
    .where(
        _unknown.c.cluster_id == bindparam("cluster"),
        _unknown.c.identity == bindparam("who"),
        or_(bindparam("new_hashes", type_=Integer()) > 0, _needs_update(_unknown)),
    )
    .values(
        **_extended_times(_unknown),
        hashes=_unknown.c.hashes + bindparam("new_hashes", type_=Integer()),
        fingerprints=bindparam("last_fingerprints", type_=JSON()),
        last_alert_at=_time("alerted"),
    )
)
