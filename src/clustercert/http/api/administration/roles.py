"""Routes that manage the names of roles. Only for operators."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.api import OWN
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration.authorization import OperatorCall, OperatorChange
from clustercert.http.api.administration.directory_names import new_name
from clustercert.http.paging import KeyPageDep, keyed_page_of_all
from clustercert.model import JsonObject, Role

ROLES = OWN + "/roles"
ROLE = ROLES + "/{name}"


class RoleBody(BaseModel):
    """A role, which the policy maps to Kubernetes groups."""

    id: str
    name: str


class RoleListBody(BaseModel):
    """A page of roles, sorted by id."""

    roles: list[RoleBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


router = APIRouter(tags=["Administration"])


@router.get(ROLES, responses=descriptions.listed(RoleListBody))
async def list_roles(call: OperatorCall, page: KeyPageDep) -> Response:
    """List the roles. Sorted by id. Only for operators."""
    views = [role_view(each) for each in await call.services.identity.roles.all()]
    return responses.private(keyed_page_of_all("roles", views, page))


@router.get(ROLE, responses=descriptions.one(RoleBody))
async def show_role(call: OperatorCall, name: str) -> Response:
    """Show a role. By name or id. Only for operators."""
    return changes.shown(role_view(await call.services.identity.roles.find(name)))


@router.put(ROLE, responses=descriptions.replaced(RoleBody))
async def put_role(change: OperatorChange, name: str) -> Response:
    """Create a role. The request needs no body. Only for operators."""
    roles = change.call.services.identity.roles

    async def save(before: Role | None, current: JsonObject | None) -> Role:
        change.require_unchanged(current)
        return before or await roles.create(new_name(name), actor=change.call.caller.actor)

    return await changes.put(change, lambda: roles.find(name), save, role_view)


@router.delete(ROLE, status_code=204, responses=descriptions.deleted())
async def delete_role(change: OperatorChange, name: str) -> Response:
    """Delete a role. It must not be assigned or built in. Only for operators."""
    roles = change.call.services.identity.roles

    async def remove(found: Role) -> None:
        await roles.remove(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: roles.find(name), remove, role_view)


def role_view(role: Role) -> JsonObject:
    return {"id": role.id, "name": role.name}
