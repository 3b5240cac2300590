"""Users, groups, projects, roles, tokens, access keys, and the caller of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from clustercert.model.errors import NotFound
from clustercert.model.ids import is_user_id
from clustercert.model.requests import Actor, AuthMethod, Origin

BUILT_IN = "built-in"
"""The issuer of callers whom the built-in identity authenticates."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A Keystone domain: the owner of users and projects."""

    id: str
    name: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class FederatedDomain(Domain):
    """The domain of the users and groups of an OIDC issuer or of Keystone. It is not in the store."""


def domain_by_issuer(issuer: str, domain_id: str, name: str) -> Domain:
    """Return the domain of users whom this issuer authenticates: a `FederatedDomain` unless it is `built-in`."""
    return Domain(domain_id, name) if issuer == BUILT_IN else FederatedDomain(domain_id, name)


def _qualified_names(name: str, domain: Domain) -> tuple[str, ...]:
    """Return the name, and `DOMAIN/NAME`. Leaves out forms that could also belong to another user or group.

    So a name that has a slash or looks like an id is only returned with its domain. The name of an issuer's user
    usually begins with the domain already.
    """
    if isinstance(domain, FederatedDomain) and name.startswith(f"{domain.name}/"):
        return (name,)
    bare = () if "/" in name or is_user_id(name) else (name,)
    return bare if "/" in domain.name else (*bare, f"{domain.name}/{name}")


@dataclass(frozen=True, slots=True)
class ProjectName:
    """The name of a project, as the policy compares it.

    Attributes:
        is_unique: whether no project of another domain has this name.
    """

    name: str
    domain: Domain
    is_unique: bool

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The names by which the policy can refer to the project, beside the id: name, and name with domain."""
        return _qualified_names(self.name, self.domain)


@dataclass(frozen=True, slots=True)
class Project:
    """A Keystone project. Vendor SDKs expect its name to equal the region's name."""

    id: str
    name: str
    domain: Domain
    description: str = ""
    enabled: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class User:
    """A user of any identity system. `id` is the CN of their certificates by default."""

    id: str
    name: str
    domain: Domain
    enabled: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The names by which the policy can refer to the user, beside the id: name, and name with domain."""
        return _qualified_names(self.name, self.domain)

    @property
    def shown_name(self) -> str:
        """The name with the domain, or the id of a user whose domain and name have a slash."""
        return (self.id, *self.qualified_names)[-1]


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user whom the service knows by name.

    Attributes:
        domain: the name of their domain; for other users than those of the built-in identity, the name of the issuer or
            of Keystone in the settings. Empty if only the policy's name for them is known.
        issuer: the URL of the OIDC issuer or of Keystone, `built-in`, or empty.
    """

    id: str
    name: str
    domain: str
    issuer: str


@dataclass(frozen=True, slots=True)
class Role:
    """A Keystone role: `admin`, `member`, `reader`, the service-level `operator`, or any other name."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A Keystone group of users. Not to be confused with the Kubernetes groups of a certificate."""

    id: str
    name: str
    domain: Domain
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The names by which the policy can refer to the group, beside the id: name, and name with domain."""
        return _qualified_names(self.name, self.domain)

    @property
    def shown_name(self) -> str:
        """The name with the domain, or the id of a group whose domain and name have a slash."""
        return (self.id, *self.qualified_names)[-1]


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """A role assigned to a user or group, in a project, or in the whole service if `project` is None."""

    role: Role
    actor: User | Group
    project: Project | None


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request.

    Attributes:
        roles: sorted role names by project id. A project-scoped token has only its project.
        service_roles: role names in the whole service, such as `operator`.
        expires_at: when the token or access key expires, or None.
        credential_id: the access key's id, or the token's SHA-256 in hex; empty for other methods.
        groups: the user's groups, sorted by name.
        issuer: who authenticated the user: an OIDC issuer's or Keystone's URL, or `built-in`.
        keeps_login_time: whether a credential that is renewed from this one has the time of the same login.
    """

    user: User
    roles: Mapping[str, tuple[str, ...]]
    method: AuthMethod
    origin: Origin
    service_roles: tuple[str, ...] = ()
    expires_at: datetime | None = None
    credential_id: str = ""
    groups: tuple[Group, ...] = ()
    issuer: str = BUILT_IN
    keeps_login_time: bool = True

    @property
    def actor(self) -> Actor:
        return Actor(self.user.id, self.origin)

    def roles_in(self, project_id: str) -> tuple[str, ...]:
        return self.roles.get(project_id, ())

    def require_roles_in(self, project_id: str) -> tuple[str, ...]:
        """Return the roles in a project. If there are none, raises NotFound as for a missing project."""
        roles = self.roles_in(project_id)
        if not roles:
            raise NotFound
        return roles


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as stored: its hash, not the token itself.

    Attributes:
        hash: SHA-256 of the token, 32 bytes.
        methods: Keystone's authentication methods, `password` and/or `token`.
        project_id, domain_id: the token's scope; at most one of them is set.
    """

    hash: bytes
    user_id: str
    project_id: str | None
    domain_id: str | None
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An AK/SK pair as stored.

    Attributes:
        id: the access key (AK), 20 upper-case letters and digits.
        sealed_secret: the secret key (SK), sealed, not hashed, because HMAC needs the plaintext.
        security_token_hash: SHA-256 of the security token that a temporary key requires, or None.
        expires_at: when a temporary key expires, or None.
    """

    id: str
    user_id: str
    sealed_secret: bytes
    description: str
    enabled: bool
    created_at: datetime
    security_token_hash: bytes | None = None
    expires_at: datetime | None = None
