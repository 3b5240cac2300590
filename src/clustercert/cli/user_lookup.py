"""Finds users of any identity system by name or id, over the API."""

from typing import TYPE_CHECKING, Any

from clustercert.cli.options import CommandError, UnknownName
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import SERVICE

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

_MAX_NAMES = 20


def is_id(name_or_id: str) -> bool:
    """Whether this is the id of a user, or of the service, which has certificates of its own."""
    return is_user_id(name_or_id) or name_or_id == SERVICE


def named_users(
    client: "AdministrationClient", name: str, cluster: "JsonObject | None" = None
) -> "list[JsonObject]":
    """Return the users of a name: all of them, or those with certificates for a cluster. Raises ClientError."""
    from clustercert.cli.reach import cluster_path
    from clustercert.client.administration import check_name

    check_name(name)
    path = "/users-by-name" if cluster is None else cluster_path(cluster, "users-by-name")
    body = client.get(path, name=name)
    with client.check_format():
        users: Any = body["users"]
        return [{**each, "id": str(each["id"])} for each in users]


def find_user(
    client: "AdministrationClient",
    name_or_id: str,
    *,
    cluster: "JsonObject | None" = None,
    domain: str | None = None,
) -> "JsonObject":
    """Return a user, by an id that is not looked up, or by name, such as `sso/anna` for a user of the issuer `sso`.

    Raises ClientError, UnknownName, or CommandError if several users have the name.

    Args:
        cluster: search only its unexpired certificates, as admins of a project may.
        domain: the name of a domain, an issuer or Keystone.
    """
    if is_id(name_or_id):
        return {"id": name_or_id}
    found = named_users(client, name_or_id, cluster)
    if domain is not None:
        found = [each for each in found if each["domain"] == domain]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(_described, found[:_MAX_NAMES]))
        raise CommandError(f"Several users are named {name_or_id}: {listed}. Give the id.")
    if cluster is not None:
        raise UnknownName(
            f"No unexpired certificate of the cluster {cluster['name']} belongs to a user {name_or_id}."
        )
    where = f" in the domain {domain}" if domain is not None else ""
    raise UnknownName(
        f"There is no user {name_or_id}{where}. A user of an issuer has its name in front, such as sso/anna, and is "
        "known after their first login."
    )


def _described(user: "JsonObject") -> str:
    return f"{user['id']} (domain {user['domain']})" if user.get("domain") else str(user["id"])
