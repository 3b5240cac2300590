"""What was seen in use, in memory for some seconds, then written down.

A process that is killed loses what it hadn't written, some seconds of it. Nothing but the times of use and the moment
of an alert depends on it: the next use of the same credential is seen again.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

import structlog

from clustercert import metrics
from clustercert.background import pause
from clustercert.errors import Unavailable
from clustercert.model import AuditEvent, Origin
from clustercert.store.sightings import EXACTNESS, MASTERS, WRITTEN_AT_ONCE, SightingRows, UnknownUse, Use
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.recognition import Recognized
from clustercert.webhook.review import Identity

logger = structlog.get_logger()

FLUSH_SECONDS = 3.0
# More than this many wait only while the database is away; the next use of what is dropped is seen again.
WAITING = 200_000
UNKNOWN_WAITING = 10_000

# What is kept of the names that somebody else's certificate claims.
SHOWN_NAME = 256
SHOWN_GROUPS = 32


Reporter = Literal["webhook", "audit-events", "import-audit-log"]
"""By what way the use of a credential was reported."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One credential in use at one cluster.

    Attributes:
        shown: what the ledger knows of it.
        first, last: the times between which it was used.
        origin: where the API server's word of it came from.
    """

    gate: Gate
    who: Identity
    shown: Recognized
    first: datetime
    last: datetime
    origin: Origin
    reporter: Reporter


@dataclass(frozen=True, slots=True)
class _Alert:
    """A use that somebody should look at, with what the events say."""

    use: UnknownUse
    sighting: Sighting


class Sightings:
    """Collects what was seen, and writes it every few seconds."""

    def __init__(
        self, rows: SightingRows, now: Callable[[], datetime], policy_groups: Collection[str]
    ) -> None:
        self._rows = rows
        self._now = now
        self._policy_groups = policy_groups
        self._uses: dict[int, Use] = {}
        self._masters: dict[int, Sighting] = {}
        self._altered: dict[int, Sighting] = {}
        self._unknown: dict[tuple[str, bytes], _Alert] = {}
        # By the hashes of tokens, which are as few as these are.
        self._asked: dict[bytes, datetime] = {}
        # When each was last written, in two parts, of which the older one is dropped every minute.
        self._written: dict[object, datetime] = {}
        self._written_before: dict[object, datetime] = {}
        self._turned_at = time.monotonic()

    def note(self, seen: Sighting) -> None:
        """Remember a use."""
        options, shown = seen.gate.options, seen.shown
        listed = shown.fingerprint is not None and shown.fingerprint.hex() in options.listed_masters
        master = MASTERS in seen.who.groups and not listed
        if shown.credential is not None:
            self._note_use(shown.credential.id, seen, master=master)
            if shown.altered:
                self._note_altered(shown.credential.id, seen)
        elif self._is_to_be_told(seen, listed=listed, master=master):
            self._note_unknown(seen)

    def _is_to_be_told(self, seen: Sighting, *, listed: bool, master: bool) -> bool:
        """Whether somebody should look at a certificate that is none of ours for the cluster."""
        if master or seen.shown.fault != "unknown" or seen.shown.claims_ours:
            return True
        return not listed and not exempt(seen.who, seen.gate.options, self._policy_groups)

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

    def _note_altered(self, row: int, seen: Sighting) -> None:
        now = self._now()
        if len(self._altered) < UNKNOWN_WAITING and not self._is_written(("altered", row), now, now):
            self._altered.setdefault(row, replace(seen, who=_shown_identity(seen.who)))

    def _keep(self, use: Use) -> None:
        waiting = self._uses.get(use.id)
        if waiting is not None:
            self._uses[use.id] = Use(use.id, min(use.first, waiting.first), max(use.last, waiting.last))
        elif len(self._uses) < WAITING:
            self._uses[use.id] = use

    def _note_unknown(self, seen: Sighting) -> None:
        # Thousands wait, and what an API server says of each may be as long as a review.
        seen = replace(seen, who=_shown_identity(seen.who))
        use = _use(seen)
        key = (use.cluster_id, use.identity)
        if all(self._is_written((*key, each), seen.first, seen.last) for each in use.fingerprints or ("",)):
            return
        waiting = self._unknown.get(key)
        if waiting is not None:
            self._unknown[key] = _Alert(waiting.use.joined(use), waiting.sighting)
        elif len(self._unknown) < UNKNOWN_WAITING:
            self._unknown[key] = _Alert(use, seen)

    def _is_written(self, key: object, first: datetime, last: datetime) -> bool:
        """Whether the store has these times already, to within their exactness."""
        written = self._written.get(key) or self._written_before.get(key)
        return written is not None and written <= first and last < written + EXACTNESS

    def _remember_written(self, key: object, at: datetime) -> None:
        # A holder can make any number of hashes.
        if len(self._written) < WAITING:
            self._written[key] = at

    async def flush(self) -> None:
        """Write everything. Raises Unavailable; what was not written then waits on."""
        self._turn()
        masters, self._masters = self._masters, {}
        altered, self._altered = self._altered, {}
        unknown, self._unknown = self._unknown, {}
        uses, self._uses = self._uses, {}
        asked, self._asked = self._asked, {}
        try:
            # First: they are told by a certificate's never having been seen.
            await self._write_masters(masters)
            await self._write_altered(altered)
            await self._write_unknown(unknown)
            await self._rows.add(list(uses.values()))
            await self._rows.add_asked(asked)
        except Unavailable:
            # Written twice is written once.
            self._masters, self._altered = masters | self._masters, altered | self._altered
            self._unknown, self._asked = unknown | self._unknown, asked | self._asked
            for use in uses.values():
                self._keep(use)
            raise
        for token_hash, at in asked.items():
            self._remember_written(token_hash, at)
        for use in uses.values():
            self._remember_written(use.id, use.last)
        for row in altered:
            self._remember_written(("altered", row), self._now())
        for key, alert in unknown.items():
            for each in alert.use.fingerprints or ("",):
                self._remember_written((*key, each), alert.use.last)

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

    async def _write_altered(self, altered: dict[int, Sighting]) -> None:
        for row, seen in altered.items():
            if await self._rows.report_altered(row, self._now(), self._altered_event(seen)):
                metrics.ALTERED_CREDENTIALS.inc()
                logger.warning(
                    "altered copy of a certificate in use",
                    cluster=seen.gate.cluster_id,
                    user=seen.who.username,
                    reported_by=seen.reporter,
                )

    async def _write_unknown(self, unknown: dict[tuple[str, bytes], _Alert]) -> None:
        by_cluster: dict[str, list[UnknownUse]] = {}
        for (cluster_id, _), alert in unknown.items():
            by_cluster.setdefault(cluster_id, []).append(alert.use)

        def event(kind: str, use: UnknownUse) -> AuditEvent:
            return self._event(kind, unknown[use.cluster_id, use.identity].sighting)

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
        fingerprint = seen.shown.fingerprint
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=seen.gate.project_id,
            actor=f"cluster:{seen.gate.cluster_id}",
            subject=fingerprint.hex() if fingerprint is not None else seen.who.username,
            origin=seen.origin,
            detail={
                "cluster_id": seen.gate.cluster_id,
                "username": seen.who.username,
                "groups": list(seen.who.groups),
                "first_seen_at": seen.first.isoformat(),
                "reported_by": seen.reporter,
                "fault": seen.shown.fault,
                # Whose it is there, is not for the administrators of this one.
                "known_for_another_cluster": seen.shown.fault == "other_cluster",
            },
        )

    def _altered_event(self, seen: Sighting) -> AuditEvent:
        credential, presented = seen.shown.credential, seen.shown.fingerprint
        event = self._event("credential.altered", seen)
        if credential is None:
            return event
        detail = {
            "cluster_id": seen.gate.cluster_id,
            "credential_number": credential.credential_number,
            "presented": presented.hex() if presented is not None else None,
            "username": seen.who.username,
            "first_seen_at": seen.first.isoformat(),
            "reported_by": seen.reporter,
        }
        return replace(event, subject=credential.fingerprint.hex(), detail=detail)


def _use(seen: Sighting) -> UnknownUse:
    fingerprint = seen.shown.fingerprint
    return UnknownUse(
        cluster_id=seen.gate.cluster_id,
        username=seen.who.username,
        groups=seen.who.groups,
        fingerprints=(fingerprint.hex(),) if fingerprint is not None else (),
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
