"""Tokens of service accounts, as `--service-account-issuer` and `--service-account-signing-key-file` set them up."""

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from support.apiserver import kinds
from support.apiserver.failures import Failure, JsonObject, invalid
from support.apiserver.identity import AUTHENTICATED, Identity
from support.apiserver.impersonation import account_groups
from support.apiserver.storage import Document, Storage

ISSUER = "https://kubernetes.default.svc.cluster.local"
DISCOVERY, JWKS = "/.well-known/openid-configuration", "/openid/v1/jwks"
# kube-apiserver refuses to issue shorter ones.
SHORTEST_SECONDS = 600
CACHE_SECONDS = 10
"""How long an accepted token is accepted without another look at its account.

Measured at 1.36: 9.8 to 10.0 s after the deletion of the account. Source: kubernetes,
pkg/kubeapiserver/options/authentication.go, TokenSuccessCacheTTL; failures are not kept.
"""

# The claims of tokens in Secrets. Source: kubernetes, pkg/serviceaccount/legacy.go.
LEGACY_ISSUER, _LEGACY = "kubernetes/serviceaccount", "kubernetes.io/serviceaccount"
SECRET_TYPE, SECRET_ACCOUNT = (
    "kubernetes.io/service-account-token",
    "kubernetes.io/service-account.name",
)


class InvalidToken(Exception):
    """A token that the API server does not accept, and why."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A token that the API server accepts: whose it is, and for which of the asked audiences."""

    who: Identity
    uid: str
    audiences: Sequence[str]

    @property
    def status(self) -> JsonObject:
        """The status of a TokenReview."""
        user = {"username": self.who.username, "uid": self.uid, "groups": [*self.who.groups]}
        extra = {name: [*values] for name, values in self.who.extra.items()}
        return {"authenticated": True, "user": user | {"extra": extra}, "audiences": [*self.audiences]}


class ServiceAccountTokens:
    """Issues tokens, publishes the keys, and validates tokens.

    Attributes:
        issuer: the claim `iss`.
        tells_ids: whether users have the ids of their tokens: the feature gate ServiceAccountTokenJTI, on since 1.30.
    """

    def __init__(self, storage: Storage, url: str, now: Callable[[], datetime]) -> None:
        self.issuer = ISSUER
        self.tells_ids = True
        self._storage = storage
        self._url = url
        self._now = now
        self._made: list[rsa.RSAPrivateKey] = []
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, tuple[str, ...]], tuple[datetime, Accepted]] = {}

    def rotate(self) -> None:
        """Sign with a new key. The old one stays public, as with two `--service-account-key-file`."""
        self._made.append(rsa.generate_private_key(65537, 2048))

    @property
    def _keys(self) -> list[rsa.RSAPrivateKey]:
        # The first one is made only when it is needed, since it takes a while. The server's thread and the test's may
        # both need it.
        with self._lock:
            if not self._made:
                self.rotate()
        return self._made

    def document(self, path: str) -> JsonObject | None:
        """What is published at a path, or None."""
        if path.rstrip("/") == DISCOVERY:
            return {
                "issuer": self.issuer,
                "jwks_uri": f"{self._url}{JWKS}",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        return {"keys": [_jwk(key) for key in self._keys]} if path.rstrip("/") == JWKS else None

    def requested(self, namespace: str, name: str, spec: Mapping[str, Any]) -> Document:
        """Answer a TokenRequest. Raises Failure (404, 422)."""
        seconds = int(spec.get("expirationSeconds") or 3600)
        if seconds < SHORTEST_SECONDS:
            raise invalid(
                "TokenRequest", "", "spec.expirationSeconds: may not specify a duration less than 10 minutes"
            )
        token = self.token(namespace, name, spec.get("audiences") or (self.issuer,), seconds)
        ends = datetime.fromtimestamp(int(self._now().timestamp()) + seconds, UTC)
        status = {"token": token, "expirationTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {
            "kind": "TokenRequest",
            "apiVersion": f"{kinds.AUTHENTICATION}/v1",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**spec},
            "status": status,
        }

    def token(self, namespace: str, name: str, audiences: Sequence[str], seconds: int = 3600) -> str:
        """A token of a stored service account. Raises Failure (404)."""
        account = self._storage.get(kinds.SERVICE_ACCOUNTS, namespace, name)
        return self.signed(namespace, name, account["metadata"]["uid"], audiences, seconds)

    def signed(
        self, namespace: str, name: str, uid: str, audiences: Sequence[str], seconds: int = 3600
    ) -> str:
        """A token, whether there is such a service account or not."""
        now = int(self._now().timestamp())
        claims = {
            "aud": [*audiences],
            "exp": now + seconds,
            "iat": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        return self._sign(claims)

    def secret_token(self, namespace: str, name: str) -> str:
        """The token without end that a Secret of a stored service account gets. Raises Failure (404)."""
        account = self._storage.get(kinds.SERVICE_ACCOUNTS, namespace, name)
        return self._sign(
            {
                "iss": LEGACY_ISSUER,
                f"{_LEGACY}/namespace": namespace,
                f"{_LEGACY}/service-account.name": name,
                f"{_LEGACY}/service-account.uid": account["metadata"]["uid"],
                "sub": f"system:serviceaccount:{namespace}:{name}",
            }
        )

    def _sign(self, claims: JsonObject) -> str:
        key = self._keys[-1]
        signed = f"{_encoded({'alg': 'RS256', 'kid': _key_id(key)})}.{_encoded(claims)}"
        return f"{signed}.{_base64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def accept(self, token: str, audiences: Sequence[str] = ()) -> Accepted:
        """Validate a token, by default for the API server itself. Raises InvalidToken."""
        wanted = tuple(audiences or (self.issuer,))
        kept, now = self._cache.get((token, wanted)), self._now()
        if kept is not None and now - kept[0] < timedelta(seconds=CACHE_SECONDS):
            return kept[1]
        accepted = self._looked_up(token, wanted)
        self._cache[token, wanted] = now, accepted
        return accepted

    def _looked_up(self, token: str, wanted: Sequence[str]) -> Accepted:
        claims = self._verified(token)
        if claims["iss"] == LEGACY_ISSUER:
            namespace, name = claims[f"{_LEGACY}/namespace"], claims[f"{_LEGACY}/service-account.name"]
            self._check_account(namespace, name, claims[f"{_LEGACY}/service-account.uid"])
            who = Identity(claims["sub"], (*account_groups(namespace), AUTHENTICATED), None)
            return Accepted(who, claims[f"{_LEGACY}/service-account.uid"], wanted)
        now = self._now().timestamp()
        if now >= claims["exp"]:
            raise InvalidToken("service account token has expired")
        if now < claims["nbf"]:
            raise InvalidToken("service account token is not valid yet")
        shared = [each for each in wanted if each in claims["aud"]]
        if not shared:
            raise InvalidToken(
                f"token audiences {claims['aud']} is invalid for the target audiences {[*wanted]}"
            )
        private = claims["kubernetes.io"]
        namespace, account = private["namespace"], private["serviceaccount"]
        self._check_account(namespace, account["name"], account["uid"])
        groups = (*account_groups(namespace), AUTHENTICATED)
        credential_id = f"JTI={claims['jti']}" if self.tells_ids else None
        return Accepted(Identity(claims["sub"], groups, credential_id), account["uid"], shared)

    def _check_account(self, namespace: str, name: str, claimed_uid: str) -> None:
        try:
            stored = self._storage.get(kinds.SERVICE_ACCOUNTS, namespace, name)
        except Failure as failure:
            raise InvalidToken(failure.message) from failure
        if (uid := stored["metadata"]["uid"]) != claimed_uid:
            raise InvalidToken(f"service account UID ({uid}) does not match claim ({claimed_uid})")

    def review(self, spec: Mapping[str, Any]) -> JsonObject:
        """The status of a TokenReview."""
        try:
            return self.accept(str(spec.get("token")), spec.get("audiences") or ()).status
        except InvalidToken as error:
            return {"user": {}, "error": f"[invalid bearer token, {error}]"}

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            signed, _, signature = token.rpartition(".")
            header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
            [key] = [key for key in self._keys if _key_id(key) == header["kid"]]
            key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, KeyError, TypeError, InvalidSignature) as error:
            raise InvalidToken("failed to verify signature") from error
        if claims["iss"] not in {self.issuer, LEGACY_ISSUER}:
            raise InvalidToken("not issued by this cluster")
        return dict(claims)


def _jwk(key: rsa.RSAPrivateKey) -> JsonObject:
    numbers = key.public_key().public_numbers()
    modulus, exponent = (_base64(n.to_bytes((n.bit_length() + 7) // 8)) for n in (numbers.n, numbers.e))
    return {"use": "sig", "kty": "RSA", "kid": _key_id(key), "alg": "RS256", "n": modulus, "e": exponent}


def _key_id(key: rsa.RSAPrivateKey) -> str:
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _base64(hashlib.sha256(der).digest())


def _encoded(document: JsonObject) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
