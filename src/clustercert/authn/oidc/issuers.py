"""The issuers that the operator trusts, and what the claims in their tokens mean."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from clustercert.authn.oidc.claims import ClaimCheck
from clustercert.authn.oidc.expressions import ClaimExpression
from clustercert.model import Domain, FederatedDomain
from clustercert.model.ids import id_of
from clustercert.model.login_client import LoginClient
from clustercert.model.name_patterns import Names


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an issuer's public keys come from.

    Attributes:
        discovery_url: where the discovery document is, if not below the issuer's URL.
        jwks_uri: the address of the keys. Without it, discovery finds it.
        keys_file: a JSON Web Key Set on disk, instead of any address.
        cluster: the id of a registered cluster whose API server publishes the keys, instead of any address.
        ca_file: CAs of the issuer's server, in PEM. Without it, those of the system.
        proxy: the URL of an HTTP proxy.
    """

    discovery_url: str
    jwks_uri: str | None = None
    keys_file: Path | None = None
    cluster: str | None = None
    ca_file: Path | None = None
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class RoleGrant:
    """A role for the users of an issuer who meet all conditions.

    Attributes:
        projects: project ids; None for all projects of the issuer.
        in_service: give the role in the whole service instead of projects.
        groups: one of the user's groups must match.
    """

    role: str
    projects: frozenset[str] | None = None
    in_service: bool = False
    groups: Names | None = None
    claims: tuple[ClaimCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """How the claims of an issuer become a user and their groups.

    Attributes:
        subject: claims that together identify the user forever.
        username: claims joined by a slash; None for those in `subject`.
        groups: a claim with strings, or an expression whose value is a list of strings; None for no groups.
        strip_slash: remove a slash at the beginning of groups, as Keycloak writes paths of groups.
        prefixed: whether users and groups are called `ISSUER/NAME`, so that the issuer can't choose other names.
    """

    subject: tuple[str, ...] = ("sub",)
    username: tuple[str, ...] | None = None
    groups: str | ClaimExpression | None = None
    strip_slash: bool = False
    prefixed: bool = True


@dataclass(frozen=True, slots=True)
class Issuer:
    """A trusted issuer.

    Attributes:
        name: the operator's short name for it, which begins the names of its users and groups.
        url: its exact claim `iss`.
        audiences: the claim `aud` must have one of them.
        leeway: accepted difference between the issuer's and the service's clock.
        max_age: longest time since `iat`.
        checks: all of them must be met.
        reviewed: whether the API server of `source.cluster` is asked about each token, instead of verifying with keys.
        revision: differs each time that the settings are loaded.
        projects, domain: the only projects in which its users can have roles: by id, or all projects of a domain.
        login: the client with which people log in there; None for machines only.
    """

    name: str
    url: str
    audiences: frozenset[str]
    source: KeySource
    algorithms: frozenset[str] = frozenset({"RS256", "ES256"})
    leeway: timedelta = timedelta(seconds=60)
    max_age: timedelta = timedelta(hours=24)
    checks: tuple[ClaimCheck, ...] = ()
    mapping: ClaimMapping = field(default_factory=ClaimMapping)
    grants: tuple[RoleGrant, ...] = ()
    projects: frozenset[str] = frozenset()
    domain: str | None = None
    login: LoginClient | None = None
    reviewed: bool = False
    revision: int = 0

    @property
    def user_domain(self) -> Domain:
        """The domain of the issuer's users and groups. It is not in the store."""
        return FederatedDomain(derived_id("domain", self.url), self.name)

    @property
    def role_names(self) -> frozenset[str]:
        return frozenset(grant.role for grant in self.grants)


def derived_id(kind: Literal["domain", "group", "user"], issuer: str, *parts: str) -> str:
    """Return the id of an issuer's user, group or domain: the first 32 hex digits of a SHA-256.

    It is that of a JSON array in ASCII without spaces, such as `["user","https://sso.example.com","f3b1"]`. So two
    users never share the hashed bytes, whatever their subject claims contain.
    """
    return id_of(json.dumps([kind, issuer, *parts], separators=(",", ":")))
