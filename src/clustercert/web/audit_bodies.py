"""The shapes of the audit log's answers, and the filters that its lists take."""

import base64
import json
from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.datastructures import QueryParams

from clustercert.audit.log import InclusionProof
from clustercert.errors import InvalidRequest, LogDamaged
from clustercert.merkle import leaf_hash
from clustercert.model import JsonObject
from clustercert.store.audit import StoredEvent
from clustercert.store.event_pages import EventFilter
from clustercert.web.paging import is_row_number
from clustercert.web.query import (
    choice_parameter,
    id_parameters,
    id_text,
    one_of,
    require_known,
    sent_times,
    time_parameters,
)

# What the canonical form of an event says, in the order in which it is shown.
FIELDS = ("at", "kind", "project_id", "actor", "subject", "source", "request_id", "detail")
ORDERS: tuple[Literal["newest", "oldest"], ...] = ("newest", "oldest")
_TEXTS = {
    "kind": "Only of this kind; with an asterisk at its end, all kinds that begin so.",
    "actor": "Only what this actor did.",
    "subject": "Only what happened to this.",
}
_TIMES = {
    "since": "Only what happened at or after this time, RFC 3339.",
    "until": "Only what happened at or before this time, RFC 3339.",
}


class EventBody(BaseModel):
    """Something that happened. Times as in RFC 3339."""

    id: str
    leaf_index: int | None = Field(description="Its place in the log; null in its first second or two.")
    at: str
    kind: str
    project_id: str | None
    actor: str
    subject: str
    source: str
    request_id: str
    detail: dict[str, object]
    canonical: str = Field(
        description="The same as JSON in its one form, byte for byte as it was committed to."
    )
    salt: str = Field(description="16 bytes, lower-case hex.")
    commitment: str = Field(
        description="SHA-256 over the bytes of `salt` and then of `canonical`, lower-case hex: what the log holds."
    )


class EventListBody(BaseModel):
    """Some events, in the log's order."""

    events: list[EventBody]
    next: str | None = Field(
        description="The cursor of the next page; null at the end. A page looks at 10000 events at most, so with"
        " filters it may be short, or empty, and have a next one all the same."
    )


class InclusionBody(BaseModel):
    """That an event is in the log. Hashes are lower-case hex."""

    leaf_index: int
    tree_size: int
    commitment: str
    leaf_hash: str = Field(description="SHA-256 over a zero byte and the commitment. RFC 6962, 2.1.")
    root: str
    hashes: list[str] = Field(description="From the leaf's sibling up to the root's child. RFC 6962, 2.1.1.")
    checkpoint: str = Field(description="The signed note with this size and root.")


class ConsistencyBody(BaseModel):
    """That the log of one size begins with the log of a smaller one. Hashes are lower-case hex."""

    from_: int = Field(alias="from")
    to: int
    hashes: list[str] = Field(description="RFC 6962, 2.1.2; none for an empty log or the same one.")


def documented() -> list[dict[str, Any]]:
    """The query parameters of a list, for OpenAPI."""
    return [
        *id_parameters(_TEXTS),
        *time_parameters(_TIMES),
        choice_parameter("order", "Which come first; newest, unless it is said.", ORDERS),
    ]


def wanted(query: QueryParams, project_id: str | None) -> tuple[EventFilter, bool]:
    """What a list is asked for, and whether the newest come first. Raises InvalidRequest naming the parameter."""
    require_known(query, {*_TEXTS, *_TIMES, "order", "limit", "cursor"})
    times = sent_times(query, _TIMES)
    found = EventFilter(
        project_id=project_id,
        kind=id_text("kind", query.get("kind")),
        actor=id_text("actor", query.get("actor")),
        subject=id_text("subject", query.get("subject")),
        since=times.get("since"),
        until=times.get("until"),
    )
    return found, one_of("order", query.get("order"), ORDERS) != "oldest"


def number(name: str, text: str) -> int:
    """A whole number as a row or a log may have. Raises InvalidRequest."""
    if not is_row_number(text):
        raise InvalidRequest(f"{name}: send a whole number.")
    return int(text)


def event_body(event: StoredEvent) -> JsonObject:
    """An event, with all that its commitment is checked by. Raises LogDamaged."""
    try:
        said = json.loads(event.body)
        shown = {name: said[name] for name in FIELDS}
        canonical = event.body.decode("ascii")
    except (ValueError, TypeError, KeyError) as error:
        raise LogDamaged(f"Event {event.id} is not what an event looks like.") from error
    return {
        "id": str(event.id),
        "leaf_index": event.leaf_index,
        **shown,
        "canonical": canonical,
        "salt": event.salt.hex(),
        "commitment": event.commitment.hex(),
    }


def inclusion_body(proof: InclusionProof) -> JsonObject:
    """A proof, for programs."""
    return {
        "leaf_index": proof.event.leaf_index,
        "tree_size": proof.checkpoint.size,
        "commitment": proof.event.commitment.hex(),
        "leaf_hash": leaf_hash(proof.event.commitment).hex(),
        "root": proof.checkpoint.root.hex(),
        "hashes": [each.hex() for each in proof.hashes],
        "checkpoint": proof.checkpoint.note,
    }


def inclusion_text(proof: InclusionProof) -> str:
    """A proof in one file, to be kept. Its extra data are the salt and the canonical event, whose SHA-256 is the leaf.

    Source: c2sp.org/tlog-proof.
    """
    extra = base64.b64encode(proof.event.salt + proof.event.body).decode()
    hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in proof.hashes)
    head = f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex {proof.event.leaf_index}\n"
    return f"{head}{hashes}\n{proof.checkpoint.note}"
