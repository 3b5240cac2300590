"""What the Keystone subset answers: nouns into JSON, and the documentation of both it and the errors.

Source: OpenStack Identity API v3; which client reads which field was recorded from the clients themselves.
"""

import base64
import hashlib
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from clustercert.identity.access_keys import TemporaryKey
from clustercert.model import Domain, JsonObject, Project, User
from clustercert.store.tokens import LiveToken

# As Open Telekom Cloud says it; openstacksdk wants a number after the v.
VERSION = "v3.6"
# What the vendors' clients look for. `cce` is another API, their first.
CCE_SERVICE = "ccev2.0"


class _Answer(BaseModel):
    """Documentation of an answer; the functions below make it."""


class KeystoneErrorDetail(_Answer):
    """What went wrong."""

    code: int
    message: str
    title: str


class KeystoneError(_Answer):
    """Every answer at or above 400 of the Keystone subset."""

    error: KeystoneErrorDetail


class SelfLink(_Answer):
    """A link to the thing itself."""

    self: str


class ListLinks(_Answer):
    """The links of a list; it has one page only."""

    self: str
    previous: None
    next: None


class Named(_Answer):
    """An id and a name."""

    id: str
    name: str


class NamedInDomain(Named):
    """A project or user with its domain."""

    domain: Named


class TokenUser(NamedInDomain):
    """Whose token it is."""

    password_expires_at: Literal[""]


class Endpoint(_Answer):
    """Where a service is."""

    id: str
    interface: Literal["public"]
    region: str
    region_id: str
    url: str


class CatalogService(_Answer):
    """A service of the catalog."""

    id: str
    type: str
    name: str
    endpoints: list[Endpoint]


class TokenDetail(_Answer):
    """What a token is worth. Times are UTC; project or domain are its scope, if it has one."""

    methods: list[str]
    audit_ids: list[str]
    issued_at: str
    expires_at: str
    user: TokenUser
    project: NamedInDomain | None = None
    domain: Named | None = None
    roles: list[Named] | None = None
    catalog: list[CatalogService] | None = None


class TokenAnswer(_Answer):
    """The answer of GET and POST tokens."""

    token: TokenDetail


class CatalogAnswer(_Answer):
    """The answer of GET catalog."""

    catalog: list[CatalogService]
    links: SelfLink


class ProjectDetail(Named):
    """A project."""

    domain_id: str
    parent_id: str
    is_domain: Literal[False]
    enabled: bool
    description: str
    links: SelfLink


class ProjectAnswer(_Answer):
    """The answer of GET project."""

    project: ProjectDetail


class ProjectsAnswer(_Answer):
    """The answer of GET projects."""

    projects: list[ProjectDetail]
    links: ListLinks


class DomainDetail(Named):
    """A domain."""

    enabled: bool
    description: Literal[""]
    links: SelfLink


class DomainsAnswer(_Answer):
    """The answer of GET domains."""

    domains: list[DomainDetail]
    links: ListLinks


class TemporaryKeyDetail(_Answer):
    """A temporary access key; its secret is shown this once."""

    access: str
    secret: str
    securitytoken: str
    expires_at: str


class TemporaryKeyAnswer(_Answer):
    """The answer of POST securitytokens."""

    credential: TemporaryKeyDetail


class VersionLink(_Answer):
    """Where a version is."""

    rel: Literal["self"]
    href: str


class VersionDetail(_Answer):
    """A version of the identity API."""

    id: str
    status: Literal["stable"]
    updated: str
    links: list[VersionLink]


class VersionAnswer(_Answer):
    """The answer of GET version."""

    version: VersionDetail


def version(base_url: str) -> JsonObject:
    return {
        "id": VERSION,
        "status": "stable",
        "updated": "2016-04-04T00:00:00Z",
        "links": [{"rel": "self", "href": f"{base_url}/v3/"}],
    }


def token(live: LiveToken, services: list[JsonObject] | None) -> JsonObject:
    """The body of a token, with the catalog unless that is None."""
    user: JsonObject = {**_in_domain(live.user), "password_expires_at": ""}
    detail: JsonObject = {
        "methods": list(live.token.methods),
        # Names the token in logs and proves nothing: half of the hash that the store has of it.
        "audit_ids": [base64.urlsafe_b64encode(live.token.hash[:16]).decode().rstrip("=")],
        "issued_at": time(live.token.issued_at),
        "expires_at": time(live.token.expires_at),
        "user": user,
    }
    if live.project is not None:
        detail["project"] = _in_domain(live.project)
        held = live.roles.by_project.get(live.project.id, ())
        detail["roles"] = [{"id": role.id, "name": role.name} for role in held]
    if live.domain is not None:
        detail["domain"] = {"id": live.domain.id, "name": live.domain.name}
        detail["roles"] = []
    if services is not None:
        detail["catalog"] = services
    return {"token": detail}


def catalog(region: str, base_url: str) -> list[JsonObject]:
    """The services. The CCE address has no path and no slash at its end: clients append to it as it is."""
    return [
        _service("identity", "keystone", region, f"{base_url}/v3"),
        _service(CCE_SERVICE, CCE_SERVICE, region, base_url),
    ]


def project(project: Project, base_url: str) -> JsonObject:
    return {
        "id": project.id,
        "name": project.name,
        "domain_id": project.domain.id,
        "parent_id": project.domain.id,
        "is_domain": False,
        "enabled": project.enabled,
        "description": project.description,
        "links": {"self": f"{base_url}/v3/projects/{project.id}"},
    }


def domain(domain: Domain, base_url: str) -> JsonObject:
    return {
        "id": domain.id,
        "name": domain.name,
        "enabled": domain.enabled,
        "description": "",
        "links": {"self": f"{base_url}/v3/domains/{domain.id}"},
    }


def temporary_key(issued: TemporaryKey) -> JsonObject:
    return {
        "access": issued.key.id,
        "secret": issued.secret,
        "securitytoken": issued.security_token,
        "expires_at": time(issued.expires_at),
    }


def listed(noun: str, items: list[JsonObject], url: str) -> JsonObject:
    """A list that is its only page: a client that saw a next one would go and get it."""
    return {noun: items, "links": {"self": url, "previous": None, "next": None}}


def time(moment: datetime) -> str:
    """`2026-01-15T10:30:00.000000Z`, the only form that Keystone's clients know."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _in_domain(noun: User | Project) -> JsonObject:
    return {"id": noun.id, "name": noun.name, "domain": {"id": noun.domain.id, "name": noun.domain.name}}


def _service(kind: str, name: str, region: str, url: str) -> JsonObject:
    endpoint: JsonObject = {
        "id": _steady_id(f"endpoint {kind} {region}"),
        "interface": "public",
        "region": region,
        "region_id": region,
        "url": url,
    }
    return {"id": _steady_id(f"service {kind}"), "type": kind, "name": name, "endpoints": [endpoint]}


def _steady_id(text: str) -> str:
    """The same id in every worker and for ever, without a row for it."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
