"""Routes that manage domains. Only for operators."""

from fastapi import APIRouter
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.api import OWN
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration import directory_bodies as bodies
from clustercert.http.api.administration.authorization import OperatorCall, OperatorChange
from clustercert.http.api.administration.directory_names import DirectoryDep, new_name
from clustercert.http.openapi import json_body
from clustercert.http.paging import KeyPageDep, keyed_page_of_all
from clustercert.model import Domain, JsonObject

DOMAINS = OWN + "/domains"
DOMAIN = DOMAINS + "/{name}"

router = APIRouter(tags=["Administration"])


@router.get(DOMAINS, responses=descriptions.listed(bodies.DomainListBody))
async def list_domains(_call: OperatorCall, directory: DirectoryDep, page: KeyPageDep) -> Response:
    """List the domains. Sorted by id. Only for operators."""
    views = [bodies.domain_view(each) for each in await directory.domains()]
    return responses.private(keyed_page_of_all("domains", views, page))


@router.get(DOMAIN, responses=descriptions.one(bodies.DomainBody))
async def show_domain(_call: OperatorCall, directory: DirectoryDep, name: str) -> Response:
    """Show a domain. By name or id. Only for operators."""
    return changes.shown(bodies.domain_view(await directory.find_domain(name)))


@router.put(
    DOMAIN,
    responses=descriptions.replaced(bodies.DomainBody),
    openapi_extra=json_body(bodies.DomainRequest.model_json_schema()),
)
async def put_domain(change: OperatorChange, directory: DirectoryDep, name: str) -> Response:
    """Create or change a domain. By name, or an existing one by id. Only for operators."""
    actor = change.call.caller.actor

    async def save(before: Domain | None, current: JsonObject | None) -> Domain:
        enabled = change.body(bodies.DomainRequest, current).enabled
        if before is not None:
            return await directory.update_domain(before, enabled=enabled, actor=actor)
        return await directory.create_domain(new_name(name), enabled=enabled, actor=actor)

    return await changes.put(change, lambda: directory.find_domain(name), save, bodies.domain_view)


@router.delete(DOMAIN, status_code=204, responses=descriptions.deleted())
async def delete_domain(change: OperatorChange, directory: DirectoryDep, name: str) -> Response:
    """Delete a domain. It must have no projects, users or groups. Only for operators."""

    async def remove(found: Domain) -> None:
        await directory.remove_domain(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: directory.find_domain(name), remove, bodies.domain_view)
