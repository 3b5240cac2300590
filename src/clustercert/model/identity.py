"""Who there is, what they may show, and who asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from clustercert.model.requests import AuthMethod, Origin


@dataclass(frozen=True, slots=True)
class Domain:
    """A Keystone domain: the owner of users and projects."""

    id: str
    name: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Project:
    """A Keystone project. By the convention of the vendor SDKs it is named like its region."""

    id: str
    name: str
    domain: Domain
    description: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """A person or machine of the built-in identity. `id` becomes the CN of their certificates."""

    id: str
    name: str
    domain: Domain
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Role:
    """A Keystone role: `admin`, `member`, `reader`, the service-level `operator`, or any other name."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A Keystone group of users. It has nothing to do with the Kubernetes groups of a certificate."""

    id: str
    name: str
    domain: Domain


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """A role that a user or a group has in a project, or, without one, in the whole service."""

    role: Role
    actor: User | Group
    project: Project | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent the request, authenticated.

    Attributes:
        roles: role names by project id, sorted; only the projects that this credential reaches
            (a project-scoped token reaches one).
        service_roles: role names that hold for the whole service, such as `operator`.
        expires_at: when the credential itself ends, or None.
        credential_id: the access key's id, or the token's SHA-256 in hex; empty where there is neither.
    """

    user: User
    roles: Mapping[str, tuple[str, ...]]
    method: AuthMethod
    origin: Origin
    service_roles: tuple[str, ...] = ()
    expires_at: datetime | None = None
    credential_id: str = ""

    def roles_in(self, project_id: str) -> tuple[str, ...]:
        """The caller's role names in a project; empty where they have none."""
        return self.roles.get(project_id, ())


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as the store keeps it: never the token itself.

    Attributes:
        hash: SHA-256 of the token text, 32 bytes.
        methods: Keystone's authentication methods, `password` and/or `token`.
        project_id, domain_id: its scope; at most one of the two.
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
    """An AK/SK pair as the store keeps it.

    Attributes:
        id: the access key (AK), 20 upper-case letters and digits.
        sealed_secret: the secret key (SK), sealed: HMAC needs it in the clear at each check.
        security_token_hash: SHA-256 of the security token that a temporary key must come with, or None.
        expires_at: the end of a temporary key, or None.
    """

    id: str
    user_id: str
    sealed_secret: bytes
    description: str
    enabled: bool
    created_at: datetime
    security_token_hash: bytes | None = None
    expires_at: datetime | None = None
