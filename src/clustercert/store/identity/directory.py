"""Queries for domains, projects, users and groups."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Select, delete, func, insert, not_, or_, select, update

from clustercert.model import AuditEvent, Domain, Group, Project, Revocation, User
from clustercert.model.errors import ConcurrentChange, NotFound, Unauthenticated
from clustercert.store import tables
from clustercert.store.certificates.revocations import NO_END, end_disabled, revoke_disabled
from clustercert.store.engine.database import hold_generation, raise_generation
from clustercert.store.engine.queries import (
    BATCH,
    Queries,
    change_one,
    conflict_if_violated,
    exists,
    insert_once,
)
from clustercert.store.engine.transaction import Transaction, is_rolling_back
from clustercert.store.identity.console_sessions import UserIds, end_sessions
from clustercert.store.identity.entities import (
    ALL,
    TABLES,
    E,
    Reference,
    entity_columns,
    entity_of,
    filter_by,
    in_domains,
)
from clustercert.store.identity.logins import IS_TEMPORARY, end_temporary_keys, lock_usable_user

_domain, _project, _user, _group = tables.domain, tables.project, tables.user, tables.group
_member, _token = tables.group_member, tables.token
_session, _access_key = tables.console_session, tables.access_key

T = TypeVar("T", bound=Domain | Project | User | Group)


@dataclass(frozen=True, slots=True)
class LoginCounts:
    """How many sessions of the console, tokens and temporary access keys there are."""

    sessions: int
    tokens: int
    temporary_keys: int


class DirectoryQueries(Queries):
    """Reads and changes domains, projects, users and groups.

    All changes invalidate caches, except adding a user or group.
    """

    async def domains(self, *, domain_id: str | None = None, name: str | None = None) -> tuple[Domain, ...]:
        """Return domains, sorted by name, optionally only those with this id or name."""
        query = select(*entity_columns(Domain)).order_by(_domain.c.name)
        return await self._all(Domain, filter_by(query, (_domain.c.id, domain_id), (_domain.c.name, name)))

    async def find(self, kind: type[E], reference: Reference = ALL) -> tuple[E, ...]:
        """Return the projects, users or groups to which a reference refers, sorted by domain and name."""
        query = in_domains(kind, reference).order_by(_domain.c.name, TABLES[kind].c.name)
        return await self._all(kind, query)

    async def page(self, kind: type[E], reference: Reference, after: str, limit: int) -> tuple[E, ...]:
        """Return at most `limit` projects, users or groups with ids above `after`, sorted by id."""
        row_id = TABLES[kind].c.id
        query = in_domains(kind, reference).where(row_id > after)
        return await self._all(kind, query.order_by(row_id).limit(limit))

    async def entities_with_ids(self, kind: type[E], ids: Collection[str]) -> tuple[E, ...]:
        """Return the projects, users or groups with these ids, sorted by domain and name. Ignores unknown ids."""
        query = in_domains(kind, ALL).where(TABLES[kind].c.id.in_(ids))
        return await self._all(kind, query.order_by(_domain.c.name, TABLES[kind].c.name))

    async def member_page(self, group_id: str, after: str, limit: int) -> tuple[User, ...]:
        """Return at most `limit` users in a group with ids above `after`, sorted by id."""
        query = _in_group(group_id).where(_user.c.id > after)
        return await self._all(User, query.order_by(_user.c.id).limit(limit))

    async def add(
        self, entity: Domain | Project | User | Group, *events: AuditEvent, **others: object
    ) -> None:
        """Add an entity. `others` contains the values of columns that are not fields of the entity.

        Raises Conflict if the entity's name is taken.
        """
        row = _values(entity) | others
        where = "" if isinstance(entity, Domain) else " in this domain"
        taken = f"A {type(entity).__name__.lower()} named {entity.name} already exists{where}."
        with conflict_if_violated(taken):
            # A cached login of a federated user depends on the names of domains, and on the list of projects.
            invalidate = isinstance(entity, Domain | Project)
            async with self._database.transaction(*events, invalidate=invalidate) as connection:
                await connection.execute(insert(TABLES[type(entity)]).values(row))
                if isinstance(entity, User):
                    await hold_generation(connection)

    async def replace(self, before: T, after: T, *events: AuditEvent) -> None:
        """Change an entity. Enabling or disabling a user has the same effects as `enable_user`.

        A disabled domain or project refuses all logins in it. Call `end_logins` before enabling it, and also after
        disabling it: a login that is left would work again. Certificates stay valid. If the change revokes
        certificates, the actor and time of the revocation are those of the first event. Raises NotFound if the entity
        was deleted, or ConcurrentChange if the entity differs from `before` or would be enabled with logins.
        """
        old, new = _values(before), _values(after)
        changed = {name: value for name, value in new.items() if value != old[name]}
        table = TABLES[type(before)]
        async with self._database.transaction(*events, invalidate=True) as connection:
            await _require_unchanged(connection, before)
            if isinstance(after, Domain | Project) and changed.get("enabled"):
                await _require_no_logins(connection, after)
            await connection.execute(update(table).where(table.c.id == before.id).values(changed))
            if isinstance(after, User) and "enabled" in changed:
                await _after_switch(connection, after.id, after.enabled, events[0])

    async def end_logins(self, place: Domain | Project, *, batch: int = BATCH) -> None:
        """Delete the logins in a disabled domain or project, in batches. Does nothing if it is enabled.

        The logins in a domain are the sessions, tokens and temporary keys of its users, and the tokens for its
        projects. The logins in a project are the tokens for it. Nobody can log in there meanwhile, so after an
        interruption, the next call deletes the rest.
        """
        # A dry run deletes nothing, so there would always be a rest.
        while not is_rolling_back():
            async with self._database.read() as connection:
                found = [
                    (row_id, (await connection.execute(query.limit(batch))).scalars().all())
                    for row_id, query in _logins_in(place)
                ]
            if not any(ids for _, ids in found):
                return
            async with self._database.transaction() as connection:
                for row_id, ids in found:
                    await connection.execute(delete(row_id.table).where(row_id.in_(ids)))

    async def count_logins(self, place: Domain | Project) -> LoginCounts:
        """Count the logins that end if the domain or project is disabled, including expired ones."""
        async with self._database.read() as connection:
            counts = {
                row_id.table.name: (
                    await connection.execute(select(func.count()).select_from(query.subquery()))
                ).scalar_one()
                for row_id, query in _logins_in(place, only_disabled=False)
            }
        return LoginCounts(counts.get(_session.name, 0), counts[_token.name], counts.get(_access_key.name, 0))

    async def enable_user(self, user_id: str, enabled: bool, *events: AuditEvent) -> None:
        """Enable or disable a user.

        Disabling ends the user's sessions, tokens and temporary keys, and revokes the user's certificates. The actor
        and time of the revocation are those of the first event. Raises NotFound if the user does not exist.
        """
        async with self._database.transaction(*events) as connection:
            await change_one(connection, update(_user).where(_user.c.id == user_id).values(enabled=enabled))
            await _after_switch(connection, user_id, enabled, events[0])

    async def password_hash(self, user_id: str) -> str | None:
        """Return an Argon2 string, or None if the user has no password or does not exist."""
        rows = await self._rows(select(_user.c.password_hash).where(_user.c.id == user_id))
        return rows[0].password_hash if rows else None

    async def set_password(
        self,
        user_id: str,
        password_hash: str,
        event: AuditEvent,
        *,
        checked_hash: str | None = None,
        kept_session: str | None = None,
    ) -> None:
        """Set a password, and delete the user's sessions, tokens and temporary keys.

        Raises NotFound if the user was deleted.

        Args:
            checked_hash: raises Unauthenticated if the user was disabled or deleted, or if the stored password hash
                differs from this hash.
            kept_session: the id of a session to keep.
        """
        async with self._database.transaction(event, invalidate=True) as connection:
            if checked_hash is not None and not await lock_usable_user(
                connection, user_id, _user.c.password_hash == checked_hash
            ):
                raise Unauthenticated("the password was changed, or the user disabled, during the request")
            query = update(_user).where(_user.c.id == user_id)
            await change_one(connection, query.values(password_hash=password_hash))
            await _delete_logins(connection, (user_id,), kept_session=kept_session)

    async def remove_domain(self, domain: Domain, event: AuditEvent) -> None:
        """Delete a domain. Raises Conflict if the domain has projects, users or groups.

        Raises NotFound if the domain was deleted, or ConcurrentChange if the stored domain differs from `domain`.
        """
        with conflict_if_violated("The domain still has projects, users or groups. Delete them first."):
            async with self._database.transaction(event, invalidate=True) as connection:
                await _require_unchanged(connection, domain)
                await connection.execute(delete(_domain).where(_domain.c.id == domain.id))

    async def remove_user(self, user_id: str, *events: AuditEvent, before: User | None = None) -> None:
        """Delete a user with logins, keys, roles and memberships, and revoke the user's certificates.

        The actor and time of the revocation are those of the first event. Raises NotFound if the user does not exist,
        or ConcurrentChange if the user differs from `before`.
        """
        async with self._database.transaction(*events) as connection:
            await _require_unchanged(connection, before)
            # Lock the user's row first, so that no token is added while the tokens are being deleted.
            await change_one(connection, update(_user).where(_user.c.id == user_id).values(enabled=False))
            await _delete_logins(connection, (user_id,))
            await connection.execute(delete(tables.access_key).where(tables.access_key.c.user_id == user_id))
            await connection.execute(delete(_member).where(_member.c.user_id == user_id))
            network = tables.login_network
            await connection.execute(delete(network).where(network.c.user_id == user_id))
            await _drop_roles(connection, user_id)
            await connection.execute(delete(_user).where(_user.c.id == user_id))
            await _revoke(connection, user_id, events[0])

    async def remove_project(self, project_id: str, event: AuditEvent, before: Project | None = None) -> None:
        """Delete a project, its role assignments and tokens.

        Raises Conflict if the project still has clusters, NotFound if the project was deleted, or ConcurrentChange if
        the project differs from `before`.
        """
        assignment, token = tables.role_assignment, tables.token
        with conflict_if_violated("The project still has clusters. Remove them first."):
            async with self._database.transaction(event, invalidate=True) as connection:
                await _require_unchanged(connection, before)
                await change_one(
                    connection, update(_project).where(_project.c.id == project_id).values(enabled=False)
                )
                await connection.execute(delete(assignment).where(assignment.c.project_id == project_id))
                await connection.execute(delete(token).where(token.c.project_id == project_id))
                await connection.execute(delete(_project).where(_project.c.id == project_id))

    async def remove_group(self, group_id: str, event: AuditEvent, before: Group | None = None) -> None:
        """Delete a group with its memberships and roles.

        Raises NotFound if the group does not exist, or ConcurrentChange if the group differs from `before`.
        """
        async with self._database.transaction(event, invalidate=True) as connection:
            await _require_unchanged(connection, before)
            await connection.execute(delete(_member).where(_member.c.group_id == group_id))
            await _drop_roles(connection, group_id)
            await change_one(connection, delete(_group).where(_group.c.id == group_id))

    async def add_member(self, group_id: str, user_id: str, event: AuditEvent) -> bool:
        """Add a user to a group. Returns False, and does nothing, if the user is already a member."""
        with conflict_if_violated():
            async with self._database.transaction() as connection:
                return await insert_once(
                    connection, _member, {"group_id": group_id, "user_id": user_id}, event
                )

    async def is_member(self, group_id: str, user_id: str) -> bool:
        query = select(_member.c.user_id).where(_member.c.group_id == group_id, _member.c.user_id == user_id)
        return await self._scalar(query) is not None

    async def remove_member(self, group_id: str, user_id: str, event: AuditEvent) -> None:
        """Remove a user from a group. Raises NotFound if the user is not a member."""
        row = delete(_member).where(_member.c.group_id == group_id, _member.c.user_id == user_id)
        await self._change(row, event, "The user is not a member of this group.")

    async def _all(self, kind: type[E], query: Select[Any]) -> tuple[E, ...]:
        return tuple(entity_of(kind, row) for row in await self._rows(query))


async def _require_unchanged(connection: Transaction, before: Domain | Project | User | Group | None) -> None:
    """If `before` is given, lock the entity's row.

    Raises NotFound if the entity was deleted, or ConcurrentChange if the entity differs from `before`.
    """
    if before is None:
        return
    kind, table = type(before), TABLES[type(before)]
    query = select(*entity_columns(Domain)) if kind is Domain else in_domains(kind, ALL)
    row = (await connection.execute(query.where(table.c.id == before.id).with_for_update(of=table))).first()
    if row is None:
        raise NotFound("The object no longer exists.")
    if entity_of(kind, row) != before:
        raise ConcurrentChange


def _logins_in(
    place: Domain | Project, *, only_disabled: bool = True
) -> Sequence[tuple[Column[Any], Select[Any]]]:
    """Return queries for the ids of the logins in a domain or project, and the column of each.

    `only_disabled`: find no logins if the domain or project is enabled.
    """
    table = TABLES[type(place)]
    here = (
        [select(table.c.id).where(table.c.id == place.id, not_(table.c.enabled)).exists()]
        if only_disabled
        else []
    )
    if isinstance(place, Project):
        return [(_token.c.hash, select(_token.c.hash).where(_token.c.project_id == place.id, *here))]

    def of_users(owner: Column[Any]) -> ColumnElement[bool]:
        # Read each login and look for its user: there can be many more users than logins.
        return select(_user.c.id).where(_user.c.id == owner, _user.c.domain_id == place.id).exists()

    projects = select(_project.c.id).where(_project.c.domain_id == place.id)
    for_projects = _token.c.project_id.in_(projects)
    return [
        (_token.c.hash, select(_token.c.hash).where(or_(of_users(_token.c.user_id), for_projects), *here)),
        (
            _access_key.c.id,
            select(_access_key.c.id).where(IS_TEMPORARY, of_users(_access_key.c.user_id), *here),
        ),
        (_session.c.id, select(_session.c.id).where(of_users(_session.c.user_id), *here)),
    ]


async def _require_no_logins(connection: Transaction, place: Domain | Project) -> None:
    """Raise ConcurrentChange if a disabled domain or project has logins, which would work again if it were enabled.

    It has none after `end_logins`, unless other requests enabled and disabled it meanwhile.
    """
    if is_rolling_back():
        return
    for _, query in _logins_in(place):
        if await exists(connection, query.limit(1)):
            raise ConcurrentChange


def _values(entity: Domain | Project | User | Group) -> dict[str, object]:
    """Return the entity's row, with only the columns that are fields of the entity."""
    row: dict[str, object] = {each.name: getattr(entity, each.name) for each in fields(entity)}
    if not isinstance(entity, Domain):
        del row["domain"]
        row |= {"domain_id": entity.domain.id, "labels": dict(entity.labels)}
    return row


def _in_group(group_id: str) -> Select[Any]:
    members = select(_member.c.user_id).where(_member.c.group_id == group_id)
    return in_domains(User, ALL).where(_user.c.id.in_(members))


async def _after_switch(connection: Transaction, user_id: str, enabled: bool, event: AuditEvent) -> None:
    """Apply the consequences of enabling or disabling a user."""
    if enabled:
        await end_disabled(connection, user_id, await raise_generation(connection))
    else:
        await _delete_logins(connection, (user_id,))
        await _revoke(connection, user_id, event)


async def _delete_logins(connection: Transaction, users: UserIds, *, kept_session: str | None = None) -> None:
    await end_sessions(connection, users, kept=kept_session)
    await connection.execute(delete(tables.token).where(tables.token.c.user_id.in_(users)))
    await end_temporary_keys(connection, users)


async def _revoke(connection: Transaction, user_id: str, event: AuditEvent) -> None:
    revocation = Revocation(
        id=0,
        epoch=NO_END,
        fingerprint=None,
        user_id=user_id,
        cluster_id="",
        at=event.at,
        by=event.actor.id,
        reason="cessationOfOperation",
        note=event.kind,
    )
    await revoke_disabled(connection, revocation, await raise_generation(connection))


async def _drop_roles(connection: Transaction, actor_id: str) -> None:
    for assignment in (tables.role_assignment, tables.service_role):
        await connection.execute(delete(assignment).where(assignment.c.actor_id == actor_id))
