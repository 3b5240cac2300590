"""Compares documents with the service, and plans the changes of `clustercert apply`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from clustercert.cli.apply.documents import KINDS, Document, cluster_fields
from clustercert.cli.lookup import has_labels, split_domain
from clustercert.cli.options import CommandError
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject


class Key(NamedTuple):
    """The kind, domain, and name or id by which documents refer to an object.

    Attributes:
        kind: the kind of document that describes the object, such as `Project`.
        name: the name or the id of the object.
        domain: the name of the object's domain; empty for domains and roles.
    """

    kind: str
    domain: str
    name: str


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change to one object.

    Attributes:
        action: `create`, `change`, `delete`, or `rotate` for a rotation of a cluster's client CA.
        path: the parts of the object's API path. A `Key` stands for the id of the object with this key.
        domain: the domain in which the service looks up names in the path; `None` for the caller's domain.
        body: body of the PUT request, or of the POST request for a rotation; `None` for a deletion.
        differences: old and new values by field.
        needs: the keys of other objects that must exist before the change, besides those in `path`.
        creates: the key of the object that the change creates; `None` if no other change can refer to the object.
        etag: delete the object only if it still has this ETag; `None` to delete it in any state.
    """

    action: str
    title: str
    path: tuple[str | Key, ...]
    domain: str | None = None
    body: JsonObject | None = None
    differences: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    needs: tuple[Key, ...] = ()
    creates: Key | None = None
    etag: str | None = None


class Planner:
    """Plans changes. Raises CommandError if a referenced object is neither in the documents nor in the service.

    Attributes:
        ids: the ids of existing objects. When a change has created an object, the caller must add the object's id.
    """

    def __init__(self, client: AdministrationClient, documents: Sequence[Document]) -> None:
        self._client = client
        self._documents = documents
        self._home = str(client.caller["domain"])
        self._named = {self._key_of(each) for each in documents}
        self._found: dict[Key, JsonObject | None] = {}
        self.ids: dict[Key, str] = {}

    def changes(self, advance: Callable[[], None]) -> list[PlannedChange]:
        """Return the changes in the order in which they must be applied. Raises CommandError or ClientError.

        Args:
            advance: called each time a document was compared.
        """
        found: list[PlannedChange] = []
        for document in sorted(self._documents, key=lambda each: list(KINDS).index(each.resource.kind)):
            found += self._changes_of(document)
            advance()
        return found

    def check(self, changes: Sequence[PlannedChange]) -> None:
        """Let the service check the changes, except changes that need an object that does not exist yet.

        Raises ClientError.
        """
        for change in changes:
            needs = {each for each in (*change.path, *change.needs) if isinstance(each, Key)}
            if change.body is not None and needs <= self.ids.keys():
                path = self.full_path(change)
                self.send(change, f"{path}{'&' if '?' in path else '?'}dryRun=All")

    def send(self, change: PlannedChange, path: str) -> JsonObject:
        """Send a change that is not a deletion, and return the answer. Raises ClientError."""
        method = self._client.post if change.action == "rotate" else self._client.put
        return method(path, dict(change.body or {}))

    def full_path(self, change: PlannedChange) -> str:
        """Return the API path of a changed object, with ids in place of keys."""
        parts = (self.ids[each] if isinstance(each, Key) else each for each in change.path)
        return path_of(*parts, domain=change.domain)

    def deletions(self, selector: Mapping[str, str]) -> list[PlannedChange]:
        """Plan the deletion of all objects that have the labels of the selector and are in no document."""
        found: list[tuple[str, tuple[str, ...]]] = []
        projects = list(self._client.list_all("/projects", "projects"))
        clusters = {
            (self._key("Project", each.domain, each.project or ""), each.name)
            for each in self._documents
            if each.resource.kind == "Cluster"
        }
        for project in projects:
            path = ("projects", str(project["id"]), "clusters")
            for each in self._client.list_all(path_of(*path), "clusters"):
                is_named = any(
                    (owner, str(name)) in clusters
                    for owner in self._keys_of("Project", project)
                    for name in (each["name"], each["id"])
                )
                if has_labels(each, selector) and not is_named:
                    title = f"Cluster {self._place(project)}/{each['name']}"
                    found.append((title, (*path, str(each["id"]))))
        for kind in ("Group", "User", "Project"):
            plural = f"{kind.lower()}s"
            found += [
                (f"{kind} {self._place(each)}", (plural, str(each["id"])))
                for each in self._client.list_all(f"/{plural}", plural)
                if has_labels(each, selector) and self._named.isdisjoint(self._keys_of(kind, each))
            ]
        return [change for title, path in found for change in self._deletion(title, path, selector)]

    def _deletion(
        self, title: str, path: tuple[str, ...], selector: Mapping[str, str]
    ) -> Iterator[PlannedChange]:
        """Plan the deletion of an object, unless the object no longer has the labels of the selector."""
        state = self._client.find_state(path_of(*path))
        if state is not None and has_labels(state[0], selector):
            yield PlannedChange("delete", title, path, etag=state[1])

    def _changes_of(self, document: Document) -> Iterator[PlannedChange]:
        match document.resource.kind:
            case "RoleBinding":
                yield from self._binding(document)
            case "Cluster":
                yield from self._cluster(document)
            case _:
                yield from self._entity(document)

    def _entity(self, document: Document) -> Iterator[PlannedChange]:
        """Plan the changes to a domain, project, user, group or role, and to the members of a group."""
        resource, key = document.resource, self._key_of(document)
        current = self._find(key)
        given = {name: value for name, value in document.spec.items() if name != "members"}
        # Omit the default of `enabled`: the service then enables new objects, and keeps the value of existing objects.
        defaults = {name: value for name, value in resource.defaults.items() if name != "enabled"}
        labels = {"labels": dict(document.labels)} if resource.has_labels else {}
        named_domain = (self._require(document, "Domain", document.domain),) if document.domain else ()
        yield from _put(
            document,
            (resource.plural, document.name),
            {**defaults, **given, **labels},
            current,
            domain=document.domain,
            needs=named_domain,
            creates=key,
        )
        if "members" in document.spec:
            yield from self._members(document, current)

    def _members(self, document: Document, group: JsonObject | None) -> Iterator[PlannedChange]:
        keys = [self._require(document, "User", name) for name in document.spec["members"]]
        path = ("groups", self._key_of(document), "members")
        current: dict[str, JsonObject] = {}
        if group is not None:
            listed = self._client.list_all(path_of("groups", str(group["id"]), "members"), "members")
            current = {str(each["id"]): each for each in listed}
        for key in dict.fromkeys(keys):
            if self.ids.get(key) not in current:
                title = f"{document.title} member {self._reference(document, key)}"
                yield PlannedChange("create", title, (*path, key), body={})
        kept = {self.ids.get(key) for key in keys}
        for user_id, each in current.items():
            if user_id not in kept:
                member = self._reference(document, Key("User", str(each["domain"]), str(each["name"])))
                yield PlannedChange("delete", f"{document.title} member {member}", (*path, user_id))

    def _binding(self, document: Document) -> Iterator[PlannedChange]:
        """Plan the assignments of a role binding that the service does not have yet. Deletes no assignments."""
        role = self._require(document, "Role", document.spec["role"])
        project = self._project(document)
        assigned = self._assigned(project)
        place: tuple[str | Key, ...] = ("projects", project) if project is not None else ()
        for kind in ("User", "Group"):
            plural = KINDS[kind].plural
            keys = [self._require(document, kind, name) for name in document.spec.get(plural, ())]
            for key in dict.fromkeys(keys):
                if (role.name, kind.lower(), self.ids.get(key)) not in assigned:
                    path = (*place, "assignments", role.name, plural, key)
                    where, name = document.place or "service", self._reference(document, key)
                    title = f"RoleBinding {where}: {role.name} of {kind} {name}"
                    yield PlannedChange("create", title, path, body={}, needs=(role,))

    def _assigned(self, project: Key | None) -> set[tuple[str, str, str | None]]:
        """Return the role assignments in a project, or in the whole service.

        Each tuple contains a role, the word `user` or `group`, and the id of this user or group.
        """
        if project is None:
            listed = self._client.list_all("/assignments", "assignments", scope="service")
        elif project in self.ids:
            path = path_of("projects", self.ids[project], "assignments")
            listed = self._client.list_all(path, "assignments")
        else:
            return set()
        return {(str(each["role"]), str(each["assignee"]), str(each["assignee_id"])) for each in listed}

    def _cluster(self, document: Document) -> Iterator[PlannedChange]:
        project = self._project(document)
        if project is None:
            raise CommandError(f"{document.source}: {document.title}: metadata.project is missing.")
        current = None
        if project in self.ids:
            current = self._client.find(path_of("projects", self.ids[project], "clusters", document.name))
        path = ("projects", project, "clusters", document.name)
        fields = cluster_fields(document)
        before = fields["signer"] if current is None else current["signer"]
        # A signer changes only by a rotation. A document without a signer keeps the cluster's signer.
        yield from _put(document, path, fields | {"signer": before}, current)
        if document.spec.get("signer", before) != before:
            yield PlannedChange(
                "rotate",
                f"{document.title} client CA",
                (*path, "client-ca-rotation"),
                body={"signer": fields["signer"]},
                differences={"signer": (before, fields["signer"])},
            )

    def _project(self, document: Document) -> Key | None:
        """Return the project that a document names; `None` if it names no project. Raises CommandError."""
        if document.project is None:
            return None
        return self._require(document, "Project", document.project)

    def _require(self, document: Document, kind: str, reference: str) -> Key:
        """Return the key of an object to which a document refers.

        Raises CommandError if the object does not exist and no document creates it.
        """
        name, domain = split_domain(reference, document.domain)
        key = self._key(kind, domain, name)
        if self._is_missing(key) and key not in self._named:
            names = {each.name for each in self._named if (each.kind, each.domain) == (kind, key.domain)}
            if kind == "Role":
                names |= {str(each["name"]) for each in self._client.list_all("/roles", "roles")}
            where = f" in the domain {key.domain}" if "/" in reference else ""
            raise CommandError(
                f"{document.source}: {document.title}: there is no {kind.lower()} {key.name}{where}."
                f"{_similar(key.name, names)}"
            )
        return key

    def _key(self, kind: str, domain: str | None, name: str) -> Key:
        resource = KINDS[kind]
        return Key(kind, (domain or self._home) if resource.is_in_domain else "", name)

    def _key_of(self, document: Document) -> Key:
        return self._key(document.resource.kind, document.domain, document.name)

    def _keys_of(self, kind: str, value: JsonObject) -> set[Key]:
        """Return both keys of an object in a domain: one key with the object's name, and one with the object's id."""
        return {Key(kind, str(value["domain"]), str(value[field])) for field in ("name", "id")}

    def _reference(self, document: Document, key: Key) -> str:
        """Return the name of a user or group, or DOMAIN/NAME if the document is in another domain."""
        is_near = key.domain == (document.domain or self._home)
        return key.name if is_near else f"{key.domain}/{key.name}"

    def _place(self, value: JsonObject) -> str:
        """Return the name of an object, or DOMAIN/NAME if the object is not in the caller's domain."""
        return str(value["name"]) if value["domain"] == self._home else f"{value['domain']}/{value['name']}"

    def _is_missing(self, key: Key) -> bool:
        return self._find(key) is None

    def _find(self, key: Key) -> JsonObject | None:
        """Return an object, or `None` if it does not exist. Stores the object's id in `ids`."""
        if key not in self._found:
            # Omit the caller's own domain, which the service uses by default. A caller without a domain gets an error
            # message that lists the domains.
            domain = key.domain if key.domain not in ("", self._home) else None
            found = self._client.find(path_of(KINDS[key.kind].plural, key.name, domain=domain))
            self._found[key] = found
            if found is not None:
                self.ids[key] = str(found["id"])
        return self._found[key]


def _put(
    document: Document,
    path: tuple[str | Key, ...],
    body: JsonObject,
    current: JsonObject | None,
    **others: Any,
) -> Iterator[PlannedChange]:
    """Plan a PUT request, unless the object's fields already have the values in `body`.

    `others` are other fields of the `PlannedChange`.
    """
    if current is None:
        yield PlannedChange("create", document.title, path, body=body, **others)
        return
    differences = {
        name: (current.get(name), value) for name, value in body.items() if current.get(name) != value
    }
    if differences:
        yield PlannedChange("change", document.title, path, body=body, differences=differences, **others)


def _similar(name: str, names: set[str]) -> str:
    similar = get_close_matches(name, sorted(names), n=1)
    return f" Did you mean {similar[0]}?" if similar else ""
