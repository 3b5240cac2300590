"""Finds the one credential in a request and hands it to the authenticator of its kind."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from clustercert.authn.access_keys import AccessKeyAuthenticator
from clustercert.authn.tokens import TokenAuthenticator
from clustercert.errors import Unauthenticated
from clustercert.model import Caller, UnverifiedRequest
from clustercert.signature import ALGORITHMS

_CARRIERS = frozenset({b"x-auth-token", b"authorization"})
_SIGNATURES = frozenset(ALGORITHMS.values())


class _Found(NamedTuple):
    kind: Literal["token", "signature"]
    text: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """The authenticator of authenticators: X-Auth-Token, Authorization: Bearer, or an AK/SK signature."""

    tokens: TokenAuthenticator
    access_keys: AccessKeyAuthenticator

    async def authenticate(self, request: UnverifiedRequest) -> Caller:
        """Tell who sent the request.

        Raises:
            Unauthenticated: no credential, two different ones, an unknown kind, or one that proves nothing.
        """
        found = _only_credential(request)
        if found.kind == "token":
            return await self.tokens.authenticate(found.text, request.origin)
        return await self.access_keys.authenticate(found.text, request)


def _only_credential(request: UnverifiedRequest) -> _Found:
    # Two that say the same are one. Of two that differ, whichever we chose might not be the one meant.
    found: _Found | None = None
    for name, value in request.headers:
        one = _credential_in(name, value)
        if found is not None and one not in (None, found):
            raise Unauthenticated("the request carries two different credentials")
        found = found or one
    if found is None:
        raise Unauthenticated("the request carries no credential")
    return found


def _credential_in(name: bytes, value: bytes) -> _Found | None:
    if name not in _CARRIERS or not (text := _text(value)):
        # An empty value is no credential: the vendor SDKs send an empty Authorization beside a token.
        return None
    if name == b"x-auth-token":
        return _Found("token", text)
    scheme, _, rest = text.partition(" ")
    if scheme in _SIGNATURES:
        return _Found("signature", text)
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header is of an unknown scheme")
    token = rest.strip(" ")
    return _Found("token", token) if token else None


def _text(value: bytes) -> str:
    try:
        return value.strip(b" \t").decode("ascii")
    except UnicodeDecodeError as e:
        raise Unauthenticated("the credential is not ASCII text") from e
