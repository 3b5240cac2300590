"""The stored form of audit events: canonical JSON, a salt, and the commitment that the log contains."""

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime

from sqlalchemy import insert

from clustercert.model.events import AuditEvent
from clustercert.observability import canonical_json
from clustercert.store import tables
from clustercert.store.engine.transaction import Transaction

SALT_BYTES = 16


async def record_events(connection: Transaction, events: tuple[AuditEvent, ...]) -> None:
    """Write audit events in the caller's transaction."""
    if events:
        await connection.execute(insert(tables.audit_event), [event_row(event) for event in events])


def event_row(event: AuditEvent) -> dict[str, object]:
    """Return an event's row: its canonical JSON, a salt, and the commitment, which is the hash of both.

    Because of the salt, nobody can guess the event from its commitment. If event and salt are deleted, the log's proofs
    stay valid.
    """
    body = canonical(event)
    salt = os.urandom(SALT_BYTES)
    return {
        "at": event.at,
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor.id,
        "subject": event.subject,
        "body": body,
        "salt": salt,
        "commitment": commitment(salt, body),
    }


def canonical(event: AuditEvent) -> bytes:
    """Return an event as ASCII JSON with sorted names and no spaces, so that each event has exactly one encoding."""
    return canonical_json.dumps(
        {
            "at": event.at.isoformat(),
            "kind": event.kind,
            "version": event.event_version,
            "project_id": event.project_id,
            "actor": event.actor.id,
            "subject": event.subject,
            "source": event.actor.origin.address,
            "request_id": event.actor.origin.request_id,
            "detail": _detail(event),
        },
        sort_names=True,
        default=_json_value,
    )


def _detail(event: AuditEvent) -> dict[str, object]:
    """Return the fields that are specific to the event's kind. Omits fields that have their default value."""
    kind: type = type(event)
    own = _own_fields(kind)
    return {name: value for name, default in own if (value := getattr(event, name)) is not default}


@functools.cache
def _own_fields(kind: type) -> tuple[tuple[str, object], ...]:
    common = {each.name for each in fields(AuditEvent)}
    return tuple((each.name, each.default) for each in fields(kind) if each.name not in common)


def _json_value(value: object) -> object:
    """Convert a value that `json` can't serialize."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def commitment(salt: bytes, body: bytes) -> bytes:
    """Return the 32 bytes that represent an event in the log.

    Without the salt, these bytes reveal nothing about the event.
    """
    return hashlib.sha256(salt + body).digest()
