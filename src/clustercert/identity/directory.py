"""Use case: domains, projects, users and groups. What they may do is `roles`' business."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from clustercert.errors import Conflict, NotFound
from clustercert.identity.names import checked_description, checked_name, is_id, searchable
from clustercert.identity.passwords import Passwords
from clustercert.model import AuditEvent, Domain, Group, JsonObject, Origin, Project, User
from clustercert.store.database import Database
from clustercert.store.directory import DirectoryRows

T = TypeVar("T", Domain, Project, User, Group)


class Directory:
    """Who and what there is. Every change is audited; `actor` and `origin` say whose it is.

    `find_…` takes an id or a name. Raises NotFound, or Conflict where several domains have one so named.
    """

    def __init__(self, database: Database, passwords: Passwords, now: Callable[[], datetime]) -> None:
        self._rows = DirectoryRows(database)
        self._passwords = passwords
        self._now = now

    async def domains(self) -> tuple[Domain, ...]:
        """By name."""
        return await self._rows.domains()

    async def find_domain(self, wanted: str) -> Domain:
        found = await self._rows.domains(domain_id=wanted) if is_id(wanted) else ()
        if not found and (name := searchable(wanted)):
            found = await self._rows.domains(name=name)
        return _only(found, "domain", wanted)

    async def create_domain(self, name: str, *, actor: str, origin: Origin) -> Domain:
        """Raises InvalidRequest or Conflict."""
        domain = Domain(id=secrets.token_hex(16), name=checked_name(name, "domain"))
        await self._rows.add_domain(domain, self._event("domain.created", domain, actor, origin))
        return domain

    async def enable_domain(self, domain: Domain, *, enabled: bool, actor: str, origin: Origin) -> None:
        """Disabled, it takes its users and projects out of use. Raises NotFound."""
        event = self._event(_kind("domain", enabled), domain, actor, origin)
        await self._rows.enable_domain(domain.id, enabled, event)

    async def projects(self, domain: Domain | None = None) -> tuple[Project, ...]:
        """By domain and name."""
        return await self._rows.projects(domain_id=domain.id if domain else None)

    async def find_project(self, wanted: str, domain: Domain | None = None) -> Project:
        found = await self._rows.projects(project_id=wanted) if is_id(wanted) else ()
        if not found and (name := searchable(wanted)):
            found = await self._rows.projects(name=name, domain_id=domain.id if domain else None)
        return _only(found, "project", wanted)

    async def create_project(
        self, name: str, domain: Domain, *, description: str = "", actor: str, origin: Origin
    ) -> Project:
        """Raises InvalidRequest or Conflict."""
        project = Project(
            id=secrets.token_hex(16),
            name=checked_name(name, "project"),
            domain=domain,
            description=checked_description(description),
        )
        await self._rows.add_project(project, self._event("project.created", project, actor, origin))
        return project

    async def enable_project(self, project: Project, *, enabled: bool, actor: str, origin: Origin) -> None:
        """Disabled, nobody has a role in it. Raises NotFound."""
        event = self._event(_kind("project", enabled), project, actor, origin)
        await self._rows.enable_project(project.id, enabled, event)

    async def remove_project(self, project: Project, *, actor: str, origin: Origin) -> None:
        """With its role assignments and tokens. Raises NotFound, or Conflict while it has clusters."""
        await self._rows.remove_project(project.id, self._event("project.removed", project, actor, origin))

    async def users(self, domain: Domain | None = None) -> tuple[User, ...]:
        """By domain and name."""
        return await self._rows.users(domain_id=domain.id if domain else None)

    async def find_user(self, wanted: str, domain: Domain | None = None) -> User:
        found = await self._rows.users(user_id=wanted) if is_id(wanted) else ()
        if not found and (name := searchable(wanted)):
            found = await self._rows.users(name=name, domain_id=domain.id if domain else None)
        return _only(found, "user", wanted)

    async def create_user(
        self, name: str, domain: Domain, *, password: str | None = None, actor: str, origin: Origin
    ) -> User:
        """Without a password the user has no login, only access keys. Raises InvalidRequest or Conflict."""
        user = User(id=secrets.token_hex(16), name=checked_name(name, "user"), domain=domain)
        password_hash = await self._passwords.hashed(password) if password is not None else None
        event = self._event("user.created", user, actor, origin, password=password is not None)
        await self._rows.add_user(user, password_hash, self._now(), event)
        return user

    async def set_password(self, user: User, password: str, *, actor: str, origin: Origin) -> None:
        """Ends the user's tokens and temporary access keys. Raises InvalidRequest or NotFound."""
        password_hash = await self._passwords.hashed(password)
        event = self._event("user.password_changed", user, actor, origin)
        await self._rows.set_password(user.id, password_hash, event)

    async def enable_user(self, user: User, *, enabled: bool, actor: str, origin: Origin) -> None:
        """Disabling ends the user's tokens and temporary keys for good, and rests the permanent ones.

        It revokes what certificates they have, and what a worker that doesn't know yet issues meanwhile. Enabling
        the user again lets new certificates be good, and none of the old ones.
        """
        event = self._event(_kind("user", enabled), user, actor, origin)
        more = () if enabled else (self._revoked(event),)
        await self._rows.enable_user(user.id, enabled, event, *more)

    async def remove_user(self, user: User, *, actor: str, origin: Origin) -> None:
        """With tokens, access keys, roles and memberships; their certificates are revoked. Raises NotFound."""
        event = self._event("user.removed", user, actor, origin)
        await self._rows.remove_user(user.id, event, self._revoked(event))

    async def groups(self, domain: Domain | None = None) -> tuple[Group, ...]:
        """By domain and name."""
        return await self._rows.groups(domain_id=domain.id if domain else None)

    async def find_group(self, wanted: str, domain: Domain | None = None) -> Group:
        found = await self._rows.groups(group_id=wanted) if is_id(wanted) else ()
        if not found and (name := searchable(wanted)):
            found = await self._rows.groups(name=name, domain_id=domain.id if domain else None)
        return _only(found, "group", wanted)

    async def members(self, group: Group) -> tuple[User, ...]:
        """By domain and name."""
        return await self._rows.members(group.id)

    async def create_group(self, name: str, domain: Domain, *, actor: str, origin: Origin) -> Group:
        """Raises InvalidRequest or Conflict."""
        group = Group(id=secrets.token_hex(16), name=checked_name(name, "group"), domain=domain)
        await self._rows.add_group(group, self._event("group.created", group, actor, origin))
        return group

    async def remove_group(self, group: Group, *, actor: str, origin: Origin) -> None:
        """With its memberships and roles. Raises NotFound."""
        await self._rows.remove_group(group.id, self._event("group.removed", group, actor, origin))

    async def add_member(self, group: Group, user: User, *, actor: str, origin: Origin) -> None:
        """The user has the group's roles from now on. Twice is once."""
        event = self._event("group.member_added", group, actor, origin, user_id=user.id, user_name=user.name)
        await self._rows.add_member(group.id, user.id, event)

    async def remove_member(self, group: Group, user: User, *, actor: str, origin: Origin) -> None:
        """Raises NotFound where the user is no member."""
        event = self._event(
            "group.member_removed", group, actor, origin, user_id=user.id, user_name=user.name
        )
        await self._rows.remove_member(group.id, user.id, event)

    def _revoked(self, event: AuditEvent) -> AuditEvent:
        """What the audit says of a user's certificates, beside what it says of the user."""
        detail: JsonObject = {
            "user_id": event.subject,
            "cluster_id": None,
            "reason": "cessationOfOperation",
            "note": event.kind,
            "proved": False,
        }
        return replace(event, kind="user.revoked", detail=detail)

    def _event(
        self, kind: str, noun: Domain | Project | User | Group, actor: str, origin: Origin, **more: object
    ) -> AuditEvent:
        detail: JsonObject = {"name": noun.name, **more}
        if not isinstance(noun, Domain):
            detail["domain_id"] = noun.domain.id
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=noun.id if isinstance(noun, Project) else None,
            actor=actor,
            subject=noun.id,
            origin=origin,
            detail=detail,
        )


def _kind(noun: str, enabled: bool) -> str:
    return f"{noun}.{'enabled' if enabled else 'disabled'}"


def _only(found: Sequence[T], noun: str, wanted: str) -> T:
    if not found:
        raise NotFound(f"There is no {noun} {wanted}.")
    if len(found) > 1:
        raise Conflict(f"Several domains have a {noun} named {wanted}. Say which domain, or use the id.")
    return found[0]
