"""Tokens from an issuer, and the checks that the client makes of them. The service verifies signatures.

A token that comes from the token endpoint over TLS needs no check of its signature here: OpenID Connect Core 1.0,
section 3.1.3.7, number 6.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from clustercert.client.connection import json_object, one_line
from clustercert.client.oidc.errors import IssuerError
from clustercert.client.oidc.issuer import LoginIssuer
from clustercert.model import JsonObject

# The longest token that the service accepts.
MAX_TOKEN = 16 * 1024
# Replace a token this long before it expires, or a tenth of its lifetime.
_EARLY = timedelta(seconds=30)
# Smaller differences between the clocks are accepted.
_SKEW = timedelta(minutes=5)
_PARTS = 3
_USER_CLAIMS = ("preferred_username", "email", "name", "repository", "project_path", "sub")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a login.

    Attributes:
        bearer: the token that the client sends to the service with each request.
        refresh: gets new tokens from the issuer; `None` if it sent none.
        expires_at: when to replace `bearer`, a little before it expires.
        subject: the issuer's id of the user.
        user: a name of the user, for messages.
    """

    bearer: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_at: datetime
    subject: str
    user: str


def claims_of(token: str) -> JsonObject:
    """Return the claims of a JWT, without verifying it. Raises ValueError if it is not a JWT."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != _PARTS or not token.isascii():
        raise ValueError("not a JWT")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return json_object(json.loads(payload))
    except (ValueError, TypeError, RecursionError):
        raise ValueError("not a JWT") from None


def tokens_of(token: str, refresh: str | None = None) -> Tokens:
    """Return the tokens, with expiry and user from the JWT. Raises ValueError if it is not a JWT that expires."""
    claims = claims_of(token)
    try:
        expires, issued = _time(claims["exp"]), _time(claims.get("iat", claims["exp"]))
        subject = str(claims["sub"])
    except (LookupError, TypeError, OverflowError, OSError):
        raise ValueError("the JWT has no valid claims exp and sub") from None
    names = [value for value in map(claims.get, _USER_CLAIMS) if isinstance(value, str) and value]
    early = min(_EARLY, max(expires - issued, timedelta(0)) / 10)
    return Tokens(token, refresh, expires - early, subject, one_line(names[0]) if names else subject)


def tokens_from_response(
    issuer: LoginIssuer, body: JsonObject, *, nonce: str | None = None, subject: str | None = None
) -> Tokens:
    """Return the tokens in a successful token response. Raises IssuerError.

    Args:
        nonce: of the authorization request.
        subject: the user of the login that is refreshed. A token for another user is refused.
    """
    id_token, kind = body.get("id_token"), issuer.client.bearer
    if id_token is not None or kind == "id":
        check_id_token(issuer, _id_claims(issuer, id_token), nonce)
    bearer = id_token if kind == "id" else body.get("access_token")
    try:
        tokens = tokens_of(bearer if isinstance(bearer, str) else "", _refresh_token(body))
    except ValueError:
        raise IssuerError(
            f"The issuer {issuer.url} sent no {kind} token that the service can read. Ask an operator of the service to"
            " check login_token and login_parameters of this issuer."
        ) from None
    _check_resource(issuer, tokens)
    _check_clock(issuer, tokens)
    if subject is not None and not secrets.compare_digest(subject.encode(), tokens.subject.encode()):
        raise IssuerError(f"The issuer {issuer.url} sent a token for another user. Log in again.")
    return tokens


def check_id_token(issuer: LoginIssuer, claims: Mapping[str, object], nonce: str | None) -> None:
    """Check issuer, audience and nonce. Raises IssuerError. Source: OpenID Connect Core 1.0, section 3.1.3.7."""
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    wrong = next(
        (
            name
            for name, right in (
                ("iss", claims.get("iss") == issuer.url),
                ("aud", issuer.client.client_id in audiences),
                ("azp", claims.get("azp", issuer.client.client_id) == issuer.client.client_id),
                ("nonce", nonce is None or claims.get("nonce") == nonce),
            )
            if not right
        ),
        None,
    )
    if wrong is not None:
        raise IssuerError(
            f"The ID token of {issuer.url} is not for this login: the claim {wrong} is wrong. Log in again. If this "
            "repeats, ask the operator of the service."
        )


def _id_claims(issuer: LoginIssuer, id_token: object) -> JsonObject:
    try:
        return claims_of(id_token if isinstance(id_token, str) else "")
    except ValueError:
        raise IssuerError(
            f"The issuer {issuer.url} sent no ID token. Ask an operator of the service to check scopes and login_token "
            "of this issuer."
        ) from None


def _check_resource(issuer: LoginIssuer, tokens: Tokens) -> None:
    resource, audience = issuer.client.resource, claims_of(tokens.bearer).get("aud")
    if resource is not None and resource not in (audience if isinstance(audience, list) else [audience]):
        raise IssuerError(
            f"The issuer {issuer.url} sent a token that is not for {resource}, so it is not used. Ask an operator of "
            "the service whether the issuer knows this resource."
        )


def _check_clock(issuer: LoginIssuer, tokens: Tokens) -> None:
    claims, now = claims_of(tokens.bearer), datetime.now(UTC)
    issued = claims.get("iat")
    began = _time(issued) if isinstance(issued, int | float) else now
    if began - now > _SKEW or tokens.expires_at <= now:
        minutes = round(abs((began - now).total_seconds()) / 60)
        raise IssuerError(
            f"The clocks of this machine and of {issuer.url} differ by about {minutes} minutes. Set the clock of this "
            "machine."
        )


def _refresh_token(body: JsonObject) -> str | None:
    value = body.get("refresh_token")
    is_valid = (
        isinstance(value, str) and 1 <= len(value) <= MAX_TOKEN and value.isascii() and value.isprintable()
    )
    return str(value) if is_valid else None


def _time(seconds: object) -> datetime:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError("The time is not a number.")
    return datetime.fromtimestamp(seconds, UTC)
