"""Users whom another identity system authenticates, and the lookup of their rights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from clustercert.model import Caller, Group, Origin, User
from clustercert.model.requests import AuthMethod

CLOCK_DIFFERENCE = timedelta(seconds=60)
"""The accepted difference between the clocks of Keystone and of this service. OIDC issuers have a setting for it."""


class Authority(Protocol):
    """An identity system that the operator trusts: an OIDC issuer, or a Keystone."""

    @property
    def name(self) -> str:
        """The short name in the settings: the prefix of the names of users and groups."""

    @property
    def url(self) -> str:
        """The URL of the identity system. Policies and audit events have it as the issuer."""

    @property
    def projects(self) -> frozenset[str]:
        """Ids of projects in which its users can have roles."""

    @property
    def domain(self) -> str | None:
        """Name or id of a domain in whose projects its users can have roles."""

    @property
    def role_names(self) -> frozenset[str]:
        """Names of the roles that its settings give."""


@dataclass(frozen=True, slots=True)
class FederatedUser:
    """A user as described by a verified credential.

    Attributes:
        roles: role names by project id; the key None stands for all projects of the authority.
        expires_at: when the credential expires, or None.
        credential_id: SHA-256 of the token in hex, or the access key's id.
        logged_in_at: the earliest time, by this service's clock, at which the user can have logged in for this
            credential; None for a credential that no login made, such as an access key.
        keeps_login_time: whether a renewed credential has the time of the same login.
        revision: changes whenever the authority is asked about the same credential again, or its settings are loaded.
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


class FederatedLookup(Protocol):
    """Looks up the rights of federated users. Implemented by `identity`."""

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        """Return the caller. Raises Unauthenticated if the user is blocked, or has ended this login."""
