"""Users who are authenticated by an external identity system, and the interface for looking up their rights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from clustercert.model import Caller, Group, Origin, User
from clustercert.model.requests import AuthMethod

CLOCK_DIFFERENCE = timedelta(seconds=60)
"""The accepted difference between Keystone's clock and this service's clock. OIDC issuers have the setting `leeway`."""


class Authority(Protocol):
    """An identity system that the operator trusts: an OIDC issuer or Keystone."""

    @property
    def name(self) -> str:
        """The identity system's short name in the settings.

        Names of the system's users and groups begin with this name unless `prefix_names` is false.
        """

    @property
    def url(self) -> str:
        """The URL of the identity system. Policies and audit events call this URL the issuer."""

    @property
    def projects(self) -> frozenset[str]:
        """Ids and names (DOMAIN/NAME) of projects in which users of this identity system can have roles."""

    @property
    def domain(self) -> str | None:
        """Name or id of a domain, or None. Users of this identity system can have roles in the domain's projects."""

    @property
    def named_projects(self) -> frozenset[str]:
        """All projects in the identity system's settings, including projects that only a rule for a role names."""

    @property
    def role_names(self) -> frozenset[str]:
        """Names of the roles that the identity system's settings grant."""


@dataclass(frozen=True, slots=True)
class FederatedUser:
    """A user as described by a verified credential.

    Attributes:
        roles: role names by project, whose key is the id or DOMAIN/NAME, as in the settings. The key None stands for
            all projects that the authority allows.
        expires_at: when the credential expires, or None.
        credential_id: SHA-256 of the token in hex, or the access key's id.
        logged_in_at: the earliest possible time of the login that produced this credential, by this service's clock;
            None for a credential without a login, such as an access key.
        keeps_login_time: whether a renewed credential still has the time of the original login.
        revision: a number that changes whenever this service asks Keystone about the credential again, or reloads the
            OIDC settings.
    """

    issuer: Authority = field(repr=False)
    user: User
    groups: tuple[Group, ...]
    roles: Mapping[str | None, frozenset[str]]
    service_roles: frozenset[str]
    expires_at: datetime | None
    credential_id: str
    method: AuthMethod
    revision: int = 0
    logged_in_at: datetime | None = None
    keeps_login_time: bool = False


@dataclass(frozen=True, slots=True)
class KeystonePassword:
    """A person's login at Keystone.

    Attributes:
        user, domain: names in Keystone.
        project: the id, or the name in this domain, of the project in which the person wants to use roles; or empty.
        in_system: whether to use roles in the scope `system` instead of a project.
    """

    user: str
    domain: str
    password: str = field(repr=False)
    project: str = ""
    in_system: bool = False


class FederatedLookup(Protocol):
    """Looks up the rights of federated users. Implemented by `identity`."""

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        """Return the caller. Raises Unauthenticated if the user is blocked, or ended all logins after this login."""
