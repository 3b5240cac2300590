"""Routes for passwords and projects of users, and for members of groups. Only for operators."""

import functools

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http.api.administration.changes import ResourceBody
from clustercert.http import responses
from clustercert.http.api import OWN
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration import directory_bodies as bodies
from clustercert.http.api.administration.authorization import OperatorCall, OperatorChange
from clustercert.http.api.administration.directory_names import DirectoryDep, DomainDep
from clustercert.http.openapi import json_body
from clustercert.http.paging import KeyPageDep, keyed_page, keyed_page_of_all
from clustercert.model import JsonObject, User
from clustercert.model.errors import ConcurrentChange

MEMBERS = OWN + "/groups/{name}/members"
MEMBER = MEMBERS + "/{user}"


class PasswordRequest(ResourceBody):
    """A new password."""

    password: str = Field(json_schema_extra={"minLength": 8, "maxLength": 1024})


class MemberListBody(BaseModel):
    """A page of users, sorted by id."""

    members: list[bodies.UserBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


router = APIRouter(tags=["Administration"])


@router.put(
    OWN + "/users/{name}/password",
    status_code=204,
    responses=descriptions.done("Changed."),
    openapi_extra=json_body(PasswordRequest.model_json_schema()),
)
async def set_password(
    change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
) -> Response:
    """Set a user's password. Deletes their tokens and temporary access keys. Only for operators."""
    user = await directory.find_user(name, domain)
    change.check(bodies.user_view(user))
    password = change.body(PasswordRequest, None).password
    with change.transactions():
        await directory.set_password(user, password, actor=change.call.caller.actor)
    return Response(status_code=204)


@router.get(OWN + "/users/{name}/projects", responses=descriptions.listed(bodies.ProjectListBody))
async def list_projects(
    call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the projects in which a user has a role, directly or through a group. Sorted by id. Only for operators."""
    user = await directory.find_user(name, domain)
    found = await call.services.identity.roles.projects_of(user)
    return responses.private(keyed_page_of_all("projects", map(bodies.project_view, found), page))


@router.get(MEMBERS, responses=descriptions.listed(MemberListBody))
async def list_members(
    _call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the members of a group. Sorted by id. Only for operators."""
    group = await directory.find_group(name, domain)
    read = functools.partial(directory.member_page, group)
    return responses.private(await keyed_page("members", read, bodies.user_view, page))


@router.put(MEMBER, responses=descriptions.replaced(bodies.UserBody))
async def add_member(
    change: OperatorChange, directory: DirectoryDep, name: str, user: str, domain: DomainDep
) -> Response:
    """Add a user to a group. The request needs no body. Only for operators."""
    group, member = await directory.find_group(name, domain), await directory.find_user(user, domain)

    async def save(before: User | None, current: JsonObject | None) -> User:
        change.require_unchanged(current)
        if before is None and not await directory.add_member(group, member, actor=change.call.caller.actor):
            raise ConcurrentChange
        return member

    return await changes.put(change, lambda: directory.find_member(group, member), save, bodies.user_view)


@router.delete(MEMBER, status_code=204, responses=descriptions.deleted())
async def remove_member(
    change: OperatorChange, directory: DirectoryDep, name: str, user: str, domain: DomainDep
) -> Response:
    """Remove a user from a group. Only for operators."""
    group, member = await directory.find_group(name, domain), await directory.find_user(user, domain)

    async def remove(found: User) -> None:
        await directory.remove_member(group, found, actor=change.call.caller.actor)

    return await changes.delete(
        change, lambda: directory.find_member(group, member), remove, bodies.user_view
    )
