"""PKCE: proves that the client that redeems a code is the one that started the login. Source: RFC 7636."""

import base64
import hashlib
import secrets
from collections.abc import Mapping

_ENTROPY_BYTES = 32


def new_secret() -> str:
    """Return a random text of 43 characters, which is enough for a code verifier too."""
    return secrets.token_urlsafe(_ENTROPY_BYTES)


def challenge(verifier: str) -> Mapping[str, str]:
    """Return the parameters that commit to a verifier without showing it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    return {"code_challenge": digest.rstrip(b"=").decode(), "code_challenge_method": "S256"}
