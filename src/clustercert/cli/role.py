"""`clustercert role`: roles of users and groups in projects or in the whole service."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from clustercert.cli.administration import new_group
from clustercert.cli.options import DomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, with_domain
from clustercert.cli.resources import RESOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

RoleArgument = Annotated[str, RESOURCES["role"].name_argument]


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

    def find_project(self, client: "AdministrationClient") -> "JsonObject | None":
        from clustercert.cli.lookup import find_project

        return find_project(client, self.project, self.domain) if self.project is not None else None


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


class _Place(NamedTuple):
    """Where a role is assigned: the path of its assignment, and a description for messages."""

    path: str
    scope: str


def assign(client: "AdministrationClient", role: RoleArgument, assignment: AssignmentOptions) -> None:
    """Assign a role to a user or group. It must exist: see `role create`."""
    place = _place(client, role, assignment)
    assigned = client.put(place.path, {})
    note(f"Assigned the role {role} in {place.scope} to {assigned['name']}.")


def unassign(client: "AdministrationClient", role: RoleArgument, assignment: AssignmentOptions) -> None:
    """Remove a role from a user or group."""
    place = _place(client, role, assignment)
    assigned = client.get(place.path)
    client.delete(place.path)
    note(f"Removed the role {role} in {place.scope} from {assigned['name']}.")


def list_assignments(
    client: "AdministrationClient",
    assignee: AssigneeOptions,
    names: Annotated[bool, typer.Option("--names", help="List the roles, not their assignments.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List role assignments.

    The roles that users have through groups are not listed.
    """
    if names:
        roles = sorted(client.all("/roles", "roles"), key=lambda each: str(each["name"]))
        rows: list[Row] = [{"role": role["name"], "id": role["id"]} for role in roles]
        show_list(rows, output, columns=("role", "id"), name="role")
        return
    found = [_row(each) for each in _assignments(client, assignee)]
    found.sort(key=lambda row: [str(row[name] or "") for name in ("project", "user", "group", "role")])
    columns = with_domain(("role", "user", "group", "project"), found, "project_id")
    show_list(found, output, columns=columns, name="role")


def _place(client: "AdministrationClient", role: str, assignment: AssignmentOptions) -> _Place:
    """Find the project, and the user or group. Raises ClientError, UnknownName or CommandError."""
    from clustercert.cli.lookup import find
    from clustercert.client.administration import path_of

    project = assignment.find_project(client)
    kind = "users" if assignment.user is not None else "groups"
    assignee = assignment.user or assignment.group or ""
    # Only operators may look up users. From project admins, the service takes the name itself.
    if project is None or client.is_operator:
        assignee = str(find(client, kind, assignee, assignment.domain)["id"])
    path = path_of("assignments", role, kind, assignee, domain=assignment.domain)
    if project is None:
        return _Place(path, "the whole service")
    return _Place(path_of("projects", str(project["id"])) + path, f"the project {project['name']}")


def _assignments(client: "AdministrationClient", assignee: AssigneeOptions) -> "Iterable[JsonObject]":
    from clustercert.cli.lookup import find
    from clustercert.client.administration import path_of

    project = assignee.find_project(client)
    kinds = "users" if assignee.user is not None else "groups"
    kind, name = kinds.removesuffix("s"), assignee.user or assignee.group
    if project is None:
        if name is None:
            return client.all("/assignments", "assignments")
        found = find(client, kinds, name, assignee.domain)
        return client.all("/assignments", "assignments", **{kind: str(found["id"])})
    listed = client.all(path_of("projects", str(project["id"]), "assignments"), "assignments")
    return (
        each
        for each in listed
        if name is None or (each["assignee"] == kind and name in (each["name"], each["assignee_id"]))
    )


def _row(assignment: "JsonObject") -> "dict[str, object]":
    is_user = assignment["assignee"] == "user"
    assignee, none = (assignment["name"], assignment["assignee_id"]), (None, None)
    user, group = (assignee, none) if is_user else (none, assignee)
    return {
        "role": assignment["role"],
        "user": user[0],
        "user_id": user[1],
        "group": group[0],
        "group_id": group[1],
        "project": assignment["project"],
        "project_id": assignment["project_id"],
        "service": assignment["project"] is None,
    }


role = new_group("role", {"assign": assign, "unassign": unassign, "list": list_assignments})
