"""Queries for roles, and for users with their groups and their roles in one project."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    insert,
    literal,
    null,
    or_,
    select,
    union,
    union_all,
)
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent, Caller, Group, Origin, Project, Role, RoleAssignment, User, new_id
from clustercert.store import tables
from clustercert.store.engine.queries import Queries, conflict_if_violated, insert_once
from clustercert.store.engine.transaction import Transaction
from clustercert.store.identity.entities import ALL, TABLES, Reference, entity_columns, entity_of, in_domains
from clustercert.store.tables import Hex

_role, _assignment, _service = tables.role, tables.role_assignment, tables.service_role
_project, _domain, _member, _user = tables.project, tables.domain, tables.group_member, tables.user
_group = tables.group


@dataclass(frozen=True, slots=True)
class UserRoles:
    """A user's groups, and the user's roles sorted by name.

    Disabled projects, and projects and groups in disabled domains, are left out.
    """

    by_project: Mapping[str, tuple[Role, ...]]
    service: tuple[Role, ...]
    groups: tuple[Group, ...] = ()


class RoleQueries(Queries):
    """Reads and changes roles and their assignments. Changes to assignments invalidate caches."""

    async def roles(self) -> tuple[Role, ...]:
        """Return all roles, sorted by name."""
        rows = await self._rows(select(*entity_columns(Role)).order_by(_role.c.name))
        return tuple(entity_of(Role, row) for row in rows)

    async def ensure(self, names: Iterable[str]) -> None:
        """Create the roles that do not exist yet."""
        async with self._database.transaction() as connection:
            for name in names:
                await _ensure_role(connection, name)

    async def add(self, role: Role, event: AuditEvent) -> None:
        """Add a role. Raises Conflict if the name is taken."""
        with conflict_if_violated(f"There is a role {role.name} already."):
            async with self._database.transaction(event) as connection:
                await connection.execute(insert(_role).values(id=role.id, name=role.name))

    async def remove(self, role: Role, event: AuditEvent) -> None:
        """Delete a role. Raises NotFound if the role does not exist, or Conflict if the role is assigned."""
        with conflict_if_violated(f"The role {role.name} is assigned. Remove its assignments first."):
            await self._change(delete(_role).where(_role.c.id == role.id), event)

    async def assign(self, actor_id: str, project_id: str | None, role_id: str, event: AuditEvent) -> bool:
        """Assign a role in a project or, if `project_id` is `None`, in the whole service.

        Returns False, and does nothing, if the role is already assigned. Raises ConcurrentChange if the role, the
        project, or the user or group was deleted.
        """
        table, row = _assignment_row(actor_id, project_id)
        with conflict_if_violated():
            async with self._database.transaction() as connection:
                return await insert_once(connection, table, row | {"role_id": role_id}, event)

    async def unassign(self, actor_id: str, project_id: str | None, role: str, event: AuditEvent) -> None:
        """Remove an assignment. Raises NotFound if there is no such assignment."""
        table, row = _assignment_row(actor_id, project_id)
        role_id = select(_role.c.id).where(_role.c.name == role).scalar_subquery()
        query = delete(table).filter_by(**row).where(table.c.role_id == role_id)
        await self._change(query, event, f"The role {role} is not assigned to this user or group.")

    async def projects_of(self, user_id: str) -> tuple[Project, ...]:
        """Return the projects where the user has a role, directly or through a group, sorted by domain and name.

        Includes disabled projects.
        """
        query = _with_role(user_id).order_by(_domain.c.name, _project.c.name)
        return tuple(entity_of(Project, row) for row in await self._rows(query))

    async def in_all_projects(self, user_id: str) -> UserRoles:
        """Return the user's roles in all enabled projects, directly and through groups."""
        async with self._database.read() as connection:
            return await roles_in_all_projects(connection, user_id)

    async def reachable_project(self, user_id: str, reference: Reference) -> Project | None:
        """Return the requested project if the user has a role in it and the reference is unambiguous, else None."""
        rows = await self._rows(_with_role(user_id, reference))
        return entity_of(Project, rows[0]) if len(rows) == 1 else None

    async def in_service(self) -> tuple[RoleAssignment, ...]:
        """Return the direct assignments of roles in the whole service."""
        found: list[RoleAssignment] = []
        async with self._database.read() as connection:
            for actor in (User, Group):
                rows = await connection.execute(_assigned(actor, _service))
                found += [_role_assignment(actor, row, None) for row in rows]
        return tuple(found)

    async def assignments(
        self, *, actor_id: str | None = None, project_id: str | None = None
    ) -> tuple[RoleAssignment, ...]:
        """Return direct assignments, optionally only for one user or group, or only in one project."""
        found: list[RoleAssignment] = []
        async with self._database.read() as connection:
            for actor in (User, Group):
                of_actor = () if actor_id is None else (TABLES[actor].c.id == actor_id,)
                in_project = () if project_id is None else (_project.c.id == project_id,)
                rows = await connection.execute(_assigned_in_projects(actor).where(*of_actor, *in_project))
                found += [_role_assignment(actor, row, entity_of(Project, row)) for row in rows]
                if project_id is None:
                    in_service = _assigned(actor, _service).where(*of_actor)
                    rows = await connection.execute(in_service.order_by(TABLES[actor].c.name, _role.c.name))
                    found += [_role_assignment(actor, row, None) for row in rows]
        return tuple(found)


def _assignment_row(actor_id: str, project_id: str | None) -> tuple[Table, dict[str, str]]:
    """Return the table for an assignment, and the values of its columns except the role."""
    if project_id is None:
        return _service, {"actor_id": actor_id}
    return _assignment, {"actor_id": actor_id, "project_id": project_id}


def _role_assignment(
    actor: type[User] | type[Group], row: Row[Any], project: Project | None
) -> RoleAssignment:
    return RoleAssignment(entity_of(Role, row), entity_of(actor, row), project)


def _with_role(user_id: str, reference: Reference = ALL) -> Select[Any]:
    """Select the projects in which the user has a role, directly or through a group."""
    with_role = select(_assignment.c.project_id).where(
        _assignment.c.actor_id.in_(_user_and_groups(literal(user_id)))
    )
    return in_domains(Project, reference).where(_project.c.id.in_(with_role))


async def roles_in_all_projects(connection: Transaction, user_id: str) -> UserRoles:
    """Return a user's roles in all projects, directly and through groups."""
    rows = await connection.execute(_ROLES_IN_ALL_PROJECTS, {"user_id": user_id})
    return _roles_by_project(rows, await _groups(connection, user_id))


async def roles_in_project(connection: Transaction, user_id: str, project_id: str | None) -> UserRoles:
    """Return a user's roles in one project, directly and through groups.

    Without a project, returns only service roles.
    """
    # In SQL, no value equals NULL. So if `project_id` is None, the query finds no project roles.
    values = {"user_id": user_id, "project_id": project_id}
    rows = await connection.execute(_ROLES_IN_PROJECT, values)
    return _roles_by_project(rows, await _groups(connection, user_id))


async def _groups(connection: Transaction, user_id: str) -> tuple[Group, ...]:
    rows = await connection.execute(_GROUPS, {"user_id": user_id})
    groups = (entity_of(Group, row) for row in rows)
    return tuple(sorted(groups, key=lambda group: (group.name, group.id)))


def _roles_query(*projects: ColumnElement[bool]) -> CompoundSelect[Any]:
    """Select a user's roles in the projects that meet the conditions, and in the whole service."""
    actors = _user_and_groups(bindparam("user_id", type_=Hex))
    in_projects = (
        select(*entity_columns(Role), _assignment.c.project_id)
        .join(_role, _role.c.id == _assignment.c.role_id)
        .join(_project, _project.c.id == _assignment.c.project_id)
        .join(_domain, _domain.c.id == _project.c.domain_id)
        .where(_assignment.c.actor_id.in_(actors), _project.c.enabled, _domain.c.enabled, *projects)
    )
    in_service = (
        select(*entity_columns(Role), null())
        .join(_role, _role.c.id == _service.c.role_id)
        .where(_service.c.actor_id.in_(actors))
    )
    # UNION removes duplicates, because a user may have a role both directly and through a group.
    return union(in_projects, in_service)


def _roles_by_project(rows: Iterable[Row[Any]], groups: tuple[Group, ...]) -> UserRoles:
    by_project: dict[str | None, list[Role]] = {}
    # Sort the roles here, because databases differ in how they compare strings.
    for row in sorted(rows, key=lambda row: row.role_name):
        by_project.setdefault(row.project_id, []).append(entity_of(Role, row))
    service = tuple(by_project.pop(None, ()))
    in_projects = {project: tuple(roles) for project, roles in by_project.items() if project}
    return UserRoles(in_projects, service, groups)


def _assigned(kind: type[User] | type[Group], assignment: Table) -> Select[Any]:
    """Select the role assignments in a table, each with its role and its user or group."""
    actor, domain = TABLES[kind], _domain.alias("actors_domain")
    return (
        select(*entity_columns(Role), *entity_columns(kind, domain=domain))
        .select_from(assignment)
        .join(_role, _role.c.id == assignment.c.role_id)
        .join(actor, actor.c.id == assignment.c.actor_id)
        .join(domain, domain.c.id == actor.c.domain_id)
    )


def _assigned_in_projects(kind: type[User] | type[Group]) -> Select[Any]:
    return (
        _assigned(kind, _assignment)
        .add_columns(*entity_columns(Project))
        .join(_project, _project.c.id == _assignment.c.project_id)
        .join(_domain, _domain.c.id == _project.c.domain_id)
        .order_by(_domain.c.name, _project.c.name, TABLES[kind].c.name, _role.c.name)
    )


def _user_and_groups(user_id: ColumnElement[str]) -> CompoundSelect[Any]:
    """Select the ids of a user and of their groups, except groups in disabled domains."""
    return union_all(select(user_id), effective_groups(_member.c.user_id == user_id))


def effective_groups(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the group ids of memberships that meet the conditions, except groups in disabled domains."""
    # Use an alias, because enclosing queries select from `domain` too.
    domain = _domain.alias("groups_domain")
    return (
        select(_member.c.group_id)
        .join(tables.group, tables.group.c.id == _member.c.group_id)
        .join(domain, domain.c.id == tables.group.c.domain_id)
        .where(domain.c.enabled, *conditions)
    )


async def _ensure_role(connection: Transaction, name: str) -> None:
    """Create a role if it does not exist."""
    query = select(_role.c.id).where(_role.c.name == name)
    if (await connection.execute(query)).scalar() is None:
        # Another process may have just created the role.
        with contextlib.suppress(IntegrityError):
            await connection.run_sync(_insert_role, new_id(), name)


def _insert_role(connection: Connection, role_id: str, name: str) -> None:
    """Insert a role in a savepoint, so that the transaction stays usable if the role exists."""
    with connection.begin_nested():
        connection.execute(insert(_role).values(id=role_id, name=name))


_ROLES_IN_ALL_PROJECTS = _roles_query()
_ROLES_IN_PROJECT = _roles_query(_assignment.c.project_id == bindparam("project_id"))
_GROUPS = (
    in_domains(Group, ALL)
    .join(_member, _member.c.group_id == tables.group.c.id)
    .where(_member.c.user_id == bindparam("user_id", type_=Hex), _domain.c.enabled)
)


@dataclass(frozen=True, slots=True)
class Member:
    """A user, with the same roles and groups as when the user authenticates.

    Attributes:
        roles: names of the user's roles in the project, sorted; empty if the project is disabled.
        service_roles: names of the user's service roles, sorted.
        groups: sorted by name.
    """

    user: User
    roles: tuple[str, ...]
    service_roles: tuple[str, ...]
    groups: tuple[Group, ...]

    def as_caller(self, project_id: str, origin: Origin) -> Caller:
        """Return the user as the caller of a request with a token, with the roles in this project."""
        return Caller(
            user=self.user,
            roles={project_id: self.roles},
            method="token",
            origin=origin,
            service_roles=self.service_roles,
            groups=self.groups,
        )


class MemberQueries(Queries):
    """Reads users with their roles in a project, directly and through groups."""

    async def member(self, project_id: str, user_id: str) -> Member | None:
        """Return a user, whether or not they have a role in the project, or None if there is no such user."""
        async with self._database.read() as connection:
            rows = await connection.execute(in_domains(User, Reference(id=user_id)))
            found = await _members(connection, project_id, rows)
        return found[0] if found else None

    async def members(self, project_id: str, user_ids: Collection[str]) -> tuple[Member, ...]:
        """Return the users with these ids, whether or not they have a role in the project. Omits unknown ids."""
        async with self._database.read() as connection:
            rows = await connection.execute(in_domains(User, ALL).where(_user.c.id.in_(user_ids)))
            return await _members(connection, project_id, rows)

    async def page(self, project_id: str, *, after: str, limit: int) -> tuple[Member, ...]:
        """Return the enabled users with a role in the project and an id greater than `after`, sorted by id."""
        direct = select(_assignment.c.actor_id).where(_assignment.c.project_id == project_id)
        through_group = effective_groups(_member.c.group_id.in_(direct)).with_only_columns(_member.c.user_id)
        query = in_domains(User, ALL).where(
            _user.c.id > after,
            _user.c.enabled,
            _domain.c.enabled,
            or_(_user.c.id.in_(direct), _user.c.id.in_(through_group)),
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(_user.c.id).limit(limit))
            return await _members(connection, project_id, rows)


async def _members(connection: Transaction, project_id: str, rows: Iterable[Row[Any]]) -> tuple[Member, ...]:
    users = [entity_of(User, row) for row in rows]
    ids = [user.id for user in users]
    groups = _by_user(await connection.execute(_groups_of(ids)))
    roles = _by_user(await connection.execute(_roles(ids, project_id)))
    service_roles = _by_user(await connection.execute(_service_roles(ids)))
    return tuple(
        Member(
            user=user,
            roles=tuple(sorted(row.name for row in roles.get(user.id, ()))),
            service_roles=tuple(sorted(row.name for row in service_roles.get(user.id, ()))),
            groups=tuple(
                sorted(
                    (entity_of(Group, row) for row in groups.get(user.id, ())),
                    key=lambda group: (group.name, group.id),
                )
            ),
        )
        for user in users
    )


def _by_user(rows: Iterable[Row[Any]]) -> Mapping[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in rows:
        found.setdefault(row.user_id, []).append(row)
    return found


def _groups_of(ids: Collection[str]) -> Select[Any]:
    return (
        in_domains(Group, ALL)
        .add_columns(_member.c.user_id)
        .join(_member, _member.c.group_id == _group.c.id)
        .where(_member.c.user_id.in_(ids), _domain.c.enabled)
    )


def _roles(ids: Collection[str], project_id: str) -> CompoundSelect[Any]:
    in_project = (
        select(_assignment.c.actor_id, _role.c.name)
        .join(_role, _role.c.id == _assignment.c.role_id)
        .join(_project, _project.c.id == _assignment.c.project_id)
        .join(_domain, _domain.c.id == _project.c.domain_id)
        .where(_assignment.c.project_id == project_id, _project.c.enabled, _domain.c.enabled)
    )
    return _of_users(in_project, ids)


def _service_roles(ids: Collection[str]) -> CompoundSelect[Any]:
    return _of_users(
        select(_service.c.actor_id, _role.c.name).join(_role, _role.c.id == _service.c.role_id), ids
    )


def _of_users(assigned: Select[Any], ids: Collection[str]) -> CompoundSelect[Any]:
    """Select the user ids and role names of assignments to users, directly and through groups."""
    found = assigned.subquery()
    direct = select(found.c.actor_id.label("user_id"), found.c.name).where(found.c.actor_id.in_(ids))
    through_group = (
        effective_groups(_member.c.user_id.in_(ids))
        .join(found, found.c.actor_id == _member.c.group_id)
        .with_only_columns(_member.c.user_id, found.c.name)
    )
    # UNION removes duplicates, because a user may have a role both directly and through a group.
    return union(direct, through_group)
