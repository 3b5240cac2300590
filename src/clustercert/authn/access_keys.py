"""Callers who sign their requests with an access key. Which keys exist is looked up elsewhere."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from clustercert.errors import Unauthenticated
from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.signature import (
    BadSignature,
    SignedParts,
    UnverifiedSignature,
    parse_authorization,
    parse_timestamp,
    payload_hash,
    verify,
)

# API gateway of the vendors, "date skew": 15 minutes either way. Signatures of that age pass again and again:
# real clients send two equal requests in one second, whose signatures are equal too.
MAX_SKEW = timedelta(minutes=15)

# Several times what any client sends. To put a long one into its canonical form takes as long as issuing does, many
# times over, and is done before anybody has proved anything.
MAX_ADDRESS = 4096

# As long as a real SK, and nobody's: so that an unknown access key costs what a known one does.
_NOBODYS_SECRET = bytes(40)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An access key in the clear, for as long as a check needs it.

    Attributes:
        secret: the SK.
        security_token_hash: SHA-256 of the security token that a temporary key must come with, or None.
        expires_at: the end of a temporary key, or None.
    """

    id: str
    user_id: str
    secret: bytes = field(repr=False)
    security_token_hash: bytes | None = field(default=None, repr=False)
    expires_at: datetime | None = None


class AccessKeyLookup(Protocol):
    """What the identity answers about access keys."""

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        """Find the key in the clear; None where there is none or it is disabled."""

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        """Find the caller whose key it is; the proof has been judged.

        Raises:
            Unauthenticated: the user is disabled or gone.
        """


@dataclass(frozen=True, slots=True)
class AccessKeyAuthenticator:
    """Verifies a signature over the request as it was received."""

    identity: AccessKeyLookup
    now: Callable[[], datetime]

    async def authenticate(self, authorization: str, request: UnverifiedRequest) -> Caller:
        """Tell whose access key signed the request.

        Raises:
            Unauthenticated: the signature is malformed, stale, wrong, or does not cover what it must.
        """
        headers = _by_name(request)
        try:
            unverified = parse_authorization(authorization)
            parts = _signed_parts(unverified, request, headers)
            self._check_time(unverified, parts)
            key = await self.identity.signing_key(unverified.credential.access_key_id)
            genuine = verify(unverified, parts, key.secret if key else _NOBODYS_SECRET)
        except BadSignature as e:
            raise Unauthenticated(str(e)) from e
        if key is None:
            raise Unauthenticated("the access key is unknown or disabled")
        if not genuine:
            raise Unauthenticated(
                f"the signature with access key {key.id} does not match the request", known=key.id
            )
        if key.expires_at is not None and self.now() >= key.expires_at:
            raise Unauthenticated(f"the temporary access key {key.id} has expired", known=key.id)
        _check_security_token(key, {token for token in headers.get(b"x-security-token", ()) if token})
        return await self.identity.caller_of_access_key(key, request.origin)

    def _check_time(self, unverified: UnverifiedSignature, parts: SignedParts) -> None:
        signed_at = parse_timestamp(parts.timestamp)
        if abs(self.now() - signed_at) > MAX_SKEW:
            raise BadSignature("X-Sdk-Date is more than 15 minutes away from the server's clock")
        credential = unverified.credential
        if credential.scheme != "flat" and credential.date != parts.timestamp[:8]:
            raise BadSignature("the date of the scope is not that of X-Sdk-Date")


def _by_name(request: UnverifiedRequest) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        values.setdefault(name, []).append(value.strip(b" \t"))
    return values


def _signed_parts(
    unverified: UnverifiedSignature, request: UnverifiedRequest, received: dict[bytes, list[bytes]]
) -> SignedParts:
    if len(request.raw_path) + len(request.raw_query) > MAX_ADDRESS:
        raise BadSignature("path and query are longer than those of any request that is signed")
    # All of it is taken from what was received, whatever the request says of itself.
    body_hash = payload_hash(request.body)
    claims = received.get(b"x-sdk-content-sha256", ())
    if claims and set(claims) != {body_hash.encode()}:
        # UNSIGNED-PAYLOAD among them: a signature that leaves the body open would be a bearer token.
        raise BadSignature("X-Sdk-Content-Sha256 is not the hash of the received body")
    signed: list[tuple[bytes, bytes]] = []
    for name in map(str.encode, unverified.signed_headers):
        values = received.get(name, ())
        if len(values) != 1:
            raise BadSignature(f"the signed header {name.decode()} is not in the request exactly once")
        signed.append((name, values[0]))
    return SignedParts(request.method, request.raw_path, request.raw_query, tuple(signed), body_hash)


def _check_security_token(key: SigningKey, presented: set[bytes]) -> None:
    # Both Go client families add it after signing, so it may be unsigned and only its value counts.
    if key.security_token_hash is None:
        if presented:
            raise Unauthenticated(
                f"the permanent access key {key.id} came with a security token", known=key.id
            )
        return
    if len(presented) != 1:
        raise Unauthenticated(
            f"the temporary access key {key.id} did not come with one security token", known=key.id
        )
    if not hmac.compare_digest(hashlib.sha256(presented.pop()).digest(), key.security_token_hash):
        raise Unauthenticated(
            f"the temporary access key {key.id} came with another's security token", known=key.id
        )
