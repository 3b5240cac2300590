"""Routes that manage roles (only for operators), and routes that assign roles.

Admins of a project and operators assign roles in the project. Only operators assign roles in the whole service. Admins
have access only to users and groups that are in their project's domain or already have a role in the project.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import Response

from clustercert.http import IN_PROJECT, OWN, responses
from clustercert.http.administration import changes
from clustercert.http.administration.changes import (
    AdminCall,
    AdminChange,
    ChangeRequest,
    OperatorCall,
    OperatorChange,
    Revoke,
    RoleLoss,
)
from clustercert.http.administration.directory import (
    DirectoryDep,
    DomainDep,
    OnlyDomainDep,
    new_name,
    project_by_id,
)
from clustercert.http.dependencies import Call
from clustercert.http.paging import KeyPageDep, PageBody, sorted_page
from clustercert.http.responses import ResponseBody
from clustercert.identity.names import searchable
from clustercert.model import Domain, Group, JsonObject, Project, Role, RoleAssignment, User
from clustercert.model.errors import ConcurrentChange, Forbidden, InvalidRequest, NotFound
from clustercert.model.ids import is_id
from clustercert.model.rights import PROJECT_ROLES, SERVICE_ROLES, may_assign, may_unassign, operates
from clustercert.model.suggestion import did_you_mean
from clustercert.store.certificates.access_controls import LostRole

ROLES = OWN + "/roles"
ROLE = ROLES + "/{name}"


class RoleBody(ResponseBody):
    """A role, which the policy maps to Kubernetes groups."""

    id: str
    name: str


class RoleListBody(PageBody):
    """A page of roles, sorted by id."""

    roles: list[RoleBody]


router = APIRouter(tags=["Administration"])


@router.get(ROLES, responses=changes.listed(RoleListBody))
async def list_roles(call: OperatorCall, page: KeyPageDep) -> Response:
    """List the roles. Sorted by id. Only for operators."""
    views = [RoleBody.render(each) for each in await call.services.identity.roles.queries.roles()]
    return responses.private(sorted_page("roles", views, page))


@router.get(ROLE, responses=changes.one(RoleBody))
async def show_role(call: OperatorCall, name: str) -> Response:
    """Show a role. `name` is a name or id. Only for operators."""
    return changes.shown(RoleBody.render(await call.services.identity.roles.find(name)))


@router.put(ROLE, responses=changes.replaced(RoleBody))
async def put_role(change: OperatorChange, name: str) -> Response:
    """Create a role. The request needs no body. Only for operators."""
    roles = change.call.services.identity.roles

    async def save(before: Role | None, current: JsonObject | None) -> Role:
        change.require_unchanged(current)
        return before or await roles.create(new_name(name), actor=change.call.caller.actor)

    return await changes.put(change, lambda: roles.find(name), save, RoleBody.render)


@router.delete(ROLE, status_code=204, responses=changes.deleted())
async def delete_role(change: OperatorChange, name: str) -> Response:
    """Delete a role. The role must be neither assigned nor built in. Only for operators."""
    roles = change.call.services.identity.roles

    async def remove(found: Role) -> None:
        await roles.remove(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: roles.find(name), remove, RoleBody.render)


IN_SERVICE = OWN + "/assignments"
OF_PROJECT = IN_PROJECT + "/assignments"
_ONE = "/{role}/{assignees}/{name}"


class AssignmentBody(ResponseBody):
    """A role that a user or group has in a project or in the whole service."""

    id: str
    role: str
    assignee: Literal["user", "group"]
    assignee_id: str
    name: str = Field(description="The name of the user or group.")
    domain: str
    domain_id: str
    project: str | None = Field(description="Null for a role in the whole service.")
    project_id: str | None
    project_domain: str | None = Field(description="The name of the project's domain.")

    @classmethod
    def render(cls, source: RoleAssignment, **_others: object) -> JsonObject:
        """Return the JSON object of an assignment."""
        role, actor, project = source.role, source.actor, source.project
        body = cls(
            id=f"{actor.id}:{role.id}" + (f":{project.id}" if project is not None else ""),
            role=role.name,
            assignee="user" if isinstance(actor, User) else "group",
            assignee_id=actor.id,
            name=actor.name,
            domain=actor.domain.name,
            domain_id=actor.domain.id,
            project=project.name if project is not None else None,
            project_id=project.id if project is not None else None,
            project_domain=project.domain.name if project is not None else None,
        )
        return body.model_dump()


class AssignmentListBody(PageBody):
    """A page of assignments, sorted by id. Roles that users have through groups are not listed."""

    assignments: list[AssignmentBody]


async def own_domain(
    call: AdminCall,
    project_id: str,
    domain: Annotated[
        str | None,
        Query(
            description="The name or id of the user's or group's domain. By default, the project's domain."
        ),
    ] = None,
) -> Domain:
    """Return the domain in which to find the user or group. Raises NotFound if an admin has no access to the domain."""
    project = await project_by_id(call, project_id)
    if domain is None or domain in {project.domain.id, project.domain.name}:
        return project.domain
    if not operates(call.caller):
        raise NotFound(f"There is no domain {domain}.")
    return await call.services.identity.directory.find_domain(domain)


OwnDomainDep = Annotated[Domain, Depends(own_domain)]


@router.get(OF_PROJECT, responses=changes.listed(AssignmentListBody))
async def list_in_project(call: AdminCall, project_id: str, page: KeyPageDep) -> Response:
    """List the role assignments in a project. Sorted by id. Only for project admins and operators."""
    return _list(await _assignments(call, await project_by_id(call, project_id)), page)


@router.get(OF_PROJECT + _ONE, responses=changes.one(AssignmentBody))
async def show_in_project(
    call: AdminCall, project_id: str, role: str, assignees: str, name: str, domain: OwnDomainDep
) -> Response:
    """Show an assignment in a project. `assignees` is `users` or `groups`. Only for project admins and operators."""
    project = await project_by_id(call, project_id)
    return changes.shown(AssignmentBody.render(await _find(call, project, role, assignees, name, domain)))


@router.put(OF_PROJECT + _ONE, responses=changes.replaced(AssignmentBody))
async def assign_in_project(
    change: AdminChange, project_id: str, role: str, assignees: str, name: str, domain: OwnDomainDep
) -> Response:
    """Assign a role in a project. `assignees` is `users` or `groups`. The request has no body.

    Project admins may assign the roles admin, member and reader, and roles that they have themselves.
    """
    project = await project_by_id(change.call, project_id)
    role = await _role_name(change.call, role)
    _require_assignable(change.call, project, role)
    return await _assign(change, project, role, assignees, name, domain)


@router.delete(OF_PROJECT + _ONE, responses=changes.role_lost())
async def unassign_in_project(
    change: AdminChange,
    project_id: str,
    role: str,
    assignees: str,
    name: str,
    domain: OwnDomainDep,
    revoke: Revoke = None,
) -> Response:
    """Remove an assignment in a project. `assignees` is `users` or `groups`.

    Project admins may remove the roles admin, member and reader. The answer counts the certificates of the user, or of
    the group's members, in the project.
    """
    project = await project_by_id(change.call, project_id)
    role = await _role_name(change.call, role)
    if not may_unassign(change.call.caller, role):
        raise Forbidden(f"role: only operators may remove the role {role}.")
    assigned = (await _find(change.call, project, role, assignees, name, domain)).actor
    users, group = ((assigned.id,), None) if isinstance(assigned, User) else (None, assigned.id)
    loss = RoleLoss(change, LostRole(users, group, (project.id,)), "role.unassigned", revoke is not None)
    return await loss.carry_out(lambda: _unassign(change, project, role, assignees, name, domain))


@router.get(IN_SERVICE, responses=changes.listed(AssignmentListBody))
async def list_everywhere(
    call: OperatorCall,
    directory: DirectoryDep,
    page: KeyPageDep,
    domain: OnlyDomainDep,
    user: Annotated[str | None, Query(description="Only assignments to this user, by name or id.")] = None,
    group: Annotated[str | None, Query(description="Only assignments to this group, by name or id.")] = None,
    scope: Annotated[
        Literal["service"] | None, Query(description="`service`: only assignments in the whole service.")
    ] = None,
) -> Response:
    """List the role assignments in all projects and in the whole service. Sorted by id. Only for operators.

    `domain` is the domain of the user or group.
    """
    if user is not None and group is not None:
        raise InvalidRequest("user, group: send only one of them.")
    assignee: User | Group | None = None
    if user is not None:
        assignee = await directory.find_user(user, domain)
    elif group is not None:
        assignee = await directory.find_group(group, domain)
    found = await call.services.identity.roles.assignments(assignee=assignee)
    return _list([each for each in found if scope is None or each.project is None], page)


@router.get(IN_SERVICE + _ONE, responses=changes.one(AssignmentBody))
async def show_in_service(
    call: OperatorCall, role: str, assignees: str, name: str, domain: DomainDep
) -> Response:
    """Show an assignment in the whole service. `assignees` is `users` or `groups`. Only for operators."""
    return changes.shown(AssignmentBody.render(await _find(call, None, role, assignees, name, domain)))


@router.put(IN_SERVICE + _ONE, responses=changes.replaced(AssignmentBody))
async def assign_in_service(
    change: OperatorChange, role: str, assignees: str, name: str, domain: DomainDep
) -> Response:
    """Assign a role in the whole service, such as operator or auditor. Only for operators.

    `assignees` is `users` or `groups`.
    """
    return await _assign(change, None, role, assignees, name, domain)


@router.delete(IN_SERVICE + _ONE, status_code=204, responses=changes.deleted())
async def unassign_in_service(
    change: OperatorChange, role: str, assignees: str, name: str, domain: DomainDep
) -> Response:
    """Remove an assignment in the whole service. `assignees` is `users` or `groups`. Only for operators."""
    return await _unassign(change, None, role, assignees, name, domain)


async def _assign(
    change: ChangeRequest, project: Project | None, role: str, assignees: str, name: str, domain: Domain
) -> Response:
    call = change.call
    assigned = role

    async def save(before: RoleAssignment | None, current: JsonObject | None) -> RoleAssignment:
        nonlocal assigned
        change.require_unchanged(current)
        if before is not None:
            assigned = before.role.name
            return before
        known = await call.services.identity.roles.find(role)
        assigned = known.name
        if project is not None:
            # Check the role's name, because the path may have the role's id, and this id may be the name of a different
            # role that the caller has.
            _require_assignable(call, project, known.name)
        assignee = await _assignee(call, assignees, name, domain)
        if not await call.services.identity.roles.assign(
            known.name, assignee, project, actor=call.caller.actor
        ):
            raise ConcurrentChange
        return RoleAssignment(known, assignee, project)

    response = await changes.put(
        change, lambda: _find(call, project, role, assignees, name, domain), save, AssignmentBody.render
    )
    if warning := _warning(change, project, assigned):
        response.headers["Warning"] = f'299 - "{warning}"'
    return response


async def _role_name(call: Call, role: str) -> str:
    """Return the name of the role with this id. Returns other text, such as a name, unchanged."""
    if not is_id(role):
        return role
    return next(
        (each.name for each in await call.services.identity.roles.queries.roles() if each.id == role), role
    )


def _require_assignable(call: Call, project: Project, role: str) -> None:
    if not may_assign(call.caller, project.id, role):
        similar = did_you_mean(role, {*PROJECT_ROLES, *call.caller.roles_in(project.id)})
        raise Forbidden(f"role: only operators and users with the role {role} may assign this role.{similar}")


def _warning(change: ChangeRequest, project: Project | None, role: str) -> str | None:
    """Return a warning, in ASCII, if the role has no effect."""
    rules = change.call.services.explanations.policy.rules
    if project is None:
        known = " and ".join(SERVICE_ROLES)
        return None if role in SERVICE_ROLES else f"Only the roles {known} have rights in the whole service."
    if any(rule.gives_role_rights(role) for rule in rules):
        return None
    return "No policy rule names this role, so the role grants no certificates."


async def _unassign(
    change: ChangeRequest, project: Project | None, role: str, assignees: str, name: str, domain: Domain
) -> Response:
    call = change.call

    async def remove(found: RoleAssignment) -> None:
        await call.services.identity.roles.unassign(
            found.role.name, found.actor, project, actor=call.caller.actor
        )

    return await changes.delete(
        change, lambda: _find(call, project, role, assignees, name, domain), remove, AssignmentBody.render
    )


def _list(found: Sequence[RoleAssignment], page: KeyPageDep) -> Response:
    return responses.private(sorted_page("assignments", map(AssignmentBody.render, found), page))


async def _assignments(call: Call, project: Project | None) -> Sequence[RoleAssignment]:
    roles = call.services.identity.roles
    return await (roles.assignments(project=project) if project is not None else roles.queries.in_service())


async def _find(
    call: Call, project: Project | None, role: str, assignees: str, name: str, domain: Domain
) -> RoleAssignment:
    """Return an assignment. `role` and `name` are names or ids. Raises NotFound."""
    kind, role_name, assignee_name = _kind(assignees), searchable(role), searchable(name)
    for each in await _assignments(call, project):
        has_role = each.role.name == role_name or each.role.id == role
        by_name = each.actor.name == assignee_name and each.actor.domain.id == domain.id
        if has_role and isinstance(each.actor, kind) and (by_name or each.actor.id == name):
            return each
    raise NotFound(f"The role {role} is not assigned to this user or group.")


async def _assignee(call: Call, assignees: str, name: str, domain: Domain) -> User | Group:
    """Return the user or group in the path.

    Raises NotFound if the name is unknown, or if an admin has no access to the user or group.
    """
    directory = call.services.identity.directory
    find = directory.find_user if _kind(assignees) is User else directory.find_group
    found = await find(name, domain)
    if found.domain.id != domain.id and not operates(call.caller):
        raise NotFound(f"There is no {_kind(assignees).__name__.lower()} {name}.")
    return found


def _kind(assignees: str) -> type[User] | type[Group]:
    """Return the type for the path segment `users` or `groups`. Raises NotFound."""
    match assignees:
        case "users":
            return User
        case "groups":
            return Group
        case _:
            raise NotFound("Write users or groups before the name in the path.")
