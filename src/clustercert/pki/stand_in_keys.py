"""Public keys that stand in for keys of which only the type is known. Nobody has their private keys."""

import functools
import re

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from clustercert.model import PublicKey
from clustercert.pki.key_validation import MAX_RSA_BITS, MIN_RSA_BITS
from clustercert.pki.keys import CURVES, RSA_EXPONENT, new_key

_RSA = re.compile(r"rsa-(\d{4})", re.ASCII)


@functools.lru_cache(maxsize=64)
def stand_in_key(key_type: str) -> PublicKey:
    """Return a public key of this type, to decide on a request whose CSR is not known. Raises ValueError."""
    if found := _RSA.fullmatch(key_type):
        bits = int(found[1])
        if MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
            # The modulus is not a product of two primes, because finding primes would take seconds.
            return RSAPublicNumbers(RSA_EXPONENT, (1 << (bits - 1)) + 1).public_key()
    if key_type in (*CURVES, "ed25519"):
        return new_key(key_type).public_key()
    raise ValueError(f"{key_type}: unknown type of key")
