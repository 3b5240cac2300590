"""Finds domains, projects, users and groups by name or id, over the administration API."""

import re
from typing import Literal

from clustercert.cli.options import CommandError, UnknownName
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.model import JsonObject

Kind = Literal["projects", "users", "groups"]

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def find(client: AdministrationClient, kind: Kind, name_or_id: str, domain: str | None = None) -> JsonObject:
    """Return a project, user or group, by default from any domain. Only for operators.

    Raises ClientError, UnknownName, or CommandError if several domains have one with this name.
    """
    if domain is not None or _ID.fullmatch(name_or_id):
        return client.get(path_of(kind, name_or_id, domain=domain))
    noun = kind.removesuffix("s")
    found = list(client.all(path_of(kind), kind, name=name_or_id))
    if not found:
        raise UnknownName(f"There is no {noun} {name_or_id}.")
    if len(found) > 1:
        domains = ", ".join(sorted(str(each["domain"]) for each in found))
        raise CommandError(
            f"Several domains have a {noun} named {name_or_id}: {domains}. Give its id, or --domain DOMAIN."
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
