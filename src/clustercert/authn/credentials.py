"""Extracts a request's credential, selects its authenticator, and authenticates tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import NoCredential, Unauthenticated

BEARER = "bearer"
# The maximum length, longer than any real token. Keystone's longest tokens, the signed ones, have about 3,000
# characters.
MAX_TOKEN = 4096

_HEADERS = frozenset({b"x-auth-token", b"authorization"})


@dataclass(frozen=True, slots=True)
class UnverifiedCredential:
    """The credential in a request, before it is verified.

    Attributes:
        scheme: `bearer` for a token, including one in X-Auth-Token; else the Authorization header's scheme, as sent.
        text: the token, or the whole Authorization header.
    """

    scheme: str
    text: str = field(repr=False)


class Authenticator(Protocol):
    """Authenticates one kind of credential."""

    def accepts(self, credential: UnverifiedCredential) -> bool:
        """Whether this authenticator can check credentials of this kind."""

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """Return the caller. Raises Unauthenticated; only the error's `reason`, which is for the log, says why."""


@dataclass(frozen=True, slots=True)
class Authenticators:
    """Several authenticators. The first one that accepts a credential decides about it alone."""

    members: tuple[Authenticator, ...]

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return any(member.accepts(credential) for member in self.members)

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """Return the caller. Raises Unauthenticated, also if no authenticator accepts such a credential."""
        for member in self.members:
            if member.accepts(credential):
                return await member.authenticate(credential, request)
        raise Unauthenticated("the credential is of an unknown scheme")


class TokenLookup(Protocol):
    """Looks up tokens that the built-in identity service issued."""

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """Return the token's owner.

        Raises Unauthenticated if the token is unknown, expired or revoked, or if its user or scope is disabled.
        """


@dataclass(frozen=True, slots=True)
class TokenAuthenticator:
    """Authenticates bearer tokens that the built-in identity service issued."""

    identity: TokenLookup

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.scheme == BEARER and "." not in credential.text  # as in a JWT

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        if len(credential.text) > MAX_TOKEN:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN} characters")
        return await self.identity.caller_of_token(credential.text, request.origin)


def only_credential(headers: Iterable[tuple[bytes, bytes]]) -> UnverifiedCredential:
    """Return the request's only credential. Equal duplicates count as one.

    Raises Unauthenticated if there is none, or if two differ: it is not clear which one the caller meant.
    """
    found: UnverifiedCredential | None = None
    for name, value in headers:
        if name in _HEADERS and (credential := _credential(name, value)) is not None:
            if found is not None and credential != found:
                raise Unauthenticated("the request carries two different credentials")
            found = credential
    if found is None:
        raise NoCredential("the request carries no credential")
    return found


def _credential(name: bytes, value: bytes) -> UnverifiedCredential | None:
    """Return the header's credential, or `None` for an empty header, which vendors' SDKs send with a token."""
    try:
        text = value.strip(b" \t").decode("ascii")
    except UnicodeDecodeError as error:
        raise Unauthenticated("the credential is not ASCII text") from error
    if name == b"authorization":
        scheme, _, rest = text.partition(" ")
        if scheme.lower() != BEARER:
            return UnverifiedCredential(scheme, text) if text else None
        text = rest.strip(" ")
    return UnverifiedCredential(BEARER, text) if text else None
