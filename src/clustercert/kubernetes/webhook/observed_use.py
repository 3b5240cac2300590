"""A credential in use, as an API server reported it, and its form in the store."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from clustercert.kubernetes.webhook.audit_events import Allowed, Approval
from clustercert.kubernetes.webhook.recognition import Recognized
from clustercert.kubernetes.webhook.review import Identity
from clustercert.model import CREDENTIAL_PREFIX, Origin
from clustercert.model.kubernetes import MASTERS
from clustercert.store.clusters import ClusterWebhookConfig
from clustercert.store.credential_usage import UnknownUse

# Limits for the names stored from one certificate. Certificates from other issuers may have longer or more names.
MAX_NAME_LENGTH = 256
MAX_GROUPS = 32

Reporter = Literal["webhook", "audit-events", "import-audit-log"]
"""The interface that reported the use of a credential."""


@dataclass(frozen=True, slots=True)
class ObservedUse:
    """One credential in use at one cluster.

    Attributes:
        recognized: the result of the look-up in the ledger.
        first, last: the times of the credential's first and last use in this report.
        origin: the sender of the report.
        allowed: the allowed request about which the API server decided last; None if the report has none.
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
        """Return the same use with names that are safe to store and display. A certificate can contain any string."""
        # MASTERS first, then credential groups, so that truncation never removes them.
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
