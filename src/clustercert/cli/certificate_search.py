"""Finds certificates over the API: the caller's own, or those that their rights let them see."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from clustercert.cli.lookup import (
    cluster_path,
    find_cluster,
    find_project,
    is_certificate_owner,
    named_users,
    own_projects,
)
from clustercert.cli.options import MIN_DIGITS, UnknownName, did_you_mean
from clustercert.cli.output import Progress
from clustercert.cli.session import CLUSTER_ID
from clustercert.client.administration import path_of
from clustercert.client.connection import ApiError

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

_FORBIDDEN, _NOT_FOUND = 403, 404
_HEX = frozenset("0123456789abcdef")
_OWN = {"own": "true"}


@dataclass(frozen=True, slots=True)
class Scope:
    """Which certificates to list. Without any of these, the caller's own.

    Attributes:
        everything: whether to list all that the caller may see.
    """

    everything: bool = False
    cluster: str | None = None
    project: str | None = None
    user: str | None = None


def search_certificates(
    client: "AdministrationClient", scope: Scope, filters: Mapping[str, str], limit: int
) -> "tuple[Sequence[JsonObject], bool]":
    """Return at most `limit` certificates, newest first, and whether there may be more.

    Raises ClientError, UnknownName, or CommandError for an ambiguous name.
    """
    paths, place = _paths(client, scope)
    query = {**filters, **place, **_user(scope.user)}
    found: list[JsonObject] = []
    with Progress("certificates read") as progress:
        for path in paths:
            for each in islice(_read(client, path, query, is_only=len(paths) == 1), limit + 1):
                found.append(each)
                progress.advance()
    if not found and scope.user is not None and not is_certificate_owner(scope.user):
        _require_user(client, scope.user)
    if len(paths) > 1:
        found.sort(key=lambda each: str(each["issued_at"]), reverse=True)
    return found[:limit], len(found) > limit


def find_certificate(client: "AdministrationClient", name: str) -> "tuple[JsonObject, str]":
    """Return a certificate, and the path to revoke it.

    Args:
        name: its fingerprint or the first digits of it, its credential number or its serial.

    Raises ClientError or UnknownName.
    """
    digits = name.replace(":", "").lower()
    if len(digits) < MIN_DIGITS or not _HEX.issuperset(digits):
        raise UnknownName(
            f"{name} does not name a certificate. Give its fingerprint, at least {MIN_DIGITS} digits of it, its "
            "credential number, or its serial."
        )
    found = client.find(path_of("certificates", digits))
    if found is not None:
        return found, path_of("certificates", str(found["fingerprint"]), "revoke")
    # A token for a project has the rights of an admin only in that project.
    for project in () if client.is_operator else own_projects(client):
        found = client.find(path_of("projects", project.id, "certificates", digits))
        if found is not None:
            cluster = {"project_id": project.id, "id": found["cluster_id"]}
            return found, cluster_path(cluster, "certificates", str(found["fingerprint"]), "revoke")
    raise UnknownName(
        f"There is no such certificate: {name}. `clustercert certificate list` lists yours, with --all all that you "
        "may see."
    )


def _paths(client: "AdministrationClient", scope: Scope) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the paths of the lists to read, and the parameters that restrict them."""
    removed: Mapping[str, str] = {}
    if scope.cluster is not None:
        try:
            found = find_cluster(client, scope.cluster, scope.project)
            return [cluster_path(found, "certificates")], {}
        except UnknownName:
            # The certificates of a removed cluster are kept.
            if not CLUSTER_ID.fullmatch(scope.cluster):
                raise
            removed = {"cluster": scope.cluster}
    if scope.project is not None:
        project = find_project(client, scope.project)
        return [path_of("projects", str(project["id"]), "certificates")], removed
    wants_others = scope.everything or scope.user is not None or bool(removed)
    if client.is_user and not wants_others:
        return ["/certificates"], _OWN
    if client.is_operator:
        return ["/certificates"], removed
    paths = [path_of("projects", each.id, "certificates") for each in own_projects(client)]
    return paths, removed


def _user(name_or_id: str | None) -> Mapping[str, str]:
    """Return the parameter that selects a user."""
    if name_or_id is None:
        return {}
    return {"user" if is_certificate_owner(name_or_id) else "user_name": name_or_id}


def _require_user(client: "AdministrationClient", name: str) -> None:
    """Raise UnknownName unless a user has this name, which no certificate has."""
    names: list[str] = []
    if client.is_operator:
        if named_users(client, name):
            return
        names = [str(each["name"]) for each in client.all("/users", "users")]
    raise UnknownName(f"No certificate that you may see belongs to a user {name}.{did_you_mean(name, names)}")


def _read(
    client: "AdministrationClient", path: str, query: Mapping[str, str], *, is_only: bool
) -> "Iterator[JsonObject]":
    """Yield the certificates of a list. A list that the caller may not read is empty, unless it is the only one."""
    try:
        yield from client.all(path, "certificates", **query)
    except ApiError as error:
        if is_only or error.http_status not in {_FORBIDDEN, _NOT_FOUND}:
            raise
