"""Users, groups, projects, roles, tokens, access keys, and the caller of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from clustercert.model.errors import NotFound
from clustercert.model.ids import is_user_id
from clustercert.model.requests import Actor, AuthMethod, Origin

BUILT_IN = "built-in"
"""The issuer of callers who are authenticated by the built-in identity service."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as in Keystone: a container of users, groups and projects."""

    id: str
    name: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class FederatedDomain(Domain):
    """The domain of the users and groups of an OIDC issuer or of Keystone. This domain is not in the database."""


def domain_by_issuer(issuer: str, domain_id: str, name: str) -> Domain:
    """Return the domain of users of this issuer: a `Domain` for the issuer `built-in`, else a `FederatedDomain`."""
    return Domain(domain_id, name) if issuer == BUILT_IN else FederatedDomain(domain_id, name)


MIN_PASSWORD_CHARACTERS = 8
# The domain that `clustercert db upgrade` creates.
DEFAULT_DOMAIN = "Default"


def qualified_name(name: str, domain: str) -> str:
    """Return `DOMAIN/NAME`, or only the name if the domain is not known (an empty string).

    The names of users from OIDC issuers usually begin with the domain already.
    """
    return f"{domain}/{name}" if domain and not name.startswith(f"{domain}/") else name


def _qualified_names(name: str, domain: Domain) -> tuple[str, ...]:
    """Return the forms in which the policy can write a name: `NAME` and `DOMAIN/NAME`.

    Omits ambiguous forms, which could also belong to another user or group: a name that has a slash or looks like an id
    is returned only with its domain. The names of users from OIDC issuers usually begin with the domain already.
    """
    if isinstance(domain, FederatedDomain) and name.startswith(f"{domain.name}/"):
        return (name,)
    bare = () if "/" in name or is_user_id(name) else (name,)
    return bare if "/" in domain.name else (*bare, f"{domain.name}/{name}")


@dataclass(frozen=True, slots=True)
class ProjectName:
    """The name of a project, for conditions of the policy.

    Attributes:
        is_unique: whether no project in another domain has this name.
    """

    name: str
    domain: Domain
    is_unique: bool

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The project's name, without and with the domain, for policy conditions. Does not include the project's id."""
        return _qualified_names(self.name, self.domain)


@dataclass(frozen=True, slots=True)
class Project:
    """A project as in Keystone. Vendor SDKs expect that the project's name equals the region's name."""

    id: str
    name: str
    domain: Domain
    description: str = ""
    enabled: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class User:
    """A user of any identity system. By default, `id` is the CN of the user's certificates."""

    id: str
    name: str
    domain: Domain
    enabled: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The user's name, without and with the domain, for policy conditions. Does not include the user's id."""
        return _qualified_names(self.name, self.domain)

    @property
    def shown_name(self) -> str:
        """The user's name with the domain; the id if both name and domain contain a slash."""
        return (self.id, *self.qualified_names)[-1]


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user whom the service knows by name.

    Attributes:
        domain: the name of the user's domain. For users of an OIDC issuer or of Keystone, usually the name of the
            issuer or of Keystone in the settings. Empty if only the user name in certificates is known.
        issuer: the URL of the OIDC issuer or of Keystone, `built-in`, or empty if it is not known.
    """

    id: str
    name: str
    domain: str
    issuer: str

    @property
    def shown_name(self) -> str:
        """The user's name with the domain, if the domain is known."""
        return qualified_name(self.name, self.domain)


@dataclass(frozen=True, slots=True)
class Role:
    """A role as in Keystone: `admin`, `member`, `reader`, `operator` (in the whole service), or any other name."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A group of users as in Keystone. Not to be confused with the Kubernetes groups in a certificate."""

    id: str
    name: str
    domain: Domain
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The group's name, without and with the domain, for policy conditions. Does not include the group's id."""
        return _qualified_names(self.name, self.domain)

    @property
    def shown_name(self) -> str:
        """The group's name with the domain; the id if both name and domain contain a slash."""
        return (self.id, *self.qualified_names)[-1]


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """A role assigned to a user or group in a project, or in the whole service if `project` is None."""

    role: Role
    actor: User | Group
    project: Project | None


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request.

    Attributes:
        roles: sorted role names by project id. With a project-scoped token, only the roles in the token's project.
        service_roles: role names in the whole service, such as `operator`.
        expires_at: when the token or access key expires, or None.
        credential_id: the access key's id, or the SHA-256 in hex of the token or of a session's cookie; empty for other
            methods.
        groups: the user's groups, sorted by name.
        issuer: who authenticated the user: an OIDC issuer's or Keystone's URL, or `built-in`.
        keeps_login_time: whether a renewed credential still has the time of the original login.
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
        """Return the caller's roles in a project. Without a role, raises NotFound, as if the project did not exist."""
        roles = self.roles_in(project_id)
        if not roles:
            raise NotFound
        return roles


class CallerAuthentication(Protocol):
    """The authentication of one request's sender, which can be repeated. Implemented by `issuance`."""

    def is_current(self) -> bool:
        """Whether the last result still holds: no change of rights has taken effect since."""

    async def authenticate(self) -> Caller:
        """Return the caller with the present rights. Raises Unauthenticated or Unavailable."""


@dataclass(frozen=True, slots=True)
class Token:
    """A stored bearer token. Only the hash of the token is stored.

    Attributes:
        hash: SHA-256 of the token, 32 bytes.
        methods: Keystone's authentication methods: `password`, `token`, or both.
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
    """A stored access key.

    Attributes:
        id: the access key (AK), 20 upper-case letters and digits.
        sealed_secret: the secret key (SK), encrypted and not hashed, because HMAC needs the plaintext.
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
