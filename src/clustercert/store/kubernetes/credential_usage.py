"""Queries that record the use of credentials, and webhook calls."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Integer,
    LargeBinary,
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
from clustercert.store.audit.events import record_events
from clustercert.store.certificates.views import (
    CertificateView,
    certificate_views,
    is_verification,
    view_query,
)
from clustercert.store.clusters.registry import silent_clusters
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction
from clustercert.store.kubernetes.use_counts import (
    ALERT_EVERY,
    DueCount,
    UseCount,
    UseCounter,
    add_uses,
    due_before,
    take_due,
)

_certificate, _cluster, _unknown = tables.certificate, tables.cluster, tables.unknown_identity
_token = tables.webhook_token

# Resolution of the stored times of use. All workers together write the times of a credential at most once in this
# period.
RESOLUTION = timedelta(minutes=1)
# Number of rows per transaction. The number is small, so that other writers wait only briefly.
WRITTEN_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for the unknown identities of a cluster, so that invented identities can't fill the database.

    Attributes:
        stored: the maximum number of rows.
        hourly: the maximum number of events that the reports with one webhook token cause within `ALERT_EVERY`.
    """

    stored: int
    hourly: int


# Members of `system:masters` and exempt identities have rows and events of their own, so that other identities can't
# take them. `stored` must be several times `hourly`, because the hourly limits count stored rows.
LIMITS_OF_EACH = Limits(stored=1000, hourly=100)
LIMITS_OF_OTHERS = Limits(stored=10_000, hourly=1000)

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
        token_hash: the webhook token of the report; None for an imported audit log, which has no hourly limit.
        identity: SHA-256 of user name and groups, 32 bytes.
    """

    cluster_id: str
    username: str
    groups: tuple[str, ...]
    fingerprints: tuple[str, ...]
    first: datetime
    last: datetime
    exempt: bool = False
    token_hash: bytes | None = None
    identity: bytes = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.username, sorted(set(self.groups))])
        object.__setattr__(self, "identity", hashlib.sha256(text.encode()).digest())

    @property
    def alerts_of_each(self) -> bool:
        """Whether each new certificate of the identity causes an alert, not only the first one."""
        return self.exempt or MASTERS in self.groups

    @property
    def alert(self) -> CredentialAlert:
        """The gravest alert that the use causes."""
        if MASTERS in self.groups:
            return "credential.masters"
        return "credential.exempt" if self.exempt else "credential.unknown"

    def joined(self, other: "UnknownUse") -> "UnknownUse":
        """Combine this use with another use by the same identity."""
        fingerprints = tuple(dict.fromkeys((*self.fingerprints, *other.fingerprints)))
        first, last = min(self.first, other.first), max(self.last, other.last)
        return replace(self, fingerprints=fingerprints[-KEPT_HASHES:], first=first, last=last)


@dataclass(frozen=True, slots=True)
class Alerts:
    """How many alerts were recorded or counted.

    Attributes:
        unknown: alerts about new identities.
        masters: alerts about members of `system:masters` that are new or have a new certificate.
        exempt: alerts about exempt identities that are new or have a new certificate.
        counted: alerts among them that were only counted, because of the limits.
    """

    unknown: int = 0
    masters: int = 0
    exempt: int = 0
    counted: int = 0


CountEvent = Callable[[DueCount], AuditEvent]
"""Creates the event about counted reports of a cluster."""


RevokedEvent = Callable[[CertificateView, datetime, DueCount], AuditEvent]
"""Creates the event about uses of a revoked certificate. The time is that of the revocation."""
REVOKED_USED = "credential.revoked_used"


@dataclass(frozen=True, slots=True)
class AllowedUses:
    """Requests that an API server allowed with one certificate.

    Attributes:
        uses: the times of the requests.
        first_decided_at, last_decided_at: before these times, the API server must have known a revocation, or else it
            could allow the first and the last request.
    """

    uses: UseCount
    first_decided_at: datetime
    last_decided_at: datetime

    def after(self, revoked_at: datetime) -> UseCount:
        """Return the uses after a revocation. If the first one is not, only the last one is known to be."""
        if revoked_at < self.first_decided_at:
            return self.uses
        return UseCount(1, self.uses.last, self.uses.last)


class CredentialUsageQueries(Queries):
    """Records the use of credentials."""

    @property
    def is_database_away(self) -> bool:
        """Whether the database can't be used now, which another line of the log says."""
        return self._database.outage.is_ongoing

    async def add(self, uses: Sequence[Use]) -> None:
        """Update the certificates' times of first and last use."""
        # Sort the rows, so that concurrent workers lock them in the same order.
        rows = [
            {"row": use.id, "first": use.first, "last": use.last, "before": use.last - RESOLUTION}
            for use in sorted(uses, key=lambda use: use.id)
        ]
        await self._write(_SEEN, rows)

    async def add_refusals(self, times: Mapping[int, datetime]) -> None:
        """Record when the webhook last denied requests with revoked certificates, by the ids of their rows."""
        rows = [{"row": row, "at": at, "before": at - RESOLUTION} for row, at in sorted(times.items())]
        await self._write(_DENIED, rows)

    async def _write(self, statement: Update, rows: Sequence[Mapping[str, object]]) -> None:
        """Update certificates in transactions of `WRITTEN_AT_ONCE` rows."""
        for start in range(0, len(rows), WRITTEN_AT_ONCE):
            async with self._database.transaction() as connection:
                await connection.execute(statement, rows[start : start + WRITTEN_AT_ONCE])

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

    async def clusters_without_reviews(self) -> int:
        """Count the clusters for which `is_silent` holds."""
        return await self._scalar(select(func.count()).select_from(silent_clusters().subquery())) or 0

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
        self, row: int, uses: AllowedUses, reported_by: str, now: datetime, event: RevokedEvent
    ) -> Literal["before", "counted", "recorded"]:
        """Record that an API server allowed requests with a revoked certificate, with an event at most once an hour.

        Returns `before` if the certificate was not revoked before `uses.last_decided_at`. Returns `counted` if the last
        event about the current revocation is less than an hour old; a later event then reports the uses.
        """
        this = _certificate.c.id == row
        async with self._database.transaction() as connection:
            # Lock the row, because workers may report uses of the same certificate at the same time.
            await connection.execute(select(_certificate.c.id).where(this).with_for_update())
            found = await certificate_views(connection, view_query().where(this))
            revoked_at = found[0].revoked_at if found else None
            if revoked_at is None or revoked_at >= uses.last_decided_at:
                return "before"
            counted = uses.after(revoked_at)
            last = _certificate.c.revoked_used_at
            is_later = or_(last.is_(None), last < counted.last)
            await connection.execute(
                update(_certificate).where(this, is_later).values(revoked_used_at=counted.last)
            )
            counter = UseCounter(REVOKED_USED, found[0].fingerprint.hex(), found[0].project_id)
            due = await add_uses(connection, counter, counted, reported_by, now, revoked_at=revoked_at)
            if due is None:
                return "counted"
            await record_events(
                connection, (event(found[0], revoked_at, DueCount(counter, due, reported_by)),)
            )
        return "recorded"

    async def record_counted(
        self, now: datetime, count_event: CountEvent, revoked_event: RevokedEvent
    ) -> Sequence[DueCount]:
        """Record events about the uses that were counted since events that are an hour old. Returns these uses.

        Drops uses of certificates that were pruned, or whose revocation was undone.
        """
        if await self._row(due_before(now)) is None:
            return ()
        recorded = []
        async with self._database.transaction() as connection:
            for due in await take_due(connection, now, limit=WRITTEN_AT_ONCE):
                if due.counter.kind == REVOKED_USED:
                    fingerprint = _certificate.c.fingerprint == bytes.fromhex(due.counter.subject)
                    found = await certificate_views(connection, view_query().where(fingerprint))
                    if not found or (revoked_at := found[0].revoked_at) is None:
                        continue
                    event = revoked_event(found[0], revoked_at, due)
                else:
                    event = count_event(due)
                await record_events(connection, (event,))
                recorded.append(due)
        return recorded

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
        count_event: CountEvent,
    ) -> Alerts:
        """Record unknown identities that one token of one cluster reported, and an event for each new identity.

        Also records an event, at most once an hour, for new certificates of a known member of `system:masters` or of a
        known exempt identity. Counts the reports for which there would be too many events, and does not store their
        identities. Records nothing for a deleted cluster.

        Args:
            event: creates an event from the event's kind and a use that contains only the fingerprints that cause the
                event.
        """
        cluster_id = uses[0].cluster_id
        async with self._database.transaction() as connection:
            project_id = await _locked_cluster(connection, cluster_id)
            if project_id is None:
                return Alerts()
            stored = await _stored_identities(connection, cluster_id, [use.identity for use in uses])
            known = [use for use in uses if use.identity in stored]
            unseen = [use for use in uses if use.identity not in stored]
            # Of a known identity, keep only the new certificates.
            changed = [
                replace(use, fingerprints=tuple(added))
                for use in known
                if use.alerts_of_each and (added := _new_fingerprints(use, stored[use.identity]))
            ]
            # Use this service's clock, because an API server could report invented times, and so cause an event for
            # each past hour.
            due = [use for use in changed if now >= stored[use.identity].last_alert_at + ALERT_EVERY]
            alerted = await _within_limits(connection, [*unseen, *due], now) if unseen or due else []
            identities = {use.identity for use in alerted}
            new = [use for use in unseen if use.identity in identities]
            counted = [use for use in (*unseen, *changed) if use.identity not in identities]
            if new:
                await _make_room(connection, new, now)
                await connection.execute(insert(_unknown), [_row(use, now) for use in new])
            if updates := [
                _update_values(use, stored[use.identity], now, is_alerted=use.identity in identities)
                for use in known
            ]:
                await connection.execute(_SEEN_AGAIN, updates)
            alerts: dict[CredentialAlert, list[UnknownUse]] = {
                "credential.unknown": [use for use in new if not use.exempt],
                "credential.masters": [use for use in alerted if MASTERS in use.groups],
                "credential.exempt": [use for use in alerted if use.exempt],
            }
            events = (event(kind, use) for kind, uses_of_kind in alerts.items() for use in uses_of_kind)
            await record_events(connection, tuple(events))
            counts = Counter(use.alert for use in counted)
            for kind, count in sorted(counts.items()):
                counter = UseCounter(kind, cluster_id, project_id)
                await _count(connection, counter, UseCount(count, now, now), now, count_event)
        unknown, masters, exempt = (len(each) + counts[kind] for kind, each in alerts.items())
        return Alerts(unknown, masters, exempt, counted=len(counted))

    async def add_counted(
        self,
        cluster_id: str,
        kind: CredentialAlert,
        uses: UseCount,
        now: datetime,
        count_event: CountEvent,
    ) -> None:
        """Count reports of a cluster whose alerts have this kind. Records nothing for a deleted cluster."""
        async with self._database.transaction() as connection:
            project_id = await _locked_cluster(connection, cluster_id)
            if project_id is not None:
                counter = UseCounter(kind, cluster_id, project_id)
                await _count(connection, counter, uses, now, count_event)


async def _locked_cluster(connection: Transaction, cluster_id: str) -> str | None:
    """Lock the cluster's row, because workers record reports at the same time. Returns the id of its project."""
    query = select(_cluster.c.project_id).where(_cluster.c.id == cluster_id)
    row = (await connection.execute(query.with_for_update())).first()
    return None if row is None else row.project_id


async def _count(
    connection: Transaction, counter: UseCounter, uses: UseCount, now: datetime, event: CountEvent
) -> None:
    due = await add_uses(connection, counter, uses, "", now)
    if due is not None:
        await record_events(connection, (event(DueCount(counter, due, "")),))


def _limits() -> tuple[tuple[bool, Limits], ...]:
    """Return the limits for identities whose `alerts_of_each` is true or false."""
    return (True, LIMITS_OF_EACH), (False, LIMITS_OF_OTHERS)


async def _within_limits(
    connection: Transaction, uses: Sequence[UnknownUse], now: datetime
) -> list[UnknownUse]:
    """Return the first uses, as many as the hourly limits of the token allow."""
    token = uses[0].token_hash
    if token is None:
        return list(uses)
    query = (
        select(_unknown.c.alerts_of_each, func.count())
        .where(
            _unknown.c.cluster_id == uses[0].cluster_id,
            _unknown.c.token_hash == token,
            _unknown.c.last_alert_at > now - ALERT_EVERY,
        )
        .group_by(_unknown.c.alerts_of_each)
    )
    recent = {row[0]: row[1] for row in await connection.execute(query)}
    found = []
    for of_each, limits in _limits():
        left = max(0, limits.hourly - recent.get(of_each, 0))
        found += [use for use in uses if use.alerts_of_each is of_each][:left]
    return found


async def _make_room(connection: Transaction, new: Sequence[UnknownUse], now: datetime) -> None:
    """Delete identities of the cluster, so that the new ones don't exceed the limits.

    Deletes identities of the token that has the most of them, so that invented identities replace those that were
    invented before, and none that another token reported. Of this token's identities, those that were seen only once go
    first, and then those that were not seen for the longest time. Identities with an event in the last hour go last.
    """
    these = _unknown.c.cluster_id == new[0].cluster_id
    query = select(_unknown.c.alerts_of_each, _unknown.c.token_hash, func.count()).where(these)
    rows = await connection.execute(query.group_by(_unknown.c.alerts_of_each, _unknown.c.token_hash))
    stored = [(row[0], row[1], row[2]) for row in rows]
    for of_each, limits in _limits():
        counts = {token: count for each, token, count in stored if each is of_each}
        added = sum(use.alerts_of_each is of_each for use in new)
        excess = sum(counts.values()) + added - limits.stored
        if excess <= 0 or not counts:
            continue
        most = max(counts, key=lambda token: counts[token])
        gone = (
            select(_unknown.c.identity)
            .where(
                these,
                _unknown.c.alerts_of_each.is_(of_each),
                _unknown.c.token_hash.is_not_distinct_from(most),
            )
            .order_by(
                case((_unknown.c.last_alert_at > now - ALERT_EVERY, 1), else_=0),
                case((_unknown.c.last_seen_at > _unknown.c.first_seen_at, 1), else_=0),
                _unknown.c.last_seen_at,
                _unknown.c.identity,
            )
            .limit(excess)
        )
        await connection.execute(delete(_unknown).where(these, _unknown.c.identity.in_(gone)))


async def _stored_identities(
    connection: Transaction, cluster_id: str, identities: Sequence[bytes]
) -> dict[bytes, Row[Any]]:
    query: Select[Any] = select(
        _unknown.c.identity, _unknown.c.fingerprints, _unknown.c.last_alert_at, _unknown.c.token_hash
    )
    these = (_unknown.c.cluster_id == cluster_id, _unknown.c.identity.in_(identities))
    return {row.identity: row for row in await connection.execute(query.where(*these))}


def _new_fingerprints(use: UnknownUse, stored: Row[Any]) -> list[str]:
    return [each for each in use.fingerprints if each not in stored.fingerprints]


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
        "token_hash": use.token_hash,
        "alerts_of_each": use.alerts_of_each,
    }


def _update_values(
    use: UnknownUse, stored: Row[Any], now: datetime, *, is_alerted: bool
) -> dict[str, object]:
    # If each new certificate of an identity causes an alert, store a new fingerprint only when the event about the
    # certificate is recorded. As long as the fingerprint is not stored, the certificate counts as new.
    new = _new_fingerprints(use, stored) if is_alerted or not use.alerts_of_each else []
    return {
        "cluster": use.cluster_id,
        "who": use.identity,
        "new_hashes": len(new),
        "last_fingerprints": [*stored.fingerprints, *new][-KEPT_HASHES:],
        "alerted": now if is_alerted else stored.last_alert_at,
        "token": use.token_hash if is_alerted else stored.token_hash,
        "of_each": use.alerts_of_each,
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
    return or_(_is_older(last), first > _time("first"))


def _is_older(time: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return an SQL condition that is true if a stored time is missing, or old enough to be written again."""
    return or_(time.is_(None), time < _time("before"))


_SEEN = (
    update(_certificate)
    .where(_certificate.c.id == bindparam("row"), _needs_update(_certificate))
    .values(_extended_times(_certificate))
)
_DENIED = (
    update(_certificate)
    .where(_certificate.c.id == bindparam("row"), _is_older(_certificate.c.refused_at))
    .values(refused_at=_time("at"))
)
_CALLED = (
    update(_token)
    .where(_token.c.hash == bindparam("token_hash"), _is_older(_token.c.last_asked_at))
    .values(last_asked_at=_time("at"))
)


def _time_of_cluster(column: ColumnElement[datetime], name: str) -> Update:
    this = _token.c.cluster_id == bindparam("cluster")
    # Lock a cluster's tokens in the order of their hashes, as `add_webhook_calls` does.
    due = (
        select(_token.c.id)
        .where(this, _is_older(column))
        .order_by(_token.c.hash)
        .with_for_update()
        .correlate(None)
    )
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
        token_hash=bindparam("token", type_=LargeBinary()),
        alerts_of_each=bindparam("of_each", type_=Boolean()),
    )
)
