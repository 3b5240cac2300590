"""The audit log: its head, key and tiles for everybody, its events for those who may see them, and the proofs.

Source of the log's own paths and forms: c2sp.org/tlog-tiles.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from clustercert.audit.viewing import Viewing
from clustercert.errors import InvalidRequest, NotFound
from clustercert.merkle import PathError, TilePath
from clustercert.merkle.tiles import ENTRIES, encoded_bundle, split
from clustercert.model import Caller, JsonObject
from clustercert.web import audit_bodies as bodies
from clustercert.web import render
from clustercert.web.cce import ERRORS
from clustercert.web.deps import CallerDep, Services, ServicesDep
from clustercert.web.paging import Cursor, Limit, is_row_number, page_before, page_limit

OWN = "/clustercert/v1"
IN_PROJECT = OWN + "/projects/{project_id}"
LOG = OWN + "/audit/log"

TEXT = "text/plain"
BINARY = "application/octet-stream"

# A tile never changes once it is there; the head does every second.
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_FOR_A_MOMENT = {"Cache-Control": "public, max-age=1"}

_PUBLIC: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (400, 404, 500, 503)}
_LISTED: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.EventListBody, "description": "Some events."},
    **ERRORS,
}
_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.EventBody, "description": "The event."},
    **ERRORS,
}
_PROVED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": bodies.InclusionBody,
        "description": "The proof. As text it is a file in the form of c2sp.org/tlog-proof, complete with the event.",
        "content": {TEXT: {"schema": {"type": "string"}}},
    },
    **ERRORS,
}

Size = Annotated[
    str | None, Query(description="Prove it against the log of this size, whose checkpoint is kept.")
]

router = APIRouter(tags=["Audit"])


@router.get(
    IN_PROJECT + "/events",
    summary="List what happened in a project",
    responses=_LISTED,
    openapi_extra={"parameters": bodies.documented()},
)
async def list_of_project(
    request: Request,
    project_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """In the log's order, a second or two after it happened. For the project's admins and operators."""
    return await _list(request, services, caller, project_id, limit, cursor)


@router.get(
    OWN + "/events",
    summary="List what happened in all projects and to the service itself",
    responses=_LISTED,
    openapi_extra={"parameters": bodies.documented()},
)
async def list_everywhere(
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """In the log's order, a second or two after it happened. For operators."""
    return await _list(request, services, caller, None, limit, cursor)


@router.get(IN_PROJECT + "/events/{event_id}", summary="Show an event of a project", responses=_SHOWN)
async def show_of_project(
    project_id: str, event_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """For the project's admins and operators."""
    event = await Viewing(services.audit_log).event(caller, project_id, _id(event_id))
    return render.json_response(bodies.event_body(event), headers=render.NO_STORE)


@router.get(OWN + "/events/{event_id}", summary="Show any event", responses=_SHOWN)
async def show_anywhere(event_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """For operators."""
    event = await Viewing(services.audit_log).event(caller, None, _id(event_id))
    return render.json_response(bodies.event_body(event), headers=render.NO_STORE)


@router.get(
    IN_PROJECT + "/events/{event_id}/proof",
    summary="Prove that an event of a project is in the log",
    responses=_PROVED,
)
async def prove_of_project(
    request: Request,
    project_id: str,
    event_id: str,
    caller: CallerDep,
    services: ServicesDep,
    size: Size = None,
) -> Response:
    """For the project's admins and operators."""
    return await _prove(request, services, caller, project_id, event_id, size)


@router.get(OWN + "/events/{event_id}/proof", summary="Prove that any event is in the log", responses=_PROVED)
async def prove_anywhere(
    request: Request, event_id: str, caller: CallerDep, services: ServicesDep, size: Size = None
) -> Response:
    """For operators."""
    return await _prove(request, services, caller, None, event_id, size)


@router.get(
    LOG + "/checkpoint",
    summary="The log's newest checkpoint",
    responses={
        200: {
            "description": "A signed note: name, size and root. Keep some: they show what was changed later.",
            "content": {TEXT: {"schema": {"type": "string"}}},
        },
        **_PUBLIC,
    },
    response_class=Response,
)
async def show_checkpoint(services: ServicesDep) -> Response:
    """For everybody; it tells how much happened, and nothing of what."""
    checkpoint = await services.audit_log.checkpoint()
    return Response(checkpoint.note, headers=_FOR_A_MOMENT, media_type=TEXT)


@router.get(
    LOG + "/key",
    summary="The key that the log's checkpoints are verified with",
    responses={
        200: {
            "description": "One line: name, id and key.",
            "content": {TEXT: {"schema": {"type": "string"}}},
        },
        **_PUBLIC,
    },
    response_class=Response,
)
async def show_key(services: ServicesDep) -> Response:
    """For everybody. Whoever means to find out about a changed log keeps it elsewhere."""
    return Response(f"{await services.audit_log.verifier_key()}\n", media_type=TEXT)


@router.get(
    LOG + "/consistency",
    summary="Prove that the log only grew",
    responses={200: {"model": bodies.ConsistencyBody, "description": "The proof."}, **_PUBLIC},
)
async def prove_consistency(
    services: ServicesDep,
    from_size: Annotated[
        str | None, Query(alias="from", description="The size in the checkpoint that was kept.")
    ] = None,
    to_size: Annotated[str | None, Query(alias="to", description="The size in a later one.")] = None,
) -> Response:
    """For everybody: the later log begins with all of the earlier one."""
    if from_size is None or to_size is None:
        raise InvalidRequest("from, to: send the sizes of two checkpoints.")
    old, new = bodies.number("from", from_size), bodies.number("to", to_size)
    hashes = await services.audit_log.consistency(old, new)
    body: JsonObject = {"from": old, "to": new, "hashes": [each.hex() for each in hashes]}
    return render.json_response(body, headers=_FOR_EVER)


@router.get(
    LOG + "/tile/{tile_path:path}",
    summary="A tile of the log's tree, or a bundle of its entries",
    responses={
        200: {
            "description": "Hashes of 32 bytes each; of `entries/…`, commitments, each behind its length in two bytes.",
            "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
        },
        **_PUBLIC,
    },
    response_class=Response,
)
async def show_tile(tile_path: str, services: ServicesDep) -> Response:
    """`<level>/<index>[.p/<width>]` or `entries/<index>[.p/<width>]`, as in c2sp.org/tlog-tiles. For everybody."""
    try:
        path = TilePath.parsed(tile_path)
    except PathError as error:
        raise NotFound("There is no such tile. Name it like 0/000 or entries/x001/067.p/8.") from error
    tile = await services.audit_log.tile(path)
    content = encoded_bundle(split(tile)) if path.tile.level == ENTRIES else tile
    return Response(content, headers=_FOR_EVER, media_type=BINARY)


async def _list(
    request: Request,
    services: Services,
    caller: Caller,
    project_id: str | None,
    limit: str | None,
    cursor: str | None,
) -> Response:
    wanted, newest_first = bodies.wanted(request.query_params, project_id)
    page = await Viewing(services.audit_log).page(
        caller, wanted, cursor=page_before(cursor), newest_first=newest_first, limit=page_limit(limit)
    )
    body: JsonObject = {
        "events": [bodies.event_body(event) for event in page.events],
        "next": str(page.cursor) if page.cursor is not None else None,
    }
    return render.json_response(body, headers=render.NO_STORE)


async def _prove(
    request: Request,
    services: Services,
    caller: Caller,
    project_id: str | None,
    event_id: str,
    size: str | None,
) -> Response:
    against = bodies.number("size", size) if size is not None else None
    proof = await Viewing(services.audit_log).proof(caller, project_id, _id(event_id), against)
    headers = {**render.NO_STORE, "Vary": "Accept"}
    if TEXT in ",".join(request.headers.getlist("accept")).lower():
        return Response(bodies.inclusion_text(proof), headers=headers, media_type=TEXT)
    return render.json_response(bodies.inclusion_body(proof), headers=headers)


def _id(text: str) -> int:
    """An event's id. What can't be one names nothing; raises NotFound."""
    if not is_row_number(text):
        raise NotFound("There is no such event. Check its id; it may have been deleted since.")
    return int(text)
