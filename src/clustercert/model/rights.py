"""The service's own roles, and what their holders may do. The policy decides about certificates only."""

from clustercert.model.errors import Forbidden, NotFound
from clustercert.model.identity import Caller

# ADMIN is a role in a project, OPERATOR and AUDITOR in the whole service.
ADMIN = "admin"
OPERATOR = "operator"
AUDITOR = "auditor"
SERVICE_ROLES = (OPERATOR, AUDITOR)
# The built-in roles in projects, the highest first.
PROJECT_ROLES = (ADMIN, "member", "reader")


def operates(caller: Caller) -> bool:
    """Whether the caller is an operator of the service, with access to every project."""
    return OPERATOR in caller.service_roles


def reads_everything(caller: Caller) -> bool:
    """Whether the caller, an operator or auditor, may see the certificates and audit events of every project."""
    return any(role in caller.service_roles for role in SERVICE_ROLES)


def administers(caller: Caller, project_id: str) -> bool:
    """Whether the caller may manage other users' certificates in a project: as project admin or as an operator."""
    return ADMIN in caller.roles_in(project_id) or operates(caller)


def reads_project(caller: Caller, project_id: str) -> bool:
    """Whether the caller may see all certificates and audit events of a project: project admin, operator or auditor."""
    return ADMIN in caller.roles_in(project_id) or reads_everything(caller)


def administered_projects(caller: Caller) -> tuple[str, ...]:
    """Return the ids of the projects that the caller administers; with a scoped token, only projects in the scope."""
    return tuple(project_id for project_id, roles in caller.roles.items() if ADMIN in roles)


def may_assign(caller: Caller, project_id: str, role: str) -> bool:
    """Whether the caller, an admin of the project or an operator, may assign this role in the project.

    Admins may assign the built-in roles in projects, and other roles that they have in the project themselves.
    """
    return role in PROJECT_ROLES or role in caller.roles_in(project_id) or operates(caller)


def may_unassign(caller: Caller, role: str) -> bool:
    """Whether the caller, an admin of a project or an operator, may remove this role in the project.

    Only operators may remove a role that is not built in: a policy rule may deny requests because the user has the
    role.
    """
    return role in PROJECT_ROLES or operates(caller)


def require_operator(caller: Caller) -> None:
    """Raise Forbidden if the caller is not an operator."""
    if not operates(caller):
        raise Forbidden("Only operators can do this.")


def require_reader(caller: Caller, message: str = "Only operators and auditors can do this.") -> None:
    """Raise Forbidden with this message if the caller is neither an operator nor an auditor."""
    if not reads_everything(caller):
        raise Forbidden(message)


def require_admin(caller: Caller, project_id: str) -> None:
    """Raise NotFound if the caller has no role in the project, or Forbidden if the caller is not a project admin.

    Operators pass both checks.
    """
    require_reach(caller, project_id)
    if not administers(caller, project_id):
        raise Forbidden("Only admins of the project and operators can do this.")


def require_reach(caller: Caller, project_id: str) -> None:
    """Raise NotFound if the caller has no role in the project, or Forbidden for an auditor. Operators pass."""
    require_view(caller, project_id)
    if not (operates(caller) or caller.roles_in(project_id)):
        raise Forbidden(
            f"The role {AUDITOR} does not allow this. Ask an operator or an admin of the project."
        )


def require_view(caller: Caller, project_id: str) -> None:
    """Raise NotFound if the caller has no role in the project. Operators and auditors pass."""
    if not reads_everything(caller):
        caller.require_roles_in(project_id)
    elif not project_id.isprintable():
        # Don't query for unprintable ids: PostgreSQL rejects strings with a NUL character.
        raise NotFound
