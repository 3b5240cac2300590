"""Settings of trusted OIDC issuers, presets for well-known issuers, and issuers as JSON values for audit events."""

import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from clustercert.authn.oidc.claims import ClaimCheck, ClaimExpression, TokenRefused
from clustercert.model import Domain, FederatedDomain, JsonObject
from clustercert.model.ids import id_of, is_id
from clustercert.model.login_client import (
    DEFAULT_REDIRECT,
    DISCOVERY_PATH,
    OWN_PARAMETERS,
    BearerKind,
    LoginClient,
)
from clustercert.model.name_patterns import Names
from clustercert.model.requests import is_https_url, is_loopback_redirect
from clustercert.model.rights import SERVICE_ROLES
from clustercert.policy.setting_types import Lifetime, Name, NameList, RuleFault, Section, TrueOrFalse
from clustercert.secure_file import PrivateFileError, read_private_file


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """How an issuer's claims are mapped to a user and their groups.

    Attributes:
        subject: claims that together identify the user permanently.
        username: claims whose values, joined with slashes, are the user's name; None to use the claims in `subject`.
        groups: a claim with strings, or an expression whose value is a list of strings; None for no groups.
        strip_slash: whether to remove a leading slash from groups. Keycloak sends groups as paths that begin with a
            slash.
    """

    subject: tuple[str, ...] = ("sub",)
    username: tuple[str, ...] | None = None
    groups: str | ClaimExpression | None = None
    strip_slash: bool = False


PresetName = Literal["keycloak", "dex", "entra", "github", "gitlab", "kubernetes"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults for an issuer.

    Attributes:
        required: claims that every token must have.
        pinned: claims of which the settings must check one, because anyone can get a token from this public issuer.
        scopes: scopes that the client of `clustercert login` requests.
        is_for_machines: whether the issuer's users are jobs and service accounts, not people.
    """

    mapping: ClaimMapping
    max_age: timedelta = timedelta(hours=24)
    required: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("openid", "profile", "groups")
    is_for_machines: bool = False


PRESETS: Mapping[PresetName, Preset] = {
    # Source: Keycloak server administration guide, "Group Membership" mapper. By default, groups are full paths.
    "keycloak": Preset(
        ClaimMapping(username=("preferred_username",), groups="groups", strip_slash=True),
        # Keycloak refuses scopes that a client does not have. Refresh tokens need no scope.
        scopes=("openid", "profile"),
    ),
    # Source: Dex, "Custom scopes, claims and client features". `name` is not used: users can choose their display name.
    "dex": Preset(
        ClaimMapping(groups="groups"),
        scopes=("openid", "profile", "groups", "offline_access"),
    ),
    # Source: Microsoft identity platform, "ID token claims reference". `sub` differs for each application.
    # `preferred_username` can change, and must not be used for authorization. The issuer's URL contains the tenant.
    "entra": Preset(
        ClaimMapping(subject=("tid", "oid"), username=("oid",), groups="groups"),
        required=("tid", "oid"),
        scopes=("openid", "profile", "offline_access"),
    ),
    # Source: GitHub Docs, "OpenID Connect reference". A renamed repository keeps its id, and a new repository that gets
    # the old name has a different id. GitHub Enterprise has its own issuers, with the same claims.
    "github": Preset(
        ClaimMapping(subject=("repository_id",), username=("repository",)),
        required=("repository_id", "repository_owner_id", "ref", "event_name"),
        pinned=("repository_id", "repository_owner_id", "enterprise_id"),
        is_for_machines=True,
    ),
    # Source: GitLab Docs, "OpenID Connect (OIDC) authentication using ID tokens".
    "gitlab": Preset(
        ClaimMapping(subject=("project_id",), username=("project_path",)),
        required=("project_id", "namespace_id", "ref", "ref_type", "ref_protected"),
        pinned=("project_id", "namespace_id"),
        is_for_machines=True,
    ),
    # Source: Kubernetes documentation, "Managing Service Accounts", "Schema for service account private claims".
    "kubernetes": Preset(
        ClaimMapping(
            subject=("sub", "/kubernetes.io/serviceaccount/uid"),
            username=("/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"),
        ),
        # The kubelet renews tokens that are older than a day.
        max_age=timedelta(hours=25),
        required=(
            "/kubernetes.io/namespace",
            "/kubernetes.io/serviceaccount/name",
            "/kubernetes.io/serviceaccount/uid",
        ),
        is_for_machines=True,
    ),
}


Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"
]


def _https_url(value: str) -> str:
    if not is_https_url(value):
        raise ValueError(
            "expected an address like https://sso.example.com/realms/acme, without fragment or password"
        )
    return value


def _redirect(value: str) -> str:
    if not is_loopback_redirect(value):
        raise ValueError(f"expected an address like {DEFAULT_REDIRECT} or http://localhost:8000")
    return value


def _free_parameter(name: str) -> str:
    if name in OWN_PARAMETERS:
        raise ValueError("the client sets this parameter itself; remove it")
    return name


def _expression(source: str) -> str:
    ClaimExpression(source, "groups_cel")
    return source


def _project(text: str) -> str:
    """Return a project's id, or DOMAIN/NAME in the normal form of stored names. Raises ValueError."""
    domain, _, name = text.partition("/")
    if not is_id(text) and not (domain and name and text.isprintable()):
        raise ValueError(
            f"{text!r} is not DOMAIN/NAME or an id; write a project such as Default/eu-de, or its id from"
            " `clustercert project list`"
        )
    return unicodedata.normalize("NFC", text)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


OneOrMore = Annotated[NameList, BeforeValidator(_listed, json_schema_input_type=Name | NameList)]
HttpsUrl = Annotated[str, Field(max_length=512), AfterValidator(_https_url)]
ClaimExpressionText = Annotated[str, AfterValidator(_expression)]
ClaimTable = Annotated[dict[Name, NameList], Field(max_length=50)]
RedirectUri = Annotated[str, Field(max_length=256), AfterValidator(_redirect)]
ParameterName = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$"), AfterValidator(_free_parameter)]
LoginParameters = Annotated[dict[ParameterName, Annotated[str, Field(max_length=1024)]], Field(max_length=20)]
# An absolute URI without a fragment. Source: RFC 8707 section 2.
ResourceUri = Annotated[str, Field(max_length=512, pattern='^[A-Za-z][A-Za-z0-9+.-]*:[!"$-~]+$')]
ProjectNames = Annotated[frozenset[Annotated[str, AfterValidator(_project)]], Field(max_length=1000)]

_MAX_SECRET_FILE = 4096

_EXCLUSIVE = (
    ("groups", "groups_cel"),
    ("jwks_uri", "keys_file"),
    *(
        ("cluster", other)
        for other in ("discovery_url", "jwks_uri", "keys_file", "ca_file", "proxy", "console")
    ),
)


class RoleGrant(Section):
    """`[[identity.issuers.roles]]`: a role for the issuer's users who meet all conditions.

    Attributes:
        role: name of the role, such as `member`.
        projects: projects as `DOMAIN/NAME` or by id; by default, all projects in which the issuer's users can have
            roles.
        service: if true, give the role, such as `operator`, in the whole service instead of in projects. Needs `groups`
            or `claims`.
        groups: names or patterns of the user's groups, as the issuer writes them.
        claims: a table with a list of values or patterns for each claim; the token must match all lists.
    """

    role: str = Field(min_length=1, max_length=64)
    projects: Annotated[ProjectNames, Field(min_length=1)] | None = None
    service: TrueOrFalse = False
    groups: NameList | None = None
    claims: ClaimTable = Field(default={})

    @model_validator(mode="after")
    def _is_narrow(self) -> Self:
        if self.service and self.projects is not None:
            raise RuleFault("set either service = true or projects, not both", "projects")
        if self.service and self.groups is None and not self.claims:
            raise RuleFault("a role with service = true needs groups or claims as its condition", "service")
        if not self.service and self.role in SERVICE_ROLES:
            raise RuleFault(f"the role {self.role} has no effect in projects; add service = true", "role")
        return self

    @functools.cached_property
    def _conditions(self) -> tuple[Names | None, tuple[ClaimCheck, ...]]:
        return Names(self.groups) if self.groups is not None else None, _checks(self.claims)

    def is_granted(self, claims: JsonObject, groups: Sequence[str]) -> bool:
        """Whether a user with these claims gets the role. `groups`: the names of the user's groups at the issuer."""
        names, checks = self._conditions
        if names is not None and not names.match(groups):
            return False
        return all(check.is_met(claims) for check in checks)

    @property
    def claim_names(self) -> tuple[str, ...]:
        """The claims that the conditions read, and `groups` for a condition on groups."""
        return (*(() if self.groups is None else ("groups",)), *self.claims)

    def unmet_conditions(self, claims: JsonObject, groups: Sequence[str]) -> Iterator[TokenRefused]:
        """Yield the conditions that a user does not meet, as errors. See `is_granted` for the arguments."""
        names, checks = self._conditions
        if names is not None and not names.match(groups):
            yield TokenRefused("groups", list(groups), names.text)
        for check in checks:
            if not check.is_met(claims):
                yield check.failure(claims)


class ConsoleClient(Section):
    """`[identity.issuers.console]`: the OAuth client of the web console.

    This table belongs to the issuer above it. Without the table, nobody can log in to the console at this issuer.

    Attributes:
        client_id: id of the client. ID tokens must be issued for this client, and name no other audience but the
            issuer's `trusted_audiences`. `audiences` is for other tokens only.
        client_secret_file: file whose first line is the client's secret. The file must not be readable by other users,
            and is read at each login. By default, the client is public.
        scopes: scopes that the client requests. By default, the scopes in the issuer's `scopes` or in the preset,
            without `offline_access`.
        parameters: a table of further parameters of the login, such as `domain_hint`.
        login_time: claim with the time when the person last logged in at the issuer. Actions that need a new login
            check this time, and are refused if the claim is missing. Set `iat` only for an issuer that asks for the
            password in each login.
    """

    client_id: Name
    client_secret_file: Path | None = None
    scopes: NameList | None = None
    parameters: LoginParameters = Field(default={})
    login_time: Literal["auth_time", "iat"] = "auth_time"

    @field_validator("scopes")
    @classmethod
    def _asks_for_an_id_token(cls, scopes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        # Source: OpenID Connect Core 1.0, section 3.1.2.1.
        if scopes is not None and "openid" not in scopes:
            raise ValueError("without the scope openid, the issuer sends no ID token; add openid")
        return scopes

    def read_secret(self) -> str | None:
        """Return the client's secret, or None if the client is public. Raises PrivateFileError."""
        path = self.client_secret_file
        if path is None:
            return None
        try:
            content = read_private_file(path, _MAX_SECRET_FILE)
        except OSError as error:
            raise PrivateFileError(f"The file {path} can't be read: {error.strerror or error}.") from None
        secret = content.decode("utf-8", "replace").partition("\n")[0].strip()
        if not secret or not secret.isprintable():
            raise PrivateFileError(f"The first line of the file {path} is not a secret.")
        return secret


class OidcIssuer(Section):
    """`[[identity.issuers]]`: an OIDC issuer whose tokens are accepted.

    A claim is written by its name or, if it is nested, as a JSON pointer such as
    `/kubernetes.io/namespace`.

    Attributes:
        name: short name of the issuer, and the prefix of its users' and groups' names: `NAME/alice`. No domain may have
            this name.
        preset: defaults for the claims of a well-known issuer.
        issuer: the issuer's URL, exactly as in the claim `iss`. Only https.
        audiences: the claim `aud` must have one of these values.
        trusted_audiences: audiences that the ID token of a login may name besides the client that logs in. By default,
            an ID token with a further audience is refused. Has no effect on other tokens, such as tokens of jobs.
        algorithms: accepted signature algorithms. `EdDSA` is the older name of `Ed25519`.
        discovery_url: base URL of the discovery document, if the document is not below the issuer's URL.
        jwks_uri: URL of the issuer's public keys, instead of discovery.
        keys_file: file with the issuer's public keys, a JSON Web Key Set, instead of a URL.
        cluster: id of a registered cluster whose API server publishes the keys, instead of a URL. The service connects
            with its own certificate. Needs the preset `kubernetes`.
        token_review: if true, the API server of `cluster` is asked about each token (TokenReview), so tokens of deleted
            pods and service accounts are refused within a minute.
        ca_file: PEM file with the trusted CAs for the issuer's certificate. By default, the system's CAs.
        proxy: URL of an HTTP proxy for requests to the issuer.
        leeway: accepted difference between the clocks of the issuer and the service, at most 5m.
        max_age: maximum age of a token, from its claim `iat`. By default, 24h.
        claims: a table with a list of values or patterns for each claim; a token must match all lists.
        subject: claims that together identify the user. The issuer must never give the same values to two users. The
            user id is a hash of the values. By default, the preset's claims, or `sub`.
        username: claim with the user's name, or a list of claims, whose values are joined with slashes. By default, the
            preset's claims, or the claims in `subject`.
        groups: claim with a list of groups.
        groups_cel: a CEL expression whose value is the list of groups. The variable `claims` has the token's claims.
            Needs `clustercert[policy]`.
        prefix_names: if false, the names of users and groups have no prefix. Policy rules then can't distinguish the
            issuer's users and groups from users and groups of the built-in identity service.
        projects: the only projects in which the issuer's users can have roles, as `DOMAIN/NAME` or by id. A name stands
            for the project that has this name at the time of a request.
        domain: name or id of a domain. The issuer's users can have roles only in the domain's projects.
        roles: roles of the issuer's users. See below.
        client_id: id of the public OAuth client for `clustercert login`. Without `client_id`, nobody can log in at this
            issuer.
        scopes: scopes that the client requests. By default, the preset's scopes.
        redirect_uris: addresses on the user's machine that are registered for the client, `http://127.0.0.1` or
            `http://localhost` with a path. Without a port, the client uses any free port.
        login_token: which token the client sends to this service: the `id` token or the `access` token.
        login_parameters: a table of further parameters that the client sends to the issuer, such as `audience`.
        resource: URI of this service, preferably its URL. The client requests access tokens for this URI (RFC 8707),
            and `audiences` must contain only this URI. Needs `login_token = "access"`.
        console: the client of the web console. See below.
    """

    name: str = Field(pattern="^[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?$")
    preset: PresetName | None = None
    issuer: HttpsUrl
    audiences: NameList
    trusted_audiences: tuple[Name, ...] = Field(default=(), max_length=100)
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    discovery_url: HttpsUrl | None = None
    jwks_uri: HttpsUrl | None = None
    keys_file: Path | None = None
    cluster: Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None = None
    token_review: TrueOrFalse = False
    ca_file: Path | None = None
    proxy: str | None = Field(default=None, pattern="^https?://[!-~]+$")
    leeway: Lifetime = Field(default=timedelta(seconds=60), ge=timedelta(0), le=timedelta(minutes=5))
    max_age: Lifetime | None = Field(default=None, ge=timedelta(minutes=1), le=timedelta(days=366))
    claims: ClaimTable = Field(default={})
    subject: NameList | None = None
    username: OneOrMore | None = None
    groups: Name | None = None
    groups_cel: ClaimExpressionText | None = None
    prefix_names: TrueOrFalse = True
    projects: ProjectNames = frozenset()
    domain: Name | None = None
    roles: tuple[RoleGrant, ...] = Field(default=(), max_length=500)
    client_id: Name | None = None
    scopes: NameList | None = None
    redirect_uris: Annotated[tuple[RedirectUri, ...], Field(min_length=1, max_length=10)] = (
        DEFAULT_REDIRECT,
    )
    login_token: BearerKind = "id"
    login_parameters: LoginParameters = Field(default={})
    resource: ResourceUri | None = None
    console: ConsoleClient | None = None

    @model_validator(mode="after")
    def _is_bound(self) -> Self:
        if not self.projects and self.domain is None:
            raise RuleFault(
                "name the projects or the domain in which the issuer's users can have roles", "projects"
            )
        for number, grant in enumerate(self.roles):
            if self.domain is None and not (grant.projects or frozenset()) <= self.projects:
                raise RuleFault(
                    "some projects are not among the issuer's projects; add these to the issuer's setting"
                    " projects, in the same form",
                    "roles",
                    number,
                    "projects",
                )
        for one, other in _EXCLUSIVE:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise RuleFault(f"give either {one} or {other}, not both", other)
        if self.cluster is not None and self.preset != "kubernetes":
            raise RuleFault('to use a cluster as the issuer, set preset = "kubernetes"', "cluster")
        if self.token_review and self.cluster is None:
            raise RuleFault("with token_review = true, name the cluster that reviews tokens", "cluster")
        return self

    @model_validator(mode="after")
    def _accepts_only_its_resource(self) -> Self:
        if self.resource is None:
            return self
        if self.login_token != "access":
            raise RuleFault('only access tokens are for a resource; set login_token = "access"', "resource")
        if set(self.audiences) != {self.resource}:
            raise RuleFault(
                f'accept only tokens for the resource: set audiences = ["{self.resource}"]', "audiences"
            )
        return self

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        defaults = self._defaults
        pinned = (self.claims.get(claim, ("*",)) for claim in defaults.pinned)
        if defaults.pinned and not any(all(set(value) - set("*?") for value in values) for values in pinned):
            raise RuleFault(
                f"everybody can get a token from this issuer: check one of {', '.join(defaults.pinned)}",
                "claims",
            )
        return self

    @property
    def _defaults(self) -> Preset:
        return PRESETS[self.preset] if self.preset is not None else Preset(ClaimMapping())

    @property
    def url(self) -> str:
        """The issuer's URL, exactly as in the claim `iss`."""
        return self.issuer

    @property
    def is_for_machines(self) -> bool:
        """Whether the issuer's users are jobs and service accounts, not people, according to its preset."""
        return self._defaults.is_for_machines

    @property
    def key_source(self) -> tuple[object, ...]:
        """The settings that determine where the issuer's public keys come from."""
        files = self.keys_file, self.ca_file
        return self.discovery_address, self.jwks_uri, self.cluster, self.proxy, *files

    @property
    def discovery_address(self) -> str:
        return (self.discovery_url or self.issuer).rstrip("/") + DISCOVERY_PATH

    @property
    def age_limit(self) -> timedelta:
        """The maximum age of a token, counted from its claim `iat`."""
        return self.max_age or self._defaults.max_age

    @functools.cached_property
    def checks(self) -> tuple[ClaimCheck, ...]:
        """The checks of claims. A token must pass all checks."""
        required = {claim: ("*",) for claim in self._defaults.required if claim not in self.claims}
        return _checks(required | self.claims)

    @property
    def user_domain(self) -> Domain:
        """The domain of the issuer's users and groups. This domain is not in the database."""
        return FederatedDomain(derived_id("domain", self.url), self.name)

    @property
    def identity_claims(self) -> frozenset[str]:
        """Claims that identify the token's user, and the user's owner, such as the owner of a repository."""
        return frozenset({*self.mapping.subject, *self._defaults.pinned})

    @property
    def role_names(self) -> frozenset[str]:
        return frozenset(grant.role for grant in self.roles)

    @property
    def named_projects(self) -> frozenset[str]:
        return self.projects.union(*(grant.projects or () for grant in self.roles))

    @property
    def login(self) -> LoginClient | None:
        """The OAuth client for `clustercert login`, or None if the settings have no `client_id`."""
        if self.client_id is None:
            return None
        scopes = self.scopes or self._defaults.scopes
        return LoginClient(
            self.client_id,
            scopes,
            self.redirect_uris,
            self.login_token,
            self.login_parameters,
            self.resource,
            self.trusted_audiences,
        )

    @property
    def console_scopes(self) -> tuple[str, ...]:
        """The scopes that the console's client requests."""
        if self.console is not None and self.console.scopes is not None:
            return self.console.scopes
        # The console asks for no refresh token, because the end of a session needs no token.
        return tuple(scope for scope in self.scopes or self._defaults.scopes if scope != "offline_access")

    @functools.cached_property
    def mapping(self) -> ClaimMapping:
        """How claims are mapped to a user and groups: the preset's mapping, changed by the settings."""
        mapping = self._defaults.mapping
        if self.subject is not None:
            mapping = replace(mapping, subject=self.subject)
        if self.username is not None:
            mapping = replace(mapping, username=self.username)
        if self.groups is not None:
            mapping = replace(mapping, groups=self.groups)
        if self.groups_cel is not None:
            mapping = replace(mapping, groups=ClaimExpression(self.groups_cel, "groups_cel"))
        return mapping


def check_issuers_differ(issuers: Sequence[OidcIssuer]) -> None:
    """Raise RuleFault if two issuers have the same name or URL."""
    for number, issuer in enumerate(issuers):
        for earlier in issuers[:number]:
            if issuer.name == earlier.name:
                raise RuleFault(f"two issuers have the name {issuer.name}", "issuers", number, "name")
            if issuer.url == earlier.url:
                raise RuleFault(f"two issuers have the URL {issuer.url}", "issuers", number, "issuer")


def _checks(claims: Mapping[str, tuple[str, ...]]) -> tuple[ClaimCheck, ...]:
    return tuple(ClaimCheck(claim, Names(values)) for claim, values in claims.items())


def derived_id(kind: Literal["domain", "group", "user"], issuer: str, *parts: str) -> str:
    """Return the id of an issuer's user, group or domain: the first 32 hex digits of a SHA-256.

    The hashed bytes are a JSON array in ASCII without spaces, such as `["user","https://sso.example.com","f3b1"]`, so
    different users never have equal hashed bytes, whatever their subject claims contain.
    """
    return id_of(json.dumps([kind, issuer, *parts], separators=(",", ":")))


# The proxy's URL may contain a password.
_SECRET = {"proxy"}


def declared_issuers(issuers: Iterable[OidcIssuer]) -> tuple[Mapping[str, object], ...]:
    """Return the issuers as JSON values with durations in seconds, without defaults and secrets."""
    return tuple(_declared(issuer) for issuer in issuers)


def issuers_digest(issuers: Iterable[OidcIssuer]) -> str:
    """Return the SHA-256 of the declared issuers, lower-case hex."""
    # The digest covers this JSON, with sorted names and no spaces.
    text = json.dumps(declared_issuers(issuers), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _declared(issuer: OidcIssuer) -> Mapping[str, object]:
    values = issuer.model_dump(exclude_defaults=True, exclude=_SECRET)
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: object) -> object:
    match value:
        case dict():
            return {str(name): _json_value(each) for name, each in value.items()}
        case set() | frozenset():
            # Sort, because the order of a set differs between processes.
            return sorted(map(str, value))
        case list() | tuple():
            return [_json_value(each) for each in value]
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case _:
            return value
