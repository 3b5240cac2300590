"""What comes into the Keystone subset, validated and translated. What goes out is in `iam_answers`.

Source: OpenStack Identity API v3; IAM API reference of the vendors, "Obtaining a Temporary AK/SK".
"""

from datetime import timedelta
from typing import Annotated, Literal, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
)

from clustercert.identity.access_keys import MIN_LIFETIME
from clustercert.identity.tokens import (
    ByPassword,
    ByToken,
    DomainScope,
    ProjectScope,
    Proof,
    Scope,
)
from clustercert.model import JsonObject
from clustercert.store.nouns import Reference


class _Asked(BaseModel):
    """A part of a request. Numbers and texts are strict; unknown fields are ignored, as Keystone does."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _by(value: object) -> str:
    """Whether something is named by its id, which wins, or by its name. null counts as absent."""
    return "id" if isinstance(value, dict) and value.get("id") is not None else "name"


class _DomainById(_Asked):
    id: str


class _DomainByName(_Asked):
    id: None = None
    name: str


_Domain = Annotated[
    Annotated[_DomainById, Tag("id")] | Annotated[_DomainByName, Tag("name")], Discriminator(_by)
]


class _UserById(_Asked):
    id: str
    password: str

    def reference(self) -> Reference:
        return Reference(id=self.id)


class _UserByName(_Asked):
    id: None = None
    name: str
    domain: _Domain
    password: str

    def reference(self) -> Reference:
        return _named(self.name, self.domain)


class _ProjectById(_Asked):
    id: str

    def reference(self) -> Reference:
        return Reference(id=self.id)


class _ProjectByName(_Asked):
    id: None = None
    name: str
    domain: _Domain | None = None

    def reference(self) -> Reference:
        return _named(self.name, self.domain)


def _named(name: str, domain: _DomainById | _DomainByName | None) -> Reference:
    return Reference(
        name=name,
        domain_id=domain.id if isinstance(domain, _DomainById) else None,
        domain_name=domain.name if isinstance(domain, _DomainByName) else None,
    )


class _Password(_Asked):
    user: Annotated[Annotated[_UserById, Tag("id")] | Annotated[_UserByName, Tag("name")], Discriminator(_by)]


class _Token(_Asked):
    id: str


class _PasswordIdentity(_Asked):
    methods: Annotated[list[Literal["password"]], Field(min_length=1, max_length=1)]
    password: _Password

    def proof(self) -> ByPassword:
        return ByPassword(self.password.user.reference(), self.password.user.password)


class _TokenIdentity(_Asked):
    methods: Annotated[list[Literal["token"]], Field(min_length=1, max_length=1)]
    token: _Token

    def proof(self) -> ByToken:
        return ByToken(self.token.id)


class _InProject(_Asked):
    project: Annotated[
        Annotated[_ProjectById, Tag("id")] | Annotated[_ProjectByName, Tag("name")], Discriminator(_by)
    ]
    domain: None = None

    def scope(self) -> Scope:
        return ProjectScope(self.project.reference())


class _InDomain(_Asked):
    project: None = None
    domain: _Domain

    def scope(self) -> Scope:
        if isinstance(self.domain, _DomainById):
            return DomainScope(id=self.domain.id)
        return DomainScope(name=self.domain.name)


def _method(value: object) -> str | None:
    methods = value.get("methods") if isinstance(value, dict) else None
    return str(methods[0]) if methods in (["password"], ["token"]) else None


def _scope_kind(value: object) -> str | None:
    if value == "unscoped":
        return "none"
    if not isinstance(value, dict):
        return None
    return next((kind for kind in ("project", "domain") if value.get(kind) is not None), None)


class _Auth(_Asked):
    identity: Annotated[
        Annotated[_PasswordIdentity, Tag("password")] | Annotated[_TokenIdentity, Tag("token")],
        Discriminator(
            _method,
            custom_error_type="method",
            custom_error_message='methods must be ["password"] or ["token"]',
        ),
    ]
    scope: (
        Annotated[
            Annotated[_InProject, Tag("project")]
            | Annotated[_InDomain, Tag("domain")]
            | Annotated[Literal["unscoped"], Tag("none")],
            Discriminator(
                _scope_kind,
                custom_error_type="scope",
                custom_error_message="must be a project, a domain or absent; other scopes aren't served here",
            ),
        ]
        | None
    ) = None


class TokenRequest(_Asked):
    """The body of POST /v3/auth/tokens."""

    auth: _Auth

    def proof(self) -> Proof:
        return self.auth.identity.proof()

    def scope(self) -> Scope:
        scope = self.auth.scope
        return scope.scope() if isinstance(scope, _InProject | _InDomain) else None


class _TemporaryKeyToken(_Asked):
    id: str | None = None
    # The vendors' documents and clients spell it in both ways, as a number or as its digits.
    duration_seconds: Annotated[
        int | Annotated[str, Field(pattern=r"^[0-9]{1,6}$")] | None,
        Field(
            validation_alias=AliasChoices("duration_seconds", "duration-seconds"),
            description="900 (the default) to 86400; cut to what the credential of the request has left.",
        ),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 900, "maximum": 86_400}, {"type": "null"}]}),
    ] = None


class _TemporaryKeyIdentity(_Asked):
    methods: Annotated[list[Literal["token"]], Field(min_length=1, max_length=1)]
    token: _TemporaryKeyToken | None = None
    policy: None = Field(default=None, description="Narrower rights than the user's are not served.")

    @field_validator("policy", mode="before")
    @classmethod
    def _no_policy(cls, value: object) -> None:
        # Ignored, it would give more than was asked for.
        if value is not None:
            raise ValueError("keys with narrower rights aren't served here, leave it out")


class _TemporaryKeyAuth(_Asked):
    identity: _TemporaryKeyIdentity


class TemporaryKeyRequest(_Asked):
    """The body of POST /v3.0/OS-CREDENTIAL/securitytokens."""

    auth: _TemporaryKeyAuth

    def token(self) -> str | None:
        """The token in the body; one in the header wins."""
        asked = self.auth.identity.token
        return asked.id if asked is not None else None

    def lifetime(self) -> timedelta:
        asked = self.auth.identity.token
        if asked is None or asked.duration_seconds is None:
            return MIN_LIFETIME
        # So large a number would overflow, and is too large anyway.
        return timedelta(seconds=max(-1, min(int(asked.duration_seconds), 10**6)))


def document(shape: type[BaseModel]) -> JsonObject:
    """A request body for OpenAPI. The route reads the bytes itself: size and sender come before meaning."""
    schema = shape.model_json_schema()
    parts = schema.pop("$defs", {})
    inlined = _inlined(schema, parts)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def _inlined(schema: object, parts: JsonObject) -> object:
    """A schema without references: OpenAPI resolves them against the whole document, not against the schema."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[cast("str", schema["$ref"]).rsplit("/", 1)[-1]], parts)
    return {key: _inlined(value, parts) for key, value in schema.items() if key != "discriminator"}
