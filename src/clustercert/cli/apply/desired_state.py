"""Compares documents with the service, and plans the changes of `clustercert apply`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from clustercert.cli.apply.documents import KINDS, Document, cluster_fields
from clustercert.cli.options import CommandError
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change to one object.

    Attributes:
        action: `create`, `change` or `delete`.
        path: API path of the object. For an object in a project, relative to the project's path.
        body: body of the PUT request; `None` for a deletion.
        project: domain and name of the object's project. The full path contains the project's id.
        differences: old and new values by field.
        needs_others: whether the change refers to an object that an earlier change creates.
        etag: delete the object only if it still has this ETag; `None` to delete it in any state.
    """

    action: str
    title: str
    path: str
    body: JsonObject | None = None
    project: tuple[str | None, str] | None = None
    differences: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    needs_others: bool = False
    etag: str | None = None


class Planner:
    """Plans changes. Raises CommandError if a referenced object is neither in the documents nor in the service."""

    def __init__(self, client: AdministrationClient, documents: Sequence[Document]) -> None:
        self._client = client
        self._documents = documents
        self._named = {(each.resource.kind, each.domain, each.name) for each in documents}
        self._found: dict[tuple[str, str | None, str], JsonObject | None] = {}
        self.project_ids: dict[tuple[str | None, str], str] = {}

    def changes(self, advance: Callable[[], None]) -> list[PlannedChange]:
        """Return the changes in the order in which they can be made. Raises CommandError or ClientError.

        Args:
            advance: called after each document.
        """
        found: list[PlannedChange] = []
        for document in sorted(self._documents, key=lambda each: list(KINDS).index(each.resource.kind)):
            found += self._changes_of(document)
            advance()
        return found

    def check(self, changes: Sequence[PlannedChange]) -> None:
        """Let the service check the changes, except those that need an object that does not exist yet.

        Raises ClientError.
        """
        for change in changes:
            has_project = change.project is None or change.project in self.project_ids
            if has_project and change.body is not None and not change.needs_others:
                separator = "&" if "?" in change.path else "?"
                self._client.put(f"{self.full_path(change)}{separator}dryRun=All", change.body)

    def full_path(self, change: PlannedChange) -> str:
        """Return the API path of a changed object. For an object in a project, the path contains the project's id."""
        if change.project is None:
            return change.path
        return path_of("projects", self.project_ids[change.project]) + change.path

    def awaited_projects(self, change: PlannedChange) -> list[tuple[str | None, str]]:
        """Return the keys in `project_ids` for the project that a change creates. Empty for other changes."""
        return [
            (each.domain, each.name)
            for each in self._documents
            if each.resource.kind == "Project"
            and change.path == path_of("projects", each.name, domain=each.domain)
        ]

    def _changes_of(self, document: Document) -> Iterator[PlannedChange]:
        match document.resource.kind:
            case "RoleBinding":
                yield from self._binding(document)
            case "Cluster":
                yield from self._cluster(document)
            case _:
                yield from self._entity(document)

    def _entity(self, document: Document) -> Iterator[PlannedChange]:
        """Plan a project, user or group, and the members of a group."""
        resource = document.resource
        current = self._find(resource.kind, document.domain, document.name)
        if current is not None and resource.kind == "Project":
            self.project_ids[document.domain, document.name] = str(current["id"])
        given = {name: value for name, value in document.spec.items() if name != "members"}
        # Omit the default of `enabled`: the service then enables new objects, and keeps the value of existing objects.
        defaults = {name: value for name, value in resource.defaults.items() if name != "enabled"}
        body = {**defaults, **given, "labels": dict(document.labels)}
        path = path_of(resource.plural, document.name, domain=document.domain)
        yield from _put(document, path, body, current)
        if "members" in document.spec:
            yield from self._members(document, current)

    def _members(self, document: Document, group: JsonObject | None) -> Iterator[PlannedChange]:
        names = list(dict.fromkeys(document.spec["members"]))
        for name in names:
            self._require(document, "User", document.domain, name)
        current: dict[str, JsonObject] = {}
        if group is not None:
            listed = self._client.list_all(path_of("groups", str(group["id"]), "members"), "members")
            # Members from other domains are keyed by id: their names may be equal to names in the group's domain.
            ours = str(group["domain_id"])
            current = {str(each["name" if each["domain_id"] == ours else "id"]): each for each in listed}
        for name in names:
            if name not in current and name not in {each["id"] for each in current.values()}:
                path = path_of("groups", document.name, "members", name, domain=document.domain)
                is_new = group is None or self._find("User", document.domain, name) is None
                title = f"{document.title} member {name}"
                yield PlannedChange("create", title, path, {}, needs_others=is_new)
        for name, each in current.items():
            if name not in names and each["id"] not in names:
                path = path_of("groups", document.name, "members", str(each["id"]), domain=document.domain)
                yield PlannedChange("delete", f"{document.title} member {name}", path)

    def _binding(self, document: Document) -> Iterator[PlannedChange]:
        """Plan the missing assignments of a role binding. Other assignments are kept."""
        role, project = document.spec["role"], self._project(document)
        self._require_role(document, role)
        assigned = self._assigned(project)
        for kind, plural in (("User", "users"), ("Group", "groups")):
            for name in dict.fromkeys(document.spec.get(plural, ())):
                current = self._require(document, kind, document.domain, name)
                key = (role, kind.lower(), str(current["id"]) if current is not None else "")
                if key not in assigned:
                    path = path_of("assignments", role, plural, name, domain=document.domain)
                    where = document.project or "service"
                    title = f"RoleBinding {where}: {role} of {kind} {name}"
                    yield PlannedChange("create", title, path, {}, project, needs_others=current is None)

    def _assigned(self, project: tuple[str | None, str] | None) -> set[tuple[str, str, str]]:
        """Return the assignments in a project or the whole service: role, `user` or `group`, and the assignee's id."""
        if project is not None and project not in self.project_ids:
            return set()
        if project is None:
            listed = self._client.list_all("/assignments", "assignments", scope="service")
        else:
            path = path_of("projects", self.project_ids[project], "assignments")
            listed = self._client.list_all(path, "assignments")
        return {(str(each["role"]), str(each["assignee"]), str(each["assignee_id"])) for each in listed}

    def _cluster(self, document: Document) -> Iterator[PlannedChange]:
        project, path = self._project(document), path_of("clusters", document.name)
        current = None
        if project is not None and project in self.project_ids:
            current = self._client.find(f"/projects/{self.project_ids[project]}{path}")
        yield from _put(document, path, cluster_fields(document), current, project)

    def _project(self, document: Document) -> tuple[str | None, str] | None:
        """Return the domain and name of the project of a cluster or role binding.

        Stores the project's id in `project_ids` if the project exists. Raises CommandError if the project is missing.
        """
        if document.project is None:
            return None
        key = (document.domain, document.project)
        current = self._require(document, "Project", *key)
        if current is not None:
            self.project_ids[key] = str(current["id"])
        return key

    def _require(self, document: Document, kind: str, domain: str | None, name: str) -> JsonObject | None:
        """Return a referenced object, or None if it does not exist and a document creates it.

        Raises CommandError if the object does not exist and no document creates it.
        """
        current = self._find(kind, domain, name)
        if current is None and (kind, domain, name) not in self._named:
            names = {known for of, where, known in self._named if (of, where) == (kind, domain)}
            raise CommandError(
                f"{document.source}: {document.title}: there is no {kind.lower()} {name}.{_similar(name, names)}"
            )
        return current

    def _require_role(self, document: Document, role: str) -> None:
        if self._find("Role", None, role) is None:
            names = {str(each["name"]) for each in self._client.list_all("/roles", "roles")}
            raise CommandError(
                f"{document.source}: {document.title}: there is no role {role}.{_similar(role, names)}"
            )

    def _find(self, kind: str, domain: str | None, name: str) -> JsonObject | None:
        key = (kind, domain, name)
        if key not in self._found:
            self._found[key] = self._client.find(path_of(f"{kind.lower()}s", name, domain=domain))
        return self._found[key]


def deletions(
    client: AdministrationClient, documents: Sequence[Document], selector: Mapping[str, str]
) -> list[PlannedChange]:
    """Plan the deletion of all objects that have the labels of the selector and are in no document."""
    projects = list(client.list_all("/projects", "projects"))
    named = {(each.resource.kind, each.project, each.name) for each in documents}
    kept = {(kind, name) for kind, _, name in named}
    found: list[tuple[str, str]] = []
    for project in projects:
        path = path_of("projects", str(project["id"]), "clusters")
        for each in client.list_all(path, "clusters"):
            owners = {str(project["id"]), str(project["name"])}
            is_named = any(
                ("Cluster", owner, key) in named for owner in owners for key in (each["name"], each["id"])
            )
            if _has_labels(each, selector) and not is_named:
                found.append((f"Cluster {project['name']}/{each['name']}", f"{path}/{each['id']}"))
    for kind in ("Group", "User", "Project"):
        plural = f"{kind.lower()}s"
        found += [
            (f"{kind} {each['name']}", path_of(plural, str(each["id"])))
            for each in client.list_all(f"/{plural}", plural)
            if _has_labels(each, selector) and not {(kind, each["name"]), (kind, each["id"])} & kept
        ]
    return [change for title, path in found for change in _deletion(client, title, path, selector)]


def _deletion(
    client: AdministrationClient, title: str, path: str, selector: Mapping[str, str]
) -> Iterator[PlannedChange]:
    """Plan the deletion of an object, unless the object lost the labels after it was listed."""
    state = client.find_state(path)
    if state is not None and _has_labels(state[0], selector):
        yield PlannedChange("delete", title, path, etag=state[1])


def _put(
    document: Document,
    path: str,
    body: JsonObject,
    current: JsonObject | None,
    project: tuple[str | None, str] | None = None,
) -> Iterator[PlannedChange]:
    """Plan a PUT request, unless the fields of the object already have these values."""
    if current is None:
        yield PlannedChange("create", document.title, path, body, project)
        return
    differences = {
        name: (current.get(name), value) for name, value in body.items() if current.get(name) != value
    }
    if differences:
        yield PlannedChange("change", document.title, path, body, project, differences)


def _has_labels(value: JsonObject, selector: Mapping[str, str]) -> bool:
    labels: Any = value.get("labels")
    return isinstance(labels, dict) and selector.items() <= labels.items()


def _similar(name: str, names: set[str]) -> str:
    similar = get_close_matches(name, sorted(names), n=1)
    return f" Did you mean {similar[0]}?" if similar else ""
