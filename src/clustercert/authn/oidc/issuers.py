"""OIDC issuers, their claims and expressions."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clustercert.model import Domain, FederatedDomain, JsonObject
from clustercert.model.errors import Unauthenticated
from clustercert.model.ids import id_of
from clustercert.model.login_client import LoginClient
from clustercert.model.name_patterns import Names
from clustercert.policy.expressions import MAX_LISTED, compile_expression

if TYPE_CHECKING:
    from cel.cel import Program


# Tokens choose these strings, so only their beginning is logged.
MAX_SHOWN = 120


class TokenRefused(Unauthenticated):
    """A token failed a check. As for any failed authentication, the caller does not learn which check failed.

    Attributes:
        check: the name of the check, such as `signature` or `aud`.
        came: what the token has, shortened; empty if that says nothing.
        expected: what the check accepts.
    """

    def __init__(self, check: str, came: object, expected: str) -> None:
        self.check = check
        self.came = shown(came)
        self.expected = expected
        super().__init__(f"{check}: the token has {self.came or 'nothing'}; expected: {expected}")


def shown(value: object) -> str:
    """Return a printable ASCII form of a value from a token, shortened."""
    if value is None:
        return ""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


# The maximum length of a value that is compared, in characters. Longer ones match nothing.
MAX_COMPARED = 1024


def claim_path(claim: str) -> tuple[str, ...]:
    """Return the names that lead to a claim, from the outermost.

    A claim that begins with a slash is a JSON pointer, such as `/kubernetes.io/namespace`; any other is a name.
    Source: RFC 6901.
    """
    if not claim.startswith("/"):
        return (claim,)
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in claim[1:].split("/"))


def claim_value(claims: JsonObject, claim: str) -> object:
    """Return a claim, or None if the token does not have it. See `claim_path`."""
    value: object = claims
    for name in claim_path(claim):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def claim_texts(value: object) -> tuple[str, ...] | None:
    """Return a claim as strings: one for a single value, or one for each entry of a list. None for another type."""
    values = value if isinstance(value, list) else [value]
    texts = tuple(map(_text, values))
    return None if None in texts else tuple(text for text in texts if text is not None)


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            # Python refuses to convert numbers of thousands of digits.
            return str(value) if value.bit_length() <= 64 else None  # noqa: PLR2004 - no id is larger
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A claim that must have one of the values or match one of the patterns. Of a list, one entry is enough.

    A claim with a value that is longer than `MAX_COMPARED` never meets the check.
    """

    claim: str
    values: Names

    def is_met(self, claims: JsonObject) -> bool:
        value = claim_value(claims, self.claim)
        texts = claim_texts(value) if value is not None else None
        return texts is not None and not _is_long(texts) and self.values.match(texts)

    def require(self, claims: JsonObject) -> None:
        """Raise TokenRefused unless the claim has one of the values."""
        if self.is_met(claims):
            return
        value = claim_value(claims, self.claim)
        bound = f", in at most {MAX_COMPARED} characters" if _is_long(claim_texts(value) or ()) else ""
        raise TokenRefused(self.claim, value, f"{self.values.text}{bound}")


def _is_long(texts: Iterable[str]) -> bool:
    return any(len(text) > MAX_COMPARED for text in texts)


@dataclass(frozen=True, slots=True)
class ClaimExpression:
    """An expression in CEL, compiled when the settings are loaded. Its variable `claims` has the token's claims.

    Attributes:
        setting: the name of the setting, for refusals.
    """

    source: str
    setting: str
    _program: "Program" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the expression. Raises ValueError."""
        object.__setattr__(self, "_program", compile_expression(self.source, frozenset({"claims"})))

    def value(self, claims: JsonObject) -> Any:
        """Evaluate the expression. Raises TokenRefused if that fails, for example because a claim is missing.

        The refusal has the names of the token's claims.
        """
        from cel import cel  # noqa: PLC0415 - an optional dependency that compile_expression has imported

        if (longest := _longest_list(claims)) > MAX_LISTED:
            # The time of an expression grows with the square of a list's length: two seconds for a full token.
            expected = f"lists of at most {MAX_LISTED} entries, because the setting is an expression"
            raise TokenRefused(self.setting, f"a list of {longest}", expected)
        try:
            return self._program.execute(cel.Context({"claims": claims}))
        except BaseException as error:
            # The library raises many types, and its panics don't derive from Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            expected = (
                f"the claim or member {error}, which the expression reads: {self.source}"
                if isinstance(error, KeyError)
                else f"claims for which the expression has a value ({str(error)[:100]}): {self.source}"
            )
            raise TokenRefused(self.setting, sorted(claims), expected) from None


def _longest_list(value: object) -> int:
    """Return the length of the longest list or object within a claim."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(len(value), *map(_longest_list, inner), 0)


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


PresetName = Literal["keycloak", "dex", "entra", "github", "gitlab", "kubernetes"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults for an issuer.

    Attributes:
        required: claims that every token must have.
        pinned: the settings must check one of these claims, because everybody can get a token from the issuer.
        scopes: what people's clients request.
    """

    mapping: ClaimMapping
    max_age: timedelta = timedelta(hours=24)
    required: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("openid", "profile", "groups")


PRESETS: Mapping[PresetName, Preset] = {
    # Source: Keycloak server administration guide, "Group Membership" mapper, whose default writes full paths.
    "keycloak": Preset(
        ClaimMapping(username=("preferred_username",), groups="groups", strip_slash=True),
        # Keycloak refuses scopes that a client does not have. It sends refresh tokens without a scope for them.
        scopes=("openid", "profile"),
    ),
    # Source: Dex, "Custom scopes, claims and client features". `name` is a display name that users may choose.
    "dex": Preset(
        ClaimMapping(groups="groups"),
        scopes=("openid", "profile", "groups", "offline_access"),
    ),
    # Source: Microsoft identity platform, "ID token claims reference". `sub` differs for each application.
    # `preferred_username` can change, and must not be used for authorization. An issuer's URL names one tenant.
    "entra": Preset(
        ClaimMapping(subject=("tid", "oid"), username=("oid",), groups="groups"),
        required=("tid", "oid"),
        scopes=("openid", "profile", "offline_access"),
    ),
    # Source: GitHub Docs, "OpenID Connect reference". Ids stay when a repository is renamed or its name is used again.
    # GitHub Enterprise has issuers of its own, with the same claims.
    "github": Preset(
        ClaimMapping(subject=("repository_id",), username=("repository",)),
        required=("repository_id", "repository_owner_id", "ref", "event_name"),
        pinned=("repository_id", "repository_owner_id", "enterprise_id"),
    ),
    # Source: GitLab Docs, "OpenID Connect (OIDC) authentication using ID tokens".
    "gitlab": Preset(
        ClaimMapping(subject=("project_id",), username=("project_path",)),
        required=("project_id", "namespace_id", "ref", "ref_type", "ref_protected"),
        pinned=("project_id", "namespace_id"),
    ),
    # Source: Kubernetes documentation, "Managing Service Accounts", "Schema for service account private claims".
    "kubernetes": Preset(
        ClaimMapping(
            subject=("sub", "/kubernetes.io/serviceaccount/uid"),
            username=("/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"),
        ),
        # The kubelet renews a token when it is a day old.
        max_age=timedelta(hours=25),
        required=(
            "/kubernetes.io/namespace",
            "/kubernetes.io/serviceaccount/name",
            "/kubernetes.io/serviceaccount/uid",
        ),
    ),
}
