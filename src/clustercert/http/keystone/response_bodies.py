"""Response bodies of the Keystone subset: JSON and OpenAPI documentation.

Source: OpenStack Identity API v3. Recorded requests show which client reads which field.
"""

import base64
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from clustercert.identity.access_keys import TemporaryKey
from clustercert.model import Domain, JsonObject, Project, User
from clustercert.model.identity import Role
from clustercert.model.ids import id_of
from clustercert.store.tokens import LiveToken

# The same version as in Open Telekom Cloud. openstacksdk requires a number after the v.
VERSION = "v3.6"
# The service type that the vendors' clients look up. `cce` is an older API.
CCE_SERVICE = "ccev2.0"


class KeystoneErrorDetail(BaseModel):
    """Status, message and title of an error."""

    code: int
    message: str
    title: str


class KeystoneError(BaseModel):
    """The body of every error response of the Keystone subset. Huawei Cloud's SDKs read code and message at the top."""

    error: KeystoneErrorDetail
    error_code: str
    error_msg: str


class SelfLink(BaseModel):
    """A link to the resource itself."""

    self: str


class ListLinks(BaseModel):
    """The links of a list. A list has a single page."""

    self: str
    previous: None
    next: None


class Named(BaseModel):
    """An id and a name."""

    id: str
    name: str


class NamedInDomain(Named):
    """A project or user, with its domain."""

    domain: Named


class TokenUser(NamedInDomain):
    """The user of a token."""

    password_expires_at: Literal[""]


class Endpoint(BaseModel):
    """The address of a service."""

    id: str
    interface: Literal["public"]
    region: str
    region_id: str
    url: str


class CatalogService(BaseModel):
    """A service in the catalog."""

    id: str
    type: str
    name: str
    endpoints: list[Endpoint]


class TokenDetail(BaseModel):
    """A token. Times are UTC. The scope is in `project` or `domain`; an unscoped token has neither."""

    methods: list[str]
    audit_ids: list[str]
    issued_at: str
    expires_at: str
    user: TokenUser
    project: NamedInDomain | None = None
    domain: Named | None = None
    roles: list[Named] | None = None
    catalog: list[CatalogService] | None = None


class TokenResponse(BaseModel):
    """The response to GET and POST /v3/auth/tokens."""

    token: TokenDetail


class CatalogResponse(BaseModel):
    """The response to GET /v3/auth/catalog."""

    catalog: list[CatalogService]
    links: SelfLink


class UserDetail(Named):
    """A user. `password_expires_at` and `options` are always empty."""

    domain_id: str
    enabled: Literal[True]
    password_expires_at: None
    options: dict[str, object]
    links: SelfLink


class UserResponse(BaseModel):
    """The response to GET /v3/users/{user_id}."""

    user: UserDetail


class ProjectDetail(Named):
    """A project."""

    domain_id: str
    parent_id: str
    is_domain: Literal[False]
    enabled: bool
    description: str
    links: SelfLink


class ProjectResponse(BaseModel):
    """The response to GET /v3/projects/{project_id}."""

    project: ProjectDetail


class ProjectsResponse(BaseModel):
    """The response to GET /v3/projects and /v3/auth/projects."""

    projects: list[ProjectDetail]
    links: ListLinks


class DomainDetail(Named):
    """A domain."""

    enabled: bool
    description: Literal[""]
    links: SelfLink


class DomainsResponse(BaseModel):
    """The response to GET /v3/auth/domains."""

    domains: list[DomainDetail]
    links: ListLinks


class TemporaryKeyDetail(BaseModel):
    """A temporary access key. The secret is never shown again."""

    access: str
    secret: str
    securitytoken: str
    expires_at: str


class TemporaryKeyResponse(BaseModel):
    """The response to POST /v3.0/OS-CREDENTIAL/securitytokens."""

    credential: TemporaryKeyDetail


class VersionLink(BaseModel):
    """The address of a version."""

    rel: Literal["self"]
    href: str


class VersionDetail(BaseModel):
    """A version of the identity API."""

    id: str
    status: Literal["stable"]
    updated: str
    links: list[VersionLink]


class VersionResponse(BaseModel):
    """The response to GET /v3."""

    version: VersionDetail


def version(base_url: str) -> JsonObject:
    return {
        "id": VERSION,
        "status": "stable",
        "updated": "2016-04-04T00:00:00Z",
        "links": [{"rel": "self", "href": f"{base_url}/v3/"}],
    }


def token(live: LiveToken, services: list[JsonObject] | None) -> JsonObject:
    """Render a token. Omits the catalog if `services` is `None`."""
    user: JsonObject = {**_with_domain(live.user), "password_expires_at": ""}
    detail: JsonObject = {
        "methods": list(live.token.methods),
        # Half of the token's stored hash: identifies the token in logs, but can't be used to authenticate.
        "audit_ids": [base64.urlsafe_b64encode(live.token.hash[:16]).decode().rstrip("=")],
        "issued_at": time(live.token.issued_at),
        "expires_at": time(live.token.expires_at),
        "user": user,
    }
    if live.project is not None:
        detail["project"] = _with_domain(live.project)
        detail["roles"] = [_named(role) for role in live.roles.by_project.get(live.project.id, ())]
    if live.domain is not None:
        detail["domain"] = _named(live.domain)
        detail["roles"] = []
    if services is not None:
        detail["catalog"] = services
    return {"token": detail}


def catalog(region: str, base_url: str) -> list[JsonObject]:
    """Return the services. The CCE address has no path and no final slash, because clients append to it."""
    return [
        _service("identity", "keystone", region, f"{base_url}/v3"),
        _service(CCE_SERVICE, CCE_SERVICE, region, base_url),
    ]


def project(project: Project, base_url: str) -> JsonObject:
    return {
        **_named(project),
        "domain_id": project.domain.id,
        "parent_id": project.domain.id,
        "is_domain": False,
        "enabled": project.enabled,
        "description": project.description,
        "links": {"self": f"{base_url}/v3/projects/{project.id}"},
    }


def user(user: User, base_url: str) -> JsonObject:
    """Render the caller's own user, who is enabled."""
    return {
        **_named(user),
        "domain_id": user.domain.id,
        "enabled": True,
        "password_expires_at": None,
        "options": {},
        "links": {"self": f"{base_url}/v3/users/{user.id}"},
    }


def domain(domain: Domain, base_url: str) -> JsonObject:
    return {
        **_named(domain),
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


def time(moment: datetime) -> str:
    """Format a time as `2026-01-15T10:30:00.000000Z`, the only format that Keystone clients accept."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _with_domain(entity: User | Project) -> JsonObject:
    return _named(entity) | {"domain": _named(entity.domain)}


def _named(entity: User | Project | Domain | Role) -> JsonObject:
    return {"id": entity.id, "name": entity.name}


def _service(kind: str, name: str, region: str, url: str) -> JsonObject:
    endpoint: JsonObject = {
        "id": id_of(f"endpoint {kind} {region}"),
        "interface": "public",
        "region": region,
        "region_id": region,
        "url": url,
    }
    return {"id": id_of(f"service {kind}"), "type": kind, "name": name, "endpoints": [endpoint]}
