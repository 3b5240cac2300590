"""The authorization code grant with PKCE, and checks of an ID token's claims: what the client and the service share.

Needs only the standard library, and sends no requests.

Sources: RFC 6749 section 4.1; RFC 7636; RFC 9207; OpenID Connect Core 1.0, section 3.1.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlencode

# The number of random bytes in a secret.
_ENTROPY_BYTES = 32
_LAST_YEAR_SECONDS = 2**37


def base64url(content: bytes) -> str:
    """Encode without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def new_secret() -> str:
    """Return a random string of 43 characters, which is long enough for a code verifier."""
    return secrets.token_urlsafe(_ENTROPY_BYTES)


def challenge(verifier: str) -> Mapping[str, str]:
    """Return the PKCE parameters for a verifier. The parameters contain only the verifier's hash."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return {"code_challenge": base64url(digest), "code_challenge_method": "S256"}


def supports_pkce(document: Mapping[str, object]) -> bool:
    """Whether an issuer's discovery document allows PKCE with S256. Some issuers do not list their methods."""
    methods = document.get("code_challenge_methods_supported")
    return methods is None or (isinstance(methods, list) and "S256" in methods)


def announces_sender(document: Mapping[str, object]) -> bool:
    """Whether an issuer's authorization responses have the parameter `iss`. Source: RFC 9207, section 3."""
    return document.get("authorization_response_iss_parameter_supported") is True


def authorization_url(
    endpoint: str,
    *,
    client_id: str,
    scopes: Iterable[str],
    redirect_uri: str,
    state: str,
    nonce: str,
    verifier: str,
    parameters: Mapping[str, str],
) -> str:
    """Return the address at the issuer where a login begins.

    Args:
        endpoint: the issuer's authorization endpoint.
        state: binds the response to the request.
        nonce: binds the ID token to the request.
        verifier: proves to the token endpoint that this client made the request.
        parameters: further parameters. These parameters do not replace the standard parameters.
    """
    query = {
        **parameters,
        "client_id": client_id,
        "scope": " ".join(scopes),
        "response_type": "code",
        "redirect_uri": redirect_uri,
        "state": state,
        "nonce": nonce,
        **challenge(verifier),
    }
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"


def is_sent_by(issuer: str, answer: Mapping[str, str], *, sends_issuer: bool) -> bool:
    """Whether an authorization response is from this issuer. Source: RFC 9207, section 2.4.

    Args:
        sends_issuer: whether the issuer's responses have the parameter `iss`.
    """
    sender = answer.get("iss")
    return sender == issuer or (sender is None and not sends_issuer)


class WrongClaim(NamedTuple):
    """A claim that fails a check.

    Attributes:
        value: the claim's value; None if the value would not help to understand the error.
        expected: what the check accepts, for messages.
    """

    name: str
    value: object
    expected: str


def wrong_issuer(claims: Mapping[str, object], issuer: str) -> WrongClaim | None:
    """Return `iss` if another issuer made the token."""
    value = claims.get("iss")
    return None if value == issuer else WrongClaim("iss", value, issuer)


def wrong_audience(claims: Mapping[str, object], client_id: str, trusted: Iterable[str]) -> WrongClaim | None:
    """Return `aud` if the token does not name the client, or names an audience that is not trusted."""
    value, others = claims.get("aud"), set(trusted) - {client_id}
    audiences = value if isinstance(value, list) else [value]
    if client_id in audiences and all(
        isinstance(each, str) and (each == client_id or each in others) for each in audiences
    ):
        return None
    also = f", and besides at most {', '.join(sorted(others))}" if others else " alone"
    return WrongClaim("aud", value, f"{client_id}{also}")


def wrong_authorized_party(claims: Mapping[str, object], client_id: str) -> WrongClaim | None:
    """Return `azp` if the token was issued to another client. The claim may be missing."""
    value = claims.get("azp", client_id)
    return None if value == client_id else WrongClaim("azp", value, client_id)


def wrong_events(claims: Mapping[str, object]) -> WrongClaim | None:
    """Return `events` if the token is a security event token, such as a logout token.

    Some issuers give such tokens the type of ID tokens. Source: RFC 8417 section 2.2.
    """
    if "events" not in claims:
        return None
    return WrongClaim("events", claims["events"], "no claim events, which only security event tokens have")


def wrong_nonce(claims: Mapping[str, object], nonce: str) -> WrongClaim | None:
    """Return `nonce` if the token does not answer the request with this nonce."""
    value = claims.get("nonce")
    if isinstance(value, str) and hmac.compare_digest(value.encode(errors="replace"), nonce.encode()):
        return None
    return WrongClaim("nonce", None, "the nonce of this login")


def claimed_time(value: object) -> datetime:
    """Return the time in a claim such as `exp`. Raises ValueError if the value is not a time."""
    # `datetime` does not support years after 9999.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LAST_YEAR_SECONDS:
        raise ValueError("not a number of seconds since 1970")
    return datetime.fromtimestamp(float(value), UTC)
