"""What was issued, and who can still get into a cluster."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from clustercert.errors import NotFound
from clustercert.inventory import Page
from clustercert.inventory.rows import COLUMNS, certificate_row, report_row, whole_certificate_row
from clustercert.revocation.grounds import is_hex
from clustercert.spreadsheet import csv_text
from clustercert.web import inventory_bodies as bodies
from clustercert.web import render
from clustercert.web.bodies import ErrorBody
from clustercert.web.cce import ERRORS
from clustercert.web.deps import CallerDep, Services, ServicesDep
from clustercert.web.paging import Cursor, Limit, page_before, page_limit
from clustercert.web.query import id_text

OWN = "/clustercert/v1"
IN_PROJECT = OWN + "/projects/{project_id}"
IN_CLUSTER = IN_PROJECT + "/clusters/{cluster_id}"

CSV = "text/csv"
NEXT = "X-Clustercert-Next"

_LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": bodies.CertificateListBody,
        "description": "Some certificates, the newest first. As CSV, lists are JSON in their cell, and a cell that a"
        " spreadsheet could take for a formula has an apostrophe in front.",
        "content": {CSV: {"schema": {"type": "string"}}},
        "headers": {
            NEXT: {
                "description": "The same as `next`; missing at the end.",
                "schema": {"type": "string"},
            }
        },
    },
    **ERRORS,
}
_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.WholeCertificateBody, "description": "The certificate, and what became of it."},
    409: {"model": ErrorBody, "description": "Two certificates have this serial."},
    **ERRORS,
}

router = APIRouter(tags=["Inventory"])


@router.get(
    IN_PROJECT + "/certificates",
    summary="List the certificates of a project",
    responses=_LISTED,
    openapi_extra={"parameters": bodies.documented("cluster", "user")},
)
async def list_of_project(
    request: Request,
    project_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """The project's admins and operators see all of them, others their own; those of removed clusters too."""
    wanted = bodies.wanted(request.query_params, "cluster", "user")
    page = await services.inventory.of_project(
        caller, project_id, wanted, limit=page_limit(limit), before=page_before(cursor)
    )
    return _list(request, services, page)


@router.get(
    IN_CLUSTER + "/certificates",
    summary="List the certificates of a cluster",
    responses=_LISTED,
    openapi_extra={"parameters": bodies.documented("user")},
)
async def list_of_cluster(
    request: Request,
    project_id: str,
    cluster_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """The project's admins and operators see all of them, others their own."""
    wanted = bodies.wanted(request.query_params, "user")
    page = await services.inventory.of_cluster(
        caller, project_id, cluster_id, wanted, limit=page_limit(limit), before=page_before(cursor)
    )
    return _list(request, services, page)


@router.get(
    OWN + "/certificates",
    summary="List the certificates of all projects",
    responses=_LISTED,
    openapi_extra={"parameters": bodies.documented("cluster", "user")},
)
async def list_everywhere(
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """For operators."""
    wanted = bodies.wanted(request.query_params, "cluster", "user")
    page = await services.inventory.everywhere(
        caller, wanted, limit=page_limit(limit), before=page_before(cursor)
    )
    return _list(request, services, page)


@router.get(
    IN_CLUSTER + "/certificates/{certificate}", summary="Show a certificate of a cluster", responses=_SHOWN
)
async def show_of_cluster(
    project_id: str, cluster_id: str, certificate: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """By fingerprint, credential number or serial, in hex. Other users' are shown to admins and operators alone."""
    found = await services.inventory.show(caller, project_id, cluster_id, _named(certificate))
    return render.json_response(
        whole_certificate_row(found, services.inventory.now()), headers=render.NO_STORE
    )


@router.get(
    OWN + "/certificates/{certificate}", summary="Show a certificate of any project", responses=_SHOWN
)
async def show_anywhere(certificate: str, caller: CallerDep, services: ServicesDep) -> Response:
    """By fingerprint, credential number or serial, in hex. For operators."""
    found = await services.inventory.show_anywhere(caller, _named(certificate))
    return render.json_response(
        whole_certificate_row(found, services.inventory.now()), headers=render.NO_STORE
    )


@router.get(
    IN_CLUSTER + "/access",
    summary="Show who can still get into a cluster",
    responses={200: {"model": bodies.AccessBody, "description": "Who can."}, **ERRORS},
)
async def show_access(
    project_id: str,
    cluster_id: str,
    caller: CallerDep,
    services: ServicesDep,
    user: Annotated[str | None, Query(description="Only this user, by their id.")] = None,
    group: Annotated[str | None, Query(description="Only members of this Kubernetes group.")] = None,
) -> Response:
    """Every certificate that has not ended, what stops it and how fast. For the project's admins and operators."""
    report = await services.inventory.who_can_get_in(
        caller,
        project_id,
        cluster_id,
        user_id=id_text("user", user),
        group=id_text("group", group),
    )
    return render.json_response(report_row(report), headers=render.NO_STORE)


def _list(request: Request, services: Services, page: Page) -> Response:
    now = services.inventory.now()
    rows = [certificate_row(each, now) for each in page.items]
    following = str(page.next) if page.next is not None else None
    headers = {**render.NO_STORE, "Vary": "Accept", **({NEXT: following} if following else {})}
    if _wants_csv(request):
        return Response(csv_text(rows, COLUMNS), headers=headers, media_type=CSV)
    return render.json_response({"certificates": rows, "next": following}, headers=headers)


def _wants_csv(request: Request) -> bool:
    """Whether `format`, or else Accept, names CSV and JSON not before it."""
    if "format" in request.query_params:
        return bodies.answer_format(request.query_params["format"]) == "csv"
    for media_range in ",".join(request.headers.getlist("accept")).split(","):
        media_type = media_range.partition(";")[0].strip().lower()
        if media_type == CSV:
            return True
        if media_type in ("application/json", "application/*", "*/*"):
            return False
    return False


def _named(text: str) -> str:
    """A fingerprint, credential number or serial as the store has it. Raises NotFound for what can't be one."""
    name = text.replace(":", "").lower()
    if not is_hex(name):
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    return name
