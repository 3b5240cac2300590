"""Authentication with tokens from OIDC issuers."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cachetools import LRUCache

from clustercert.authn.credentials import BEARER, UnverifiedCredential
from clustercert.authn.federated import FederatedLookup, FederatedUser
from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.explanation import Explanation, RoleClaim, explain, missed_role_claims
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import IssuerKeys, fetch_keys
from clustercert.authn.oidc.logout_tokens import IssuerLogout, verified_logout
from clustercert.authn.oidc.mapping import federated_user
from clustercert.authn.oidc.token_reviews import CACHED_SECONDS, ClusterIssuers, TokenReviewer
from clustercert.authn.oidc.tokens import (
    MAX_TOKEN_BYTES,
    UnverifiedToken,
    id_token_results,
    is_jwt,
    valid_until,
)
from clustercert.authn.oidc.verification import KeyLookup, Verifier
from clustercert.authn.oidc.web_login import IssuerLogins
from clustercert.model import Caller, JsonObject, UnverifiedRequest

# The maximum number of tokens in the cache. The cached token of a user with 500 groups takes about 130 KiB.
CACHED_TOKENS = 4_000

# The names of the checks of a token's times.
_TIME_CHECKS = frozenset({"exp", "nbf", "iat", "auth_time"})

_revisions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class _VerifiedToken:
    """A token whose signature and claims were valid.

    Attributes:
        version: the version of the issuer's keys that verified the token. See `KeyLookup`.
    """

    user: FederatedUser
    version: int
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class OidcAuthenticator:
    """Verifies tokens from OIDC issuers. Looking up a cached token needs one hash and no I/O.

    Attributes:
        logins: logins of people, by the name of each issuer that has a client for the console.
        revision: a new number after each load of the settings.
    """

    identity: FederatedLookup
    verifier: Verifier
    logins: Mapping[str, IssuerLogins] = field(default_factory=dict)
    revision: int = field(default_factory=lambda: next(_revisions))
    _cache: LRUCache[bytes, _VerifiedToken] = field(
        default_factory=lambda: LRUCache(CACHED_TOKENS), repr=False
    )

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.scheme == BEARER and is_jwt(credential.text)

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """See `Authenticator`. Raises Unavailable if the token's key is unknown and the issuer can't be reached."""
        if len(credential.text) > MAX_TOKEN_BYTES:
            raise TokenRefused("size", f"{len(credential.text)} bytes", f"at most {MAX_TOKEN_BYTES} bytes")
        user = await self._user(credential.text)
        return await self.identity.caller_of_federated_user(user, request.origin)

    @property
    def issuers(self) -> tuple[OidcIssuer, ...]:
        """The issuers, in the order of the settings."""
        return tuple(self.verifier.issuers.values())

    def user_of_claims(self, issuer_url: str, claims: JsonObject) -> FederatedUser:
        """Map the claims of an ID token that was verified earlier, with the present settings of its issuer.

        Does not check the token's times. Raises TokenRefused if people can't log in to the console at this issuer any
        more, or if the settings do not accept these claims any more.
        """
        issuer = self.verifier.issuers.get(issuer_url)
        if issuer is None or issuer.console is None:
            raise TokenRefused("iss", issuer_url, "the URL of an issuer with a client for the console")
        token = UnverifiedToken("", "", None, issuer_url, claims)
        for check, refusal in id_token_results(issuer, issuer.console, token, self.verifier.now()):
            if refusal is not None and check not in _TIME_CHECKS:
                raise refusal
        return replace(federated_user(issuer, token), revision=self.revision)

    async def verified_logout(self, text: str) -> IssuerLogout:
        """Verify a logout token. Raises TokenRefused or Unavailable."""
        return await verified_logout(self.verifier, text)

    async def explain(self, text: str) -> Explanation:
        """Explain whether a token would be accepted, and who its user is, without authenticating anyone."""
        return await explain(self.verifier, text)

    async def missed_role_claims(self, text: str) -> tuple[RoleClaim, ...] | None:
        """Return what the user of a token may know about why no rule gives them a role. See `missed_role_claims`.

        Raises TokenRefused or Unavailable.
        """
        return missed_role_claims(*await self.verifier.verify(text))

    @property
    def keys(self) -> tuple[KeyLookup, ...]:
        """The keys of all issuers, which `KeyUpdates` keeps up to date."""
        return tuple(self.verifier.keys.values())

    async def _user(self, text: str) -> FederatedUser:
        digest = hashlib.sha256(text.encode()).digest()
        cached = self._cache.get(digest)
        if cached is not None:
            current = self.verifier.version(cached.user.issuer.url)
            if cached.version == current and self.verifier.now() < cached.valid_until:
                return cached.user
            del self._cache[digest]
        started = self.verifier.now()
        issuer, token = await self.verifier.verify(text)
        user = replace(federated_user(issuer, token), revision=self.revision)
        until = valid_until(issuer, token)
        if issuer.token_review:
            until = min(until, started + timedelta(seconds=CACHED_SECONDS))
        self._cache[digest] = _VerifiedToken(user, self.verifier.version(issuer.url), until)
        return user


def new_authenticator(
    issuers: Iterable[OidcIssuer],
    identity: FederatedLookup,
    clusters: ClusterIssuers,
    now: Callable[[], datetime],
    before: OidcAuthenticator | None = None,
) -> OidcAuthenticator:
    """Create the authenticator for these issuers. The issuers' keys are fetched by `KeyUpdates` or on first use.

    Reuses an issuer's keys from the authenticator `before` if the source of the keys is the same, so that tokens can be
    verified even if the issuer can't be reached. Does not reuse cached tokens, because with the new settings a token
    may be refused or give other roles.
    """
    by_url = {issuer.url: issuer for issuer in issuers}
    keys: dict[str, KeyLookup] = {}
    reviewers = {}
    for url, issuer in by_url.items():
        if issuer.token_review:
            reviewers[url] = TokenReviewer(issuer, clusters)
        else:
            keys[url] = _kept_keys(issuer, before) or _new_keys(issuer, clusters)
    verifier = Verifier(by_url, keys, now, reviewers)
    logins = {
        issuer.name: IssuerLogins(issuer, issuer.console, verifier)
        for issuer in by_url.values()
        if issuer.console is not None
    }
    return OidcAuthenticator(identity, verifier, logins)


def _new_keys(issuer: OidcIssuer, clusters: ClusterIssuers) -> IssuerKeys:
    fetch = functools.partial(fetch_keys, issuer, from_cluster=clusters.fetch_keys)
    return IssuerKeys(issuer.name, fetch)


def _kept_keys(issuer: OidcIssuer, before: OidcAuthenticator | None) -> KeyLookup | None:
    former = before.verifier.issuers.get(issuer.url) if before is not None else None
    if (
        before is None
        or former is None
        or (former.name, former.key_source) != (issuer.name, issuer.key_source)
    ):
        return None
    return before.verifier.keys.get(issuer.url)
