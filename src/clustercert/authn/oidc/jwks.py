"""Parses JSON Web Key Sets. Only public keys that can verify a signature are kept."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from clustercert.model import JsonObject

MAX_KEYS = 100
# Shorter RSA keys are weak, and longer ones take long to verify with.
_RSA_BITS = range(2048, 8192 + 1)
# The longest base64 that is decoded, longer than the longest modulus needs.
_MAX_MODULUS_TEXT = 2048
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
# RFC 9864 gives the algorithm of Ed25519 keys the name of the curve. Most issuers still use the name of RFC 8037.
_BY_CURVE = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"Ed25519", "EdDSA"}),
}
# Members of public keys. Other members, such as the private exponent, are dropped before a key is imported.
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


class UnusableKeySet(Exception):
    """A response is not a JSON Web Key Set. The message says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key of an issuer.

    Attributes:
        id: `kid`; empty without one.
        algorithms: those that the key may be used with.
    """

    id: str
    algorithms: frozenset[str]
    key: RSAKey | ECKey | OKPKey = field(repr=False)


def parse_key_set(content: bytes) -> tuple[VerificationKey, ...]:
    """Return the keys that can verify signatures. Raises UnusableKeySet.

    Skips others, such as keys for encryption. A set without any is valid, as after the last key was withdrawn.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise UnusableKeySet("the key set is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UnusableKeySet('the key set has no list "keys"')
    if len(entries) > MAX_KEYS:
        raise UnusableKeySet(f"the key set has more than {MAX_KEYS} keys")
    return tuple(_usable(entries))


def _usable(entries: list[object]) -> Iterator[VerificationKey]:
    for entry in entries:
        if isinstance(entry, dict) and (key := _key(entry)) is not None:
            yield key


def _key(entry: JsonObject) -> VerificationKey | None:
    kind, key_id, operations = entry.get("kty"), entry.get("kid", ""), entry.get("key_ops", ["verify"])
    members = _MEMBERS.get(kind) if isinstance(kind, str) else None
    if members is None or not isinstance(key_id, str) or entry.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    public: dict[str, str | list[str]] = {name: str(entry.get(name)) for name in members}
    public["kty"] = str(kind)
    try:
        key = _import(public)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    algorithms = _RSA if isinstance(key, RSAKey) else _BY_CURVE[str(public["crv"])]
    declared = entry.get("alg")
    if declared is not None:
        algorithms &= {declared} if isinstance(declared, str) else set()
    return VerificationKey(key_id, algorithms, key) if algorithms else None


def _import(public: dict[str, str | list[str]]) -> RSAKey | ECKey | OKPKey:
    """Import a public key. Raises ValueError or JoseError."""
    if public["kty"] == "RSA":
        # Leading zeros make a short modulus look long, so measure the number itself.
        if _modulus(str(public["n"])).bit_length() not in _RSA_BITS:
            raise ValueError("RSA key size")
        return RSAKey.import_key(public)
    if public["crv"] not in _BY_CURVE:
        raise ValueError("curve")
    return ECKey.import_key(public) if public["kty"] == "EC" else OKPKey.import_key(public)


def _modulus(text: str) -> int:
    """Decode a modulus strictly, so that the library can't read it as another number. Raises ValueError."""
    if len(text) > _MAX_MODULUS_TEXT:
        raise ValueError("RSA key size")
    return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
