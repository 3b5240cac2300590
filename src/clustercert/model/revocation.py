"""Revocations."""

from dataclasses import dataclass
from datetime import datetime

from clustercert.model.choices import RevocationReason


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation of one certificate, or of all certificates of a user or cluster up to an epoch.

    Attributes:
        id: the row id; 0 before the revocation is stored.
        epoch: the value of the database's generation counter when the revocation was recorded. The revocation covers
            certificates that were recorded with a lower value.
        fingerprint: the certificate's fingerprint, 32 bytes; None for a revocation of a user or cluster.
        user_id: the user; empty for all users.
        cluster_id: the cluster; empty for all clusters.
        by: the actor's id, or `holder` for a revocation by proof of possession.
        note: free text from the actor, or None.
        proved: whether proof of possession of the key authorized the revocation. Such a revocation can't be undone.
        project_id: the project of the certificate or cluster; None for a revocation of a user in all clusters.
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
