"""Every SQL statement about roles: which there are, who has them where, and what one user may do."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    insert,
    literal,
    null,
    select,
    union,
    union_all,
)
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent, Project, Role, RoleAssignment
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.nouns import (
    Reference,
    change_one,
    changed_meanwhile,
    group_columns,
    group_of,
    insert_once,
    narrowed,
    project_columns,
    project_of,
    projects_query,
    role_columns,
    role_of,
    user_columns,
    user_of,
)
from clustercert.store.transaction import Transaction

_role, _assignment, _service = tables.role, tables.role_assignment, tables.service_role
_project, _domain, _member = tables.project, tables.domain, tables.group_member


@dataclass(frozen=True, slots=True)
class Roles:
    """What a user may do, sorted by role name. Disabled projects and domains don't count."""

    by_project: Mapping[str, tuple[Role, ...]]
    service: tuple[Role, ...]


class RoleRows:
    """Roles and their assignments. Whoever changes one makes every worker forget."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def roles(self) -> tuple[Role, ...]:
        """By name."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(_role.c.id, _role.c.name).order_by(_role.c.name))
            return tuple(Role(id=row.id, name=row.name) for row in rows)

    async def ensure(self, names: Iterable[str]) -> None:
        """Make the roles that are not there yet."""
        async with self._database.write() as connection:
            for name in names:
                await _role_id(connection, name)

    async def assign(self, actor_id: str, project_id: str | None, role: str, event: AuditEvent) -> None:
        """Give a role, made on demand, in a project or, without one, in the whole service. Twice is once."""
        row = (
            {"actor_id": actor_id} if project_id is None else {"actor_id": actor_id, "project_id": project_id}
        )
        table = _service if project_id is None else _assignment
        with changed_meanwhile():
            async with self._database.change(event) as connection:
                row["role_id"] = await _role_id(connection, role)
                await insert_once(connection, table, row)

    async def unassign(self, actor_id: str, project_id: str | None, role: str, event: AuditEvent) -> None:
        """Take a role away. Raises NotFound where it is not given."""
        role_id = select(_role.c.id).where(_role.c.name == role).scalar_subquery()
        if project_id is None:
            query = delete(_service).where(_service.c.actor_id == actor_id, _service.c.role_id == role_id)
        else:
            query = delete(_assignment).where(
                _assignment.c.actor_id == actor_id,
                _assignment.c.project_id == project_id,
                _assignment.c.role_id == role_id,
            )
        async with self._database.change(event) as connection:
            await change_one(connection, query, f"The role {role} is not assigned there.")

    async def projects_of(self, user_id: str) -> tuple[Project, ...]:
        """Where the user, or a group of theirs, has a role; disabled projects too. By domain and name."""
        query = _with_role(user_id).order_by(_domain.c.name, _project.c.name)
        async with self._database.read() as connection:
            return tuple(project_of(row) for row in await connection.execute(query))

    async def reachable_project(self, user_id: str, wanted: Reference) -> Project | None:
        """The project that is meant, if the user has a role in it."""
        query = narrowed(
            _with_role(user_id),
            (_project.c.id, wanted.id),
            (_project.c.name, wanted.name),
            (_project.c.domain_id, wanted.domain_id),
            (_domain.c.name, wanted.domain_name),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            return project_of(row) if row is not None else None

    async def assignments(
        self, *, actor_id: str | None = None, project_id: str | None = None
    ) -> tuple[RoleAssignment, ...]:
        """Direct ones: all, or those of a user or group, in a project, or both."""
        found: list[RoleAssignment] = []
        async with self._database.read() as connection:
            for actor, parse in ((tables.user, user_of), (tables.group, group_of)):
                of_actor = () if actor_id is None else (actor.c.id == actor_id,)
                in_project = () if project_id is None else (_project.c.id == project_id,)
                rows = await connection.execute(_assigned_in_projects(actor).where(*of_actor, *in_project))
                found += [RoleAssignment(role_of(row), parse(row), project_of(row)) for row in rows]
                if project_id is None:
                    rows = await connection.execute(_assigned_in_service(actor).where(*of_actor))
                    found += [RoleAssignment(role_of(row), parse(row), None) for row in rows]
        return tuple(found)


def _with_role(user_id: str) -> Select[Any]:
    """Projects in which the user, or a group of theirs, has a role."""
    with_role = select(_assignment.c.project_id).where(
        _assignment.c.actor_id.in_(_user_and_groups(literal(user_id)))
    )
    return projects_query().where(_project.c.id.in_(with_role))


async def roles_everywhere(connection: Transaction, user_id: str) -> Roles:
    """What a user may do, directly and by groups, in all projects."""
    return _sorted_out(await connection.execute(_ROLES_EVERYWHERE, {"user_id": user_id}))


async def roles_in(connection: Transaction, user_id: str, project_id: str | None) -> Roles:
    """What a user may do, directly and by groups, in one project or, without one, in none."""
    # Nothing equals NULL, so no project is found where there is none.
    values = {"user_id": user_id, "project_id": project_id}
    return _sorted_out(await connection.execute(_ROLES_IN_PROJECT, values))


def _roles_query(*projects: ColumnElement[bool]) -> CompoundSelect[Any]:
    """The roles of the user `user_id`: in the projects for which the conditions hold, and in the whole service."""
    actors = _user_and_groups(bindparam("user_id", type_=tables.Hex))
    in_projects = (
        select(*role_columns(), _assignment.c.project_id)
        .join(_role, _role.c.id == _assignment.c.role_id)
        .join(_project, _project.c.id == _assignment.c.project_id)
        .join(_domain, _domain.c.id == _project.c.domain_id)
        .where(_assignment.c.actor_id.in_(actors), _project.c.enabled, _domain.c.enabled, *projects)
    )
    in_service = (
        select(*role_columns(), null())
        .join(_role, _role.c.id == _service.c.role_id)
        .where(_service.c.actor_id.in_(actors))
    )
    # A role that is held twice, directly and by a group, is one row of the union.
    return union(in_projects, in_service)


def _sorted_out(rows: Iterable[Row[Any]]) -> Roles:
    by_project: dict[str, list[Role]] = {}
    service: list[Role] = []
    for row in rows:
        roles = service if row.project_id is None else by_project.setdefault(row.project_id, [])
        roles.append(role_of(row))
    return Roles({project: _by_name(roles) for project, roles in by_project.items()}, _by_name(service))


def _by_name(roles: list[Role]) -> tuple[Role, ...]:
    # Sorted here, because databases differ in how they compare text.
    return tuple(sorted(roles, key=lambda role: role.name))


def _assigned_in_projects(actor: Table) -> Select[Any]:
    actors_domain, projects_domain = _domain.alias("actors_domain"), _domain.alias("projects_domain")
    return (
        select(*role_columns(), *_actor_columns(actor, actors_domain), *project_columns(projects_domain))
        .select_from(_assignment)
        .join(_role, _role.c.id == _assignment.c.role_id)
        .join(actor, actor.c.id == _assignment.c.actor_id)
        .join(actors_domain, actors_domain.c.id == actor.c.domain_id)
        .join(_project, _project.c.id == _assignment.c.project_id)
        .join(projects_domain, projects_domain.c.id == _project.c.domain_id)
        .order_by(projects_domain.c.name, _project.c.name, actor.c.name, _role.c.name)
    )


def _assigned_in_service(actor: Table) -> Select[Any]:
    return (
        select(*role_columns(), *_actor_columns(actor, _domain))
        .select_from(_service)
        .join(_role, _role.c.id == _service.c.role_id)
        .join(actor, actor.c.id == _service.c.actor_id)
        .join(_domain, _domain.c.id == actor.c.domain_id)
        .order_by(actor.c.name, _role.c.name)
    )


def _actor_columns(actor: Table, domain: FromClause) -> tuple[ColumnElement[Any], ...]:
    return user_columns(domain) if actor is tables.user else group_columns(domain)


def _user_and_groups(user_id: ColumnElement[str]) -> CompoundSelect[Any]:
    return union_all(select(user_id), select(_member.c.group_id).where(_member.c.user_id == user_id))


async def _role_id(connection: Transaction, name: str) -> str:
    """The role's id; the role is made where it is missing."""
    query = select(_role.c.id).where(_role.c.name == name)
    if (role_id := (await connection.execute(query)).scalar()) is not None:
        return str(role_id)
    made = secrets.token_hex(16)
    try:
        await connection.run_sync(_insert_role, made, name)
    except IntegrityError:
        # Another process made it in the meantime.
        return str((await connection.execute(query)).scalar_one())
    return made


def _insert_role(connection: Connection, role_id: str, name: str) -> None:
    """Leaves the transaction usable where the role is there already."""
    with connection.begin_nested():
        connection.execute(insert(_role).values(id=role_id, name=name))


# Made once: putting such a statement together takes longer than running it.
_ROLES_EVERYWHERE = _roles_query()
_ROLES_IN_PROJECT = _roles_query(_assignment.c.project_id == bindparam("project_id"))
