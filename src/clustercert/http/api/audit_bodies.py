"""Response bodies of the audit log, and the filters for its lists."""

import base64
import json

from pydantic import BaseModel, Field
from starlette.datastructures import QueryParams

from clustercert.audit.log import InclusionProof
from clustercert.http import query
from clustercert.merkle.tree import leaf_hash
from clustercert.model import JsonObject
from clustercert.model.errors import LogDamaged
from clustercert.model.events import FIRST_VERSION
from clustercert.store.audit import StoredEvent
from clustercert.store.event_pages import EventFilter

# The fields that responses copy from an event's canonical JSON, in this order.
FIELDS = ("at", "kind", "project_id", "actor", "subject", "source", "request_id", "detail")
FILTERS = (
    query.text("kind", "Only events of this kind; a final asterisk matches any ending."),
    query.text("actor", "Only events of this actor."),
    query.text("subject", "Only events about this id."),
    query.time("since", "Only events at or after this time"),
    query.time("until", "Only events at or before this time"),
    query.choice("order", "Which events come first. The default is newest.", ("newest", "oldest")),
)


class EventBody(BaseModel):
    """An audit event. Times are RFC 3339."""

    leaf_index: int = Field(description="The event's position in the log, which identifies it.")
    at: str
    kind: str
    version: int = Field(description="The version of the `detail` fields; see docs/audit-events.md.")
    project_id: str | None
    actor: str
    subject: str
    source: str
    request_id: str
    detail: dict[str, object]
    canonical: str = Field(description="The canonical JSON: exactly the bytes that the commitment covers.")
    salt: str = Field(description="16 bytes, lower-case hex.")
    commitment: str = Field(
        description="The log entry: SHA-256 of the bytes of `salt` followed by `canonical`; lower-case hex."
    )


class EventListBody(BaseModel):
    """A page of events, in log order."""

    events: list[EventBody]
    next: str | None = Field(
        description="The cursor of the next page; null on the last page. A page scans at most 10000 events, so"
        " a filtered page may be short or empty even if there is a next page."
    )


class InclusionBody(BaseModel):
    """Proof that an event is in the log. Hashes are lower-case hex."""

    leaf_index: int
    tree_size: int
    commitment: str
    leaf_hash: str = Field(description="SHA-256 of a zero byte followed by the commitment (RFC 6962, 2.1).")
    root: str
    hashes: list[str] = Field(description="From the leaf's sibling up to the root's child (RFC 6962, 2.1.1).")
    checkpoint: str = Field(description="The signed note with this size and root.")


class ConsistencyBody(BaseModel):
    """Proof that a log starts with all entries of a smaller one. Hashes are lower-case hex."""

    from_: int = Field(alias="from")
    to: int
    hashes: list[str] = Field(
        description="As in RFC 6962, 2.1.2. Empty if the sizes are equal or the smaller log is empty."
    )


def event_filter(sent: QueryParams, project_id: str | None) -> tuple[EventFilter, bool]:
    """Return the parsed filter, and whether the newest events come first. Raises InvalidRequest."""
    values = query.parsed(sent, FILTERS)
    newest_first = values.pop("order", "newest") == "newest"
    return EventFilter(project_id=project_id, **values), newest_first


def event_body(event: StoredEvent) -> JsonObject:
    """Render an event, and the values that verify its commitment. Raises LogDamaged if the stored event is invalid."""
    try:
        content = json.loads(event.body)
        fields = {name: content[name] for name in FIELDS}
        version = content.get("version", FIRST_VERSION)
        canonical = event.body.decode("ascii")
    except (ValueError, TypeError, KeyError) as error:
        raise LogDamaged(
            f"The event at leaf index {event.leaf_index} is not valid. Run `clustercert audit verify`."
        ) from error
    return {
        "leaf_index": event.leaf_index,
        **fields,
        "version": version,
        "canonical": canonical,
        "salt": event.salt.hex(),
        "commitment": event.commitment.hex(),
    }


def inclusion_body(proof: InclusionProof) -> JsonObject:
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
    """Render a proof as one file. Its `extra` line has the salt and canonical JSON; the SHA-256 of both is the leaf.

    Source: c2sp.org/tlog-proof.
    """
    extra = base64.b64encode(proof.event.salt + proof.event.body).decode()
    hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in proof.hashes)
    head = f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex {proof.event.leaf_index}\n"
    return f"{head}{hashes}\n{proof.checkpoint.note}"
