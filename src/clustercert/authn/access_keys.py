"""Authenticates requests that are signed with access keys."""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from cachetools import TTLCache

from clustercert.authn.credentials import UnverifiedCredential, is_built_in_access_key
from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import Unauthenticated, UnsignedBody
from clustercert.pki.request_signature import (
    ALGORITHMS,
    BadSignature,
    SignedParts,
    UnverifiedSignature,
    parse_authorization,
    parse_timestamp,
    payload_hash,
    verify,
)

# After five wrong signatures in a row, an access key is locked for five minutes.
# Source: Open Telekom Cloud, API Gateway, "Authentication".
WRONG_SIGNATURES = 5
LOCK_SECONDS = 300
# A worker counts wrong signatures for at most this many pairs of access key and source, which take a few megabytes of
# memory. The least recently used pairs are dropped first.
MAX_PAIRS = 20_000


class SignatureLock:
    """Counts consecutive wrong signatures for each pair of access key and source. Each worker counts separately.

    A lock applies to one source address only, so an attacker with a different address can't lock out the key's owner.
    Unknown access keys are locked too, so a lock does not reveal whether the key exists.
    """

    def __init__(self, max_pairs: int = MAX_PAIRS, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrong: TTLCache[tuple[str, str], int] = TTLCache(max_pairs, LOCK_SECONDS, clock)

    def is_locked(self, access_key_id: str, origin: Origin) -> bool:
        # Skip the lookup if `_wrong` is empty, as in most workers.
        return bool(self._wrong) and self._wrong.get((access_key_id, origin.network), 0) >= WRONG_SIGNATURES

    def wrong(self, access_key_id: str, origin: Origin) -> None:
        """Count a wrong signature. The fifth wrong signature in a row locks the access key for this source."""
        pair = access_key_id, origin.network
        self._wrong[pair] = self._wrong.get(pair, 0) + 1

    def right(self, access_key_id: str, origin: Origin) -> None:
        """Forget earlier wrong signatures after a correct signature."""
        if self._wrong:
            self._wrong.pop((access_key_id, origin.network), None)


# The vendors' API gateways allow a clock skew of 15 minutes in both directions. During this time, a signed request can
# be replayed. Replays can't be rejected: real clients send identical requests, with identical signatures, in a second.
MAX_SKEW = timedelta(minutes=15)

# The maximum length of path and query together. Real clients send much shorter paths and queries. Path and query are
# canonicalized before authentication. Canonicalizing longer paths and queries would take longer than issuing a
# certificate.
MAX_ADDRESS = 4096

# Replaces the secret if the access key is unknown. The replacement has the length of a real secret key (SK), so that
# response times don't reveal which access keys exist.
_DUMMY_SECRET = bytes(40)

_SCHEMES = frozenset(ALGORITHMS.values())

_CONTENT_HASH = b"x-sdk-content-sha256"
# The value of X-Sdk-Content-Sha256 in place of a hash, if the signature does not cover the body. Huawei Cloud's PHP SDK
# sends this value with every JSON request, and its Python SDK sends this value with bodies other than JSON.
_UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An access key with its decrypted secret.

    Attributes:
        secret: the secret key (SK).
        security_token_hash: SHA-256 of the security token that a temporary key requires, or `None`.
        expires_at: when a temporary key expires, or `None`.
    """

    id: str
    user_id: str
    secret: bytes = field(repr=False)
    security_token_hash: bytes | None = field(default=None, repr=False)
    expires_at: datetime | None = None


class AccessKeyLookup(Protocol):
    """Looks up access keys. Implemented by `identity`."""

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        """Return the access key if it is cached. Does no I/O."""

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        """Return the key, or `None` if it is missing or disabled."""

    async def look_up_unknown(self, access_key_id: str) -> None:
        """Do the same work as for an unknown key, so that rejecting a wrong signature takes the same time."""

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        """Return the caller for a verified key. Raises Unauthenticated if the user is disabled or deleted."""


@dataclass(frozen=True, slots=True)
class AccessKeyAuthenticator:
    """Verifies request signatures."""

    identity: AccessKeyLookup
    now: Callable[[], datetime]
    lock: SignatureLock = field(default_factory=SignatureLock)

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.scheme in _SCHEMES

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """See `Authenticator`. Rejects signatures that are malformed, too old or wrong, or that omit required parts."""
        headers = _by_name(request)
        try:
            unverified = parse_authorization(credential.text)
            key_id = unverified.credential.access_key_id
            if self.lock.is_locked(key_id, request.origin):
                raise Unauthenticated("the access key is locked for this address after wrong signatures")
            parts = _signed_parts(unverified, request, headers)
            self._check_time(unverified, parts)
            if parts.payload_hash == _UNSIGNED_PAYLOAD and not _is_without_body(request, headers):
                raise UnsignedBody
            cached = self.identity.cached_signing_key(key_id)
            key = cached or await self.identity.signing_key(key_id)
            genuine = verify(unverified, parts, key.secret if key else _DUMMY_SECRET)
            if cached is not None and not genuine:
                # Only known keys are cached. Without this lookup, a fast response 401 would reveal that the key exists.
                await self.identity.look_up_unknown(key_id)
        except BadSignature as e:
            raise Unauthenticated(str(e)) from e
        if key is None:
            self.lock.wrong(key_id, request.origin)
            raise Unauthenticated("the access key is unknown or disabled", unknown=key_id)
        if not genuine:
            self.lock.wrong(key_id, request.origin)
            raise Unauthenticated(
                f"the signature with access key {key.id} does not match the request", known=key.id
            )
        self.lock.right(key_id, request.origin)
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
            raise BadSignature("the scope's date differs from X-Sdk-Date")


def _by_name(request: UnverifiedRequest) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        values.setdefault(name, []).append(value.strip(b" \t"))
    return values


def _signed_parts(
    unverified: UnverifiedSignature, request: UnverifiedRequest, received: dict[bytes, list[bytes]]
) -> SignedParts:
    if len(request.raw_path) + len(request.raw_query) > MAX_ADDRESS:
        raise BadSignature("path and query are longer than allowed for signed requests")
    body_hash = payload_hash(request.body)
    claims = set(received.get(_CONTENT_HASH, ()))
    if claims == {_UNSIGNED_PAYLOAD.encode()} and _CONTENT_HASH.decode() in unverified.signed_headers:
        body_hash = _UNSIGNED_PAYLOAD
    elif claims and claims != {body_hash.encode()}:
        raise BadSignature("X-Sdk-Content-Sha256 is not the hash of the received body")
    signed: list[tuple[bytes, bytes]] = []
    for name in map(str.encode, unverified.signed_headers):
        values = received.get(name, ())
        if len(values) != 1:
            raise BadSignature(f"the signed header {name.decode()} must appear exactly once in the request")
        signed.append((name, values[0]))
    return SignedParts(request.method, request.raw_path, request.raw_query, tuple(signed), body_hash)


def _is_without_body(request: UnverifiedRequest, received: dict[bytes, list[bytes]]) -> bool:
    """Whether the signature covers the whole request even if it does not cover a body.

    Otherwise, an attacker who intercepted the signature of a request with a body could send the signature with a
    different body.
    """
    announced = b"content-length" in received or b"transfer-encoding" in received
    return request.method in {"GET", "HEAD"} and not request.body and not announced


def _check_security_token(key: SigningKey, presented: set[bytes]) -> None:
    # The vendors' Go SDKs add X-Security-Token after signing, so the header may be unsigned: check only its value.
    if key.security_token_hash is None:
        if presented:
            raise Unauthenticated(
                f"the permanent access key {key.id} came with a security token", known=key.id
            )
        return
    if len(presented) != 1:
        raise Unauthenticated(
            f"the temporary access key {key.id} came without a security token, or with several", known=key.id
        )
    if not hmac.compare_digest(hashlib.sha256(presented.pop()).digest(), key.security_token_hash):
        raise Unauthenticated(
            f"the temporary access key {key.id} was sent with the wrong security token", known=key.id
        )


@dataclass(frozen=True, slots=True)
class AccessKeysByForm:
    """Looks up a key in the built-in identity service or in Keystone, depending on the format of the key's id.

    See `AccessKeyLookup`.
    """

    built_in: AccessKeyLookup
    keystone: AccessKeyLookup

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        return self._system(access_key_id).cached_signing_key(access_key_id)

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        return await self._system(access_key_id).signing_key(access_key_id)

    async def look_up_unknown(self, access_key_id: str) -> None:
        await self._system(access_key_id).look_up_unknown(access_key_id)

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        return await self._system(key.id).caller_of_access_key(key, origin)

    def _system(self, access_key_id: str) -> AccessKeyLookup:
        return self.built_in if is_built_in_access_key(access_key_id) else self.keystone
