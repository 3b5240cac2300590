"""The roles `admin` and `operator`, which have rights over other users."""

from clustercert.model import Caller
from clustercert.model.errors import Forbidden, NotFound

# ADMIN is a role in a project, OPERATOR in the whole service.
ADMIN = "admin"
OPERATOR = "operator"
# The built-in roles in projects, the highest first.
PROJECT_ROLES = (ADMIN, "member", "reader")


def operates(caller: Caller) -> bool:
    """Whether the caller is an operator of the service, with access to every project."""
    return OPERATOR in caller.service_roles


def administers(caller: Caller, project_id: str) -> bool:
    """Whether the caller may manage other users' certificates in a project, as its admin or as an operator."""
    return ADMIN in caller.roles_in(project_id) or operates(caller)


def administered_projects(caller: Caller) -> tuple[str, ...]:
    """Return the ids of the projects that the caller administers. A token has the roles of its scope alone."""
    return tuple(project_id for project_id, roles in caller.roles.items() if ADMIN in roles)


def may_assign(caller: Caller, project_id: str, role: str) -> bool:
    """Whether an admin of the project, or an operator, may assign a role there.

    Admins may assign `admin` and the roles below it, and others that they have themselves.
    """
    return role in PROJECT_ROLES or role in caller.roles_in(project_id) or operates(caller)


def may_unassign(caller: Caller, role: str) -> bool:
    """Whether an admin of the project, or an operator, may remove a role there.

    Only operators may remove a role of their own naming: a rule of the policy may refuse those who have it.
    """
    return role in PROJECT_ROLES or operates(caller)


def require_operator(caller: Caller, message: str = "Only operators can do this.") -> None:
    """Raise Forbidden with this message unless the caller is an operator."""
    if not operates(caller):
        raise Forbidden(message)


def require_admin(caller: Caller, project_id: str) -> None:
    """Raise NotFound if the project is out of the caller's reach, or Forbidden unless they administer it."""
    require_reach(caller, project_id)
    if not administers(caller, project_id):
        raise Forbidden("Only admins of the project and operators can do this.")


def require_reach(caller: Caller, project_id: str) -> None:
    """Raise NotFound unless the caller is an operator or has a role in the project."""
    if not operates(caller):
        caller.require_roles_in(project_id)
    elif not project_id.isprintable():
        # Don't query for such an id: PostgreSQL rejects strings with a NUL character.
        raise NotFound
