"""Finds projects, users and groups by name or id, over the administration API."""

import itertools
from typing import Literal

from clustercert.cli.options import CommandError, UnknownName
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject
from clustercert.model.ids import is_id

Kind = Literal["projects", "users", "groups"]

# The highest count. Larger numbers are shown as more than this.
_MANY = 1000


def find(client: AdministrationClient, kind: Kind, name_or_id: str, domain: str | None = None) -> JsonObject:
    """Return a project, user or group, by default from any domain. Only for operators.

    Raises ClientError, UnknownName, or CommandError if several domains have one with this name.
    """
    if domain is not None or is_id(name_or_id):
        return client.get(path_of(kind, name_or_id, domain=domain))
    noun = kind.removesuffix("s")
    found = list(client.all(path_of(kind), kind, name=name_or_id))
    if not found:
        raise UnknownName(f"There is no {noun} {name_or_id}.")
    if len(found) > 1:
        places = ", ".join(sorted(f"{each['id']} in {each['domain']}" for each in found))
        raise CommandError(
            f"Several domains have a {noun} named {name_or_id}. Give its id, or --domain DOMAIN: {places}."
        )
    return found[0]


def listed(client: AdministrationClient, kind: Kind, domain: str | None) -> list[JsonObject]:
    """List projects, users or groups by domain and name."""
    in_domain = {"domain": domain} if domain is not None else {}
    found = client.all(path_of(kind), kind, **in_domain)
    return sorted(found, key=lambda each: (str(each["domain"]), str(each["name"])))


def path_by_id(kind: Kind, found: JsonObject) -> str:
    """Return the path of an object that was found."""
    return path_of(kind, str(found["id"]))


def certificates_at_stake(client: AdministrationClient, user_id: str) -> str:
    """Return a phrase on the certificates that are revoked with a user, such as `has no valid certificates`."""
    found = client.all("/certificates", "certificates", user=user_id, state="live")
    number = sum(1 for _ in itertools.islice(found, _MANY + 1))
    if number == 0:
        return "has no valid certificates"
    if number == 1:
        return "has 1 valid certificate, which is permanently revoked"
    count = f"more than {_MANY}" if number > _MANY else str(number)
    return f"has {count} valid certificates, which are permanently revoked"
