"""Queries for users with their groups and their roles in one project, as policy decisions need them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Row, Select, or_, select, union

from clustercert.model import Group, User
from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction
from clustercert.store.entities import ALL, Reference, entity_of, in_domains
from clustercert.store.roles import effective_groups

_user, _group, _member, _role = tables.user, tables.group, tables.group_member, tables.role
_assignment, _service = tables.role_assignment, tables.service_role
_project, _domain = tables.project, tables.domain


@dataclass(frozen=True, slots=True)
class Member:
    """A user, with the same roles and groups as when they authenticate.

    Attributes:
        roles: names of their roles in the project, sorted; empty if the project is disabled.
        service_roles: sorted names.
        groups: sorted by name.
    """

    user: User
    roles: tuple[str, ...]
    service_roles: tuple[str, ...]
    groups: tuple[Group, ...]


class MemberQueries(Queries):
    """Reads users with their roles in a project, directly and through groups."""

    async def member(self, project_id: str, user_id: str) -> Member | None:
        """Return a user, whether or not they have a role in the project, or None if there is no such user."""
        async with self._database.read() as connection:
            rows = await connection.execute(in_domains(User, Reference(id=user_id)))
            found = await _members(connection, project_id, rows)
        return found[0] if found else None

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
    groups = _by_user(await connection.execute(_groups(ids)))
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


def _groups(ids: Collection[str]) -> Select[Any]:
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
