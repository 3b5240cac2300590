"""Every SQL statement about domains, projects, users and groups. Tokens and roles have files of their own."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Insert, Row, Select, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.errors import Conflict
from clustercert.model import AuditEvent, Domain, Group, Project, Revocation, User
from clustercert.store import tables
from clustercert.store.access_keys import end_temporary_keys
from clustercert.store.database import Database, raise_generation
from clustercert.store.nouns import (
    change_one,
    changed_meanwhile,
    domain_of,
    domains_query,
    group_of,
    groups_query,
    insert_once,
    narrowed,
    project_of,
    projects_query,
    user_of,
    users_query,
)
from clustercert.store.revocations import NO_END, end_disabled, revoke_disabled
from clustercert.store.transaction import Transaction

_domain, _project, _user, _group = tables.domain, tables.project, tables.user, tables.group
_member = tables.group_member

T = TypeVar("T")


class DirectoryRows:
    """Who and what there is. Creating contradicts no cache; everything else makes every worker forget."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def domains(self, *, domain_id: str | None = None, name: str | None = None) -> tuple[Domain, ...]:
        """By name; all, or the one of an id or name."""
        query = domains_query().order_by(_domain.c.name)
        return await self._all(narrowed(query, (_domain.c.id, domain_id), (_domain.c.name, name)), domain_of)

    async def projects(
        self, *, domain_id: str | None = None, name: str | None = None, project_id: str | None = None
    ) -> tuple[Project, ...]:
        """By domain and name; all, or those of a domain, of a name, or of both; or the one of an id."""
        query = projects_query().order_by(_domain.c.name, _project.c.name)
        wanted = (_project.c.domain_id, domain_id), (_project.c.name, name), (_project.c.id, project_id)
        return await self._all(narrowed(query, *wanted), project_of)

    async def users(
        self, *, domain_id: str | None = None, name: str | None = None, user_id: str | None = None
    ) -> tuple[User, ...]:
        """As `projects`."""
        query = users_query().order_by(_domain.c.name, _user.c.name)
        wanted = (_user.c.domain_id, domain_id), (_user.c.name, name), (_user.c.id, user_id)
        return await self._all(narrowed(query, *wanted), user_of)

    async def groups(
        self, *, domain_id: str | None = None, name: str | None = None, group_id: str | None = None
    ) -> tuple[Group, ...]:
        """As `projects`."""
        query = groups_query().order_by(_domain.c.name, _group.c.name)
        wanted = (_group.c.domain_id, domain_id), (_group.c.name, name), (_group.c.id, group_id)
        return await self._all(narrowed(query, *wanted), group_of)

    async def members(self, group_id: str) -> tuple[User, ...]:
        """By domain and name."""
        members = select(_member.c.user_id).where(_member.c.group_id == group_id)
        query = users_query().where(_user.c.id.in_(members)).order_by(_domain.c.name, _user.c.name)
        return await self._all(query, user_of)

    async def add_domain(self, domain: Domain, event: AuditEvent) -> None:
        """Raises Conflict."""
        row = insert(_domain).values(id=domain.id, name=domain.name, enabled=domain.enabled)
        await self._add(row, event, f"A domain named {domain.name} exists already.")

    async def add_project(self, project: Project, event: AuditEvent) -> None:
        """Raises Conflict."""
        row = insert(_project).values(
            id=project.id,
            domain_id=project.domain.id,
            name=project.name,
            description=project.description,
            enabled=project.enabled,
        )
        await self._add(row, event, f"A project named {project.name} exists already in this domain.")

    async def add_user(self, user: User, password_hash: str | None, at: datetime, event: AuditEvent) -> None:
        """Raises Conflict."""
        row = insert(_user).values(
            id=user.id,
            domain_id=user.domain.id,
            name=user.name,
            password_hash=password_hash,
            enabled=user.enabled,
            created_at=at,
        )
        await self._add(row, event, f"A user named {user.name} exists already in this domain.")

    async def add_group(self, group: Group, event: AuditEvent) -> None:
        """Raises Conflict."""
        row = insert(_group).values(id=group.id, domain_id=group.domain.id, name=group.name)
        await self._add(row, event, f"A group named {group.name} exists already in this domain.")

    async def enable_domain(self, domain_id: str, enabled: bool, event: AuditEvent) -> None:
        """Raises NotFound."""
        async with self._database.change(event) as connection:
            await change_one(
                connection, update(_domain).where(_domain.c.id == domain_id).values(enabled=enabled)
            )

    async def enable_project(self, project_id: str, enabled: bool, event: AuditEvent) -> None:
        """Raises NotFound."""
        async with self._database.change(event) as connection:
            query = update(_project).where(_project.c.id == project_id)
            await change_one(connection, query.values(enabled=enabled))

    async def enable_user(self, user_id: str, enabled: bool, *events: AuditEvent) -> None:
        """Disabling ends the user's tokens and temporary keys for good, and revokes their certificates.

        The first event says who does it, and when. Raises NotFound.
        """
        async with self._database.write(*events) as connection:
            await change_one(connection, update(_user).where(_user.c.id == user_id).values(enabled=enabled))
            if enabled:
                await end_disabled(connection, user_id, await raise_generation(connection))
            else:
                await _end_logins(connection, user_id)
                await _revoke(connection, user_id, events[0])

    async def set_password(self, user_id: str, password_hash: str, event: AuditEvent) -> None:
        """Ends the user's tokens and temporary keys. Raises NotFound."""
        async with self._database.change(event) as connection:
            query = update(_user).where(_user.c.id == user_id)
            await change_one(connection, query.values(password_hash=password_hash))
            await _end_logins(connection, user_id)

    async def remove_user(self, user_id: str, *events: AuditEvent) -> None:
        """With tokens, keys, roles and memberships; their certificates are revoked.

        The first event says who does it, and when. Raises NotFound.
        """
        async with self._database.write(*events) as connection:
            # The row is locked first, so that no token appears between its tokens' end and its own.
            await change_one(connection, update(_user).where(_user.c.id == user_id).values(enabled=False))
            await _end_logins(connection, user_id)
            await connection.execute(delete(tables.access_key).where(tables.access_key.c.user_id == user_id))
            await connection.execute(delete(_member).where(_member.c.user_id == user_id))
            await _drop_roles(connection, user_id)
            await connection.execute(delete(_user).where(_user.c.id == user_id))
            await _revoke(connection, user_id, events[0])

    async def remove_project(self, project_id: str, event: AuditEvent) -> None:
        """With its role assignments and tokens. Raises NotFound, or Conflict while it has clusters."""
        assignment, token = tables.role_assignment, tables.token
        try:
            async with self._database.change(event) as connection:
                await change_one(
                    connection, update(_project).where(_project.c.id == project_id).values(enabled=False)
                )
                await connection.execute(delete(assignment).where(assignment.c.project_id == project_id))
                await connection.execute(delete(token).where(token.c.project_id == project_id))
                await connection.execute(delete(_project).where(_project.c.id == project_id))
        except IntegrityError as error:
            raise Conflict("The project has clusters still. Remove them first.") from error

    async def remove_group(self, group_id: str, event: AuditEvent) -> None:
        """With its memberships and roles. Raises NotFound."""
        async with self._database.change(event) as connection:
            await connection.execute(delete(_member).where(_member.c.group_id == group_id))
            await _drop_roles(connection, group_id)
            await change_one(connection, delete(_group).where(_group.c.id == group_id))

    async def add_member(self, group_id: str, user_id: str, event: AuditEvent) -> None:
        """Twice is once."""
        with changed_meanwhile():
            async with self._database.change(event) as connection:
                await insert_once(connection, _member, {"group_id": group_id, "user_id": user_id})

    async def remove_member(self, group_id: str, user_id: str, event: AuditEvent) -> None:
        """Raises NotFound."""
        row = and_(_member.c.group_id == group_id, _member.c.user_id == user_id)
        async with self._database.change(event) as connection:
            await change_one(connection, delete(_member).where(row), "The user is no member of this group.")

    async def _add(self, statement: Insert, event: AuditEvent, taken: str) -> None:
        try:
            async with self._database.write(event) as connection:
                await connection.execute(statement)
        except IntegrityError as error:
            raise Conflict(taken) from error

    async def _all(self, query: Select[Any], parse: Callable[[Row[Any]], T]) -> tuple[T, ...]:
        async with self._database.read() as connection:
            return tuple(parse(row) for row in await connection.execute(query))


async def _end_logins(connection: Transaction, user_id: str) -> None:
    await connection.execute(delete(tables.token).where(tables.token.c.user_id == user_id))
    await end_temporary_keys(connection, user_id)


async def _revoke(connection: Transaction, user_id: str, event: AuditEvent) -> None:
    wanted = Revocation(
        id=0,
        epoch=NO_END,
        fingerprint=None,
        user_id=user_id,
        cluster_id="",
        at=event.at,
        by=event.actor,
        reason="cessationOfOperation",
        note=event.kind,
    )
    await revoke_disabled(connection, wanted, await raise_generation(connection))


async def _drop_roles(connection: Transaction, actor_id: str) -> None:
    for assignment in (tables.role_assignment, tables.service_role):
        await connection.execute(delete(assignment).where(assignment.c.actor_id == actor_id))
