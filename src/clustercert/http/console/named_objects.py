"""Finds projects, clusters and users by the names that somebody typed into a filter."""

from collections.abc import Mapping

from clustercert.http.console.api import path
from clustercert.http.console.visits import Visit
from clustercert.model.errors import InvalidRequest
from clustercert.model.ids import is_id, is_long_id
from clustercert.model.rights import reads_everything


async def project_named(visit: Visit, text: str, projects: Mapping[str, str]) -> str | None:
    """Return the id of a project, given by name or id. None stands for all projects."""
    if not text:
        return None if reads_everything(visit.me.caller) else next(iter(projects), None)
    if is_id(text):
        return text
    found = {each for each, name in projects.items() if text in (name, name.rpartition("/")[2])}
    if not found and visit.is_operator:
        domain, _, name = text.rpartition("/")
        listed = await visit.api.get(path("projects"), name=name, domain=domain or None)
        found = {str(each["id"]) for each in listed["projects"]}
    if len(found) == 1:
        return found.pop()
    raise InvalidRequest(
        f"{'Several projects are' if found else 'No project is'} named {text}. Give the project's id."
    )


async def cluster_named(visit: Visit, text: str, project_id: str | None) -> tuple[str | None, str]:
    """Return the ids of the project and of the cluster with this id, `CLUSTER`, or `DOMAIN/PROJECT/CLUSTER`."""
    owner, _, name = text.rpartition("/")
    listed = await visit.api.get(path("clusters"), name=name)
    found = [
        each
        for each in listed["clusters"]
        if owner in ("", each["project"], f"{each['domain']}/{each['project']}")
        and project_id in (None, each["project_id"])
    ]
    if len(found) == 1:
        return found[0]["project_id"], found[0]["id"]
    if not found and is_long_id(text):
        # Events stay when a cluster is removed.
        return project_id, text
    if not found:
        raise InvalidRequest(f"There is no cluster {text} that you can see.")
    names = ", ".join(sorted(f"{each['domain']}/{each['project']}/{each['name']}" for each in found))
    raise InvalidRequest(f"Several clusters are named {text}. Write one of {names}.")


async def user_named(visit: Visit, text: str, cluster: tuple[str | None, str] | None) -> str:
    """Return the id of the user with this name or id. Raises InvalidRequest if there are several users, or none.

    `cluster`: the ids of the project and of a cluster in which the user has certificates, for project admins.
    """
    if is_long_id(text):
        return text
    if reads_everything(visit.me.caller):
        listed = await visit.api.get(path("users-by-name"), name=text)
    elif cluster is not None and cluster[0] is not None:
        listed = await visit.api.get(
            path("projects", cluster[0], "clusters", cluster[1], "users-by-name"), name=text
        )
    else:
        raise InvalidRequest(
            "Also name a cluster in which this person has certificates, or give the person's id."
        )
    found = {str(each["id"]) for each in listed["users"]}
    if len(found) != 1:
        raise InvalidRequest(
            f"There is no user {text}."
            if not found
            else f"Several users are named {text}. Write DOMAIN/NAME, or one of the ids {', '.join(sorted(found))}."
        )
    return found.pop()
