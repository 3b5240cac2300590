"""Use case: manage domains, projects, users and groups."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypeVar, cast

from clustercert.identity.directory_reader import DirectoryReader, within
from clustercert.identity.names import checked_description, checked_new_name, searchable
from clustercert.identity.passwords import Passwords
from clustercert.model import Actor, Domain, Group, Project, User, new_id
from clustercert.model.errors import Conflict, InvalidRequest, NotFound
from clustercert.model.events import AuditEvent
from clustercert.model.events.administration import (
    DirectoryChange,
    DirectoryChanged,
    DirectoryUpdate,
    DirectoryUpdated,
    RevocationChanged,
)
from clustercert.model.ids import is_id
from clustercert.model.times import checked_labels
from clustercert.store.engine.database import Database
from clustercert.store.identity.entities import Reference

Entity = Domain | Project | User | Group
E = TypeVar("E", bound=Entity)
N = TypeVar("N", Project, User, Group)
D = TypeVar("D", Domain, Project)

NO_LABELS: Mapping[str, str] = {}


class Directory(DirectoryReader):
    """Manages domains, projects, users and groups. Every change is audited.

    The `create_…` methods raise InvalidRequest or Conflict. Other methods that change something raise NotFound.

    Attributes:
        authority_names: names of issuers and Keystone. No new domain may have one of these names. Each reload of the
            settings updates these names.
    """

    def __init__(self, database: Database, passwords: Passwords, now: Callable[[], datetime]) -> None:
        super().__init__(database)
        self._passwords = passwords
        self._now = now
        self.authority_names: frozenset[str] = frozenset()

    async def create_domain(self, name: str, *, enabled: bool = True, actor: Actor) -> Domain:
        domain = Domain(id=new_id(), name=checked_new_name(name, "domain"), enabled=enabled)
        if domain.name in self.authority_names:
            raise Conflict(
                f"An issuer in the settings has the name {domain.name}, so no domain may have this name."
                " Choose a different name."
            )
        await self.queries.add(domain, *self._created(domain, actor))
        return domain

    async def update_domain(self, before: Domain, *, enabled: bool, actor: Actor) -> Domain:
        """Enable or disable a domain, including its users and projects. See `_switch`."""
        return await self._switch(before, replace(before, enabled=enabled), actor)

    async def remove_domain(self, domain: Domain, *, actor: Actor) -> None:
        """Delete a domain. Raises Conflict if the domain still has projects, users or groups."""
        await self.queries.remove_domain(domain, self._event("domain.removed", domain, actor))

    async def page(
        self,
        kind: type[E],
        domain: Domain | None = None,
        name: str | None = None,
        *,
        after: str = "",
        limit: int,
    ) -> tuple[E, ...]:
        """List at most `limit` projects, users or groups with ids above `after`, sorted by id."""
        if name is not None and (name := searchable(name)) is None:
            return ()
        return await self.queries.page(kind, within(domain, name), after, limit)

    async def create_project(
        self,
        name: str,
        domain: Domain,
        *,
        project_id: str | None = None,
        description: str = "",
        enabled: bool = True,
        labels: Mapping[str, str] = NO_LABELS,
        actor: Actor,
    ) -> Project:
        """Create a project. `project_id`: the project's id in another identity service; by default, a new id."""
        if project_id is not None:
            await self._require_free(project_id)
        project = Project(
            id=project_id or new_id(),
            name=checked_new_name(name, "project"),
            domain=domain,
            description=checked_description(description),
            enabled=enabled,
            labels=checked_labels(labels),
        )
        await self.queries.add(project, *self._created(project, actor))
        return project

    async def update_project(
        self, before: Project, *, description: str, enabled: bool, labels: Mapping[str, str], actor: Actor
    ) -> Project:
        """Change a project. Roles in a disabled project have no effect. See `_switch`."""
        after = replace(
            before,
            description=checked_description(description),
            enabled=enabled,
            labels=checked_labels(labels),
        )
        return await self._switch(before, after, actor)

    async def remove_project(self, project: Project, *, actor: Actor) -> None:
        """Delete a project with its role assignments and tokens. Raises Conflict if the project still has clusters."""
        await self.queries.remove_project(project.id, self._event("project.removed", project, actor), project)

    async def create_user(
        self,
        name: str,
        domain: Domain,
        *,
        password: str | None = None,
        enabled: bool = True,
        labels: Mapping[str, str] = NO_LABELS,
        actor: Actor,
    ) -> User:
        """Create a user. A user without a password can only use access keys."""
        user = User(
            id=new_id(),
            name=checked_new_name(name, "user"),
            domain=domain,
            enabled=enabled,
            labels=checked_labels(labels),
        )
        password_hash = await self._passwords.hashed(password) if password is not None else None
        events = self._created(user, actor, password=password is not None)
        await self.queries.add(user, *events, password_hash=password_hash, created_at=self._now())
        return user

    async def update_user(
        self, before: User, *, enabled: bool, labels: Mapping[str, str], actor: Actor
    ) -> User:
        """Change a user. Disabling a user has the same effects as in `enable_user`. See `_update`."""
        return await self._update(
            before, replace(before, enabled=enabled, labels=checked_labels(labels)), actor
        )

    async def has_password(self, user: User, password: str) -> bool:
        """Whether this is the user's password. Takes the same time for users without a password. Raises Unavailable."""
        return await self._passwords.matches(password, await self.queries.password_hash(user.id))

    async def set_password(
        self,
        user: User,
        password: str,
        *,
        actor: Actor,
        checked_hash: str | None = None,
        kept_session: str | None = None,
    ) -> None:
        """Set a password, and delete the user's sessions, tokens and temporary keys.

        Raises InvalidRequest if the password is too short or too long.

        Args:
            checked_hash: the stored hash of the old password, if the old password was checked. Raises Unauthenticated
                if the user was disabled or the password was changed since this check.
            kept_session: the id of a session that does not end.
        """
        password_hash = await self._passwords.hashed(password)
        event = self._event("user.password_changed", user, actor)
        await self.queries.set_password(
            user.id, password_hash, event, checked_hash=checked_hash, kept_session=kept_session
        )

    async def enable_user(self, user: User, *, enabled: bool, actor: Actor) -> None:
        """Enable or disable a user.

        Disabling deletes the user's sessions, tokens and temporary keys, suspends the permanent keys, and revokes all
        the user's certificates, including certificates that workers with a stale cache still issue. Certificates stay
        revoked after the user is enabled again.
        """
        event = self._event("user.enabled" if enabled else "user.disabled", user, actor)
        more = () if enabled else (self._revoked(event),)
        await self.queries.enable_user(user.id, enabled, event, *more)

    async def remove_user(self, user: User, *, actor: Actor) -> None:
        """Delete a user with all logins, keys, roles and memberships, and revoke the user's certificates."""
        event = self._event("user.removed", user, actor)
        await self.queries.remove_user(user.id, event, self._revoked(event), before=user)

    async def create_group(
        self, name: str, domain: Domain, *, labels: Mapping[str, str] = NO_LABELS, actor: Actor
    ) -> Group:
        group = Group(
            id=new_id(), name=checked_new_name(name, "group"), domain=domain, labels=checked_labels(labels)
        )
        await self.queries.add(group, *self._created(group, actor))
        return group

    async def update_group(self, before: Group, *, labels: Mapping[str, str], actor: Actor) -> Group:
        """Change a group. See `_update`."""
        return await self._update(before, replace(before, labels=checked_labels(labels)), actor)

    async def remove_group(self, group: Group, *, actor: Actor) -> None:
        """Delete a group with its memberships and role assignments."""
        await self.queries.remove_group(group.id, self._event("group.removed", group, actor), group)

    async def find_member(self, group: Group, user: User) -> User:
        """Return the user. Raises NotFound if the user is not in the group."""
        if not await self.queries.is_member(group.id, user.id):
            raise NotFound("The user is not a member of this group.")
        return user

    async def add_member(self, group: Group, user: User, *, actor: Actor) -> bool:
        """Add a user to a group. Returns False if the user is a member already."""
        event = self._event("group.member_added", group, actor, member=user)
        return await self.queries.add_member(group.id, user.id, event)

    async def remove_member(self, group: Group, user: User, *, actor: Actor) -> None:
        """Remove a user from a group. Raises NotFound if the user is not a member."""
        event = self._event("group.member_removed", group, actor, member=user)
        await self.queries.remove_member(group.id, user.id, event)

    async def _require_free(self, project_id: str) -> None:
        """Raise InvalidRequest if the string is not a valid project id, or Conflict if a project has this id."""
        if not is_id(project_id):
            raise InvalidRequest(f"id: {project_id}: a project id has 32 lower-case hex digits.")
        if await self.queries.find(Project, Reference(id=project_id)):
            raise Conflict(f"A project with the id {project_id} already exists.")

    async def _switch(self, before: D, after: D, actor: Actor) -> D:
        """Change a domain or project. Disabling one ends its logins for good: see `DirectoryQueries.end_logins`.

        As soon as the row is disabled, all these logins are refused. The logins are then deleted in batches. After an
        interruption, disabling or enabling the row again deletes the rest. See `_update` for errors.
        """
        if after.enabled and not before.enabled:
            await self.queries.end_logins(before)
        changed = await self._update(before, after, actor)
        if not after.enabled:
            await self.queries.end_logins(after)
        return changed

    async def _update(self, before: E, after: E, actor: Actor) -> E:
        """Store a changed entity, and return it. Does nothing if `before` and `after` are equal.

        Raises NotFound if the entity was deleted, or ConcurrentChange if the stored entity differs from `before`.
        """
        if events := list(self._changes(before, after, actor)):
            await self.queries.replace(before, after, *events)
        return after

    def _changes(self, before: Entity, after: Entity, actor: Actor) -> Iterator[AuditEvent]:
        """Yield the audit events for a changed entity. If the change disables a user, `user.disabled` comes first."""
        noun = type(after).__name__.lower()
        if not isinstance(after, Group) and after.enabled != getattr(before, "enabled", None):
            kind = f"{noun}.{'enabled' if after.enabled else 'disabled'}"
            event = self._event(cast("DirectoryChange", kind), after, actor)
            yield event
            if isinstance(after, User) and not after.enabled:
                yield self._revoked(event)
        described = isinstance(after, Project) and after.description != getattr(before, "description", "")
        if not isinstance(after, Domain) and (described or after.labels != getattr(before, "labels", None)):
            yield DirectoryUpdated(
                at=self._now(),
                kind=cast("DirectoryUpdate", f"{noun}.updated"),
                project_id=after.id if isinstance(after, Project) else None,
                actor=actor,
                subject=after.id,
                name=after.name,
                domain_id=after.domain.id,
                labels=after.labels,
                description=after.description if isinstance(after, Project) else None,
            )

    def _created(
        self, entity: Entity, actor: Actor, *, password: bool | None = None
    ) -> Iterator[DirectoryChanged]:
        """Yield the audit events for a new entity."""
        noun = type(entity).__name__.lower()
        yield self._event(cast("DirectoryChange", f"{noun}.created"), entity, actor, password=password)
        if not isinstance(entity, Group) and not entity.enabled:
            yield self._event(cast("DirectoryChange", f"{noun}.disabled"), entity, actor)

    def _revoked(self, cause: DirectoryChanged) -> RevocationChanged:
        """Return the audit event for certificates that are revoked because their user was disabled or deleted."""
        return RevocationChanged(
            at=cause.at,
            kind="user.revoked",
            actor=cause.actor,
            subject=cause.subject,
            user_id=cause.subject,
            cluster_id=None,
            reason="cessationOfOperation",
            note=cause.kind,
            proved=False,
        )

    def _event(
        self,
        kind: DirectoryChange,
        changed: Entity,
        actor: Actor,
        *,
        password: bool | None = None,
        member: User | None = None,
    ) -> DirectoryChanged:
        return DirectoryChanged(
            at=self._now(),
            kind=kind,
            project_id=changed.id if isinstance(changed, Project) else None,
            actor=actor,
            subject=changed.id,
            name=changed.name,
            domain_id=None if isinstance(changed, Domain) else changed.domain.id,
            password=password,
            user_id=member.id if member else None,
            user_name=member.name if member else None,
        )
