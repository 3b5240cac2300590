"""Writes the objects of a service as documents for `clustercert apply`."""

from collections.abc import Iterable, Iterator

from clustercert.cli.apply.documents import API_VERSION, KINDS
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject


def exported(client: AdministrationClient) -> Iterator[JsonObject]:
    """Yield a document for each object, in the order in which `apply` creates the objects. Raises ClientError."""
    from clustercert.model.rights import PROJECT_ROLES, SERVICE_ROLES

    domains = sorted(client.list_all("/domains", "domains"), key=lambda each: str(each["name"]))
    yield from (_document("Domain", each) for each in domains)
    projects = sorted(client.list_all("/projects", "projects"), key=_place)
    yield from (_document("Project", each) for each in projects)
    yield from (_document("User", each) for each in sorted(client.list_all("/users", "users"), key=_place))
    for group in sorted(client.list_all("/groups", "groups"), key=_place):
        members = list(client.list_all(path_of("groups", str(group["id"]), "members"), "members"))
        names = [_reference(each, str(group["domain"])) for each in members]
        yield _document("Group", group, members=sorted(names))
    for role in sorted(client.list_all("/roles", "roles"), key=lambda each: str(each["name"])):
        if role["name"] not in (*PROJECT_ROLES, *SERVICE_ROLES):
            yield _document("Role", role)
    yield from _bindings(client.list_all("/assignments", "assignments", scope="service"), None)
    for project in projects:
        path = path_of("projects", str(project["id"]), "assignments")
        yield from _bindings(client.list_all(path, "assignments"), project)
    for project in projects:
        path = path_of("projects", str(project["id"]), "clusters")
        for cluster in sorted(client.list_all(path, "clusters"), key=lambda each: str(each["name"])):
            place = {"project": project["name"], "domain": project["domain"]}
            yield _document("Cluster", cluster | place)


def _document(kind: str, value: JsonObject, **more: object) -> JsonObject:
    """Return the document of an object, with only the fields that differ from their defaults."""
    spec: JsonObject = {
        each.name: value[each.name]
        for each in KINDS[kind].fields
        if each.schema is not None and each.name in value and value[each.name] != each.default
    }
    more_metadata = {each.name: value[each.name] for each in KINDS[kind].metadata if value.get(each.name)}
    metadata: JsonObject = {"name": value["name"], **more_metadata}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec | more}


def _bindings(assignments: Iterable[JsonObject], project: JsonObject | None) -> Iterator[JsonObject]:
    """Yield a RoleBinding document for each role that is assigned in a project, or in the whole service."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for each in assignments:
        domain = str(project["domain"] if project is not None else each["domain"])
        subjects = found.setdefault((domain, str(each["role"])), {"users": [], "groups": []})
        subjects[f"{each['assignee']}s"].append(_reference(each, domain))
    for (domain, role), subjects in sorted(found.items()):
        where: JsonObject = {"project": project["name"]} if project is not None else {"service": True}
        name = f"{project['name']}-{role}" if project is not None else f"service-{role}"
        spec = {"role": role, **where, **{kind: sorted(names) for kind, names in subjects.items() if names}}
        metadata = {"name": name, "domain": domain}
        yield {"apiVersion": API_VERSION, "kind": "RoleBinding", "metadata": metadata, "spec": spec}


def _reference(value: JsonObject, domain: str) -> str:
    """Return the name of a user or group, or DOMAIN/NAME if the user or group is in another domain."""
    return str(value["name"]) if value["domain"] == domain else f"{value['domain']}/{value['name']}"


def _place(value: JsonObject) -> tuple[str, str]:
    return str(value["domain"]), str(value["name"])
