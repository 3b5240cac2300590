"""Credentials of requests, and functions that recognize their formats."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import NoCredential, Unauthenticated

BEARER = "bearer"
# The maximum length of tokens of the built-in identity service. Real tokens are much shorter.
MAX_TOKEN = 4096

_HEADERS = frozenset({b"x-auth-token", b"authorization"})


@dataclass(frozen=True, slots=True)
class UnverifiedCredential:
    """The credential in a request, before it is verified.

    Attributes:
        scheme: `bearer` for a token, even if the token is in X-Auth-Token; else the scheme in the Authorization header,
            as sent.
        text: the token if the scheme is `bearer`; else the whole Authorization header.
    """

    scheme: str
    text: str = field(repr=False)


class Authenticator(Protocol):
    """Authenticates one kind of credential."""

    def accepts(self, credential: UnverifiedCredential) -> bool:
        """Whether this authenticator can check credentials of this kind."""

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """Return the caller. Raises Unauthenticated; the error's `reason` is only for the log."""


@dataclass(frozen=True, slots=True)
class Authenticators:
    """Several authenticators. Uses only the first authenticator that accepts a credential."""

    members: tuple[Authenticator, ...]

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return any(member.accepts(credential) for member in self.members)

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """Return the caller. Raises Unauthenticated, for example if no authenticator accepts the credential."""
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
        return credential.scheme == BEARER and "." not in credential.text  # a token with a dot is a JWT

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        if len(credential.text) > MAX_TOKEN:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN} characters")
        return await self.identity.caller_of_token(credential.text, request.origin)


def only_credential(headers: Iterable[tuple[bytes, bytes]]) -> UnverifiedCredential:
    """Return the request's only credential. Equal credentials in several headers count as one.

    Raises Unauthenticated if the request has no credential, or two different credentials.
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
    """Return the header's credential, or `None` for an empty header, which vendors' SDKs send together with a token."""
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


# A token of the built-in identity service is 32 random bytes in base64url without padding.
_BUILT_IN_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_BUILT_IN_ACCESS_KEY = re.compile(r"[A-Z0-9]{20}")
# All JSON Web Tokens of Keystone have this claim. The payload is searched for this text, but not parsed.
# Source: keystone/token/providers/jws/core.py.
_KEYSTONE_CLAIM = b'"openstack_audit_ids"'
# A token with a longer payload is not from Keystone: payloads of Keystone's tokens have about 500 bytes.
_MAX_PAYLOAD = 8192


def is_built_in_token(text: str) -> bool:
    """Whether a token has the format of the built-in identity service's tokens."""
    return _BUILT_IN_TOKEN.fullmatch(text) is not None


def is_keystone_token(text: str) -> bool:
    """Whether a token can be from Keystone: an opaque token (Fernet, PKI), or a JWT with Keystone's claims.

    Keystone's opaque tokens have at least 180 characters, so they differ from tokens of the built-in identity service.
    """
    if "." not in text:
        return not is_built_in_token(text)
    parts = text.split(".", 3)
    if len(parts) != 3 or len(parts[1]) > _MAX_PAYLOAD:  # noqa: PLR2004 - RFC 7515 section 7.1
        return False
    try:
        return _KEYSTONE_CLAIM in base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError):
        return False


def is_built_in_access_key(access_key_id: str) -> bool:
    """Whether an access key has the format of the built-in identity service's access keys.

    Keystone's access keys have 32 lower-case hex digits.
    """
    return _BUILT_IN_ACCESS_KEY.fullmatch(access_key_id) is not None
