"""Collects the reported use of credentials in memory and writes it to the store every few seconds.

A killed process loses a few seconds of reports. The loss only makes recorded times less exact and delays alerts,
because the next use of the credential is reported again.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

import structlog

from clustercert.background import until_stopped
from clustercert.kubernetes.webhook.audit_events import Approval
from clustercert.kubernetes.webhook.pending_reports import ObservedUse, PendingReports, PendingUnknown
from clustercert.model import Actor, Origin
from clustercert.model.errors import Unavailable
from clustercert.model.events.operation import (
    ApprovedRequest,
    ClusterCertificatesApproved,
    CredentialAlert,
    CredentialAltered,
    CredentialsCounted,
    CredentialSeen,
    RevokedCredentialUsed,
)
from clustercert.model.kubernetes import MASTERS, SERVICE
from clustercert.observability import metrics
from clustercert.policy.templates import Exemption, exemption_of
from clustercert.store.certificates.views import CertificateView
from clustercert.store.kubernetes.credential_cache import CachedCertificate
from clustercert.store.kubernetes.credential_usage import (
    RESOLUTION,
    REVOKED_USED,
    WRITTEN_AT_ONCE,
    Alerts,
    CredentialUsageQueries,
    UnknownUse,
    Use,
)
from clustercert.store.kubernetes.use_counts import DueCount

# The number of keys is limited, because a certificate holder can create any number of hashes.
MAX_KEYS = 200_000


class WrittenTimes:
    """For each key, the time that was last written to the store. A key is dropped after one to two minutes."""

    def __init__(self) -> None:
        self._recent: dict[object, datetime] = {}
        self._older: dict[object, datetime] = {}
        self._rotated_at = time.monotonic()

    def has(self, key: object, first: datetime, last: datetime) -> bool:
        """Whether the written time is exact enough: not after `first`, and less than RESOLUTION before `last`."""
        written = self._recent.get(key) or self._older.get(key)
        return written is not None and written <= first and last < written + RESOLUTION

    def add(self, key: object, at: datetime) -> None:
        if len(self._recent) < MAX_KEYS:
            self._recent[key] = at

    def rotate(self) -> None:
        """Drop the older keys once a minute."""
        if time.monotonic() - self._rotated_at >= RESOLUTION / timedelta(seconds=1):
            self._recent, self._older = {}, self._recent
            self._rotated_at = time.monotonic()


logger = structlog.get_logger()

FLUSH_SECONDS = 3.0


@dataclass(slots=True)
class CredentialUsage:
    """Collects reports and writes them periodically."""

    queries: CredentialUsageQueries
    now: Callable[[], datetime]
    policy_groups: Collection[str]
    _pending: PendingReports = field(default_factory=PendingReports)
    _written: WrittenTimes = field(default_factory=WrittenTimes)
    _counts_recorded_at: datetime | None = None

    def report(self, use: ObservedUse) -> None:
        """Add a report of a credential's use to the pending reports."""
        fingerprint, credential = use.recognized.fingerprint, use.recognized.credential
        listed = fingerprint is not None and fingerprint.hex() in use.webhook_config.options.listed_masters
        master = MASTERS in use.identity.groups and not listed
        if credential is not None:
            self._report_use(credential.id, use, master=master)
            if use.recognized.altered:
                self._report_altered(credential.id, use)
            self._report_revoked(credential, use)
            self._report_approvals(credential, use)
            self._report_audited_use(use)
        elif master or use.recognized.fault != "unknown" or use.recognized.claims_ours:
            self._report_unknown(use)
        elif (exemption := self._exemption_of(use)) is None:
            if not listed:
                self._report_unknown(use)
        elif exemption == "component":
            self._report_component(use)

    def report_refusal(self, row: int) -> None:
        """Add a report that the webhook denied a request just now because this certificate is revoked."""
        now = self.now()
        if not self._written.has(("refusal", row), now, now):
            self._pending.add_refusal(row, now)

    def report_token_use(self, cluster_id: str, token_hash: bytes) -> None:
        """Add a report that an API server of the cluster used a valid webhook token just now."""
        now, key = self.now(), (cluster_id, token_hash)
        if not self._written.has(key, now, now):
            self._pending.token_uses[key] = now

    def report_refused_call(self, cluster_id: str) -> None:
        """Add a report that the webhook of an existing cluster was called with a wrong token just now."""
        now = self.now()
        if not self._written.has(("refused", cluster_id), now, now):
            self._pending.refused_calls[cluster_id] = now

    def _exemption_of(self, use: ObservedUse) -> Exemption | None:
        identity = use.identity
        return exemption_of(
            identity.username, identity.groups, use.webhook_config.options, self.policy_groups
        )

    def report_audit_events(self, cluster_id: str) -> None:
        """Add a report that an API server of the cluster sent audit events just now."""
        now = self.now()
        if not self._written.has(("events", cluster_id), now, now):
            self._pending.audit_events[cluster_id] = now

    def _report_use(self, row: int, use: ObservedUse, *, master: bool) -> None:
        if self._written.has(row, use.first, use.last):
            return
        if master:
            self._pending.masters.setdefault(row, use.shortened())
        self._pending.add_use(Use(row, use.first, use.last))

    def _report_altered(self, row: int, use: ObservedUse) -> None:
        now = self.now()
        if not self._written.has(("altered", row), now, now):
            self._pending.add_altered(row, use)

    def _report_component(self, use: ObservedUse) -> None:
        """Report a certificate with an exempt name in mode known-only, if its fingerprint is not pinned."""
        options, fingerprint = use.webhook_config.options, use.recognized.fingerprint
        if options.mode == "known-only" and fingerprint is not None and fingerprint.hex() not in options.pins:
            self._report_unknown(use, exempt=True)

    def _report_revoked(self, credential: CachedCertificate, use: ObservedUse) -> None:
        if use.allowed is not None and credential.revoked:
            self._pending.add_revoked(credential.id, use)

    def _report_approvals(self, credential: CachedCertificate, use: ObservedUse) -> None:
        # Ignore approvals in imported audit logs: importing a log twice would report the approvals twice.
        if use.approvals and SERVICE not in credential.groups and use.reporter == "audit-events":
            self._pending.add_approvals(credential.id, use)

    def _report_audited_use(self, use: ObservedUse) -> None:
        cluster_id, at = use.webhook_config.cluster_id, use.last
        # API servers don't ask the webhook about members of system:masters.
        if use.reporter != "audit-events" or MASTERS in use.identity.groups:
            return
        if not self._written.has(("use", cluster_id), at, at):
            known = self._pending.audited_uses.get(cluster_id, at)
            self._pending.audited_uses[cluster_id] = max(known, at)

    def _report_unknown(self, use: ObservedUse, *, exempt: bool = False) -> None:
        # Thousands of reports may be pending, and names may be long, so shorten the names first.
        use = use.shortened()
        unknown = replace(use.unknown_use(), exempt=exempt)
        if not all(self._written.has(key, use.first, use.last) for key in _keys(unknown)):
            self._pending.unknown.add(unknown, use, self.now())

    async def flush(self, *, is_last: bool = False) -> None:
        """Write all pending reports.

        Writes approvals, and uses of revoked certificates, at most once a minute per certificate, except in the last
        flush. Raises Unavailable if the store fails, and then keeps the reports for the next flush.
        """
        self._written.rotate()
        pending, self._pending = self._pending, PendingReports()
        try:
            # Write `masters` before `uses`, because `_write_masters` must still see which certificates were never used.
            await self._write_masters(pending.masters)
            await self._write_altered(pending.altered)
            await self._write_revoked(pending.revoked, is_last=is_last)
            await self._write_approvals(pending.approvals, is_last=is_last)
            await self._write_unknown(pending.unknown)
            await self.queries.add(list(pending.uses.values()))
            await self.queries.add_refusals(pending.refusals)
            await self.queries.add_webhook_calls(pending.token_uses)
            await self.queries.add_refused_calls(pending.refused_calls)
            await self.queries.add_audit_reports(pending.audit_events, pending.audited_uses)
            await self._record_counted()
        except Unavailable:
            # Writing a report twice is harmless. Reports that are counted were removed as soon as they were written.
            later, self._pending = self._pending, pending
            pending.add_later(later, self.now())
            raise
        self._remember(pending)

    async def watch(self, stop: asyncio.Event) -> None:
        """Flush every few seconds until `stop` is set, then once more."""
        async for is_last in until_stopped(stop, FLUSH_SECONDS):
            try:
                await self.flush(is_last=is_last)
            except Unavailable as failure:
                write = logger.debug if self.queries.is_database_away else logger.warning
                write("recording credential usage failed", cause=repr(failure.__cause__))
            except Exception:
                # Catch every exception: otherwise the task would end, and later uses would not be recorded.
                logger.exception("recording credential usage failed: unexpected error")
                metrics.BACKGROUND_FAILURES.labels("record uses of credentials").inc()

    def _remember(self, written: PendingReports) -> None:
        for token, at in written.token_uses.items():
            self._written.add(token, at)
        for cluster_id, at in written.refused_calls.items():
            self._written.add(("refused", cluster_id), at)
        for cluster_id, at in written.audit_events.items():
            self._written.add(("events", cluster_id), at)
        for cluster_id, at in written.audited_uses.items():
            self._written.add(("use", cluster_id), at)
        for use in written.uses.values():
            self._written.add(use.id, use.last)
        for row, at in written.refusals.items():
            self._written.add(("refusal", row), at)
        for row in written.altered:
            self._written.add(("altered", row), self.now())

    async def _write_masters(self, masters: dict[int, ObservedUse]) -> None:
        for row, use in masters.items():
            event = self._event("credential.masters", use)
            if await self.queries.record_first_use(Use(row, use.first, use.last), event):
                metrics.MASTERS_CREDENTIALS.inc()

    async def _write_altered(self, altered: dict[int, ObservedUse]) -> None:
        for row, use in altered.items():
            if await self.queries.report_altered(row, self.now(), self._altered_event(use)):
                if await self.queries.is_verification(row):
                    # Each verification of a cluster uses altered copies, which must cause no alert.
                    continue
                metrics.ALTERED_CREDENTIALS.inc()
                logger.warning(
                    "altered copy of a certificate in use",
                    cluster=use.webhook_config.cluster_id,
                    username=use.identity.username,
                    reported_by=use.reporter,
                )

    async def _write_revoked(self, revoked: dict[int, ObservedUse], *, is_last: bool) -> None:
        """Record uses of revoked certificates that the API server allowed after it should have known the revocation."""
        for row, use in list(revoked.items()):
            key, now = ("revoked", row), self.now()
            if not is_last and self._written.has(key, now, now):
                self._pending.add_revoked(row, revoked.pop(row))
                continue
            report = await self.queries.report_revoked_use(
                row, use.allowed_uses(), use.reporter, now, partial(self._revoked_event, use.origin)
            )
            # Remove the report at once, so that it is not counted again if a later write fails.
            del revoked[row]
            if report != "before":
                self._written.add(key, now)
            if report == "recorded":
                metrics.REVOKED_CREDENTIALS_USED.inc()
                logger.error(
                    "revoked certificate in use",
                    cluster=use.webhook_config.cluster_id,
                    username=use.identity.username,
                    reported_by=use.reporter,
                )

    async def _record_counted(self) -> None:
        """Record events about counted uses, at most once a minute."""
        now, before = self.now(), self._counts_recorded_at
        if before is not None and before <= now < before + RESOLUTION:
            return
        events = partial(self._revoked_event, Origin.local())
        for due in await self.queries.record_counted(now, self._count_event, events):
            if due.counter.kind == REVOKED_USED:
                metrics.REVOKED_CREDENTIALS_USED.inc()
        self._counts_recorded_at = now

    async def _write_approvals(self, approvals: dict[int, ObservedUse], *, is_last: bool) -> None:
        for row, use in list(approvals.items()):
            if not is_last and self._written.has(("approvals", row), self.now(), self.now()):
                self._pending.add_approvals(row, use)
                continue
            await self.queries.record(self._approvals_event(use))
            # Remove the report at once, so that it is not recorded again if a later write fails.
            del approvals[row]
            self._written.add(("approvals", row), self.now())

    async def _write_unknown(self, unknown: PendingUnknown) -> None:
        for name, group in unknown.groups.items():
            counted = 0
            while reports := list(islice(group.values(), WRITTEN_AT_ONCE)):
                alerts = await self._add_unknown(reports)
                counted += alerts.counted
                # Remove the reports at once, so that they are not counted again if a later write fails.
                for use, _ in reports:
                    unknown.remove(name, use)
                    for key in _keys(use):
                        self._written.add(key, use.last)
            if counted:
                _warn_of_counted(name.cluster_id, counted)
        for (cluster_id, kind), uses in list(unknown.counts.items()):
            await self.queries.add_counted(cluster_id, kind, uses, self.now(), self._count_event)
            del unknown.counts[cluster_id, kind]
            _METRICS[kind].inc(uses.count)
            _warn_of_counted(cluster_id, uses.count)

    async def _add_unknown(self, reports: list[tuple[UnknownUse, ObservedUse]]) -> Alerts:
        by_identity = {use.identity: observed for use, observed in reports}

        def event(kind: CredentialAlert, use: UnknownUse) -> CredentialSeen:
            event = self._event(kind, by_identity[use.identity])
            # Reports of several certificates of one identity may be pending. The event has only one fingerprint.
            return replace(event, subject=use.fingerprints[0]) if use.fingerprints else event

        uses = [use for use, _ in reports]
        alerts = await self.queries.add_unknown(uses, self.now(), event, self._count_event)
        metrics.UNKNOWN_CREDENTIALS.inc(alerts.unknown)
        metrics.MASTERS_CREDENTIALS.inc(alerts.masters)
        metrics.EXEMPT_CREDENTIALS.inc(alerts.exempt)
        return alerts

    def _event(self, kind: CredentialAlert, use: ObservedUse) -> CredentialSeen:
        fingerprint = use.recognized.fingerprint
        return CredentialSeen(
            at=self.now(),
            kind=kind,
            project_id=use.webhook_config.project_id,
            actor=Actor(f"cluster:{use.webhook_config.cluster_id}", use.origin),
            subject=fingerprint.hex() if fingerprint is not None else use.identity.username,
            cluster_id=use.webhook_config.cluster_id,
            username=use.identity.username,
            groups=use.identity.groups,
            first_seen_at=use.first,
            reported_by=use.reporter,
            fault=use.recognized.fault,
            # The event does not name the cluster for which the certificate was issued, because administrators of this
            # cluster can read the event.
            known_for_another_cluster=use.recognized.fault == "other_cluster",
        )

    def _count_event(self, due: DueCount) -> CredentialsCounted:
        return CredentialsCounted(
            at=self.now(),
            project_id=due.counter.project_id,
            actor=Actor(f"cluster:{due.counter.subject}", Origin.local()),
            subject=due.counter.subject,
            cluster_id=due.counter.subject,
            alert=due.counter.kind,
            count=due.uses.count,
            first=due.uses.first,
            last=due.uses.last,
        )

    def _revoked_event(
        self, origin: Origin, certificate: CertificateView, revoked_at: datetime, due: DueCount
    ) -> RevokedCredentialUsed:
        return RevokedCredentialUsed(
            at=self.now(),
            project_id=certificate.project_id,
            actor=Actor(f"cluster:{certificate.cluster_id}", origin),
            subject=due.counter.subject,
            cluster_id=certificate.cluster_id,
            credential_number=certificate.credential_number,
            username=certificate.common_name,
            revoked_at=revoked_at,
            count=due.uses.count,
            first_used_at=due.uses.first,
            used_at=due.uses.last,
            reported_by=due.reported_by,
        )

    def _approvals_event(self, use: ObservedUse) -> ClusterCertificatesApproved:
        credential = _credential(use)
        return ClusterCertificatesApproved(
            at=self.now(),
            project_id=use.webhook_config.project_id,
            actor=Actor(f"cluster:{use.webhook_config.cluster_id}", use.origin),
            subject=credential.fingerprint.hex(),
            cluster_id=use.webhook_config.cluster_id,
            credential_number=credential.credential_number,
            username=use.identity.username,
            requests=tuple(map(_approved, use.approvals)),
            first_seen_at=use.first,
        )

    def _altered_event(self, use: ObservedUse) -> CredentialAltered:
        credential, presented = _credential(use), use.recognized.fingerprint
        return CredentialAltered(
            at=self.now(),
            project_id=use.webhook_config.project_id,
            actor=Actor(f"cluster:{use.webhook_config.cluster_id}", use.origin),
            subject=credential.fingerprint.hex(),
            cluster_id=use.webhook_config.cluster_id,
            credential_number=credential.credential_number,
            presented=presented.hex() if presented is not None else None,
            username=use.identity.username,
            first_seen_at=use.first,
            reported_by=use.reporter,
        )


def _credential(use: ObservedUse) -> CachedCertificate:
    credential = use.recognized.credential
    if credential is None:
        raise ValueError("a report about a certificate must name it")
    return credential


def _approved(approval: Approval) -> ApprovedRequest:
    return {"name": approval.name, "signer": approval.signer}


_METRICS = {
    "credential.unknown": metrics.UNKNOWN_CREDENTIALS,
    "credential.masters": metrics.MASTERS_CREDENTIALS,
    "credential.exempt": metrics.EXEMPT_CREDENTIALS,
}


def _warn_of_counted(cluster_id: str, count: int) -> None:
    logger.warning(
        "suspicious certificates counted, not recorded individually", cluster=cluster_id, count=count
    )


def _keys(use: UnknownUse) -> list[tuple[str, bytes | None, bytes, str]]:
    """Return one key per fingerprint, or one key without a fingerprint if the API server sent none."""
    return [(use.cluster_id, use.token_hash, use.identity, each) for each in use.fingerprints or ("",)]
