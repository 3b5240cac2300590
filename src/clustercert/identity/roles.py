"""Use case: who has which role where. Users, groups and projects are `directory`'s business."""

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType

from clustercert.errors import NotFound
from clustercert.identity.names import checked_name, is_id
from clustercert.model import AuditEvent, Group, Origin, Project, Role, RoleAssignment, User
from clustercert.policy import ADMIN, OPERATOR
from clustercert.store.database import Database
from clustercert.store.nouns import Reference
from clustercert.store.roles import RoleRows
from clustercert.store.roles import Roles as LiveRoles

BUILT_IN = (ADMIN, "member", OPERATOR, "reader")


class Roles:
    """Assigns roles, in a project or, without one, in the whole service."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._rows = RoleRows(database)
        self._now = now

    async def bootstrap(self) -> None:
        """Make the roles that everything begins with; any number of times."""
        await self._rows.ensure(BUILT_IN)

    async def all(self) -> tuple[Role, ...]:
        """By name."""
        return await self._rows.roles()

    async def assignments(
        self, *, assignee: User | Group | None = None, project: Project | None = None
    ) -> tuple[RoleAssignment, ...]:
        """Direct ones: all, or those of a user or group, in a project, or both."""
        return await self._rows.assignments(
            actor_id=assignee.id if assignee else None, project_id=project.id if project else None
        )

    async def projects_of(self, user: User) -> tuple[Project, ...]:
        """Where the user, or a group of theirs, has a role; disabled projects too. By domain and name."""
        return await self._rows.projects_of(user.id)

    async def project_of(self, user: User, project_id: str) -> Project:
        """The project. Raises NotFound where it is missing or the user has no role in it."""
        project = (
            await self._rows.reachable_project(user.id, Reference(id=project_id))
            if is_id(project_id)
            else None
        )
        if project is None:
            raise NotFound("Could not find project.")
        return project

    async def assign(
        self, role: str, assignee: User | Group, project: Project | None, *, actor: str, origin: Origin
    ) -> None:
        """Give a role, which is made on demand. Raises InvalidRequest for a name that no role can have."""
        name = checked_name(role, "role")
        event = self._event("role.assigned", name, assignee, project, actor, origin)
        await self._rows.assign(assignee.id, project.id if project else None, name, event)

    async def unassign(
        self, role: str, assignee: User | Group, project: Project | None, *, actor: str, origin: Origin
    ) -> None:
        """Take a role away. Raises NotFound where it is not given."""
        name = checked_name(role, "role")
        event = self._event("role.unassigned", name, assignee, project, actor, origin)
        await self._rows.unassign(assignee.id, project.id if project else None, name, event)

    def _event(
        self,
        kind: str,
        role: str,
        assignee: User | Group,
        project: Project | None,
        actor: str,
        origin: Origin,
    ) -> AuditEvent:
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=project.id if project else None,
            actor=actor,
            subject=assignee.id,
            origin=origin,
            detail={
                "role": role,
                "assignee": "user" if isinstance(assignee, User) else "group",
                "name": assignee.name,
                "project": project.name if project else None,
            },
        )


def role_names(roles: LiveRoles) -> Mapping[str, tuple[str, ...]]:
    """As a caller has them: names by project id, sorted. Nobody can change them."""
    names = {project_id: tuple(role.name for role in held) for project_id, held in roles.by_project.items()}
    return MappingProxyType(names)


def service_role_names(roles: LiveRoles) -> tuple[str, ...]:
    """As a caller has them: sorted."""
    return tuple(role.name for role in roles.service)
