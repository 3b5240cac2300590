"""Use case: role assignments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal, Self

from clustercert.identity.names import checked_name, checked_new_name, searchable
from clustercert.model import Actor, Caller, Group, Origin, Project, Role, RoleAssignment, User, new_id
from clustercert.model.errors import Conflict, NotFound
from clustercert.model.events.administration import RoleChange, RoleChanged, RoleDefined
from clustercert.model.ids import is_id
from clustercert.model.rights import ADMIN, AUDITOR, OPERATOR
from clustercert.model.suggestion import did_you_mean
from clustercert.store.engine.database import Database
from clustercert.store.identity.entities import Reference
from clustercert.store.identity.roles import RoleQueries, UserRoles

BUILT_IN = (ADMIN, AUDITOR, "member", OPERATOR, "reader")


class Roles:
    """Manages roles, and assigns roles to users and groups in a project.

    If the project is `None`, a role applies to the whole service.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self.queries = RoleQueries(database)
        self._now = now

    async def bootstrap(self) -> None:
        """Create the built-in roles that don't exist yet."""
        await self.queries.ensure(BUILT_IN)

    async def find(self, name_or_id: str) -> Role:
        """Return a role. Raises NotFound if the role does not exist."""
        name = searchable(name_or_id)
        found = next(
            (role for role in await self.queries.roles() if name_or_id == role.id or name == role.name), None
        )
        if found is None:
            similar = did_you_mean(name, [role.name for role in await self.queries.roles()]) if name else ""
            raise NotFound(f"There is no role {name_or_id}.{similar}")
        return found

    async def create(self, name: str, *, actor: Actor) -> Role:
        """Create a role. Raises InvalidRequest for an invalid name, or Conflict if a role with this name exists."""
        role = Role(new_id(), checked_new_name(name, "role"))
        await self.queries.add(role, self._role_event("role.created", role, actor))
        return role

    async def remove(self, role: Role, *, actor: Actor) -> None:
        """Delete a role. Raises NotFound, or Conflict if the role is built in or still assigned."""
        if role.name in BUILT_IN:
            raise Conflict(f"The role {role.name} is built in. Built-in roles can't be deleted.")
        await self.queries.remove(role, self._role_event("role.removed", role, actor))

    async def assignments(
        self, *, assignee: User | Group | None = None, project: Project | None = None
    ) -> tuple[RoleAssignment, ...]:
        """List direct assignments, optionally only for one user or group, or only in one project."""
        return await self.queries.assignments(
            actor_id=assignee.id if assignee else None, project_id=project.id if project else None
        )

    async def project_of(self, user: User, project_id: str) -> Project:
        """Return a project. Raises NotFound if the project does not exist or the user has no role in the project."""
        if is_id(project_id):
            project = await self.queries.reachable_project(user.id, Reference(id=project_id))
            if project is not None:
                return project
        raise NotFound("Could not find project.")

    async def assign(
        self, role: str, assignee: User | Group, project: Project | None, *, actor: Actor
    ) -> bool:
        """Assign a role. Returns False if the role was already assigned. Raises NotFound if the role does not exist."""
        found = await self.find(role)
        event = self._event("role.assigned", found.name, assignee, project, actor)
        return await self.queries.assign(assignee.id, event.project_id, found.id, event)

    async def unassign(
        self, role: str, assignee: User | Group, project: Project | None, *, actor: Actor
    ) -> None:
        """Remove a role assignment. Raises NotFound if the assignment does not exist."""
        event = self._event("role.unassigned", role, assignee, project, actor)
        await self.queries.unassign(assignee.id, event.project_id, event.role, event)

    def _role_event(
        self, kind: Literal["role.created", "role.removed"], role: Role, actor: Actor
    ) -> RoleDefined:
        return RoleDefined(at=self._now(), kind=kind, actor=actor, subject=role.id, name=role.name)

    def _event(
        self,
        kind: RoleChange,
        role: str,
        assignee: User | Group,
        project: Project | None,
        actor: Actor,
    ) -> RoleChanged:
        return RoleChanged(
            at=self._now(),
            kind=kind,
            project_id=project.id if project else None,
            actor=actor,
            subject=assignee.id,
            role=checked_name(role, "role"),
            assignee="user" if isinstance(assignee, User) else "group",
            name=assignee.name,
            project=project.name if project else None,
        )


def role_names(roles: UserRoles) -> Mapping[str, tuple[str, ...]]:
    """Return a read-only mapping of project ids to sorted role names, for a `Caller`."""
    items = roles.by_project.items()
    return MappingProxyType({project_id: tuple(role.name for role in roles) for project_id, roles in items})


@dataclass(frozen=True, slots=True)
class BuiltInUser:
    """A user of the built-in identity service with their roles, as caches of credentials keep them.

    Attributes:
        roles: names of roles by project id, and the names are sorted.
        service_roles: sorted names of roles that apply to the whole service.
    """

    user: User
    roles: Mapping[str, tuple[str, ...]]
    service_roles: tuple[str, ...]
    groups: tuple[Group, ...]

    @classmethod
    def with_roles(cls, user: User, roles: UserRoles) -> Self:
        return cls(user, role_names(roles), tuple(role.name for role in roles.service), roles.groups)

    def caller(
        self, method: str, origin: Origin, *, expires_at: datetime | None, credential_id: str
    ) -> Caller:
        """Return the caller of a request with one of the user's credentials."""
        return Caller(
            user=self.user,
            roles=self.roles,
            method=method,
            origin=origin,
            service_roles=self.service_roles,
            expires_at=expires_at,
            credential_id=credential_id,
            groups=self.groups,
        )
