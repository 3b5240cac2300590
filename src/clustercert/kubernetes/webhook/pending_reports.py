"""Reports of used credentials that are not written to the store yet. Their number is limited."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from clustercert.kubernetes.webhook.audit_events import AllowedRequests, Approval
from clustercert.kubernetes.webhook.recognition import Recognized
from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.model import CREDENTIAL_PREFIX, Origin
from clustercert.model.events.operation import CredentialAlert
from clustercert.model.kubernetes import MASTERS, REVOCATION_NOTICED_AFTER, TOKEN_REFUSED_AFTER
from clustercert.store.clusters.registry import ClusterWebhookConfig
from clustercert.store.kubernetes.credential_usage import AllowedUses, UnknownUse, Use
from clustercert.store.kubernetes.use_counts import UseCount

# Maximum numbers of pending reports. While the database is down, pending reports may reach these limits. Then further
# reports are dropped, but those of unknown certificates are counted.
MAX_PENDING = 200_000
MAX_PENDING_ALERTS = 10_000
# Maximum number of pending reports of unknown certificates in a group: of one token, with the same `alerts_of_each`.
# So one token leaves room for the other tokens.
MAX_PENDING_OF_GROUP = 2_000
# Number of pending reports of each group that are kept in any case, however many other reports are pending.
KEPT_OF_GROUP = 10
# Maximum number of CertificateSigningRequests in one audit event. The event reports the approvals with one credential
# in a minute.
MAX_APPROVALS = 32
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
        token_hash: the webhook token of the report; None for an imported audit log.
        allowed: the requests that were allowed; None if there are none.
        approvals: the CertificateSigningRequests that were approved with the credential.
    """

    webhook_config: ClusterWebhookConfig
    identity: RequestSender
    recognized: Recognized
    first: datetime
    last: datetime
    origin: Origin
    reporter: Reporter
    token_hash: bytes | None = None
    allowed: AllowedRequests | None = None
    approvals: tuple[Approval, ...] = ()

    def shortened(self) -> "ObservedUse":
        """Return a copy with names that are safe to store and display. A certificate can contain any string."""
        # Sort system:masters first, then credential groups, so that truncation never removes these groups.
        groups = sorted(self.identity.groups, key=_importance)[:MAX_GROUPS]
        identity = RequestSender(_printable(self.identity.username), tuple(map(_printable, groups)), ())
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
            token_hash=self.token_hash,
        )

    def allowed_uses(self) -> AllowedUses:
        """Return the allowed requests, and when the API server must have known a revocation to deny them."""
        if self.allowed is None:
            raise ValueError("no request was allowed")
        first, last = self.allowed.first, self.allowed.last
        seconds = REVOCATION_NOTICED_AFTER + self.webhook_config.options.unauthorized_ttl_seconds
        if self.webhook_config.kind == "token":
            seconds = TOKEN_REFUSED_AFTER
        delay = timedelta(seconds=seconds)
        uses = UseCount(self.allowed.count, first.at, last.at)
        return AllowedUses(uses, first.decided_at - delay, last.decided_at - delay)


def _importance(group: str) -> tuple[bool, bool]:
    return group != MASTERS, not group.startswith(CREDENTIAL_PREFIX)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:MAX_NAME_LENGTH])


@dataclass(frozen=True, slots=True)
class _Group:
    """Reports that share a limit: all reports from one cluster and token with the same `alerts_of_each`."""

    cluster_id: str
    token_hash: bytes | None
    alerts_of_each: bool


@dataclass(slots=True)
class PendingUnknown:
    """Uses of unknown credentials that are not written yet.

    Attributes:
        groups: the uses, each with its first report, by group and identity.
        counts: uses that exceed the limits, by cluster id and kind of alert.
        total: the number of uses in `groups`.
    """

    groups: dict[_Group, dict[bytes, tuple[UnknownUse, ObservedUse]]] = field(default_factory=dict)
    counts: dict[tuple[str, CredentialAlert], UseCount] = field(default_factory=dict)
    total: int = 0

    def add(self, use: UnknownUse, observed: ObservedUse, now: datetime) -> None:
        name = _Group(use.cluster_id, use.token_hash, use.alerts_of_each)
        group = self.groups.setdefault(name, {})
        known = group.get(use.identity)
        limit = MAX_PENDING_ALERTS if use.token_hash is None else MAX_PENDING_OF_GROUP
        if known is not None:
            group[use.identity] = known[0].joined(use), known[1]
        elif len(group) < KEPT_OF_GROUP or (self.total < MAX_PENDING_ALERTS and len(group) < limit):
            group[use.identity] = use, observed
            self.total += 1
        else:
            self.count((use.cluster_id, use.alert), UseCount(1, now, now))

    def remove(self, name: _Group, use: UnknownUse) -> None:
        del self.groups[name][use.identity]
        self.total -= 1

    def count(self, key: tuple[str, CredentialAlert], uses: UseCount) -> None:
        known = self.counts.get(key)
        self.counts[key] = uses if known is None else known.joined(uses)

    def add_later(self, later: "PendingUnknown", now: datetime) -> None:
        """Add later reports, within the same limits as single reports."""
        for group in later.groups.values():
            for use, observed in group.values():
                self.add(use, observed, now)
        for key, uses in later.counts.items():
            self.count(key, uses)


@dataclass(slots=True)
class PendingReports:
    """Reports that are not written yet.

    Attributes:
        uses: first and last uses of issued certificates, by certificate row.
        masters: uses of issued certificates in `system:masters`, by certificate row.
        altered: altered copies of issued certificates, by certificate row.
        revoked: allowed uses of revoked certificates, by certificate row.
        refusals: when the webhook last denied a revoked certificate, by certificate row.
        approvals: CertificateSigningRequests that were approved with a certificate, by certificate row.
        unknown: uses of unknown credentials.
        token_uses: the time of the last use, by cluster id and token hash.
        refused_calls: the time of the last call with a wrong token, by cluster id.
        audit_events: when audit events last arrived, by cluster id.
        audited_uses: the last request in audit events that the webhook should have reviewed, by cluster id.
    """

    uses: dict[int, Use] = field(default_factory=dict)
    masters: dict[int, ObservedUse] = field(default_factory=dict)
    altered: dict[int, ObservedUse] = field(default_factory=dict)
    revoked: dict[int, ObservedUse] = field(default_factory=dict)
    refusals: dict[int, datetime] = field(default_factory=dict)
    approvals: dict[int, ObservedUse] = field(default_factory=dict)
    unknown: PendingUnknown = field(default_factory=PendingUnknown)
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

    def add_altered(self, row: int, use: ObservedUse) -> None:
        if len(self.altered) < MAX_PENDING_ALERTS:
            self.altered.setdefault(row, use.shortened())

    def add_revoked(self, row: int, use: ObservedUse) -> None:
        known = self.revoked.get(row)
        if known is None and len(self.revoked) < MAX_PENDING_ALERTS:
            self.revoked[row] = use.shortened()
        elif known is not None and known.allowed is not None and use.allowed is not None:
            self.revoked[row] = replace(known, allowed=known.allowed.joined(use.allowed))

    def add_refusal(self, row: int, at: datetime) -> None:
        if row in self.refusals or len(self.refusals) < MAX_PENDING:
            self.refusals[row] = max(at, self.refusals.get(row, at))

    def add_approvals(self, row: int, use: ObservedUse) -> None:
        known = self.approvals.get(row)
        if known is not None:
            approvals = tuple(dict.fromkeys((*known.approvals, *use.approvals)))
            self.approvals[row] = replace(known, approvals=approvals[:MAX_APPROVALS])
        elif len(self.approvals) < MAX_PENDING_ALERTS:
            self.approvals[row] = use.shortened()

    def add_later(self, later: "PendingReports", now: datetime) -> None:
        """Add later reports, within the same limits as single reports."""
        for use in later.uses.values():
            self.add_use(use)
        self.masters = later.masters | self.masters
        for row, observed in later.altered.items():
            self.add_altered(row, observed)
        for row, observed in later.revoked.items():
            self.add_revoked(row, observed)
        for row, at in later.refusals.items():
            self.add_refusal(row, at)
        for row, observed in later.approvals.items():
            self.add_approvals(row, observed)
        self.unknown.add_later(later.unknown, now)
        self.token_uses |= later.token_uses
        self.refused_calls |= later.refused_calls
        self.audit_events |= later.audit_events
        self.audited_uses |= later.audited_uses
