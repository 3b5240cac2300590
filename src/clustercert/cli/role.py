"""`clustercert role`: who may do what where."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import group as group_commands
from clustercert.cli import project as project_commands
from clustercert.cli import user as user_commands
from clustercert.cli.options import DomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Group, Project, RoleAssignment, User

app = typer.Typer(
    name="role",
    help="Roles in projects, which the policy turns into Kubernetes groups.",
    no_args_is_help=True,
)

RoleArgument = Annotated[
    str, typer.Argument(metavar="ROLE", help="admin, member, reader, operator or any other.")
]
UserOption = Annotated[str | None, typer.Option(metavar="USER", help="The user who has it.")]
GroupOption = Annotated[str | None, typer.Option(metavar="GROUP", help="The group whose members have it.")]
ProjectOption = Annotated[str | None, typer.Option(metavar="PROJECT", help="The project in which.")]
ServiceOption = Annotated[
    bool, typer.Option("--service", help="In the whole service, as an operator has it.")
]


@dataclass(frozen=True, slots=True)
class _Assignment:
    """An assignment as the options say it."""

    user: str | None
    group: str | None
    project: str | None
    service: bool
    domain: str | None

    def __post_init__(self) -> None:
        if (self.user is None) == (self.group is None):
            raise typer.BadParameter("say one of --user and --group.")
        if (self.project is None) != self.service:
            raise typer.BadParameter("say one of --project and --service.")

    async def found(self, operator: Operator) -> "tuple[User | Group, Project | None]":
        """Who has the role, and where."""
        where = None
        if self.project is not None:
            where = await project_commands.find(operator, self.project, self.domain)
        if self.user is not None:
            return await user_commands.find(operator, self.user, self.domain), where
        return await group_commands.find(operator, self.group or "", self.domain), where


@app.command()
def assign(
    context: typer.Context,
    role: RoleArgument,
    user: UserOption = None,
    group: GroupOption = None,
    project: ProjectOption = None,
    service: ServiceOption = False,
    domain: DomainOption = None,
) -> None:
    """Give a role to a user or a group, in a project or in the whole service."""
    wanted = _Assignment(user, group, project, service, domain)

    async def work(operator: Operator) -> str:
        assignee, where = await wanted.found(operator)
        await operator.parts.identity.roles.assign(role, assignee, where, **operator.who)
        said = f"{assignee.name} has the role {role} in {_words(where)}."
        if where is not None and role not in {rule.role for rule in operator.parts.issuance.policy.rules}:
            said += " No rule of the policy names it, so it gives no certificates."
        return said

    note(operate(context, work))


@app.command()
def unassign(
    context: typer.Context,
    role: RoleArgument,
    user: UserOption = None,
    group: GroupOption = None,
    project: ProjectOption = None,
    service: ServiceOption = False,
    domain: DomainOption = None,
) -> None:
    """Take a role away."""
    wanted = _Assignment(user, group, project, service, domain)

    async def work(operator: Operator) -> str:
        assignee, where = await wanted.found(operator)
        await operator.parts.identity.roles.unassign(role, assignee, where, **operator.who)
        return f"{assignee.name} has the role {role} in {_words(where)} no more."

    note(operate(context, work))


@app.command("list")
def list_assignments(
    context: typer.Context,
    user: UserOption = None,
    group: GroupOption = None,
    project: ProjectOption = None,
    domain: DomainOption = None,
    names: Annotated[
        bool, typer.Option("--names", help="List the roles that there are, not who has them.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List who has which role where; direct assignments, not those by way of a group."""
    if user is not None and group is not None:
        raise typer.BadParameter("--user and --group exclude each other.")

    async def work(operator: Operator) -> list[Row]:
        roles = operator.parts.identity.roles
        if names:
            return [{"role": role.name, "id": role.id} for role in await roles.all()]
        assignee: User | Group | None = None
        if user is not None:
            assignee = await user_commands.find(operator, user, domain)
        elif group is not None:
            assignee = await group_commands.find(operator, group, domain)
        where = await project_commands.find(operator, project, domain) if project is not None else None
        return [_row(found) for found in await roles.assignments(assignee=assignee, project=where)]

    columns = ("role", "id") if names else ("role", "user", "group", "project")
    show_list(operate(context, work), output, columns=columns, name="role")


def _words(project: "Project | None") -> str:
    return f"the project {project.name}" if project else "the whole service"


def _row(assignment: "RoleAssignment") -> Row:
    from clustercert.model import User

    actor, project = assignment.actor, assignment.project
    is_user = isinstance(actor, User)
    return {
        "role": assignment.role.name,
        "user": actor.name if is_user else None,
        "user_id": actor.id if is_user else None,
        "group": None if is_user else actor.name,
        "group_id": None if is_user else actor.id,
        "project": project.name if project else None,
        "project_id": project.id if project else None,
        "service": project is None,
    }
