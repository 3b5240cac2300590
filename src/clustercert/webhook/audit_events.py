"""Events of audit.k8s.io/v1: who used which credential, and when. No opinion of its own, no I/O.

An API server's audit log is the one place where `system:masters` shows: its members are never asked about.
Source: kubernetes.io, "Auditing"; staging/src/k8s.io/apiserver/pkg/apis/audit/v1/types.go.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from clustercert.errors import InvalidRequest
from clustercert.model import credential_groups
from clustercert.webhook.review import Identity, identity, json_object

API_VERSION = "audit.k8s.io/v1"
# An API server sends 400 at once, unless it is told otherwise.
MAX_EVENTS = 10_000
# Objects and arrays in a list, at most. Events of level Metadata have about ten each; millions of empty ones, which fit
# into as many bytes, would keep every other API server waiting until it gives up.
MAX_PARTS = 400_000
KUBERNETES_BEGAN = datetime(2014, 6, 6, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Observed:
    """That somebody made a request."""

    who: Identity
    at: datetime


def parse_list(raw: bytes) -> list[Observed]:
    """The events of an EventList that tell of client certificates. Raises InvalidRequest."""
    if raw.count(b"{") + raw.count(b"[") > MAX_PARTS:
        raise InvalidRequest(
            f"The list has more than {MAX_PARTS} objects and arrays. Send fewer events at once, or of level Metadata."
        )
    document = json_object(raw)
    if document.get("apiVersion") != API_VERSION or document.get("kind") != "EventList":
        raise InvalidRequest(f"Send an EventList of {API_VERSION}.")
    items = document.get("items")
    if items is None:
        items = []
    if not isinstance(items, list) or len(items) > MAX_EVENTS:
        raise InvalidRequest(f"items: must be an array of at most {MAX_EVENTS} events.")
    return list(_with_certificates(_observed(item) for item in items))


def parse_line(raw: bytes) -> Observed | None:
    """The event of one line of an audit log; None where it tells of no client certificate. Raises InvalidRequest."""
    document = json_object(raw)
    if document.get("apiVersion") != API_VERSION or document.get("kind") != "Event":
        raise InvalidRequest(f"An audit log has an Event of {API_VERSION} in each line.")
    return next(iter(_with_certificates([_observed(document)])), None)


def _observed(event: Any) -> Observed:
    if not isinstance(event, dict):
        raise InvalidRequest("items: must be an array of events.")
    # Not `impersonatedUser`: the certificate is the real user's.
    user = event.get("user", {})
    if not isinstance(user, dict):
        raise InvalidRequest("user: must be an object.")
    who = identity(user.get("username"), user.get("groups"), user.get("extra"))
    return Observed(who, _time(event.get("requestReceivedTimestamp")))


def _time(text: Any) -> datetime:
    try:
        given = datetime.fromisoformat(text)
        # Near the end of the calendar a time may have none in UTC.
        time = given.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest("requestReceivedTimestamp: must be a time as RFC 3339 has it.") from error
    if given.tzinfo is None or time < KUBERNETES_BEGAN:
        raise InvalidRequest("requestReceivedTimestamp: must have a zone, and be no time before Kubernetes.")
    return time


def _with_certificates(events: Iterable[Observed]) -> Iterable[Observed]:
    return (event for event in events if event.who.has_certificate or credential_groups(event.who.groups))
