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
from typing import Literal

import structlog

from clustercert.background import wait_for_stop
from clustercert.kubernetes.webhook.audit_events import Allowed, Approval
from clustercert.kubernetes.webhook.recognition import Recognized
from clustercert.kubernetes.webhook.review import Identity
from clustercert.model import CREDENTIAL_PREFIX, Actor, Origin
from clustercert.model.errors import Unavailable
from clustercert.model.events.operation import (
    ApprovedRequest,
    ClusterCertificatesApproved,
    CredentialAlert,
    CredentialAltered,
    CredentialSeen,
    RevokedCredentialUsed,
)
from clustercert.model.kubernetes import MASTERS, SERVICE
from clustercert.observability import metrics
from clustercert.policy.templates import Exemption, exemption_of
from clustercert.store.clusters import ClusterWebhookConfig
from clustercert.store.credential_cache import CachedCertificate
from clustercert.store.credential_usage import (
    RESOLUTION,
    WRITTEN_AT_ONCE,
    CredentialUsageQueries,
    UnknownUse,
    Use,
)

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


# Limits for the user name and groups stored from one certificate. Certificates from other issuers may have longer or
# more names.
MAX_NAME_LENGTH = 256
MAX_GROUPS = 32

Reporter = Literal["webhook", "audit-events", "import-audit-log"]
"""The interface that reported the use of a credential."""


@dataclass(frozen=True, slots=True)
class ObservedUse:
    """The use of one credential at one cluster.

    Attributes:
        recognized: the result of the look-up in the ledger.
        first, last: the times of the credential's first and last use in this report.
        origin: the sender of the report.
        allowed: the allowed request about which the API server decided last; None without such a request.
        approvals: the CertificateSigningRequests that were approved with the credential.
    """

    webhook_config: ClusterWebhookConfig
    identity: Identity
    recognized: Recognized
    first: datetime
    last: datetime
    origin: Origin
    reporter: Reporter
    allowed: Allowed | None = None
    approvals: tuple[Approval, ...] = ()

    def shortened(self) -> "ObservedUse":
        """Return a copy with names that are safe to store and display. A certificate can contain any string."""
        # Sort system:masters first, then credential groups, so that truncation never removes these groups.
        groups = sorted(self.identity.groups, key=_importance)[:MAX_GROUPS]
        identity = Identity(_printable(self.identity.username), tuple(map(_printable, groups)), ())
        return replace(self, identity=identity)

    def unknown_use(self) -> UnknownUse:
        """Return the row to store for a certificate that is not in the ledger."""
        fingerprint = self.recognized.fingerprint
        return UnknownUse(
            cluster_id=self.webhook_config.cluster_id,
            username=self.identity.username,
            groups=self.identity.groups,
            fingerprints=(fingerprint.hex(),) if fingerprint is not None else (),
            first=self.first,
            last=self.last,
        )


def _importance(group: str) -> tuple[bool, bool]:
    return group != MASTERS, not group.startswith(CREDENTIAL_PREFIX)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:MAX_NAME_LENGTH])


logger = structlog.get_logger()

FLUSH_SECONDS = 3.0
# Maximum numbers of pending reports. While the database is down, pending reports may reach these limits. Then further
# reports are dropped.
MAX_PENDING = 200_000
MAX_PENDING_ALERTS = 10_000
# Maximum number of CertificateSigningRequests in one audit event. The event reports the approvals with one credential
# in a minute.
MAX_APPROVALS = 32
# How long this service takes to notice a revocation.
NOTICED_AFTER = timedelta(seconds=1)


@dataclass(slots=True)
class _Pending:
    """Reports that are not written yet.

    Attributes:
        uses: first and last uses of issued certificates, by certificate row.
        masters: uses of issued certificates in `system:masters`, by certificate row.
        altered: altered copies of issued certificates, by certificate row.
        revoked: allowed uses of revoked certificates, by certificate row.
        approvals: CertificateSigningRequests that were approved with a certificate, by certificate row.
        unknown: uses of unknown credentials, each with its first report, by cluster id and identity.
        token_uses: the time of the last use, by cluster id and token hash.
        refused_calls: the time of the last call with a wrong token, by cluster id.
        audit_events: when audit events last arrived, by cluster id.
        audited_uses: the last request in audit events that the webhook should have reviewed, by cluster id.
    """

    uses: dict[int, Use] = field(default_factory=dict)
    masters: dict[int, ObservedUse] = field(default_factory=dict)
    altered: dict[int, ObservedUse] = field(default_factory=dict)
    revoked: dict[int, ObservedUse] = field(default_factory=dict)
    approvals: dict[int, ObservedUse] = field(default_factory=dict)
    unknown: dict[tuple[str, bytes], tuple[UnknownUse, ObservedUse]] = field(default_factory=dict)
    token_uses: dict[tuple[str, bytes], datetime] = field(default_factory=dict)
    refused_calls: dict[str, datetime] = field(default_factory=dict)
    audit_events: dict[str, datetime] = field(default_factory=dict)
    audited_uses: dict[str, datetime] = field(default_factory=dict)

    def add_use(self, use: Use) -> None:
        known = self.uses.get(use.id)
        if known is not None:
            self.uses[use.id] = Use(use.id, min(use.first, known.first), max(use.last, known.last))
        elif len(self.uses) < MAX_PENDING:
            self.uses[use.id] = use

    def add_unknown(self, use: UnknownUse, observed: ObservedUse) -> None:
        key = (use.cluster_id, use.identity)
        known = self.unknown.get(key)
        if known is not None:
            self.unknown[key] = known[0].joined(use), known[1]
        elif len(self.unknown) < MAX_PENDING_ALERTS:
            self.unknown[key] = use, observed

    def add_altered(self, row: int, use: ObservedUse) -> None:
        if len(self.altered) < MAX_PENDING_ALERTS:
            self.altered.setdefault(row, use.shortened())

    def add_revoked(self, row: int, use: ObservedUse) -> None:
        known = self.revoked.get(row)
        if known is None and len(self.revoked) < MAX_PENDING_ALERTS:
            self.revoked[row] = use.shortened()
        elif known is not None and known.allowed is not None and use.allowed is not None:
            self.revoked[row] = replace(known, allowed=max(known.allowed, use.allowed))

    def add_approvals(self, row: int, use: ObservedUse) -> None:
        known = self.approvals.get(row)
        if known is not None:
            approvals = tuple(dict.fromkeys((*known.approvals, *use.approvals)))
            self.approvals[row] = replace(known, approvals=approvals[:MAX_APPROVALS])
        elif len(self.approvals) < MAX_PENDING_ALERTS:
            self.approvals[row] = use.shortened()

    def add_later(self, later: "_Pending") -> None:
        """Add later reports, within the same limits as single reports."""
        for use in later.uses.values():
            self.add_use(use)
        self.masters = later.masters | self.masters
        for row, observed in later.altered.items():
            self.add_altered(row, observed)
        for row, observed in later.revoked.items():
            self.add_revoked(row, observed)
        for row, observed in later.approvals.items():
            self.add_approvals(row, observed)
        for unknown, observed in later.unknown.values():
            self.add_unknown(unknown, observed)
        self.token_uses |= later.token_uses
        self.refused_calls |= later.refused_calls
        self.audit_events |= later.audit_events
        self.audited_uses |= later.audited_uses


@dataclass(slots=True)
class CredentialUsage:
    """Collects reports and writes them periodically."""

    queries: CredentialUsageQueries
    now: Callable[[], datetime]
    policy_groups: Collection[str]
    _pending: _Pending = field(default_factory=_Pending)
    _written: WrittenTimes = field(default_factory=WrittenTimes)

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
        at = use.allowed.at if use.allowed is not None and credential.revoked else None
        if at is not None and not self._written.has(("revoked", credential.id), at, at):
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
            self._pending.add_unknown(unknown, use)

    async def flush(self, *, is_last: bool = False) -> None:
        """Write all pending reports.

        Writes approvals at most once a minute per certificate, except in the last flush. Raises Unavailable if the
        store fails, and then keeps the reports for the next flush.
        """
        self._written.rotate()
        pending, self._pending = self._pending, _Pending()
        try:
            # Write `masters` before `uses`, because `_write_masters` must still see which certificates were never used.
            await self._write_masters(pending.masters)
            await self._write_altered(pending.altered)
            await self._write_revoked(pending.revoked)
            await self._write_approvals(pending.approvals, is_last=is_last)
            await self._write_unknown(pending.unknown)
            await self.queries.add(list(pending.uses.values()))
            await self.queries.add_webhook_calls(pending.token_uses)
            await self.queries.add_refused_calls(pending.refused_calls)
            await self.queries.add_audit_reports(pending.audit_events, pending.audited_uses)
        except Unavailable:
            # Writing a report twice is harmless.
            later, self._pending = self._pending, pending
            pending.add_later(later)
            raise
        self._remember(pending)

    async def watch(self, stop: asyncio.Event) -> None:
        """Flush every few seconds until `stop` is set, then once more."""
        while not stop.is_set():
            await wait_for_stop(stop, FLUSH_SECONDS)
            try:
                await self.flush(is_last=stop.is_set())
            except Unavailable as failure:
                logger.warning("recording credential usage failed", cause=repr(failure.__cause__))
            except Exception:
                # Catch every exception: otherwise the task would end, and later uses would not be recorded.
                logger.exception("recording credential usage failed: unexpected error")
                metrics.BACKGROUND_FAILURES.labels("record uses of credentials").inc()

    def _remember(self, written: _Pending) -> None:
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
        for row in written.altered:
            self._written.add(("altered", row), self.now())
        for unknown, _ in written.unknown.values():
            for key in _keys(unknown):
                self._written.add(key, unknown.last)

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
                    user=use.identity.username,
                    reported_by=use.reporter,
                )

    async def _write_revoked(self, revoked: dict[int, ObservedUse]) -> None:
        """Record uses of revoked certificates that the API server allowed after it should have known the revocation."""
        for row, use in revoked.items():
            if use.allowed is None:
                continue
            delay = timedelta(seconds=use.webhook_config.options.unauthorized_ttl_seconds) + NOTICED_AFTER
            report = await self.queries.report_revoked_use(
                row, use.allowed.at, use.allowed.decided_at - delay, partial(self._revoked_event, use)
            )
            if report != "before":
                self._written.add(("revoked", row), use.allowed.at)
            if report == "recorded":
                metrics.REVOKED_CREDENTIALS_USED.inc()
                logger.error(
                    "revoked certificate in use",
                    cluster=use.webhook_config.cluster_id,
                    user=use.identity.username,
                    reported_by=use.reporter,
                )

    async def _write_approvals(self, approvals: dict[int, ObservedUse], *, is_last: bool) -> None:
        for row, use in list(approvals.items()):
            if not is_last and self._written.has(("approvals", row), self.now(), self.now()):
                self._pending.add_approvals(row, use)
                continue
            await self.queries.record(self._approvals_event(use))
            # Remove the report at once, so that it is not recorded again if a later write fails.
            del approvals[row]
            self._written.add(("approvals", row), self.now())

    async def _write_unknown(self, unknown: dict[tuple[str, bytes], tuple[UnknownUse, ObservedUse]]) -> None:
        by_cluster: dict[str, list[UnknownUse]] = {}
        for unknown_use, _ in unknown.values():
            by_cluster.setdefault(unknown_use.cluster_id, []).append(unknown_use)

        def event(kind: CredentialAlert, use: UnknownUse) -> CredentialSeen:
            event = self._event(kind, unknown[use.cluster_id, use.identity][1])
            # Reports of several certificates of one identity may be pending. The event has only one fingerprint.
            return replace(event, subject=use.fingerprints[0]) if use.fingerprints else event

        for uses in by_cluster.values():
            for start in range(0, len(uses), WRITTEN_AT_ONCE):
                alerts = await self.queries.add_unknown(
                    uses[start : start + WRITTEN_AT_ONCE], self.now(), event
                )
                metrics.UNKNOWN_CREDENTIALS.inc(alerts.unknown)
                metrics.MASTERS_CREDENTIALS.inc(alerts.masters)
                metrics.EXEMPT_CREDENTIALS.inc(alerts.exempt)
                if alerts.left_out:
                    logger.warning(
                        "unknown credentials not recorded: the limit of the cluster is reached",
                        cluster=uses[start].cluster_id,
                        left_out=alerts.left_out,
                    )

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

    def _revoked_event(self, use: ObservedUse, revoked_at: datetime) -> RevokedCredentialUsed:
        credential = _credential(use)
        return RevokedCredentialUsed(
            at=self.now(),
            project_id=use.webhook_config.project_id,
            actor=Actor(f"cluster:{use.webhook_config.cluster_id}", use.origin),
            subject=credential.fingerprint.hex(),
            cluster_id=use.webhook_config.cluster_id,
            credential_number=credential.credential_number,
            username=use.identity.username,
            revoked_at=revoked_at,
            used_at=use.allowed.at if use.allowed is not None else use.last,
            reported_by=use.reporter,
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


def _keys(use: UnknownUse) -> list[tuple[str, bytes, str]]:
    """Return one key per fingerprint, or one key without a fingerprint if the API server sent none."""
    return [(use.cluster_id, use.identity, each) for each in use.fingerprints or ("",)]
