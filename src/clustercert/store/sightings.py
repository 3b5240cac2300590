"""Every SQL statement that writes down which credentials were seen in use, and which API servers asked."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
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
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.events import record_events
from clustercert.store.transaction import Transaction

_certificate, _cluster, _unknown = tables.certificate, tables.cluster, tables.unknown_identity
_token = tables.webhook_token

# The times of use are exact to this, and one credential costs at most one write in it, however many workers see it.
EXACTNESS = timedelta(minutes=1)
# Few enough that other writers, and the reviews of this worker, wait only for a moment.
WRITTEN_AT_ONCE = 100
# Of each cluster. Whoever's CA is in the bundle can make any number of certificates, and no more rows than this.
MAX_UNKNOWN = 10_000
# So many more, of members of `system:masters` alone: nobody is to hide those behind others.
MORE_MASTERS = 1_000
# Where there is no room, what was not seen for so long makes some. Seen again, it is told again.
FORGOTTEN_AFTER = timedelta(days=30)

# Of an altered certificate, and of new certificates of one identity in `system:masters`, there is one event in so long.
ALERT_EVERY = timedelta(hours=1)
# Hashes that are kept of an unknown identity, to tell new ones from those that were seen.
KEPT_HASHES = 16

MASTERS = "system:masters"
"""Kubernetes's group whose members no authorizer is asked about. Source: kubernetes.io, "Using RBAC Authorization"."""


@dataclass(frozen=True, slots=True)
class Use:
    """That a certificate was used, between two times.

    Attributes:
        id: of its row.
    """

    id: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class UnknownUse:
    """That somebody used client certificates which the ledger doesn't have for this cluster.

    Attributes:
        groups: as the API server has them, those included that everybody has.
        fingerprints: of the certificates, lower-case hex, the newest last; at most 16.
        identity: SHA-256 of user name and groups, 32 bytes.
    """

    cluster_id: str
    username: str
    groups: tuple[str, ...]
    fingerprints: tuple[str, ...]
    first: datetime
    last: datetime
    identity: bytes = field(init=False)

    def __post_init__(self) -> None:
        said = json.dumps([self.username, sorted(set(self.groups))])
        object.__setattr__(self, "identity", hashlib.sha256(said.encode()).digest())

    def joined(self, other: "UnknownUse") -> "UnknownUse":
        """This and another use by the same identity."""
        fingerprints = tuple(dict.fromkeys((*self.fingerprints, *other.fingerprints)))
        first, last = min(self.first, other.first), max(self.last, other.last)
        return replace(self, fingerprints=fingerprints[-KEPT_HASHES:], first=first, last=last)


@dataclass(frozen=True, slots=True)
class Alerts:
    """How many identities were written down for the first time: at all, and as members of `system:masters`.

    Attributes:
        left_out: for how many there was no room.
    """

    unknown: int = 0
    masters: int = 0
    left_out: int = 0


class SightingRows:
    """When certificates were used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, uses: Sequence[Use]) -> None:
        """Widen the certificates' times of use.

        In the order of their rows, so that no two workers wait for each other.
        """
        rows = [
            {"row": use.id, "first": use.first, "last": use.last, "before": use.last - EXACTNESS}
            for use in sorted(uses, key=lambda use: use.id)
        ]
        for start in range(0, len(rows), WRITTEN_AT_ONCE):
            async with self._database.write() as connection:
                await connection.execute(_SEEN, rows[start : start + WRITTEN_AT_ONCE])

    async def add_asked(self, times: Mapping[bytes, datetime]) -> None:
        """When API servers asked, by the hashes of their tokens; in the order of these, as above."""
        rows = [
            {"token_hash": token, "at": at, "before": at - EXACTNESS} for token, at in sorted(times.items())
        ]
        if rows:
            async with self._database.write() as connection:
                await connection.execute(_ASKED, rows)

    async def first_use(self, use: Use, event: AuditEvent) -> bool:
        """The same for one certificate, with an event where it was never seen before; whether it was so."""
        never = _certificate.c.first_seen_at.is_(None)
        query = update(_certificate).where(_certificate.c.id == use.id, never)
        async with self._database.write() as connection:
            changed = await connection.execute(query.values(first_seen_at=use.first, last_seen_at=use.last))
            if changed.rowcount:
                await record_events(connection, (event,))
        return bool(changed.rowcount)

    async def report_altered(self, row: int, at: datetime, event: AuditEvent) -> bool:
        """Record that an altered copy of a certificate was shown, unless that was recorded within the last hour.

        Whether it was recorded now.
        """
        due = or_(_certificate.c.altered_at.is_(None), _certificate.c.altered_at <= at - ALERT_EVERY)
        query = update(_certificate).where(_certificate.c.id == row, due).values(altered_at=at)
        async with self._database.write() as connection:
            changed = await connection.execute(query)
            if changed.rowcount:
                await record_events(connection, (event,))
        return bool(changed.rowcount)

    async def note(self, event: AuditEvent) -> None:
        """Record an event by itself."""
        async with self._database.write(event):
            pass

    async def add_unknown(
        self, uses: Sequence[UnknownUse], event: Callable[[str, UnknownUse], AuditEvent]
    ) -> Alerts:
        """Write down what one cluster's API server saw, with an event of each identity that is new.

        Members of `system:masters` are told again, once an hour at most, when they show another certificate.
        What is beyond the bounds of a cluster is not written, and neither is what a removed cluster saw. `event` makes
        an event of its kind and the use.
        """
        cluster_id = uses[0].cluster_id
        async with self._database.write() as connection:
            # Another worker that saw the same waits here.
            locked = select(_cluster.c.id).where(_cluster.c.id == cluster_id).with_for_update()
            if (await connection.execute(locked)).first() is None:
                return Alerts()
            held = await _held(connection, cluster_id, [use.identity for use in uses])
            unheard = [use for use in uses if use.identity not in held]
            new = _fitting(unheard, await _room(connection, cluster_id, unheard))
            if new:
                await connection.execute(insert(_unknown), [_row(use) for use in new])
            known = [use for use in uses if use.identity in held]
            masters = [use for use in new if MASTERS in use.groups]
            masters += [use for use in known if _is_alert_due(use, held[use.identity])]
            if again := [_again(use, held[use.identity]) for use in known]:
                await connection.execute(_SEEN_AGAIN, again)
            events = [event("credential.unknown", use) for use in new]
            await record_events(connection, (*events, *(event("credential.masters", use) for use in masters)))
        return Alerts(len(new), len(masters), left_out=len(unheard) - len(new))


async def _room(connection: Transaction, cluster_id: str, uses: Sequence[UnknownUse]) -> int:
    """How many more may be written, once what is long gone has made room for those that are new."""
    room = MAX_UNKNOWN - await _count(connection, cluster_id)
    if not uses or room >= len(uses):
        return room
    long_ago = max(use.last for use in uses) - FORGOTTEN_AFTER
    gone = delete(_unknown).where(_unknown.c.cluster_id == cluster_id, _unknown.c.last_seen_at < long_ago)
    return room + (await connection.execute(gone)).rowcount


def _fitting(uses: Sequence[UnknownUse], room: int) -> list[UnknownUse]:
    masters = [use for use in uses if MASTERS in use.groups][: max(0, room + MORE_MASTERS)]
    others = [use for use in uses if MASTERS not in use.groups]
    return masters + others[: max(0, room - len(masters))]


@dataclass(frozen=True, slots=True)
class _Held:
    """What is written down of an identity. Field meanings as in the table."""

    fingerprints: Sequence[str]
    last_alert_at: datetime

    def new(self, use: UnknownUse) -> list[str]:
        """The fingerprints that are not among the last ones."""
        return [each for each in use.fingerprints if each not in self.fingerprints]


async def _held(connection: Transaction, cluster_id: str, identities: Sequence[bytes]) -> dict[bytes, _Held]:
    """Those that are written down already."""
    query = select(_unknown.c.identity, _unknown.c.fingerprints, _unknown.c.last_alert_at)
    these = (_unknown.c.cluster_id == cluster_id, _unknown.c.identity.in_(identities))
    rows = await connection.execute(query.where(*these))
    return {row.identity: _Held(row.fingerprints, row.last_alert_at) for row in rows}


def _is_alert_due(use: UnknownUse, held: _Held) -> bool:
    return MASTERS in use.groups and bool(held.new(use)) and use.last >= held.last_alert_at + ALERT_EVERY


async def _count(connection: Transaction, cluster_id: str) -> int:
    query = select(func.count()).select_from(_unknown).where(_unknown.c.cluster_id == cluster_id)
    count: int = (await connection.execute(query)).scalar_one()
    return count


def _row(use: UnknownUse) -> dict[str, object]:
    return {
        "cluster_id": use.cluster_id,
        "identity": use.identity,
        "username": use.username,
        "groups": list(use.groups),
        "hashes": len(use.fingerprints),
        "fingerprints": list(use.fingerprints),
        "first_seen_at": use.first,
        "last_seen_at": use.last,
        "last_alert_at": use.last,
    }


def _again(use: UnknownUse, held: _Held) -> dict[str, object]:
    is_alert_due = _is_alert_due(use, held)
    # A master's new certificate stays new until it has been told of.
    new = held.new(use) if is_alert_due or MASTERS not in use.groups else []
    return {
        "cluster": use.cluster_id,
        "who": use.identity,
        "new_hashes": len(new),
        "last_fingerprints": [*held.fingerprints, *new][-KEPT_HASHES:],
        "alerted": use.last if is_alert_due else held.last_alert_at,
        "first": use.first,
        "last": use.last,
        "before": use.last - EXACTNESS,
    }


def _time(name: str) -> ColumnElement[datetime]:
    return bindparam(name, type_=tables.Utc())


def _widened(
    first: ColumnElement[datetime], last: ColumnElement[datetime]
) -> dict[str, ColumnElement[datetime]]:
    """The new times of use; neither database has the other one's function for the lesser of two."""
    return {
        "first_seen_at": case((or_(first.is_(None), first > _time("first")), _time("first")), else_=first),
        "last_seen_at": case((or_(last.is_(None), last < _time("last")), _time("last")), else_=last),
    }


def _worth_it(first: ColumnElement[datetime], last: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether the times say something new, to within their exactness."""
    return or_(last.is_(None), last < _time("before"), first > _time("first"))


_SEEN = (
    update(_certificate)
    .where(
        _certificate.c.id == bindparam("row"),
        _worth_it(_certificate.c.first_seen_at, _certificate.c.last_seen_at),
    )
    .values(_widened(_certificate.c.first_seen_at, _certificate.c.last_seen_at))
)
_ASKED = (
    update(_token)
    .where(
        _token.c.hash == bindparam("token_hash"),
        or_(_token.c.last_asked_at.is_(None), _token.c.last_asked_at < _time("before")),
    )
    .values(last_asked_at=_time("at"))
)
_SEEN_AGAIN = (
    update(_unknown)
    .where(
        _unknown.c.cluster_id == bindparam("cluster"),
        _unknown.c.identity == bindparam("who"),
        or_(
            bindparam("new_hashes", type_=Integer()) > 0,
            _worth_it(_unknown.c.first_seen_at, _unknown.c.last_seen_at),
        ),
    )
    .values(
        **_widened(_unknown.c.first_seen_at, _unknown.c.last_seen_at),
        hashes=_unknown.c.hashes + bindparam("new_hashes", type_=Integer()),
        fingerprints=bindparam("last_fingerprints", type_=JSON()),
        last_alert_at=_time("alerted"),
    )
)
