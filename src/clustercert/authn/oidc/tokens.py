"""Parses tokens strictly, before their signatures are verified, and checks their claims."""

import base64
import binascii
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import ConsoleClient, OidcIssuer
from clustercert.model import JsonObject, rfc3339
from clustercert.model.oauth import WrongClaim, claimed_time, wrong_audience, wrong_events

# The maximum size of a token. Real tokens are smaller: Entra's largest tokens, with 200 groups, have about 10 KiB.
MAX_TOKEN_BYTES = 16 * 1024
# Header parameters in which a token's sender can give a key or the address of a key.
# Source: RFC 7515 sections 4.1.2, 4.1.3 and 4.1.5.
_FOREIGN_KEYS = ("jku", "jwk", "x5u")
# Types of ID tokens. A token without `typ` has the type `jwt`.
ID_TYPES = frozenset({"jwt"})
# Types of access and ID tokens. Other types, such as `logout+jwt`, are signed with the same keys, but grant no access.
ACCESS_TYPES = ID_TYPES | {"at+jwt", "application/at+jwt"}
_MAX_KEY_ID = 512
# The maximum depth of nested objects and arrays. Real claims have at most four levels. Python's parser has a limit too,
# but this limit depends on the version and on the thread.
MAX_DEPTH = 32
# Matches strings, and outside strings all text without brackets. The closing quote of a string may be missing.
_NO_BRACKETS = re.compile(r'(?:"(?:[^"\\]|\\(?:.|\Z))*+(?:"|\Z)|[^"\[\]{}])++', re.DOTALL)


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A parsed token, whose content must not be trusted before the signature is verified.

    Attributes:
        text: the token as sent.
        key_id: the header's `kid`, or None if the header has no `kid`.
        issuer: the claim `iss`.
    """

    text: str = field(repr=False)
    algorithm: str
    key_id: str | None
    issuer: str
    claims: JsonObject = field(repr=False)


def is_jwt(text: str) -> bool:
    """Whether a bearer token has the form of a JWT. Tokens of the built-in identity service have no dot."""
    return "." in text


def parse_token(text: str, types: frozenset[str] = ACCESS_TYPES) -> UnverifiedToken:
    """Parse a token, and check its header. Raises TokenRefused.

    Args:
        types: accepted values of the header's `typ`, in lower case. A token without `typ` has the type `jwt`.
    """
    if len(text) > MAX_TOKEN_BYTES:
        raise TokenRefused("size", f"{len(text)} bytes", f"at most {MAX_TOKEN_BYTES} bytes")
    parts = text.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - RFC 7515 section 7.1: header, payload, signature
        raise TokenRefused("form", f"{len(parts)} parts", "three parts separated by dots (a signed JWT)")
    header, claims = _parse_object(parts[0], "header"), _parse_object(parts[1], "payload")
    _decode(parts[2], "signature")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str):
        raise TokenRefused("alg", algorithm, "the name of a signature algorithm")
    _check_header(header, types)
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise TokenRefused("iss", issuer, "the issuer's URL")
    return UnverifiedToken(text, algorithm, _key_id(header), issuer, claims)


def _check_header(header: JsonObject, types: frozenset[str]) -> None:
    for name in _FOREIGN_KEYS:
        if name in header:
            raise TokenRefused("header", name, "no key or key address in the token")
    if "crit" in header or "b64" in header:
        raise TokenRefused("header", "crit or b64", "no critical extensions")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in types:
        raise TokenRefused("typ", kind, " or ".join(sorted(types)))


def _key_id(header: JsonObject) -> str | None:
    key_id = header.get("kid")
    if key_id is None:
        return None
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= _MAX_KEY_ID:
        raise TokenRefused("kid", key_id, f"a string of at most {_MAX_KEY_ID} characters")
    return key_id


def _parse_object(part: str, name: str) -> JsonObject:
    expected = f"a JSON object without repeated names, nested at most {MAX_DEPTH} deep, in base64url"
    try:
        text = _decode(part, name).decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_object_of,
            parse_constant=_reject,
            parse_float=_finite,
        )
    except ValueError:
        raise TokenRefused(name, None, expected) from None
    if not isinstance(value, dict):
        raise TokenRefused(name, type(value).__name__, expected)
    return value


def _check_depth(text: str) -> None:
    """Raise ValueError if arrays and objects are nested too deeply, or if brackets don't match."""
    brackets = _NO_BRACKETS.sub("", text).replace("{", "[").replace("}", "]")
    for _ in range(MAX_DEPTH):
        # Remove the innermost pairs of brackets.
        brackets = brackets.replace("[]", "")
    if brackets:
        raise ValueError("nested too deeply")


def _decode(part: str, name: str) -> bytes:
    """Decode base64url without padding. Rejects all other encodings of the same bytes."""
    try:
        decoded = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded or base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise TokenRefused(name, None, "base64url without padding")
    return decoded


def _object_of(pairs: list[tuple[str, object]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated name")
    return members


def _reject(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


Result = tuple[str, TokenRefused | None]
"""The name of a check, and the error if the check failed."""


def claim_results(issuer: OidcIssuer, token: UnverifiedToken, now: datetime) -> Iterator[Result]:
    """Yield the result of each check of the claims of an access or ID token that a client sends to the API."""
    yield from audience_and_time_results(issuer, token, now)
    yield from _access_results(issuer, token)


def audience_and_time_results(issuer: OidcIssuer, token: UnverifiedToken, now: datetime) -> Iterator[Result]:
    """Yield the results of the checks that apply to tokens for the API from all issuers."""
    yield _result("aud", lambda: _check_audience(issuer, token.claims.get("aud")))
    yield from _time_results(issuer, token, now)


def id_token_results(
    issuer: OidcIssuer, client: ConsoleClient, token: UnverifiedToken, now: datetime
) -> Iterator[Result]:
    """Yield the results of the checks of an ID token for the console, except the claims `azp` and `nonce`."""
    yield from client_results(issuer, client, token, now)
    yield _result("auth_time", lambda: _check_login_time(token.claims.get("auth_time"), now, issuer.leeway))
    yield from _access_results(issuer, token)


def client_results(
    issuer: OidcIssuer, client: ConsoleClient, token: UnverifiedToken, now: datetime
) -> Iterator[Result]:
    """Yield the results of the checks that apply to ID tokens and logout tokens for the console.

    Unlike a token for the API, such a token may name only the client and the issuer's `trusted_audiences`. Sources:
    OpenID Connect Core 1.0, section 3.1.3.7; OpenID Connect Back-Channel Logout 1.0, section 2.6.
    """
    yield _claim_result("aud", wrong_audience(token.claims, client.client_id, issuer.trusted_audiences))
    yield from _time_results(issuer, token, now)


def _access_results(issuer: OidcIssuer, token: UnverifiedToken) -> Iterator[Result]:
    yield _claim_result("events", wrong_events(token.claims))
    for check in issuer.checks:
        yield _result(check.claim, functools.partial(check.require, token.claims))


def _time_results(issuer: OidcIssuer, token: UnverifiedToken, now: datetime) -> Iterator[Result]:
    claims = token.claims
    checks: list[tuple[str, Callable[[], None]]] = [
        ("exp", lambda: _check_expiry(claims.get("exp"), now, issuer.leeway)),
        ("nbf", lambda: _check_start(claims.get("nbf"), now, issuer.leeway)),
        ("iat", lambda: _check_age(claims.get("iat"), now, issuer)),
    ]
    yield from itertools.starmap(_result, checks)


def _result(name: str, check: Callable[[], None]) -> Result:
    try:
        check()
    except TokenRefused as refusal:
        return name, refusal
    return name, None


def _claim_result(name: str, wrong: WrongClaim | None) -> Result:
    return name, TokenRefused(*wrong) if wrong is not None else None


def require_right(wrong: WrongClaim | None) -> None:
    """Raise TokenRefused if a claim is wrong."""
    if wrong is not None:
        raise TokenRefused(*wrong)


def _check_audience(issuer: OidcIssuer, audience: object) -> None:
    values = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(value, str) for value in values) or set(issuer.audiences).isdisjoint(values):
        raise TokenRefused("aud", audience, " or ".join(sorted(issuer.audiences)))


def _check_login_time(value: object, now: datetime, leeway: timedelta) -> None:
    if value is not None and (logged_in := _time("auth_time", value)) > now + leeway:
        raise TokenRefused("auth_time", logged_in, f"a time before {rfc3339(now)} (now)")


def _check_expiry(value: object, now: datetime, leeway: timedelta) -> None:
    if (expiry := _time("exp", value)) <= now - leeway:
        raise TokenRefused("exp", expiry, f"a time after {rfc3339(now)} (now)")


def _check_start(value: object, now: datetime, leeway: timedelta) -> None:
    if value is not None and (start := _time("nbf", value)) > now + leeway:
        raise TokenRefused("nbf", start, f"a time before {rfc3339(now)} (now)")


def _check_age(value: object, now: datetime, issuer: OidcIssuer) -> None:
    issued = _time("iat", value)
    if not now - issuer.age_limit - issuer.leeway <= issued <= now + issuer.leeway:
        hours = issuer.age_limit.total_seconds() / 3600
        raise TokenRefused("iat", issued, f"a time in the {hours:g} hours before {rfc3339(now)} (now)")


def _time(name: str, value: object) -> datetime:
    try:
        return claimed_time(value)
    except ValueError:
        raise TokenRefused(name, value, "a number of seconds since 1970") from None


def issued_at(token: UnverifiedToken) -> datetime:
    """Return when the issuer made a verified token, by the issuer's clock."""
    return _time("iat", token.claims.get("iat"))


def login_time(issuer: OidcIssuer, token: UnverifiedToken) -> tuple[datetime, bool]:
    """Return the earliest time, by this service's clock, at which the user of a verified token can have logged in.

    Also returns whether the time comes from the claim `auth_time`, which stays the same when the token is renewed. If
    `auth_time` is missing or not a number, uses `iat` instead. Source: OpenID Connect Core 1.0, sections 2 and 12.2.
    """
    issued = issued_at(token)
    try:
        logged_in = _time("auth_time", token.claims.get("auth_time"))
    except TokenRefused:
        return issued - issuer.leeway, False
    return min(logged_in, issued) - issuer.leeway, True


def valid_until(issuer: OidcIssuer, token: UnverifiedToken) -> datetime:
    """Return the time until which a verified token is accepted."""
    expiry = _time("exp", token.claims.get("exp"))
    oldest = issued_at(token) + issuer.age_limit
    return min(expiry, oldest) + issuer.leeway


# Source: OpenID Connect Core 1.0, section 2, `sub`.
MAX_SUBJECT_BYTES = 255


def session_ids(claims: JsonObject) -> tuple[str | None, str | None]:
    """Return the issuer's ids of the session and of the user, `sid` and `sub`. Raises TokenRefused.

    A missing claim is None. Source: OpenID Connect Back-Channel Logout 1.0, sections 2.1 and 2.4.
    """
    return _id_text(claims, "sid"), _id_text(claims, "sub")


def _id_text(claims: JsonObject, claim: str) -> str | None:
    value = claims.get(claim)
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 1 <= len(value.encode()) <= MAX_SUBJECT_BYTES
    ):
        raise TokenRefused(claim, value, f"1 to {MAX_SUBJECT_BYTES} bytes of printable text")
    return value
