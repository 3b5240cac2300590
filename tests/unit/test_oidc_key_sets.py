"""Attacks on key sets: keys that can't verify safely are left out, and malformed sets are refused."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey

from clustercert.authn.oidc.keys import UnusableKeySet, parse_key_set
from support.oidc import new_key

KEY, RSA = new_key("first"), new_key("rsa", "RSA")


def padded_rsa(bits: int, length: int) -> dict[str, object]:
    """A public RSA key whose modulus has leading zeros up to this length in bytes."""
    modulus = rsa.generate_private_key(65537, bits).public_key().public_numbers().n.to_bytes(length, "big")
    return {
        "kty": "RSA",
        "kid": "padded",
        "e": "AQAB",
        "n": base64.urlsafe_b64encode(modulus).rstrip(b"=").decode(),
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "weak", "e": "AQAB", "n": "x" * 170},
        padded_rsa(1024, 128),
        padded_rsa(1024, 256),
        padded_rsa(1024, 512),
        {"kty": "RSA", "kid": "long", "e": "AQAB", "n": "x" * 1368},
        # The time to verify a signature grows with the exponent.
        RSA.as_dict(private=False) | {"kid": "slow", "e": "x" * 340},
        RSA.as_dict(private=False) | {"kid": "slow", "e": "gAAAAQ"},
        ECKey.generate_key("secp256k1", {"kid": "other-curve"}).as_dict(private=False),
        KEY.as_dict(private=False) | {"use": "enc"},
        KEY.as_dict(private=False) | {"key_ops": ["sign"]},
        KEY.as_dict(private=False) | {"alg": "HS256"},
        KEY.as_dict(private=False) | {"x": "AA"},
        KEY.as_dict(private=False) | {"kid": 7},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        "key",
        None,
    ],
)
def test_a_key_that_can_verify_nothing_safely_is_left_out(entry: object) -> None:
    assert parse_key_set(json.dumps({"keys": [entry]}).encode()) == ()
    keys = parse_key_set(json.dumps({"keys": [entry, RSA.as_dict(private=False)]}).encode())
    assert [key.id for key in keys] == ["rsa"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"keys":{}}', b"[" * 100_000])
def test_what_is_no_key_set_is_refused(content: bytes) -> None:
    with pytest.raises(UnusableKeySet):
        parse_key_set(content)


def test_a_key_set_of_too_many_keys_is_refused() -> None:
    with pytest.raises(UnusableKeySet):
        parse_key_set(json.dumps({"keys": [KEY.as_dict(private=False)] * 101}).encode())


def test_a_private_key_in_a_key_set_is_kept_as_a_public_one() -> None:
    (key,) = parse_key_set(json.dumps({"keys": [KEY.as_dict(private=True)]}).encode())
    assert not key.key.is_private
