"""Finds domains, projects, users and groups."""

from collections.abc import Sequence
from typing import TypeVar

from clustercert.identity.names import searchable
from clustercert.model import Domain, Group, Project, User
from clustercert.model.errors import Conflict, NotFound
from clustercert.model.ids import is_id
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.entities import Reference

N = TypeVar("N", Project, User, Group)


class DirectoryReader:
    """Finds domains, projects, users and groups.

    The `find_…` methods take an id or a name, and raise NotFound, or Conflict if the name exists in several domains.
    """

    def __init__(self, database: Database) -> None:
        self.queries = DirectoryQueries(database)

    async def require_free(self, authority_names: frozenset[str]) -> None:
        """Raise Conflict if a domain has the name of an issuer or Keystone, because user names would be ambiguous."""
        taken = sorted(
            domain.name for domain in await self.queries.domains() if domain.name in authority_names
        )
        if taken:
            raise Conflict(
                f"A domain has the name of an issuer in the settings: {', '.join(taken)}. Change the issuer's name in"
                " [identity], or delete the domain with `clustercert domain delete NAME --local`."
            )

    async def find_domain(self, name_or_id: str) -> Domain:
        found = await self.queries.domains(domain_id=name_or_id) if is_id(name_or_id) else ()
        if not found and (name := searchable(name_or_id)):
            found = await self.queries.domains(name=name)
        if not found:
            raise NotFound(f"There is no domain {name_or_id}.")
        return found[0]

    async def find_project(self, name_or_id: str, domain: Domain | None = None) -> Project:
        return await self._find(Project, name_or_id, domain)

    async def find_user(self, name_or_id: str, domain: Domain | None = None) -> User:
        return await self._find(User, name_or_id, domain)

    async def find_group(self, name_or_id: str, domain: Domain | None = None) -> Group:
        return await self._find(Group, name_or_id, domain)

    async def _find(self, kind: type[N], name_or_id: str, domain: Domain | None) -> N:
        found = await self.queries.find(kind, Reference(id=name_or_id)) if is_id(name_or_id) else ()
        if not found and (name := searchable(name_or_id)):
            found = await self.queries.find(kind, within(domain, name))
        if not found and domain is not None and not is_id(name_or_id):
            raise NotFound(f"There is no {kind.__name__.lower()} {name_or_id} in the domain {domain.name}.")
        return _only(found, kind.__name__.lower(), name_or_id)


def within(domain: Domain | None, name: str | None = None) -> Reference:
    """Return a reference to the objects in a domain that have this name.

    If `domain` is `None`, all domains match. If `name` is `None`, all names match.
    """
    return Reference(name=name, domain_id=domain.id if domain else None)


def _only(found: Sequence[N], noun: str, name_or_id: str) -> N:
    if not found:
        raise NotFound(f"There is no {noun} {name_or_id}.")
    if len(found) > 1:
        places = ", ".join(f"{each.domain.name}/{each.name} ({each.id})" for each in found)
        raise Conflict(
            f"Several domains have a {noun} named {name_or_id}. Name the domain too, or give the id: {places}."
        )
    return found[0]
