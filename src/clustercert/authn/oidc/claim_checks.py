"""Checks of the claims that every token needs, and of those that the settings demand."""

import functools
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from clustercert.authn.oidc.issuers import Issuer
from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.authn.oidc.tokens import UnverifiedToken

Result = tuple[str, TokenRefused | None]
"""The name of a check, and the refusal if it failed."""


def claim_results(issuer: Issuer, token: UnverifiedToken, now: datetime) -> Iterator[Result]:
    """Check all claims."""
    yield from audience_and_time_results(issuer, token, now)
    for check in issuer.checks:
        yield _result(check.claim, functools.partial(check.require, token.claims))


def audience_and_time_results(issuer: Issuer, token: UnverifiedToken, now: datetime) -> Iterator[Result]:
    """Check the claims that every token needs."""
    claims = token.claims
    checks: list[tuple[str, Callable[[], None]]] = [
        ("aud", lambda: _check_audience(issuer, claims.get("aud"))),
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


def _check_audience(issuer: Issuer, audience: object) -> None:
    values = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(value, str) for value in values) or issuer.audiences.isdisjoint(values):
        raise TokenRefused("aud", audience, " or ".join(sorted(issuer.audiences)))


def _check_expiry(value: object, now: datetime, leeway: timedelta) -> None:
    if _seconds("exp", value) <= (now - leeway).timestamp():
        raise TokenRefused("exp", value, f"a time after {int(now.timestamp())}, now")


def _check_start(value: object, now: datetime, leeway: timedelta) -> None:
    if value is not None and _seconds("nbf", value) > (now + leeway).timestamp():
        raise TokenRefused("nbf", value, f"a time before {int(now.timestamp())}, now")


def _check_age(value: object, now: datetime, issuer: Issuer) -> None:
    issued, limits = _seconds("iat", value), (now - issuer.max_age - issuer.leeway, now + issuer.leeway)
    if not limits[0].timestamp() <= issued <= limits[1].timestamp():
        hours = issuer.max_age.total_seconds() / 3600
        raise TokenRefused("iat", value, f"a time in the {hours:g} hours before {int(now.timestamp())}, now")


def _seconds(name: str, value: object) -> float:
    # A year beyond 9999 can't be converted to a time.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**37:
        raise TokenRefused(name, value, "a number of seconds since 1970")
    return float(value)


def login_time(issuer: Issuer, token: UnverifiedToken) -> tuple[datetime, bool]:
    """Return the earliest time, by this service's clock, at which the user of a verified token can have logged in.

    Also returns whether that is the claim `auth_time`, which stays the same when the token is renewed. Without it, or
    if it is not a number, the time is that of `iat`. Source: OpenID Connect Core 1.0, sections 2 and 12.2.
    """
    issued = _seconds("iat", token.claims.get("iat"))
    try:
        logged_in = _seconds("auth_time", token.claims.get("auth_time"))
    except TokenRefused:
        return datetime.fromtimestamp(issued, UTC) - issuer.leeway, False
    return datetime.fromtimestamp(min(logged_in, issued), UTC) - issuer.leeway, True


def valid_until(issuer: Issuer, token: UnverifiedToken) -> datetime:
    """Return when a verified token stops being accepted."""
    expiry = _seconds("exp", token.claims.get("exp"))
    oldest = _seconds("iat", token.claims.get("iat")) + issuer.max_age.total_seconds()
    return datetime.fromtimestamp(min(expiry, oldest), UTC) + issuer.leeway
