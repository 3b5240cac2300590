"""What is written down of all that happens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from clustercert.model.requests import Origin


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened; written in the same transaction as what it records.

    Attributes:
        kind: `noun.verb` in the past tense, such as `certificate.issued`.
        project_id: whose event it is, or None for the service's own.
        actor: the user id, or `cli:<operating-system user>`.
        subject: the id of what it happened to.
        detail: JSON values; nothing secret.
    """

    at: datetime
    kind: str
    project_id: str | None
    actor: str
    subject: str
    origin: Origin
    detail: Mapping[str, object] = field(default_factory=dict)
