"""Routes that manage domains, projects, users, groups and their members. Only for operators."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import AliasPath, BaseModel, Field
from starlette.responses import Response

from clustercert.http import OWN, responses
from clustercert.http.administration import changes
from clustercert.http.administration.changes import (
    OperatorCall,
    OperatorChange,
    ResourceBody,
    Revoke,
    RoleLoss,
)
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.openapi import KIB, json_body
from clustercert.http.paging import KeyPageDep, PageBody, keyset_page, sorted_page
from clustercert.http.responses import ResponseBody, SortedStrings
from clustercert.identity.directory import Directory
from clustercert.model import Domain, Group, JsonObject, Project, User
from clustercert.model.errors import ConcurrentChange, InvalidRequest, NotFound
from clustercert.model.identity import BUILT_IN
from clustercert.model.ids import is_id
from clustercert.store.certificates.access_controls import LostRole

Labels = dict[str, str]
LABELS = "Labels, as in Kubernetes."
KEPT = "If this field is not sent, an existing object keeps its value."


class DomainRequest(ResourceBody):
    """The desired state of a domain."""

    enabled: bool = Field(
        default=True,
        description=f"False disables the domain's projects, locks out its users, and ends their logins. {KEPT}",
    )


class ProjectRequest(ResourceBody):
    """The desired state of a project."""

    id: str | None = Field(
        default=None,
        description="For a new project, its id in Keystone. By default, the project gets a new id.",
        json_schema_extra={"pattern": "^[0-9a-f]{32}$"},
    )
    description: str = Field(default="", json_schema_extra={"maxLength": 255})
    enabled: bool = Field(
        default=True,
        description=f"Roles in a disabled project have no effect, and the tokens for this project end. {KEPT}",
    )
    labels: Labels = Field(default={}, description=LABELS)


class UserRequest(ResourceBody):
    """The desired state of a user."""

    enabled: bool = Field(default=True, description=f"Disabling revokes all certificates of the user. {KEPT}")
    labels: Labels = Field(default={}, description=LABELS)
    password: str | None = Field(
        default=None,
        description="Only for a new user. A user without a password can use only access keys.",
        json_schema_extra={"minLength": 8, "maxLength": 1024},
    )


class GroupRequest(ResourceBody):
    """The desired state of a group."""

    labels: Labels = Field(default={}, description=LABELS)


class DomainBody(ResponseBody):
    """A domain, which owns projects, users and groups."""

    id: str
    name: str
    enabled: bool


class _InDomain(ResponseBody):
    id: str
    name: str
    domain: str = Field(validation_alias=AliasPath("domain", "name"))
    domain_id: str = Field(validation_alias=AliasPath("domain", "id"))
    labels: SortedStrings


class ProjectBody(_InDomain):
    """A project, which owns clusters."""

    description: str
    enabled: bool


class UserBody(_InDomain):
    """A user. The user's certificates contain the id."""

    enabled: bool


class GroupBody(_InDomain):
    """A group of users, who have the group's roles."""


class DomainListBody(PageBody):
    """A page of domains, sorted by id."""

    domains: list[DomainBody]


class LoginCountsBody(ResponseBody):
    """The logins that end if a domain or project is disabled, including expired logins."""

    sessions: int = Field(description="Sessions of the console. 0 for a project.")
    tokens: int = Field(description="For a domain, the tokens of its users and the tokens for its projects.")
    temporary_keys: int = Field(description="Temporary access keys. 0 for a project.")


class ProjectListBody(PageBody):
    """A page of projects, sorted by id."""

    projects: list[ProjectBody]


class UserListBody(PageBody):
    """A page of users, sorted by id."""

    users: list[UserBody]


class GroupListBody(PageBody):
    """A page of groups, sorted by id."""

    groups: list[GroupBody]


_MAX_NAMES = 10


async def directory(services: ServicesDep) -> Directory:
    return services.identity.directory


DirectoryDep = Annotated[Directory, Depends(directory)]


async def home_domain(
    call: CallDep,
    domain: Annotated[
        str | None,
        Query(
            description="The name or id of the domain in which names in the path are looked up. By default, the"
            " caller's domain."
        ),
    ] = None,
) -> Domain:
    """Return the domain in which a request looks up names and creates objects. Raises NotFound or InvalidRequest.

    Users of an OIDC issuer are in no domain of this service. Such users must send the name of a domain, unless the path
    has an id.
    """
    directory = call.services.identity.directory
    if domain is not None:
        return await directory.find_domain(domain)
    if call.caller.issuer == BUILT_IN or is_id(call.request.path_params.get("name", "")):
        return call.caller.user.domain
    names = ", ".join(each.name for each in (await directory.queries.domains())[:_MAX_NAMES])
    raise InvalidRequest(
        f"domain: you are in no domain of this service. Choose one of these domains: {names}."
    )


DomainDep = Annotated[Domain, Depends(home_domain)]


async def only_domain(
    directory: DirectoryDep,
    domain: Annotated[
        str | None, Query(description="List only objects in the domain with this name or id.")
    ] = None,
) -> Domain | None:
    """Return the domain to which a list is restricted, or None for all domains. Raises NotFound."""
    return await directory.find_domain(domain) if domain is not None else None


OnlyDomainDep = Annotated[Domain | None, Depends(only_domain)]


async def project_by_id(call: Call, project_id: str) -> Project:
    """Return a project. Raises NotFound if no project has this id."""
    if not is_id(project_id):
        raise NotFound
    return await call.services.identity.directory.find_project(project_id)


def new_name(text: str) -> str:
    """Return the name for a new object. Raises NotFound for an id, because an object's id can't be chosen."""
    if is_id(text):
        raise NotFound(f"There is no object with the id {text}.")
    return text


DOMAINS = OWN + "/domains"
DOMAIN = DOMAINS + "/{name}"

router = APIRouter(tags=["Administration"])


@router.get(DOMAINS, responses=changes.listed(DomainListBody))
async def list_domains(_call: OperatorCall, directory: DirectoryDep, page: KeyPageDep) -> Response:
    """List the domains. Sorted by id. Only for operators."""
    views = [DomainBody.render(each) for each in await directory.queries.domains()]
    return responses.private(sorted_page("domains", views, page))


@router.get(DOMAIN, responses=changes.one(DomainBody))
async def show_domain(_call: OperatorCall, directory: DirectoryDep, name: str) -> Response:
    """Show a domain. `name` is a name or id. Only for operators."""
    return changes.shown(DomainBody.render(await directory.find_domain(name)))


@router.put(
    DOMAIN,
    responses=changes.replaced(DomainBody),
    openapi_extra=json_body(DomainRequest, limit=8 * KIB),
)
async def put_domain(change: OperatorChange, directory: DirectoryDep, name: str) -> Response:
    """Create or change a domain.

    `name` is the name or, for an existing domain, the name or id. Only for operators.
    """
    actor = change.call.caller.actor

    async def save(before: Domain | None, current: JsonObject | None) -> Domain:
        enabled = change.body(DomainRequest, current).enabled
        if before is not None:
            return await directory.update_domain(before, enabled=enabled, actor=actor)
        return await directory.create_domain(new_name(name), enabled=enabled, actor=actor)

    return await changes.put(change, lambda: directory.find_domain(name), save, DomainBody.render)


@router.delete(DOMAIN, status_code=204, responses=changes.deleted())
async def delete_domain(change: OperatorChange, directory: DirectoryDep, name: str) -> Response:
    """Delete a domain. The domain must have no projects, users or groups. Only for operators."""

    async def remove(found: Domain) -> None:
        await directory.remove_domain(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: directory.find_domain(name), remove, DomainBody.render)


_COUNTED = changes.one(LoginCountsBody)


@router.get(DOMAIN + "/logins", responses=_COUNTED)
async def count_logins_of_domain(_call: OperatorCall, directory: DirectoryDep, name: str) -> Response:
    """Count the logins that end if the domain is disabled. Only for operators."""
    counts = await directory.queries.count_logins(await directory.find_domain(name))
    return responses.private(LoginCountsBody.render(counts))


@router.get(OWN + "/projects/{name}/logins", responses=_COUNTED)
async def count_logins_of_project(
    _call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep
) -> Response:
    """Count the logins that end if the project is disabled. Only for operators."""
    counts = await directory.queries.count_logins(await directory.find_project(name, domain))
    return responses.private(LoginCountsBody.render(counts))


E = TypeVar("E", bound=Project | User | Group)


@dataclass(frozen=True, slots=True)
class Kind(Generic[E]):
    """A kind of object in a domain, and the methods of the directory that manage objects of this kind.

    Attributes:
        plural: the kind's name in paths, such as `users`.
        request, body, list_body: the models of the bodies.
        create: creates an object, given its name, its domain and the fields of the request.
        update: changes an object, given the object and the fields of the request.
    """

    of: type[E]
    plural: str
    request: type[ResourceBody]
    body: type[ResponseBody]
    list_body: type[BaseModel]
    find: Callable[[Directory, str, Domain | None], Awaitable[E]]
    create: Callable[..., Awaitable[E]]
    update: Callable[..., Awaitable[E]]


def add_routes(kind: Kind[E]) -> None:
    """Add the routes that list, show and change objects of a kind."""

    async def list_all(
        _call: OperatorCall,
        directory: DirectoryDep,
        page: KeyPageDep,
        domain: OnlyDomainDep,
        name: Annotated[str | None, Query(description="List only objects with this name.")] = None,
    ) -> Response:
        read = functools.partial(directory.page, kind.of, domain, name)
        return responses.private(await keyset_page(kind.plural, read, kind.body.render, page))

    async def show(_call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep) -> Response:
        return changes.shown(kind.body.render(await kind.find(directory, name, domain)))

    async def put(change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep) -> Response:
        actor = change.call.caller.actor

        async def save(before: E | None, current: JsonObject | None) -> E:
            fields = change.body(kind.request, current).model_dump()
            if before is not None:
                return await kind.update(directory, before, **fields, actor=actor)
            return await kind.create(directory, new_name(name), domain, **fields, actor=actor)

        return await changes.put(change, lambda: kind.find(directory, name, domain), save, kind.body.render)

    _register(kind, list_all, show, put)


def _register(
    kind: Kind[E],
    list_all: Callable[..., Awaitable[Response]],
    show: Callable[..., Awaitable[Response]],
    put: Callable[..., Awaitable[Response]],
) -> None:
    """Register the route functions with their paths and descriptions."""
    noun, path = kind.of.__name__.lower(), f"{OWN}/{kind.plural}"
    operators = " Only for operators."
    router.get(
        path,
        responses=changes.listed(kind.list_body),
        description=f"List the {kind.plural}. Sorted by id.{operators}",
    )(list_all)
    path += "/{name}"
    kept = ", except `enabled`, which stays as it is" if "enabled" in kind.request.model_fields else ""
    router.get(
        path,
        responses=changes.one(kind.body),
        description=f"Show a {noun}. `name` is a name or id.{operators}",
    )(show)
    router.put(
        path,
        responses=changes.replaced(kind.body),
        openapi_extra=json_body(kind.request, limit=48 * KIB),
        description=f"Create or change a {noun}. `name` is the name or, for an existing {noun}, the name or id. Fields"
        f" that are not sent get their defaults{kept}.{operators}",
    )(put)


def add_deletion(kind: Kind[E], remove: Callable[..., Awaitable[None]], text: str) -> None:
    """Add the route that deletes objects of a kind.

    Args:
        text: the conditions and effects of the deletion, for the API documentation.
    """

    async def delete(
        change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
    ) -> Response:
        actor = change.call.caller.actor

        async def remove_found(found: E) -> None:
            await remove(directory, found, actor=actor)

        return await changes.delete(
            change, lambda: kind.find(directory, name, domain), remove_found, kind.body.render
        )

    router.delete(
        f"{OWN}/{kind.plural}/{{name}}",
        status_code=204,
        responses=changes.deleted(),
        description=f"Delete a {kind.of.__name__.lower()}. {text} Only for operators.",
    )(delete)


async def _create_project(directory: Directory, name: str, domain: Domain, **fields: Any) -> Project:
    return await directory.create_project(name, domain, project_id=fields.pop("id"), **fields)


async def _update_project(directory: Directory, before: Project, **fields: Any) -> Project:
    if fields.pop("id") not in {None, before.id}:
        raise InvalidRequest(
            "id: this field can't be changed. Send its present value, or leave the field out."
        )
    return await directory.update_project(before, **fields)


async def _update_user(directory: Directory, before: User, *, password: str | None, **fields: Any) -> User:
    """Change a user.

    Raises InvalidRequest if the request contains a new password, so that no PUT changes a password by accident.
    """
    if password is not None and not await directory.has_password(before, password):
        raise InvalidRequest(
            "password: the user exists. Change the password with PUT /users/{name}/password."
        )
    return await directory.update_user(before, **fields)


_PROJECTS = Kind(
    Project,
    "projects",
    ProjectRequest,
    ProjectBody,
    ProjectListBody,
    Directory.find_project,
    _create_project,
    _update_project,
)
add_routes(_PROJECTS)
add_deletion(
    _PROJECTS,
    Directory.remove_project,
    "The project must have no clusters. Also deletes the project's role assignments and tokens.",
)
_USERS = Kind(
    User,
    "users",
    UserRequest,
    UserBody,
    UserListBody,
    Directory.find_user,
    Directory.create_user,
    _update_user,
)
add_routes(_USERS)
add_deletion(
    _USERS,
    Directory.remove_user,
    "Also revokes the user's certificates, and deletes their tokens, access keys, roles and memberships.",
)
add_routes(
    Kind(
        Group,
        "groups",
        GroupRequest,
        GroupBody,
        GroupListBody,
        Directory.find_group,
        Directory.create_group,
        Directory.update_group,
    )
)


@router.delete(OWN + "/groups/{name}", responses=changes.role_lost())
async def delete_group(
    change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep, revoke: Revoke = None
) -> Response:
    """Delete a group. Only for operators.

    The members lose the group's roles. The answer counts the members' certificates in the projects in which the group
    has a role.
    """
    group = await directory.find_group(name, domain)

    async def remove(found: Group) -> None:
        await directory.remove_group(found, actor=change.call.caller.actor)

    loss = RoleLoss(change, LostRole(group_id=group.id), "group.removed", revoke is not None)
    return await loss.carry_out(
        lambda: changes.delete(change, lambda: directory.find_group(group.id), remove, GroupBody.render)
    )


MEMBERS = OWN + "/groups/{name}/members"
MEMBER = MEMBERS + "/{user}"


class PasswordRequest(ResourceBody):
    """A new password."""

    password: str = Field(json_schema_extra={"minLength": 8, "maxLength": 1024})


class MemberListBody(PageBody):
    """A page of users, sorted by id."""

    members: list[UserBody]


@router.put(
    OWN + "/users/{name}/password",
    status_code=204,
    responses=changes.done("Changed."),
    openapi_extra=json_body(PasswordRequest, limit=8 * KIB),
)
async def set_password(
    change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
) -> Response:
    """Set a user's password. Also deletes the user's tokens and temporary access keys. Only for operators."""
    user = await directory.find_user(name, domain)
    change.check(UserBody.render(user))
    password = change.body(PasswordRequest, None).password
    with change.transactions():
        await directory.set_password(user, password, actor=change.call.caller.actor)
    return Response(status_code=204)


@router.get(OWN + "/users/{name}/projects", responses=changes.listed(ProjectListBody))
async def list_projects(
    call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the projects in which a user has a role, directly or through a group. Sorted by id. Only for operators."""
    user = await directory.find_user(name, domain)
    found = await call.services.identity.roles.queries.projects_of(user.id)
    return responses.private(sorted_page("projects", map(ProjectBody.render, found), page))


@router.get(MEMBERS, responses=changes.listed(MemberListBody))
async def list_members(
    _call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the members of a group. Sorted by id. Only for operators."""
    group = await directory.find_group(name, domain)
    read = functools.partial(directory.queries.member_page, group.id)
    return responses.private(await keyset_page("members", read, UserBody.render, page))


@router.put(MEMBER, responses=changes.replaced(UserBody))
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

    return await changes.put(change, lambda: directory.find_member(group, member), save, UserBody.render)


@router.delete(MEMBER, responses=changes.role_lost())
async def remove_member(
    change: OperatorChange,
    directory: DirectoryDep,
    name: str,
    user: str,
    domain: DomainDep,
    revoke: Revoke = None,
) -> Response:
    """Remove a user from a group. Only for operators.

    The answer counts the user's certificates in the projects in which the group has a role.
    """
    group, member = await directory.find_group(name, domain), await directory.find_user(user, domain)

    async def remove(found: User) -> None:
        await directory.remove_member(group, found, actor=change.call.caller.actor)

    loss = RoleLoss(change, LostRole((member.id,), group.id), "group.member_removed", revoke is not None)
    return await loss.carry_out(
        lambda: changes.delete(change, lambda: directory.find_member(group, member), remove, UserBody.render)
    )
