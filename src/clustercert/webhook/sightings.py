"""What was seen in use, in memory for some seconds, then written down.

A process that is killed loses what it hadn't written, some seconds of it. Nothing but the times of use and the moment
of an alert depends on it: the next use of the same credential is seen again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from clustercert import metrics
from clustercert.background import pause
from clustercert.errors import Unavailable
from clustercert.model import AuditEvent, Origin
from clustercert.store.credentials import Credential
from clustercert.store.sightings import EXACTNESS, MASTERS, WRITTEN_AT_ONCE, SightingRows, UnknownUse, Use
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.review import Identity

logger = structlog.get_logger()

FLUSH_SECONDS = 3.0
# More than this many wait only while the database is away; the next use of what is dropped is seen again.
WAITING = 200_000
UNKNOWN_WAITING = 10_000

# What is kept of the names that somebody else's certificate claims.
SHOWN_NAME = 256
SHOWN_GROUPS = 32


@dataclass(frozen=True, slots=True)
class Sighting:
    """One credential in use at one cluster.

    Attributes:
        known: what the ledger has of it, of whatever cluster.
        first, last: the times between which it was used.
        origin: where the API server's word of it came from.
    """

    gate: Gate
    who: Identity
    fingerprint: bytes
    known: Credential | None
    first: datetime
    last: datetime
    origin: Origin


@dataclass(frozen=True, slots=True)
class _Alert:
    """A use that somebody should look at, with what the events say."""

    use: UnknownUse
    sighting: Sighting


class Sightings:
    """Collects what was seen, and writes it every few seconds."""

    def __init__(self, rows: SightingRows, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._now = now
        self._uses: dict[int, Use] = {}
        self._masters: dict[int, Sighting] = {}
        self._unknown: dict[tuple[str, bytes], _Alert] = {}
        # By the hashes of tokens, which are as few as these are.
        self._asked: dict[bytes, datetime] = {}
        # When each was last written, in two parts, of which the older one is dropped every minute.
        self._written: dict[object, datetime] = {}
        self._written_before: dict[object, datetime] = {}
        self._turned_at = time.monotonic()

    def note(self, seen: Sighting) -> None:
        """Remember a use."""
        options, known = seen.gate.options, seen.known
        listed = seen.fingerprint.hex() in options.listed_masters
        master = MASTERS in seen.who.groups and not listed
        if known is not None and known.cluster_id == seen.gate.cluster_id:
            self._note_use(known.id, seen, master=master)
        elif master or not (listed or exempt(seen.who, options)):
            self._note_unknown(seen)

    def note_asking(self, token_hash: bytes) -> None:
        """Remember that an API server asks now whether to honour a credential, with a good token."""
        now = self._now()
        if not self._is_written(token_hash, now, now):
            self._asked[token_hash] = now

    def _note_use(self, row: int, seen: Sighting, *, master: bool) -> None:
        first, last = seen.first, seen.last
        if self._is_written(row, first, last):
            return
        if master:
            self._masters.setdefault(row, replace(seen, who=_shown_identity(seen.who)))
        self._keep(Use(row, first, last))

    def _keep(self, use: Use) -> None:
        waiting = self._uses.get(use.id)
        if waiting is not None:
            self._uses[use.id] = Use(use.id, min(use.first, waiting.first), max(use.last, waiting.last))
        elif len(self._uses) < WAITING:
            self._uses[use.id] = use

    def _note_unknown(self, seen: Sighting) -> None:
        key = (seen.gate.cluster_id, seen.fingerprint)
        if self._is_written((*key, MASTERS in seen.who.groups), seen.first, seen.last):
            return
        # Thousands wait, and what an API server says of each may be as long as a review.
        seen = replace(seen, who=_shown_identity(seen.who))
        alert = self._unknown.get(key)
        if alert is not None:
            first, last = min(seen.first, alert.use.first), max(seen.last, alert.use.last)
            use = replace(alert.use if MASTERS in alert.use.groups else _use(seen), first=first, last=last)
            self._unknown[key] = _Alert(use, alert.sighting if MASTERS in alert.use.groups else seen)
        elif len(self._unknown) < UNKNOWN_WAITING:
            self._unknown[key] = _Alert(_use(seen), seen)

    def _is_written(self, key: object, first: datetime, last: datetime) -> bool:
        """Whether the store has these times already, to within their exactness."""
        written = self._written.get(key) or self._written_before.get(key)
        return written is not None and written <= first and last < written + EXACTNESS

    async def flush(self) -> None:
        """Write everything. Raises Unavailable; what was not written then waits on."""
        self._turn()
        masters, self._masters = self._masters, {}
        unknown, self._unknown = self._unknown, {}
        uses, self._uses = self._uses, {}
        asked, self._asked = self._asked, {}
        try:
            # First: they are told by a certificate's never having been seen.
            await self._write_masters(masters)
            await self._write_unknown(unknown)
            await self._rows.add(list(uses.values()))
            await self._rows.add_asked(asked)
        except Unavailable:
            # Written twice is written once.
            self._masters, self._unknown = masters | self._masters, unknown | self._unknown
            self._asked = asked | self._asked
            for use in uses.values():
                self._keep(use)
            raise
        self._written.update(asked.items())
        self._written.update((use.id, use.last) for use in uses.values())
        for key, alert in unknown.items():
            self._written[(*key, MASTERS in alert.use.groups)] = alert.use.last

    async def watch(self, stop: asyncio.Event) -> None:
        """Write every few seconds until told to stop, and once more then."""
        while not stop.is_set():
            await pause(stop, FLUSH_SECONDS)
            try:
                await self.flush()
            except Unavailable as failure:
                logger.warning("the use of credentials was not recorded", cause=repr(failure.__cause__))
            except Exception:
                # Nobody would notice its end until the process ends.
                logger.exception(
                    "the use of credentials was not recorded, for a reason that nobody thought of"
                )

    def _turn(self) -> None:
        if time.monotonic() - self._turned_at >= EXACTNESS / timedelta(seconds=1):
            self._written, self._written_before = {}, self._written
            self._turned_at = time.monotonic()

    async def _write_masters(self, masters: dict[int, Sighting]) -> None:
        for row, seen in masters.items():
            event = self._event("credential.masters", seen)
            if await self._rows.first_use(Use(row, seen.first, seen.last), event):
                metrics.MASTERS_CREDENTIALS.inc()

    async def _write_unknown(self, unknown: dict[tuple[str, bytes], _Alert]) -> None:
        by_cluster: dict[str, list[UnknownUse]] = {}
        for (cluster_id, _), alert in unknown.items():
            by_cluster.setdefault(cluster_id, []).append(alert.use)

        def event(kind: str, use: UnknownUse) -> AuditEvent:
            return self._event(kind, unknown[use.cluster_id, use.fingerprint].sighting)

        for uses in by_cluster.values():
            for start in range(0, len(uses), WRITTEN_AT_ONCE):
                alerts = await self._rows.add_unknown(uses[start : start + WRITTEN_AT_ONCE], event)
                metrics.UNKNOWN_CREDENTIALS.inc(alerts.unknown)
                metrics.MASTERS_CREDENTIALS.inc(alerts.masters)
                if alerts.left_out:
                    logger.warning(
                        "unknown credentials were seen that there is no room for: they raise no alert",
                        cluster=uses[start].cluster_id,
                        left_out=alerts.left_out,
                    )

    def _event(self, kind: str, seen: Sighting) -> AuditEvent:
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=seen.gate.project_id,
            actor=f"cluster:{seen.gate.cluster_id}",
            subject=seen.fingerprint.hex(),
            origin=seen.origin,
            detail={
                "cluster_id": seen.gate.cluster_id,
                "username": seen.who.username,
                "groups": list(seen.who.groups),
                "first_seen_at": seen.first.isoformat(),
                # Whose it is there, is not for the administrators of this one.
                "known_for_another_cluster": seen.known is not None
                and seen.known.cluster_id != seen.gate.cluster_id,
            },
        )


def _use(seen: Sighting) -> UnknownUse:
    return UnknownUse(
        cluster_id=seen.gate.cluster_id,
        fingerprint=seen.fingerprint,
        username=seen.who.username,
        groups=seen.who.groups,
        first=seen.first,
        last=seen.last,
    )


def _shown_identity(who: Identity) -> Identity:
    """As much of it as is kept."""
    return Identity(_shown(who.username), _shown_groups(who), ())


def _shown_groups(who: Identity) -> tuple[str, ...]:
    """As many as are kept, the one that matters most among them."""
    first = sorted(who.groups, key=lambda group: group != MASTERS)
    return tuple(_shown(group) for group in first[:SHOWN_GROUPS])


def _shown(text: str) -> str:
    """Text as it may be stored and shown: what a certificate's maker chose may be anything."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:SHOWN_NAME])
