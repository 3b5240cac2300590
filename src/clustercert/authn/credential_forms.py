"""Finds the identity system that issued a credential, by the credential's form.

Only this system decides about the credential. See ADR 26.
"""

import base64
import binascii
import re

# 32 random bytes in base64url without padding.
_BUILT_IN_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_BUILT_IN_ACCESS_KEY = re.compile(r"[A-Z0-9]{20}")
# The payload of a JSON Web Token is not parsed here, only searched for a claim that all of Keystone's have.
# Source: keystone/token/providers/jws/core.py.
_KEYSTONE_CLAIM = b'"openstack_audit_ids"'
# Longer payloads are not Keystone's: its payloads have about 500 bytes.
_MAX_PAYLOAD = 8192


def is_built_in_token(text: str) -> bool:
    """Whether a token has the form of those that the built-in identity service issues."""
    return _BUILT_IN_TOKEN.fullmatch(text) is not None


def is_keystone_token(text: str) -> bool:
    """Whether a token can be one of Keystone's: opaque (Fernet, PKI), or a JWT with Keystone's claims.

    Keystone's opaque tokens have at least 180 characters.
    """
    if "." not in text:
        return not is_built_in_token(text)
    parts = text.split(".", 3)
    if len(parts) != 3 or len(parts[1]) > _MAX_PAYLOAD:  # noqa: PLR2004 - RFC 7515, 7.1
        return False
    try:
        return _KEYSTONE_CLAIM in base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError):
        return False


def is_built_in_access_key(access_key_id: str) -> bool:
    """Whether an access key has the form of those that the built-in identity service issues.

    Keystone's have 32 lower-case hex digits.
    """
    return _BUILT_IN_ACCESS_KEY.fullmatch(access_key_id) is not None
