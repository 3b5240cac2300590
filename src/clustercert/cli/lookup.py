"""Finds clusters, projects, users and groups by name or id, over the API of a service."""

import itertools
import shlex
from typing import TYPE_CHECKING, Any

from clustercert.cli.options import UnknownName, UsageError, did_you_mean
from clustercert.file_names import is_plain
from clustercert.model.errors import ClustercertError, Forbidden
from clustercert.model.identity import qualified_name
from clustercert.model.ids import is_id, is_user_id
from clustercert.model.kubernetes import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clustercert.cli.login.profile import Profile
    from clustercert.client import Client, CurrentUser, ProjectRef, RoleClaim
    from clustercert.client.administration import AdministrationClient
    from clustercert.client.connection import ServiceClient
    from clustercert.model import JsonObject

NO_PROJECTS = "You have no role in any project. To use clusters, ask an operator for a role in their project."
_MAX_NAMES = 20
# Certificates are counted up to this number. A larger number is shown as `more than 1000`.
_MANY = 1000


def reachable_clusters(
    client: "Client",
    project: str | None = None,
    domain: str | None = None,
    labels: "Mapping[str, str] | None" = None,
) -> "list[JsonObject]":
    """List the clusters of the caller's projects, or of one project or domain, sorted by project and name.

    Raises ClientError or UnknownName.

    Args:
        labels: return only clusters with all these labels.
    """
    within = _project_ids(client, project, domain)
    found = _clusters(client, own="true")
    if not found and within is None and not client.projects():
        raise no_projects(client.caller())
    kept = (each for each in found if within is None or each["project_id"] in within)
    return sorted(
        (each for each in kept if has_labels(each, labels)),
        key=lambda each: (str(each["project"]), str(each["domain"]), str(each["name"])),
    )


def _clusters(client: "ServiceClient", **query: str) -> "list[JsonObject]":
    """Return clusters of the service. Raises ClientError, also if an id is not safe in file names."""
    found = list(client.list_all("/clusters", "clusters", **query))
    with client.check_format():
        ids = [each[key] for each in found for key in ("id", "project_id")]
        if not all(isinstance(each, str) and is_plain(each) for each in ids):
            raise ValueError("the response contains an id with unexpected characters")
    return found


def full_name(cluster: "JsonObject") -> str:
    """Return `DOMAIN/PROJECT/CLUSTER` for a cluster from the service."""
    return f"{cluster['domain']}/{cluster['project']}/{cluster['name']}"


def shown_cluster(client: "ServiceClient", name: str, cluster_id: str) -> str:
    """Return the name of a cluster for messages. Raises ClientError.

    Returns `DOMAIN/PROJECT/CLUSTER` if the caller can find several clusters of this name.
    """
    named = _clusters_named(client, name)
    found = next((each for each in named if each["id"] == cluster_id), None)
    return full_name(found) if found is not None and len(named) > 1 else name


def has_labels(resource: "JsonObject", labels: "Mapping[str, str] | None") -> bool:
    """Whether a resource of the service has all these labels. A resource of a kind without labels has none."""
    found = resource.get("labels")
    return isinstance(found, dict) and (labels or {}).items() <= found.items()


def _project_ids(client: "Client", project: str | None, domain: str | None) -> set[str] | None:
    """Return the ids of the caller's projects with this name or id, and in this domain. `None` means all projects.

    Raises ClientError, UnknownName, or UsageError if several projects match.
    """
    if project is None and domain is None:
        return None
    caller = client.caller()
    found = caller.projects
    if not found:
        raise no_projects(caller)
    if project is not None:
        project, domain = split_domain(project, domain)
    try:
        if domain is not None:
            found = in_domain(found, domain)
        if project is not None:
            found = (only_project(found, project),)
    except UnknownName as error:
        raise UnknownName(f"{error.message} You are logged in as {caller.shown_name}.") from error
    return {each.id for each in found}


def in_domain(projects: "tuple[ProjectRef, ...]", name_or_id: str) -> "tuple[ProjectRef, ...]":
    """Return the given projects that are in a domain. Raises UnknownName if no project is in the domain."""
    found = tuple(each for each in projects if name_or_id in (each.domain, each.domain_id))
    if not found:
        domains = sorted({each.domain for each in projects})
        raise UnknownName(
            f"You have no role in a project of the domain {name_or_id}.{did_you_mean(name_or_id, domains)} Your "
            f"projects are in {', '.join(domains[:_MAX_NAMES])}."
        )
    return found


def no_projects(caller: "CurrentUser") -> ClustercertError:
    """Return the error for a caller without a role in any project."""
    if caller.missed_role_claims is not None:
        return Forbidden(_no_role(caller.missed_role_claims))
    return UnknownName(_advice_without_projects(caller))


def _no_role(claims: "Sequence[RoleClaim]") -> str:
    """Return which claims of an issuer's token no rule accepts, as far as the service tells the token's user."""
    if not claims:
        return (
            "This token gives you no role: the issuer's settings have no rule that gives a role in a project. Ask an "
            "operator of the service for such a rule (identity.issuers.roles)."
        )
    held = ", ".join(f"{each.claim} {each.value or '(missing)'}" for each in claims)
    wrong = [each.claim for each in claims if each.is_met is False]
    blame = f" A rule accepts other claims of the token, but not its {' and '.join(wrong)}." if wrong else ""
    if not any(each.is_met for each in claims):
        blame = f" No rule accepts the token's {' or '.join(wrong)}." if wrong else ""
    return (
        f"The token has {held}, and no rule in the issuer's settings gives you a role.{blame} Use a job that a rule"
        " accepts, or ask an operator of the service to change identity.issuers.roles: `clustercert identity explain`"
        " shows operators every rule."
    )


def _advice_without_projects(caller: "CurrentUser") -> str:
    if not caller.sees_all_clusters:
        return NO_PROJECTS
    text = "You have no role in any project. `clustercert cluster list` lists the clusters of all projects."
    if not caller.is_operator:
        return text
    return (
        f"{text} To use them, give yourself a role: `clustercert role assign ROLE --user {shlex.quote(caller.name)}"
        " --project PROJECT`."
    )


def reachable_cluster(
    client: "Client", login: "Profile", name_or_id: str, project: str | None = None, domain: str | None = None
) -> "JsonObject":
    """Find a cluster in the projects where the caller has a role. `name_or_id` is in a form of `split_cluster`.

    If several clusters match, prefers clusters in the project that the user chose at login.

    Raises ClientError, UnknownName if no cluster matches, or UsageError if clusters of several projects match.
    """
    name_or_id, project = split_cluster(name_or_id, project)
    within = _project_ids(client, project, domain)
    named = _clusters_named(client, name_or_id, own="true")
    found = [each for each in named if within is None or each["project_id"] in within]
    if within is None and login.chosen_project:
        found = [each for each in found if each["project_id"] == login.project_id] or found
    if (cluster := only_cluster(name_or_id, found)) is not None:
        return cluster
    where = f"in the project {project}" if project is not None else "in your projects"
    where += f" of the domain {domain}" if domain is not None else ""
    names = {str(each["name"]) for each in reachable_clusters(client, project, domain)}
    raise UnknownName(
        f"There is no cluster {name_or_id} {where}.{did_you_mean(name_or_id, names)} "
        "`clustercert clusters` lists the clusters."
    )


def find_cluster(
    client: "AdministrationClient",
    name_or_id: str,
    project: str | None = None,
    domain: str | None = None,
    *,
    preferred: str | None = None,
) -> "JsonObject":
    """Return a cluster in any project of the caller, or in the given project.

    `name_or_id` is in a form of `split_cluster`. Operators and auditors can find all clusters.

    Raises ClientError, UnknownName if no cluster matches, or UsageError if clusters of several projects match.

    Args:
        preferred: the id of the project whose cluster is returned if clusters of several projects match.
    """
    name_or_id, project = split_cluster(name_or_id, project)
    matching = [each for each in _clusters_named(client, name_or_id) if is_in(each, project, domain)]
    if project is None and domain is None:
        matching = [each for each in matching if each["project_id"] == preferred] or matching
    found = only_cluster(name_or_id, matching)
    if found is not None:
        return found
    names = {str(each["name"]) for each in clusters_of_caller(client) if is_in(each, project, domain)}
    where = f" in the project {project}" if project is not None else ""
    raise UnknownName(
        f"There is no cluster {name_or_id}{where}.{did_you_mean(name_or_id, names)} `clustercert cluster list` lists "
        "the clusters."
    )


def _clusters_named(client: "ServiceClient", name_or_id: str, **query: str) -> "list[JsonObject]":
    is_name = name_or_id and name_or_id.isprintable()
    return _clusters(client, name=name_or_id, **query) if is_name else []


def only_cluster(name_or_id: str, found: "Sequence[JsonObject]") -> "JsonObject | None":
    """Return the only cluster with this name or id, or None. An id takes precedence over another cluster's name.

    Raises UsageError if several projects have a cluster of this name.
    """
    found = [each for each in found if each["id"] == name_or_id] or found
    if len(found) > 1:
        names = alternatives(f"{project}/{name_or_id}" for project in _projects_of(found))
        raise UsageError(f"Several projects have a cluster named {name_or_id}. Write {names}.")
    return found[0] if found else None


def _projects_of(clusters: "Sequence[JsonObject]") -> list[str]:
    """Return the project of each cluster as DOMAIN/NAME, or the project's id if this form is ambiguous. Sorted."""
    names = [f"{each['domain']}/{each['project']}" for each in clusters]
    return sorted(
        str(each["project_id"]) if names.count(name) > 1 or "/" in str(each["domain"]) else name
        for each, name in zip(clusters, names, strict=True)
    )


def only_project(projects: "tuple[ProjectRef, ...]", name_or_id: str) -> "ProjectRef":
    """Return the project with this name, DOMAIN/NAME or id.

    Raises UnknownName, or UsageError if several projects match.
    """
    found = [each for each in projects if name_or_id in (each.id, each.name, f"{each.domain}/{each.name}")]
    if len(found) == 1:
        return found[0]
    if not projects:
        raise UnknownName(NO_PROJECTS)
    if not found:
        names = ", ".join(f"{each.domain}/{each.name}" for each in projects[:_MAX_NAMES])
        similar = did_you_mean(name_or_id, [each.name for each in projects])
        raise UnknownName(f"You have no role in a project {name_or_id}.{similar} Your projects: {names}.")
    names = alternatives(f"{each.domain}/{each.name}" for each in found)
    raise UsageError(f"Several of your projects are named {name_or_id}. Write {names}.")


def clusters_of_caller(client: "ServiceClient") -> "list[JsonObject]":
    """List the clusters that the caller can find, sorted by domain, project and name."""
    return sorted(
        _clusters(client), key=lambda each: (str(each["domain"]), str(each["project"]), str(each["name"]))
    )


def find_project(client: "AdministrationClient", name_or_id: str, domain: str | None = None) -> "JsonObject":
    """Return a project in which the caller has a role.

    Operators can find all projects, and auditors all projects that have clusters.

    `name_or_id` can also be DOMAIN/NAME. Raises ClientError, UnknownName, or UsageError if several domains have a
    project of this name.
    """
    if client.is_operator:
        return find(client, "projects", name_or_id, domain)
    name_or_id, domain = split_domain(name_or_id, domain)
    projects = projects_with_clusters(client) if client.reads_everything else own_projects(client)
    if domain is not None:
        projects = in_domain(projects, domain)
    found = only_project(projects, name_or_id)
    return {"id": found.id, "name": found.name, "domain": found.domain}


def projects_with_clusters(client: "AdministrationClient") -> "tuple[ProjectRef, ...]":
    """List the projects of all clusters that the caller can find."""
    from clustercert.client import ProjectRef

    found = {
        str(each["project_id"]): ProjectRef(
            str(each["project_id"]), str(each["project"]), str(each["domain"]), str(each["domain_id"])
        )
        for each in clusters_of_caller(client)
    }
    return tuple(found.values())


def own_projects(client: "AdministrationClient") -> "tuple[ProjectRef, ...]":
    """List the enabled projects in which the caller has a role."""
    from clustercert.client import ProjectRef

    with client.check_format():
        own: Any = client.caller["projects"]
        return tuple(ProjectRef.parse(each) for each in own)


def cluster_path(cluster: "JsonObject", *more: str) -> str:
    """Return the API path of a cluster, or of an object that belongs to the cluster."""
    from clustercert.client.administration import path_of

    return path_of("projects", str(cluster["project_id"]), "clusters", str(cluster["id"]), *more)


def is_in(cluster: "JsonObject", project: str | None, domain: str | None) -> bool:
    """Whether a cluster is in the project and domain, if they are given. `project` can also be DOMAIN/NAME."""
    if project is not None:
        project, domain = split_domain(project, domain)
    return project in (None, cluster["project"], cluster["project_id"]) and domain in (
        None,
        cluster["domain"],
        cluster["domain_id"],
    )


def find(
    client: "AdministrationClient", plural: str, name_or_id: str, domain: str | None = None
) -> "JsonObject":
    """Return a project, user or group, by default from any domain. Only for operators.

    Raises ClientError, UnknownName, or UsageError if several domains have an object with this name.

    Args:
        name_or_id: a name, an id, or DOMAIN/NAME. A domain in the name takes precedence over the argument `domain`.
    """
    from clustercert.client.administration import path_of

    if is_id(name_or_id):
        return client.get(path_of(plural, name_or_id))
    name, domain = split_domain(name_or_id, domain)
    noun = plural.removesuffix("s")
    if name != name_or_id and domain is not None and client.find(path_of("domains", domain)) is None:
        hint = (
            " Users of an issuer or of Keystone get their roles from the settings." if noun == "user" else ""
        )
        raise UnknownName(f"There is no {noun} {name_or_id}, because there is no domain {domain}.{hint}")
    in_domain = {"domain": domain} if domain is not None else {}
    found = list(client.list_all(path_of(plural), plural, name=name, **in_domain))
    if len(found) == 1:
        return found[0]
    if found:
        names = alternatives(f"{each['domain']}/{each['name']}" for each in found)
        raise UsageError(f"Several domains have a {noun} named {name}. Write {names}.")
    if domain is None:
        raise UnknownName(f"There is no {noun} {name}.")
    others = [f"{each['domain']}/{name}" for each in client.list_all(path_of(plural), plural, name=name)]
    elsewhere = (
        f" There is {', '.join(sorted(others)[:_MAX_NAMES])}: write it with its domain." if others else ""
    )
    raise UnknownName(f"There is no {noun} {name} in the domain {domain}.{elsewhere}")


def split_domain(name: str, domain: str | None = None) -> tuple[str, str | None]:
    """Split `DOMAIN/NAME` into the name and its domain. For a name without a domain, returns the argument `domain`."""
    prefix, slash, rest = name.partition("/")
    return (rest, prefix) if slash else (name, domain)


def split_cluster(name_or_id: str, project: str | None = None) -> tuple[str, str | None]:
    """Split `DOMAIN/PROJECT/CLUSTER` or `PROJECT/CLUSTER` into the cluster and its project.

    For a cluster without a project, returns the argument `project`. Raises UsageError if both name a project.
    """
    owner, slash, cluster = name_or_id.rpartition("/")
    if not slash:
        return name_or_id, project
    if project is not None:
        raise UsageError(
            f"{name_or_id} names the project of the cluster already. Leave out --project {project}."
        )
    return cluster, owner


def alternatives(names: "Iterable[str]") -> str:
    """Return names that a user can copy into a command, as a text such as `acme/prod or globex/prod`. Sorted."""
    *others, last = (shlex.quote(each) for each in sorted(names)[:_MAX_NAMES])
    return f"{', '.join(others)} or {last}" if others else last


def shown_name(client: "AdministrationClient", found: "JsonObject") -> str:
    """Return the name of a domain, project, user or group for messages. Raises ClientError.

    Returns `DOMAIN/NAME` if the object is not in the caller's domain.
    """
    name, domain = str(found["name"]), found.get("domain")
    return name if domain in (None, client.caller.get("domain")) else f"{domain}/{name}"


def objects(client: "AdministrationClient", plural: str, domain: str | None = None) -> "list[JsonObject]":
    """List domains, projects, users or groups, sorted by domain and name."""
    in_domain = {"domain": domain} if domain is not None else {}
    found = client.list_all(f"/{plural}", plural, **in_domain)
    return sorted(found, key=lambda each: (str(each.get("domain")), str(each["name"])))


def affected_certificates(client: "AdministrationClient", user_id: str) -> str:
    """Return how many valid certificates a user would lose, as a phrase such as `has no valid certificates`."""
    found = client.list_all("/certificates", "certificates", user=user_id, state="live")
    count = count_of(found, "valid certificate")
    if count.startswith("no "):
        return f"has {count}"
    return f"has {count}, which {'is' if count.startswith('1 ') else 'are'} permanently revoked"


def count_of(objects: "Iterable[JsonObject]", noun: str) -> str:
    """Return the number of objects as a phrase: `no users`, `1 user`, `1000 users` or `more than 1000 users`."""
    return counted(sum(1 for _ in itertools.islice(objects, _MANY + 1)), noun)


def counted(number: int, noun: str) -> str:
    """Return a number of objects as a phrase: see `count_of`."""
    count = f"more than {_MANY}" if number > _MANY else str(number or "no")
    return f"{count} {noun}{'' if number == 1 else 's'}"


def is_certificate_owner(name_or_id: str) -> bool:
    """Whether `name_or_id` is the id of a certificate owner: a user or the service."""
    return is_user_id(name_or_id) or name_or_id == SERVICE


def named_users(
    client: "AdministrationClient", name: str, cluster: "JsonObject | None" = None
) -> "list[JsonObject]":
    """Return all users with this name or DOMAIN/NAME, or only those with unexpired certificates for a cluster.

    Raises ClientError.
    """
    from clustercert.client.administration import check_name

    check_name(name)
    path = "/users-by-name" if cluster is None else cluster_path(cluster, "users-by-name")
    body = client.get(path, name=name)
    with client.check_format():
        users: Any = body["users"]
        return [{**each, "id": str(each["id"])} for each in users]


def shown_user(user: "JsonObject") -> str:
    """Return a user as DOMAIN/NAME, or only the name or the id if the service knows nothing else."""
    return qualified_name(str(user.get("name") or user["id"]), str(user.get("domain") or ""))


def _compared(client: "AdministrationClient", users: "list[JsonObject]") -> str:
    """Return sentences that help to choose between users with the same name."""
    sentences = []
    for user in users[:_MAX_NAMES]:
        certificates = list(
            itertools.islice(client.list_all("/certificates", "certificates", user=str(user["id"])), 1)
        )
        live = client.list_all("/certificates", "certificates", user=str(user["id"]), state="live")
        last = f", the last one issued at {certificates[0]['issued_at']}" if certificates else ""
        login = f", and last logged in at {user['last_login_at']}" if user.get("last_login_at") else ""
        sentences.append(f" {user['id']} has {count_of(live, 'valid certificate')}{last}{login}.")
    return "".join(sentences)


def find_user(
    client: "AdministrationClient",
    name_or_id: str,
    *,
    cluster: "JsonObject | None" = None,
    domain: str | None = None,
) -> "JsonObject":
    """Find a user by name, such as `sso/anna` for a user of the issuer `sso`. Returns an id unchanged.

    Raises ClientError, UnknownName, or UsageError if several users have the name.

    Args:
        cluster: search only the owners of this cluster's unexpired certificates. Project admins may do this search.
        domain: the name of the user's domain, OIDC issuer or Keystone.
    """
    if is_certificate_owner(name_or_id):
        return {"id": name_or_id}
    found = named_users(client, name_or_id, cluster)
    if domain is not None:
        found = [each for each in found if each["domain"] == domain]
    if len(found) == 1:
        return found[0]
    if found:
        names = [shown_user(each) for each in found]
        unique = (
            name if names.count(name) == 1 and name != name_or_id else str(each["id"])
            for each, name in zip(found, names, strict=True)
        )
        shown = _compared(client, found) if client.reads_everything else ""
        raise UsageError(f"Several users are named {name_or_id}. Write {alternatives(unique)}.{shown}")
    if cluster is not None:
        # Project admins must not learn whether a user of another tenant exists.
        known = named_users(client, name_or_id) if client.reads_everything else []
        if known or not client.reads_everything:
            user = alternatives(map(shown_user, known)) if known else name_or_id
            raise UnknownName(
                f"No unexpired certificate for the cluster {full_name(cluster)} belongs to "
                f"{'the' if known else 'a'} user {user}."
            )
    where = f" in the domain {domain}" if domain is not None else ""
    raise UnknownName(
        f"There is no user {name_or_id}{where}. For a user of an OIDC issuer, write the issuer's name first, such as "
        "sso/anna. Such users are known after their first login."
    )
