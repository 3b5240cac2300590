"""Routes of the audit log.

Authorized callers get events and proofs that an event is in the log. The routes for checkpoints, the log's key,
consistency proofs and tiles are public.

Source of paths and formats: c2sp.org/tlog-tiles.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, AliasPath, BaseModel, BeforeValidator, Field, WithJsonSchema
from starlette.responses import Response

from clustercert.audit.event_access import EventAccess
from clustercert.audit.event_parsing import parse_body
from clustercert.audit.log import InclusionProof
from clustercert.http import IN_PROJECT, OWN, openapi, query, responses
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.openapi import PUBLIC_ERRORS, described
from clustercert.http.paging import PageDep, PageRequest, numbered_page, row_number
from clustercert.http.responses import Hex, ResponseBody
from clustercert.merkle import tree
from clustercert.merkle.proof_files import ProofFile
from clustercert.merkle.tiles import ENTRIES, PathError, TilePath, encode_bundle, split_hashes
from clustercert.model import JsonObject
from clustercert.model.errors import InvalidRequest, LogDamaged, NotFound
from clustercert.model.events.names import CLUSTER_ACTOR
from clustercert.model.ids import is_long_id
from clustercert.model.rights import reads_everything
from clustercert.store.audit.log import EventFilter, StoredEvent

# The fields that responses copy from an event's canonical JSON, in this order.
FIELDS = ("at", "kind", "version", "project_id", "actor", "subject", "source", "request_id", "detail")


def _mentioned_id(text: str) -> str:
    """Return the id. Raises ValueError for shorter texts, which occur by chance in events about other objects."""
    if not is_long_id(text):
        raise ValueError("must be an id: 32 or 64 lower-case hex digits, or a UUID")
    return text


MentionedId = Annotated[str, AfterValidator(_mentioned_id), Field(json_schema_extra={"maxLength": 64})]


FilterDep = Annotated[
    EventFilter,
    Depends(
        query.parsed_filter(
            EventFilter, user_id=MentionedId, cluster_id=MentionedId, access_request_id=MentionedId
        )
    ),
]
OrderDep = Annotated[
    Literal["newest", "oldest"] | None,
    Query(description="Which events come first. The default is newest."),
]


class EventBody(ResponseBody):
    """An audit event. Times are in the format of RFC 3339."""

    leaf_index: int = Field(description="The event's position in the log, which identifies the event.")
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

    @classmethod
    def render(cls, source: StoredEvent, **_others: object) -> JsonObject:
        """Return the JSON object of an event. Raises LogDamaged if the stored event is invalid."""
        try:
            content = json.loads(source.body)
            return cls(
                leaf_index=cast("int", source.leaf_index),
                **{name: content[name] for name in FIELDS},
                canonical=source.body.decode("ascii"),
                salt=source.salt.hex(),
                commitment=source.commitment.hex(),
            ).model_dump()
        except (ValueError, TypeError, KeyError) as error:
            raise LogDamaged(
                f"The event at leaf index {source.leaf_index} is not valid. Run `clustercert audit verify`."
            ) from error


Names = Annotated[
    dict[str, str],
    Field(
        description="The current names of the users, clusters and projects in the events, by id: `DOMAIN/NAME`, or"
        " `DOMAIN/PROJECT/CLUSTER`. Empty for callers other than operators and auditors."
    ),
]


class ShownEventBody(EventBody):
    """An audit event."""

    names: Names


class EventListBody(BaseModel):
    """A page of events, sorted by their position in the log."""

    events: list[EventBody]
    names: Names
    verifications: list[int] = Field(
        description="The leaf indexes of the events in this page that `clustercert kubernetes verify` caused by"
        " issuing, altering and revoking its own certificates. Events about certificates that were deleted from the"
        " ledger are not included."
    )
    next: str | None = Field(
        description="The cursor of the next page; null on the last page. A page scans at most 5000 events, so"
        " a filtered page may be short or empty even if there is a next page."
    )


class InclusionBody(ResponseBody):
    """Proof that an event is in the log. Hashes are lower-case hex."""

    leaf_index: int = Field(validation_alias=AliasPath("event", "leaf_index"))
    tree_size: int = Field(validation_alias=AliasPath("checkpoint", "size"))
    commitment: Hex = Field(validation_alias=AliasPath("event", "commitment"))
    leaf_hash: Annotated[Hex, BeforeValidator(tree.leaf_hash)] = Field(
        validation_alias=AliasPath("event", "commitment"),
        description="SHA-256 of a zero byte followed by the commitment (RFC 6962, section 2.1).",
    )
    root: Hex = Field(validation_alias=AliasPath("checkpoint", "root"))
    hashes: list[Hex] = Field(
        description="From the leaf's sibling up to the root's child (RFC 6962, section 2.1.1)."
    )
    checkpoint: str = Field(
        validation_alias=AliasPath("checkpoint", "note"),
        description="The signed note with this size and root.",
    )


class ConsistencyBody(BaseModel):
    """Proof that a log starts with all entries of a smaller log. Hashes are lower-case hex."""

    from_: int = Field(alias="from")
    to: int
    hashes: list[str] = Field(
        description="As in RFC 6962, section 2.1.2. Empty if the sizes are equal or the smaller log is empty."
    )


def inclusion_text(proof: InclusionProof) -> str:
    """Render a proof as one file. Its `extra` is the event's salt, followed by its canonical JSON.

    The SHA-256 of the salt and the JSON together is the log entry.
    """
    extra, leaf_index = proof.event.salt + proof.event.body, cast("int", proof.event.leaf_index)
    return str(ProofFile(extra, leaf_index, proof.hashes, proof.checkpoint.note))


LOG = OWN + "/audit/log"

TEXT = "text/plain"
BINARY = "application/octet-stream"

# Tiles never change, so caches may keep them. The checkpoint changes every second.
_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
_ONE_SECOND = {"Cache-Control": "public, max-age=1"}

_LISTED = described("A page of events.", EventListBody)
_SHOWN = described("The event.", ShownEventBody)
_PROVED = described(
    "The proof. As plain text: a c2sp.org/tlog-proof file that includes the event.",
    InclusionBody,
    content={TEXT: openapi.TEXT},
)

_public = functools.partial(described, errors=PUBLIC_ERRORS)


def _size(text: str) -> int:
    return row_number(text, ValueError("send a whole number"))


Size = Annotated[int, BeforeValidator(_size), WithJsonSchema({"type": "string"})]
ProvenSize = Annotated[
    Size | None,
    Query(description="Prove inclusion in the log at this size. A checkpoint with this size must exist."),
]

router = APIRouter(tags=["Audit"])
public = APIRouter(tags=["Audit"], default_response_class=Response)


@router.get(IN_PROJECT + "/events", responses=_LISTED)
async def list_of_project(
    call: CallDep, project_id: str, page: PageDep, filters: FilterDep, order: OrderDep = None
) -> Response:
    """List the events of a project.

    Sorted by position in the log, by default the newest event first. A new event appears after one or two seconds. Only
    for project admins, operators and auditors.
    """
    return await _list(call, page, replace(filters, project_id=project_id), order)


@router.get(OWN + "/events", responses=_LISTED)
async def list_everywhere(
    call: CallDep, page: PageDep, filters: FilterDep, order: OrderDep = None
) -> Response:
    """List the events of all projects and of the service.

    Sorted by position in the log, by default the newest event first. A new event appears after one or two seconds. Only
    for operators and auditors.
    """
    return await _list(call, page, filters, order)


@router.get(IN_PROJECT + "/events/{leaf_index}", responses=_SHOWN)
async def show_of_project(call: CallDep, project_id: str, leaf_index: str) -> Response:
    """Show an event of a project. Only for project admins, operators and auditors."""
    return await _show(call, project_id, leaf_index)


@router.get(OWN + "/events/{leaf_index}", responses=_SHOWN)
async def show_anywhere(call: CallDep, leaf_index: str) -> Response:
    """Show an event of any project or of the service. Only for operators and auditors."""
    return await _show(call, None, leaf_index)


@router.get(IN_PROJECT + "/events/{leaf_index}/proof", responses=_PROVED)
async def prove_of_project(
    call: CallDep, project_id: str, leaf_index: str, size: ProvenSize = None
) -> Response:
    """Prove that an event of a project is in the log. Only for project admins, operators and auditors."""
    return await _prove(call, project_id, leaf_index, size)


@router.get(OWN + "/events/{leaf_index}/proof", responses=_PROVED)
async def prove_anywhere(call: CallDep, leaf_index: str, size: ProvenSize = None) -> Response:
    """Prove that an event of any project is in the log. Only for operators and auditors."""
    return await _prove(call, None, leaf_index, size)


@public.get(
    LOG + "/checkpoint",
    responses=_public(
        "A signed note: name, size and root. Keep copies to detect later tampering.",
        content={TEXT: openapi.TEXT},
    ),
)
async def show_checkpoint(services: ServicesDep) -> Response:
    """Show the log's newest checkpoint. Public. The checkpoint reveals the number of events, but not their content."""
    checkpoint = await services.audit_log.checkpoint()
    return Response(checkpoint.note, headers=_ONE_SECOND, media_type=TEXT)


@public.get(
    LOG + "/key",
    responses=_public("One line: the log's name, the key's id and the key.", content={TEXT: openapi.TEXT}),
)
async def show_key(services: ServicesDep) -> Response:
    """Show the key that verifies the log's checkpoints. Public. Verifiers should store a copy outside this service."""
    return Response(f"{await services.audit_log.verifier_key()}\n", media_type=TEXT)


@public.get(
    LOG + "/consistency",
    responses=_public("The proof.", ConsistencyBody),
)
async def prove_consistency(
    services: ServicesDep,
    old: Annotated[
        Size | None, Query(alias="from", description="The size in the earlier checkpoint.")
    ] = None,
    new: Annotated[Size | None, Query(alias="to", description="The size in the later checkpoint.")] = None,
) -> Response:
    """Prove that no entry of the log was changed or removed between two checkpoints. Public."""
    if old is None or new is None:
        raise InvalidRequest("from, to: send the sizes of two checkpoints.")
    hashes = await services.audit_log.consistency(old, new)
    return responses.json_response(
        {"from": old, "to": new, "hashes": [each.hex() for each in hashes]}, headers=_IMMUTABLE
    )


@public.get(
    LOG + "/tile/{tile_path:path}",
    responses=_public(
        "Hashes of 32 bytes each. In `entries/…`: commitments, each preceded by its length in two bytes.",
        content={BINARY: openapi.BINARY},
    ),
)
async def show_tile(tile_path: str, services: ServicesDep) -> Response:
    """Show a tile of the log's tree, or a bundle of its entries.

    Public. The path is `<level>/<index>[.p/<width>]` or `entries/<index>[.p/<width>]`, as in c2sp.org/tlog-tiles.
    """
    try:
        path = TilePath.parse(tile_path)
    except PathError as error:
        raise NotFound(
            "There is no such tile. Valid paths look like 0/000 or entries/x001/067.p/8."
        ) from error
    tile = await services.audit_log.tile(path)
    content = encode_bundle(split_hashes(tile)) if path.tile.level == ENTRIES else tile
    return Response(content, headers=_IMMUTABLE, media_type=BINARY)


async def _list(call: Call, page: PageRequest, filters: EventFilter, order: str | None) -> Response:
    found = await EventAccess(call.services.audit_log).page(
        call.caller,
        filters,
        cursor=page.cursor,
        newest_first=order != "oldest",
        limit=page.limit,
    )
    listed = numbered_page(
        "events",
        found.events,
        EventBody.render,
        lambda each: each.leaf_index,
        found.cursor,
        page.max_bytes,
    )
    names, verifications = await _names(call, found.events), await _verifications(call, found.events)
    return responses.private(listed | {"names": names, "verifications": verifications})


async def _names(call: Call, events: Iterable[StoredEvent]) -> Mapping[str, str]:
    """Return the names of users, clusters and projects by id.

    Returns no names to admins, who could guess the ids of users.
    """
    if not reads_everything(call.caller):
        return {}
    ids = {found for each in events for found in _ids_to_name(each)}
    users = await call.services.revocation.previews.users.find_by_ids(ids)
    places = await call.services.inventory.queries.shown_names(ids)
    return {each.id: each.shown_name for each in users.values()} | dict(places)


def _ids_to_name(event: StoredEvent) -> Iterator[str]:
    """Yield the ids of the users, clusters and projects that readers of an event may want to know by name."""
    yield event.actor.removeprefix(CLUSTER_ACTOR)
    yield event.subject
    if event.project_id is not None:
        yield event.project_id
    detail = parse_body(event.body).get("detail")
    if isinstance(detail, dict):
        yield from (found for name in ("user_id", "cluster_id") if isinstance(found := detail.get(name), str))


# The kinds of events that each verification of a cluster causes. Their subject is a certificate.
_OF_VERIFICATIONS = frozenset({"certificate.issued", "certificate.revoked", "credential.altered"})


async def _verifications(call: Call, events: Iterable[StoredEvent]) -> list[int]:
    """Return the leaf indexes of events about certificates used to verify clusters and client CAs, as in the ledger."""
    subjects = [
        (cast("int", each.leaf_index), bytes.fromhex(each.subject))
        for each in events
        if each.kind in _OF_VERIFICATIONS
    ]
    if not subjects:
        return []
    queries = call.services.inventory.queries
    found = await queries.of_verifications({fingerprint for _, fingerprint in subjects})
    return [leaf_index for leaf_index, fingerprint in subjects if fingerprint in found]


async def _show(call: Call, project_id: str | None, leaf_index: str) -> Response:
    event = await EventAccess(call.services.audit_log).event(call.caller, project_id, _leaf_index(leaf_index))
    return responses.private(EventBody.render(event) | {"names": await _names(call, (event,))})


async def _prove(call: Call, project_id: str | None, leaf_index: str, size: int | None) -> Response:
    access = EventAccess(call.services.audit_log)
    proof = await access.proof(call.caller, project_id, _leaf_index(leaf_index), size)
    headers = {**responses.NO_STORE, "Vary": "Accept"}
    if TEXT in ",".join(call.request.headers.getlist("accept")).lower():
        return Response(inclusion_text(proof), headers=headers, media_type=TEXT)
    return responses.json_response(InclusionBody.render(proof), headers=headers)


def _leaf_index(text: str) -> int:
    return row_number(
        text,
        NotFound(
            "There is no such event. Check the leaf index. The event may have been deleted, or may not be sealed yet."
        ),
    )
