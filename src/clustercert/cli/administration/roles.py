"""`clustercert role`: the roles, and their assignments to users and groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import typer

from clustercert.cli.administration.commands import new_group
from clustercert.cli.administration.lost_roles import RevokeOption, remove_role
from clustercert.cli.administration.resources import RESOURCES
from clustercert.cli.lookup import find, find_project, shown_name, split_domain
from clustercert.cli.options import DomainOption, InvalidOption
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Row,
    print_note,
    show_list,
    with_qualified_names,
)
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject

RoleArgument = Annotated[str, RESOURCES["role"].name_argument]


@dataclass(frozen=True, slots=True)
class AssigneeOptions:
    """The options that name a user or group, and a project."""

    user: Annotated[str | None, typer.Option(metavar="USER", help="User, by name, DOMAIN/NAME or id.")] = None
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="Group, by name, DOMAIN/NAME or id.")] = (
        None
    )
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Project, by name, DOMAIN/NAME or id.")
    ] = None
    domain: DomainOption = None

    def __post_init__(self) -> None:
        if self.user is not None and self.group is not None:
            raise InvalidOption("Give only one of --user and --group.")

    def find_project(self, client: AdministrationClient) -> JsonObject | None:
        return find_project(client, self.project, self.domain) if self.project is not None else None


@dataclass(frozen=True, slots=True)
class AssignmentOptions(AssigneeOptions):
    """The options that identify an assignment: the user or group, and the project or the whole service."""

    service: Annotated[
        bool,
        typer.Option(
            "--service", help="The role applies to the whole service, not to a project. Only for operators."
        ),
    ] = False

    def __post_init__(self) -> None:
        if (self.user is None) == (self.group is None):
            raise InvalidOption("Give either --user or --group.")
        if (self.project is None) != self.service:
            raise InvalidOption("Give either --project or --service.")


class _Place(NamedTuple):
    """Where a role is assigned: the API path of the assignment, and a description of the scope for messages."""

    path: str
    scope: str


def assign(client: AdministrationClient, role: RoleArgument, assignment: AssignmentOptions) -> None:
    """Assign a role to a user or group. The role must exist: see `role create`.

    Examples:
        clustercert role assign member --group team-blue --project eu-de
        clustercert role assign operator --user olga --service
    """
    place = _place(client, role, assignment)
    assigned = client.put(place.path, {})
    print_note(f"Assigned the role {role} in {place.scope} to {shown_name(client, assigned)}.")


def unassign(
    client: AdministrationClient,
    role: RoleArgument,
    assignment: AssignmentOptions,
    revoke: RevokeOption = None,
) -> None:
    """Remove a role from a user or group. Asks whether to revoke the certificates of users who lose the role.

    Examples:
        clustercert role unassign member --user alice --project eu-de --revoke
    """
    place = _place(client, role, assignment)
    assigned = client.get(place.path)
    done = f"Removed the role {role} in {place.scope} from {shown_name(client, assigned)}."
    remove_role(client, place.path, place.scope, revoke, done)


def list_assignments(
    client: AdministrationClient,
    assignee: AssigneeOptions,
    names: Annotated[bool, typer.Option("--names", help="List the roles, not their assignments.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List role assignments.

    The roles that users have through groups are not listed.

    Examples:
        clustercert role list --user alice
    """
    if names:
        roles = sorted(client.list_all("/roles", "roles"), key=lambda each: str(each["name"]))
        rows: list[Row] = [{"role": role["name"], "id": role["id"]} for role in roles]
        show_list(rows, output, columns=("role", "id"), name="role")
        return
    found: Sequence[Row] = [_row(each) for each in _assignments(client, assignee)]
    found = sorted(
        found, key=lambda row: [str(row[name] or "") for name in ("project", "user", "group", "role")]
    )
    if output is Output.TABLE:
        for column in ("user", "group", "project"):
            found = with_qualified_names(found, column, f"{column}_domain")
    columns = ("role", "user", "group", "project")
    show_list(found, output, columns=columns, name="role", keep=columns)


def _place(client: AdministrationClient, role: str, assignment: AssignmentOptions) -> _Place:
    """Return where to assign a role. Raises ClientError, UnknownName or CommandError."""
    project = assignment.find_project(client)
    kind = "users" if assignment.user is not None else "groups"
    named = assignment.user or assignment.group or ""
    assignee, domain = split_domain(named, assignment.domain)
    # Only operators may look up users. For project admins, the service accepts the name in the path.
    if project is None or client.is_operator:
        assignee = str(find(client, kind, named, assignment.domain)["id"])
    path = path_of("assignments", role, kind, assignee, domain=domain)
    if project is None:
        return _Place(path, "the whole service")
    return _Place(
        path_of("projects", str(project["id"])) + path, f"the project {shown_name(client, project)}"
    )


def _assignments(client: AdministrationClient, assignee: AssigneeOptions) -> Iterable[JsonObject]:
    project = assignee.find_project(client)
    kinds = "users" if assignee.user is not None else "groups"
    kind, name = kinds.removesuffix("s"), assignee.user or assignee.group
    if project is None:
        if name is None:
            return client.list_all("/assignments", "assignments")
        found = find(client, kinds, name, assignee.domain)
        return client.list_all("/assignments", "assignments", **{kind: str(found["id"])})
    listed = client.list_all(path_of("projects", str(project["id"]), "assignments"), "assignments")
    if name is None:
        return listed
    name, domain = split_domain(name, assignee.domain)
    return (
        each
        for each in listed
        if each["assignee"] == kind
        and name in (each["name"], each["assignee_id"])
        and domain in (None, each["domain"])
    )


def _row(assignment: JsonObject) -> dict[str, object]:
    is_user = assignment["assignee"] == "user"
    assignee = (assignment["name"], assignment["assignee_id"], assignment["domain"])
    none = (None, None, None)
    user, group = (assignee, none) if is_user else (none, assignee)
    return {
        "role": assignment["role"],
        "user": user[0],
        "user_id": user[1],
        "user_domain": user[2],
        "group": group[0],
        "group_id": group[1],
        "group_domain": group[2],
        "project": assignment["project"],
        "project_id": assignment["project_id"],
        "project_domain": assignment["project_domain"],
        "service": assignment["project"] is None,
    }


role = new_group("role", {"assign": assign, "unassign": unassign, "list": list_assignments})
