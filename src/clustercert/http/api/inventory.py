"""Routes of the inventory: issued certificates, and access to clusters."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from clustercert.certificates.list import csv_text
from clustercert.certificates.recorder import certificate_name
from clustercert.http import openapi, query, responses
from clustercert.http.accept import prefers
from clustercert.http.api import IN_CLUSTER, IN_PROJECT, OWN
from clustercert.http.api import inventory_bodies as bodies
from clustercert.http.api.inventory_rows import COLUMNS, certificate_row, report_row, whole_certificate_row
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.paging import PageDep, fitting, page_body
from clustercert.model.errors import NotFound
from clustercert.store.certificate_view import CertificateView
from clustercert.store.inventory import Page

CSV = "text/csv"
NEXT = "X-Clustercert-Next"

_CLUSTER_FILTERS = query.described(bodies.CLUSTER_FILTERS)
_PROJECT_FILTERS = query.described(bodies.PROJECT_FILTERS)
_LISTED = described(
    "A page of certificates, newest first. In CSV, lists are JSON, and a cell that looks like a"
    " formula starts with an apostrophe.",
    bodies.CertificateListBody,
    content={CSV: openapi.TEXT},
    headers={NEXT: "The same as `next`; absent on the last page."},
)
_SHOWN = described(
    "The certificate and its state.",
    bodies.WholeCertificateBody,
    errors=ERRORS | {409: "Two certificates have this serial."},
)

router = APIRouter(tags=["Inventory"])


@router.get(IN_PROJECT + "/certificates", responses=_LISTED, openapi_extra=_PROJECT_FILTERS)
async def list_of_project(call: CallDep, project_id: str, page: PageDep) -> Response:
    """List the certificates of a project.

    Project admins and operators see all, other users their own. Includes certificates for removed clusters.
    """
    selected, own = bodies.certificate_filter(call.request.query_params, bodies.PROJECT_FILTERS)
    found = await call.services.inventory.of_project(
        call.caller, project_id, selected, limit=page.limit, before=page.cursor, own=own
    )
    return await _list(call, found)


@router.get(IN_CLUSTER + "/certificates", responses=_LISTED, openapi_extra=_CLUSTER_FILTERS)
async def list_of_cluster(call: CallDep, project_id: str, cluster_id: str, page: PageDep) -> Response:
    """List the certificates of a cluster. Project admins and operators see all, other users their own."""
    selected, own = bodies.certificate_filter(call.request.query_params, bodies.CLUSTER_FILTERS)
    found = await call.services.inventory.of_project(
        call.caller,
        project_id,
        selected,
        cluster_id=cluster_id,
        limit=page.limit,
        before=page.cursor,
        own=own,
    )
    return await _list(call, found)


@router.get(OWN + "/certificates", responses=_LISTED, openapi_extra=_PROJECT_FILTERS)
async def list_everywhere(call: CallDep, page: PageDep) -> Response:
    """List certificates of all projects.

    Operators see all. Others send own=true, and see their own, also those in projects where they have no role any more.
    """
    selected, own = bodies.certificate_filter(call.request.query_params, bodies.PROJECT_FILTERS)
    found = await call.services.inventory.of_all_projects(
        call.caller, selected, limit=page.limit, before=page.cursor, own=own
    )
    return await _list(call, found)


@router.get(IN_CLUSTER + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_cluster(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Show a certificate of a cluster.

    Send its fingerprint or at least its first 8 digits, its credential number, or its serial in hex. Users see their
    own, project admins and operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show(call.caller, project_id, cluster_id, _name(certificate)))


@router.get(IN_PROJECT + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_project(call: CallDep, project_id: str, certificate: str) -> Response:
    """Show a certificate of a project, also one for a removed cluster.

    Named as in a cluster. Users see their own, project admins and operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_project(call.caller, project_id, _name(certificate)))


@router.get(OWN + "/certificates/{certificate}", responses=_SHOWN)
async def show_anywhere(call: CallDep, certificate: str) -> Response:
    """Show a certificate of any project.

    Named as in a cluster. Users see their own, project admins those of their project, operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_any_project(call.caller, _name(certificate)))


@router.get(IN_CLUSTER + "/access", responses=described("The access report.", bodies.AccessBody))
async def show_access(
    call: CallDep,
    project_id: str,
    cluster_id: str,
    user: Annotated[str | None, Query(description="Only this user, by id.")] = None,
    group: Annotated[str | None, Query(description="Only members of this Kubernetes group.")] = None,
) -> Response:
    """Show who has access to a cluster.

    Lists the unexpired certificates, and the controls that can stop their use. Only for project admins and operators.
    """
    report = await call.services.inventory.access_report(
        call.caller,
        project_id,
        cluster_id,
        user_id=query.plain_text("user", user) if user is not None else None,
        group=query.plain_text("group", group) if group is not None else None,
    )
    return responses.private(report_row(report))


async def _list(call: Call, page: Page) -> Response:
    inventory = call.services.inventory
    now, names = inventory.now(), await inventory.names(page.items)
    rows = fitting(
        page.items, lambda each: certificate_row(each, names, now), call.services.options.page_bytes
    )
    following = page.next if len(rows) == len(page.items) else page.items[len(rows) - 1].id
    headers = {**responses.NO_STORE, "Vary": "Accept"}
    if following is not None:
        headers[NEXT] = str(following)
    sent = call.request.query_params.get("format")
    if sent == "csv" or (sent is None and prefers(call.request, (CSV,))):
        return Response(csv_text(rows, COLUMNS), headers=headers, media_type=CSV)
    return responses.json_response(page_body("certificates", rows, following), headers=headers)


async def _show(call: Call, certificate: CertificateView) -> Response:
    inventory = call.services.inventory
    names = await inventory.names([certificate])
    return responses.private(whole_certificate_row(certificate, names, inventory.now()))


def _name(text: str) -> str:
    """Normalize a fingerprint, or its first digits, credential number or serial. Raises NotFound for others."""
    name = certificate_name(text, abbreviated=True)
    if name is None:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    return name
