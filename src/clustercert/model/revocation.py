"""What is not to be honoured any more."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

RevocationReason = Literal[
    "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"
]
"""Why a certificate is revoked. Source: RFC 5280, 5.3.1; those that can be said of a client certificate."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What is not to be honoured any more: one certificate, or all of a user or a cluster up to an epoch.

    Attributes:
        id: as it was stored; 0 before.
        epoch: the generation that the revocation made; what was recorded in an older one is revoked.
        fingerprint: of the one certificate, 32 bytes; None where it is about a user or a cluster.
        user_id: whose; empty for everybody's.
        cluster_id: where; empty for all clusters.
        by: the actor's id, or `holder` where the certificate's key itself asked.
        note: free text of whoever revoked, or None.
        proved: whether the holder proved to have the key; such a revocation can't be undone.
        project_id: the project of the certificate or cluster; None where it is about a user in all clusters.
    """

    id: int
    epoch: int
    fingerprint: bytes | None
    user_id: str
    cluster_id: str
    at: datetime
    by: str
    reason: RevocationReason
    note: str | None = None
    proved: bool = False
    undone_at: datetime | None = None
    undone_by: str | None = None
    project_id: str | None = None
