"""`clustercert role`: roles of users and groups in projects or in the whole service."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import DomainOption, did_you_mean
from clustercert.cli.output import Output, OutputOption, Row, note, show_list
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.model import Group, Project, RoleAssignment, User

app = typer.Typer(
    name="role", help="Manage roles, which the policy maps to Kubernetes groups.", no_args_is_help=True
)

RoleArgument = Annotated[
    str, typer.Argument(metavar="ROLE", help="Role: admin, member, reader, operator or any other.")
]


@dataclass(frozen=True, slots=True)
class AssigneeOptions:
    """The options that name a user or group, and a project."""

    user: Annotated[str | None, typer.Option(metavar="USER", help="User, by name or id.")] = None
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="Group, by name or id.")] = None
    project: Annotated[str | None, typer.Option(metavar="PROJECT", help="Project, by name or id.")] = None
    domain: DomainOption = None

    def __post_init__(self) -> None:
        if self.user is not None and self.group is not None:
            raise typer.BadParameter("Give only one of --user and --group.")

    async def find_assignee(self, operator: Operator) -> "User | Group | None":
        if self.user is not None:
            return await operator.user(self.user, self.domain)
        if self.group is not None:
            return await operator.group(self.group, self.domain)
        return None

    async def find_project(self, operator: Operator) -> "Project | None":
        return await operator.project(self.project, self.domain) if self.project is not None else None


@dataclass(frozen=True, slots=True)
class AssignmentOptions(AssigneeOptions):
    """The options that name one assignment."""

    service: Annotated[
        bool,
        typer.Option(
            "--service", help="Assign the role in the whole service, not in a project. For operators."
        ),
    ] = False

    def __post_init__(self) -> None:
        if (self.user is None) == (self.group is None):
            raise typer.BadParameter("Give either --user or --group.")
        if (self.project is None) != self.service:
            raise typer.BadParameter("Give either --project or --service.")

    async def find(self, operator: Operator) -> "tuple[User | Group, Project | None]":
        assignee = cast("User | Group", await self.find_assignee(operator))
        return assignee, await self.find_project(operator)


@app.command()
@on_store
async def assign(operator: Operator, role: RoleArgument, assignment: AssignmentOptions) -> None:
    """Assign a role to a user or group."""
    from clustercert.policy.roles import OPERATOR, PROJECT_ROLES

    assignee, project = await assignment.find(operator)
    await operator.parts.identity.roles.assign(role, assignee, project, actor=operator.actor)
    text = f"Assigned the role {role} in {_scope(project)} to {assignee.name}."
    rules = operator.parts.issuance.policy.rules
    if project is not None and not any(rule.takes_role(role) for rule in rules if rule.deny is None):
        text += " No policy rule names this role, so it grants no certificates."
        text += did_you_mean(role, PROJECT_ROLES)
    if project is None and role != OPERATOR:
        text += f" Only the role {OPERATOR} has rights in the whole service." + did_you_mean(
            role, (OPERATOR,)
        )
    note(text)


@app.command()
@on_store
async def unassign(operator: Operator, role: RoleArgument, assignment: AssignmentOptions) -> None:
    """Remove a role from a user or group."""
    assignee, project = await assignment.find(operator)
    await operator.parts.identity.roles.unassign(role, assignee, project, actor=operator.actor)
    note(f"Removed the role {role} in {_scope(project)} from {assignee.name}.")


@app.command("list")
@on_store
async def list_assignments(
    operator: Operator,
    assignee: AssigneeOptions,
    names: Annotated[bool, typer.Option("--names", help="List the roles, not their assignments.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List role assignments.

    The roles that users have through groups are not listed.
    """
    roles = operator.parts.identity.roles
    if names:
        rows = [{"role": role.name, "id": role.id} for role in await roles.all()]
        show_list(rows, output, columns=("role", "id"), name="role")
        return
    assignments = await roles.assignments(
        assignee=await assignee.find_assignee(operator), project=await assignee.find_project(operator)
    )
    columns = ("role", "user", "group", "project")
    show_list([_row(assignment) for assignment in assignments], output, columns=columns, name="role")


def _scope(project: "Project | None") -> str:
    return f"the project {project.name}" if project else "the whole service"


def _row(assignment: "RoleAssignment") -> Row:
    from clustercert.model import User

    is_user = isinstance(assignment.actor, User)
    objects = {
        "user": assignment.actor if is_user else None,
        "group": None if is_user else assignment.actor,
        "project": assignment.project,
    }
    row: dict[str, object] = {"role": assignment.role.name}
    for name, each in objects.items():
        row |= {name: each.name, f"{name}_id": each.id} if each else {name: None, f"{name}_id": None}
    return row | {"service": assignment.project is None}
