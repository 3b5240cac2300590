"""Bodies of the Keystone subset: validation of requests, and JSON of responses.

Source: OpenStack Identity API v3, and the IAM API reference of the vendors, "Obtaining a Temporary AK/SK". Recordings
of the clients' requests show which client reads which field.
"""

import base64
import re
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
)

from clustercert.http.body import TAG, RequestBody
from clustercert.identity.access_keys import MIN_LIFETIME, TemporaryKey
from clustercert.identity.tokens import (
    ByPassword,
    ByToken,
    DomainScope,
    ProjectScope,
    Proof,
    Scope,
)
from clustercert.model import Domain, JsonObject, Project, User
from clustercert.model.identity import MIN_PASSWORD_CHARACTERS, Role
from clustercert.model.ids import id_of
from clustercert.store.identity.entities import Reference
from clustercert.store.identity.logins import LiveToken

# The version of the identity API, the same as in Open Telekom Cloud. openstacksdk requires a number after the letter v.
VERSION = "v3.6"
# The service type that the vendors' clients look up. The service type `cce` stands for an older API.
CCE_SERVICE = "ccev2.0"


def _reference_kind(value: object) -> str:
    """Return the tag for an id if the reference has an id, else the tag for a name. Null means absent."""
    return TAG + ("id" if isinstance(value, dict) and value.get("id") is not None else "name")


A = TypeVar("A")
B = TypeVar("B")
_ByIdOrName = Annotated[
    Annotated[A, Tag(TAG + "id")] | Annotated[B, Tag(TAG + "name")], Discriminator(_reference_kind)
]


class _DomainById(RequestBody):
    id: str


class _DomainByName(RequestBody):
    id: None = None
    name: str


_Domain = _ByIdOrName[_DomainById, _DomainByName]


def _id_and_name(domain: _DomainById | _DomainByName | None) -> tuple[str | None, str | None]:
    """Return the id or the name of a domain.

    The id `default` stands for the domain Default: Keystone gives its first domain this id, so openrc files contain it.
    """
    if isinstance(domain, _DomainById):
        return (None, "Default") if domain.id == "default" else (domain.id, None)
    return None, domain.name if domain is not None else None


class _ById(RequestBody):
    id: str

    def reference(self) -> Reference:
        return Reference(id=self.id)


class _ByName(RequestBody):
    id: None = None
    name: str
    domain: _Domain | None = None

    def reference(self) -> Reference:
        domain_id, domain_name = _id_and_name(self.domain)
        return Reference(name=self.name, domain_id=domain_id, domain_name=domain_name)


# Leave secrets out of `repr`, whose text may appear in tracebacks.
_Secret = Annotated[str, Field(repr=False)]


class _UserById(_ById):
    password: _Secret


class _UserByName(_ByName):
    domain: _Domain
    password: _Secret


class _Password(RequestBody):
    user: _ByIdOrName[_UserById, _UserByName]


class _Token(RequestBody):
    id: _Secret


class _PasswordIdentity(RequestBody):
    methods: Annotated[list[Literal["password"]], Field(min_length=1, max_length=1)]
    password: _Password

    def proof(self) -> ByPassword:
        return ByPassword(self.password.user.reference(), self.password.user.password)


class _TokenIdentity(RequestBody):
    methods: Annotated[list[Literal["token"]], Field(min_length=1, max_length=1)]
    token: _Token

    def proof(self) -> ByToken:
        return ByToken(self.token.id)


class _InProject(RequestBody):
    project: _ByIdOrName[_ById, _ByName]
    domain: None = None

    def scope(self) -> Scope:
        return ProjectScope(self.project.reference())


class _InDomain(RequestBody):
    project: None = None
    domain: _Domain

    def scope(self) -> Scope:
        return DomainScope(*_id_and_name(self.domain))


def _method(value: object) -> str | None:
    methods = value.get("methods") if isinstance(value, dict) else None
    return TAG + str(methods[0]) if methods in (["password"], ["token"]) else None


def _scope_kind(value: object) -> str | None:
    if value == "unscoped":
        return TAG + "none"
    if not isinstance(value, dict):
        return None
    return next((TAG + kind for kind in ("project", "domain") if value.get(kind) is not None), None)


class _Auth(RequestBody):
    identity: Annotated[
        Annotated[_PasswordIdentity, Tag(TAG + "password")] | Annotated[_TokenIdentity, Tag(TAG + "token")],
        Discriminator(
            _method,
            custom_error_type="method",
            custom_error_message='methods must be ["password"] or ["token"]',
        ),
    ]
    scope: (
        Annotated[
            Annotated[_InProject, Tag(TAG + "project")]
            | Annotated[_InDomain, Tag(TAG + "domain")]
            | Annotated[Literal["unscoped"], Tag(TAG + "none")],
            Discriminator(
                _scope_kind,
                custom_error_type="scope",
                custom_error_message="must be a project, a domain or absent; other scopes are not supported",
            ),
        ]
        | None
    ) = None


class TokenRequest(RequestBody):
    """The body of POST /v3/auth/tokens."""

    auth: _Auth

    def proof(self) -> Proof:
        return self.auth.identity.proof()

    def scope(self) -> Scope:
        scope = self.auth.scope
        return scope.scope() if isinstance(scope, _InProject | _InDomain) else None


class _NewPassword(RequestBody):
    original_password: _Secret
    password: Annotated[_Secret, Field(json_schema_extra={"minLength": MIN_PASSWORD_CHARACTERS})]


class PasswordRequest(RequestBody):
    """The body of POST /v3/users/{user_id}/password. Source: Identity API v3, "Change password for user"."""

    user: _NewPassword


def _seconds(value: object) -> object:
    """Convert a string of digits to a number."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value, re.ASCII) else value


class _TemporaryKeyToken(RequestBody):
    id: Annotated[str | None, Field(repr=False)] = None
    # The vendors' documents and clients write `duration_seconds` or `duration-seconds`, and send a number or a string
    # of digits.
    duration_seconds: Annotated[
        int | None,
        BeforeValidator(_seconds),
        Field(
            validation_alias=AliasChoices("duration_seconds", "duration-seconds"),
            description="Seconds: 900 (the default) to 86400. The key expires no later than the request's credential.",
        ),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 900, "maximum": 86_400}, {"type": "null"}]}),
    ] = None


class _TemporaryKeyIdentity(RequestBody):
    methods: Annotated[list[Literal["token"]], Field(min_length=1, max_length=1)]
    token: _TemporaryKeyToken | None = None
    policy: None = Field(default=None, description="Policies that restrict the key are not supported.")

    @field_validator("policy", mode="before")
    @classmethod
    def _no_policy(cls, value: object) -> None:
        # Reject a policy instead of ignoring it: without the policy, the key would have more rights than requested.
        if value is not None:
            raise ValueError("policies that restrict the key are not supported; omit the field")


class _TemporaryKeyAuth(RequestBody):
    identity: _TemporaryKeyIdentity


class TemporaryKeyRequest(RequestBody):
    """The body of POST /v3.0/OS-CREDENTIAL/securitytokens."""

    auth: _TemporaryKeyAuth

    def token(self) -> str | None:
        """Return the token in the body, which authenticates the request if no header has a credential."""
        sent = self.auth.identity.token
        return sent.id if sent is not None else None

    def lifetime(self) -> timedelta:
        sent = self.auth.identity.token
        if sent is None or sent.duration_seconds is None:
            return MIN_LIFETIME
        # Limit the number to prevent an overflow: lifetimes outside this range are invalid anyway.
        return timedelta(seconds=max(-1, min(sent.duration_seconds, 10**6)))


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
    """Return the services. The CCE address has no path and no final slash, because clients append paths to it."""
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
    """Render the caller's own user. This user is always enabled, because disabled users can't authenticate."""
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
