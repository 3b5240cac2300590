"""Finds domains, projects, users and groups by the names and ids in requests."""

from typing import Annotated

from fastapi import Depends, Query

from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.identity.directory import Directory
from clustercert.model import Domain, Project
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.model.identity import BUILT_IN
from clustercert.model.ids import is_id

_MAX_NAMES = 10


async def directory(parts: ServicesDep) -> Directory:
    return parts.identity.directory


DirectoryDep = Annotated[Directory, Depends(directory)]


async def home_domain(
    call: CallDep,
    domain: Annotated[
        str | None,
        Query(description="The domain of names in the path, by name or id. By default, the caller's domain."),
    ] = None,
) -> Domain:
    """Return the domain in which names are looked up and new objects are created. Raises NotFound or InvalidRequest.

    Users of an OIDC issuer are in no domain here, but an id needs none.
    """
    directory = call.services.identity.directory
    if domain is not None:
        return await directory.find_domain(domain)
    if call.caller.issuer == BUILT_IN or is_id(call.request.path_params.get("name", "")):
        return call.caller.user.domain
    names = ", ".join(each.name for each in (await directory.domains())[:_MAX_NAMES])
    raise InvalidRequest(f"domain: choose one, because you are in no domain of this service: {names}.")


DomainDep = Annotated[Domain, Depends(home_domain)]


async def only_domain(
    directory: DirectoryDep,
    domain: Annotated[str | None, Query(description="List only this domain, by name or id.")] = None,
) -> Domain | None:
    """Return the domain to which a list is restricted, or None for all domains. Raises NotFound."""
    return await directory.find_domain(domain) if domain is not None else None


OnlyDomainDep = Annotated[Domain | None, Depends(only_domain)]


async def project_by_id(call: Call, project_id: str) -> Project:
    """Return a project. Raises NotFound if there is none with this id."""
    if not is_id(project_id):
        raise NotFound
    return await call.services.identity.directory.find_project(project_id)


def new_name(text: str) -> str:
    """Return the name for a new object. Raises NotFound for an id, because an object's id can't be chosen."""
    if is_id(text):
        raise NotFound(f"There is no object with the id {text}.")
    return text
