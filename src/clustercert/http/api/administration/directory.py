"""Routes that manage projects, users and groups, which differ only in their fields. Only for operators."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from clustercert.http.api.administration.changes import ResourceBody
from clustercert.http import responses
from clustercert.http.api import OWN
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration import directory_bodies as bodies
from clustercert.http.api.administration.authorization import OperatorCall, OperatorChange
from clustercert.http.api.administration.directory_names import (
    DirectoryDep,
    DomainDep,
    OnlyDomainDep,
    new_name,
)
from clustercert.http.openapi import json_body
from clustercert.http.paging import KeyPageDep, keyed_page
from clustercert.identity.directory import Directory
from clustercert.model import Domain, Group, JsonObject, Project, User
from clustercert.model.errors import InvalidRequest

E = TypeVar("E", bound=Project | User | Group)

router = APIRouter(tags=["Administration"])


@dataclass(frozen=True, slots=True)
class Kind(Generic[E]):
    """A kind of objects in domains, and the methods of the directory that manage it.

    Attributes:
        plural: the kind's name in paths.
        deletion: what deleting an object means.
        request, body, list_body: the models of the bodies.
        create: creates an object, given its name, its domain and the fields of the request.
        update: changes an object, given it and the fields of the request.
    """

    of: type[E]
    plural: str
    deletion: str
    request: type[ResourceBody]
    body: type[BaseModel]
    list_body: type[BaseModel]
    view: Callable[[E], JsonObject]
    find: Callable[[Directory, str, Domain | None], Awaitable[E]]
    create: Callable[..., Awaitable[E]]
    update: Callable[..., Awaitable[E]]
    remove: Callable[..., Awaitable[None]]


def add_routes(kind: Kind[E]) -> None:
    """Add the routes that list, show, change and delete objects of a kind."""

    async def list_all(
        _call: OperatorCall,
        directory: DirectoryDep,
        page: KeyPageDep,
        domain: OnlyDomainDep,
        name: Annotated[str | None, Query(description="List only objects with this name.")] = None,
    ) -> Response:
        read = functools.partial(directory.page, kind.of, domain, name)
        return responses.private(await keyed_page(kind.plural, read, kind.view, page))

    async def show(_call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep) -> Response:
        return changes.shown(kind.view(await kind.find(directory, name, domain)))

    async def put(change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep) -> Response:
        actor = change.call.caller.actor

        async def save(before: E | None, current: JsonObject | None) -> E:
            wanted = change.body(kind.request, current).model_dump()
            if before is not None:
                return await kind.update(directory, before, **wanted, actor=actor)
            return await kind.create(directory, new_name(name), domain, **wanted, actor=actor)

        return await changes.put(change, lambda: kind.find(directory, name, domain), save, kind.view)

    async def delete(
        change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
    ) -> Response:
        actor = change.call.caller.actor

        async def remove(found: E) -> None:
            await kind.remove(directory, found, actor=actor)

        return await changes.delete(change, lambda: kind.find(directory, name, domain), remove, kind.view)

    _register(kind, list_all, show, put, delete)


def _register(
    kind: Kind[E],
    list_all: Callable[..., Awaitable[Response]],
    show: Callable[..., Awaitable[Response]],
    put: Callable[..., Awaitable[Response]],
    delete: Callable[..., Awaitable[Response]],
) -> None:
    """Register the functions with their paths and descriptions."""
    noun, path = kind.of.__name__.lower(), f"{OWN}/{kind.plural}"
    operators = " Only for operators."
    router.get(
        path,
        responses=descriptions.listed(kind.list_body),
        description=f"List the {kind.plural}. Sorted by id.{operators}",
    )(list_all)
    path += "/{name}"
    kept = ", except `enabled`, which stays as it is" if "enabled" in kind.request.model_fields else ""
    router.get(
        path, responses=descriptions.one(kind.body), description=f"Show a {noun}. By name or id.{operators}"
    )(show)
    router.put(
        path,
        responses=descriptions.replaced(kind.body),
        openapi_extra=json_body(kind.request.model_json_schema()),
        description=f"Create or change a {noun}. By name, or an existing one by id. Fields that are not sent get their"
        f" defaults{kept}.{operators}",
    )(put)
    router.delete(
        path,
        status_code=204,
        responses=descriptions.deleted(),
        description=f"Delete a {noun}. {kind.deletion}{operators}",
    )(delete)


async def _create_project(directory: Directory, name: str, domain: Domain, **fields: Any) -> Project:
    return await directory.create_project(name, domain, project_id=fields.pop("id"), **fields)


async def _update_project(directory: Directory, before: Project, **fields: Any) -> Project:
    if fields.pop("id") not in {None, before.id}:
        raise InvalidRequest("id: it can't be changed. Send its value as it is, or leave it out.")
    return await directory.update_project(before, **fields)


async def _update_user(directory: Directory, before: User, *, password: str | None, **fields: Any) -> User:
    """Change a user. Raises InvalidRequest for another password, so that no request sets it by accident."""
    if password is not None and not await directory.has_password(before, password):
        raise InvalidRequest("password: the user exists. Change it with PUT /users/{name}/password.")
    return await directory.update_user(before, **fields)


add_routes(
    Kind(
        Project,
        "projects",
        "It must have no clusters. Deletes its role assignments and tokens too.",
        bodies.ProjectRequest,
        bodies.ProjectBody,
        bodies.ProjectListBody,
        bodies.project_view,
        Directory.find_project,
        _create_project,
        _update_project,
        Directory.remove_project,
    )
)
add_routes(
    Kind(
        User,
        "users",
        "Revokes the user's certificates, and deletes their tokens, access keys, roles and memberships.",
        bodies.UserRequest,
        bodies.UserBody,
        bodies.UserListBody,
        bodies.user_view,
        Directory.find_user,
        Directory.create_user,
        _update_user,
        Directory.remove_user,
    )
)
add_routes(
    Kind(
        Group,
        "groups",
        "Its members lose its roles.",
        bodies.GroupRequest,
        bodies.GroupBody,
        bodies.GroupListBody,
        bodies.group_view,
        Directory.find_group,
        Directory.create_group,
        Directory.update_group,
        Directory.remove_group,
    )
)
