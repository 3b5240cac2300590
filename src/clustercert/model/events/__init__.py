"""Audit events. The modules of this package declare the types of events.

Kinds of events that have the same fields share a type. If you add, remove or rename fields of a type, increment its
`event_version`, so that readers know which fields to expect.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from clustercert.model.requests import Actor


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One audit event, which is stored in the same transaction as the change that the event describes.

    The fields that a subclass adds are the event's `detail`, without fields that have their default value. No field
    contains a secret.

    Attributes:
        kind: a noun and a verb in the past tense, such as `certificate.issued`.
        project_id: the project that the event belongs to, or None for events of the whole service.
        subject: the id of the affected object.
    """

    event_version: ClassVar[int] = 1

    at: datetime
    kind: str
    actor: Actor
    subject: str
    project_id: str | None = None
