"""Audit events on their way into the store: their canonical form, and the commitment that a log holds of them."""

import hashlib
import os

from sqlalchemy import insert

from clustercert import ascii_json
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.transaction import Transaction

SALT_BYTES = 16


async def record_events(connection: Transaction, events: tuple[AuditEvent, ...]) -> None:
    """Write audit events into the caller's transaction."""
    if events:
        await connection.execute(insert(tables.audit_event), [event_row(event) for event in events])


def event_row(event: AuditEvent) -> dict[str, object]:
    """The row of an event: its canonical JSON, a salt, and the commitment to both.

    The salt keeps a commitment from being guessed back into its event; deleting both leaves the log's proofs
    whole.
    """
    body = canonical(event)
    salt = os.urandom(SALT_BYTES)
    return {
        "at": event.at,
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor,
        "subject": event.subject,
        "body": body,
        "salt": salt,
        "commitment": commitment(salt, body),
    }


def canonical(event: AuditEvent) -> bytes:
    """An event as JSON in ASCII: names sorted, no spaces, so that one event has one form."""
    return ascii_json.dumps(
        {
            "at": event.at.isoformat(),
            "kind": event.kind,
            "project_id": event.project_id,
            "actor": event.actor,
            "subject": event.subject,
            "source": event.origin.address,
            "request_id": event.origin.request_id,
            "detail": dict(event.detail),
        },
        sort_names=True,
    )


def commitment(salt: bytes, body: bytes) -> bytes:
    """What the log holds of an event: 32 bytes that tell nothing of it without the salt, and fit no other event."""
    return hashlib.sha256(salt + body).digest()
