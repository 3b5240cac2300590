"""Logout tokens, with which an issuer reports that a person has logged out at the issuer.

Source: OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6.
"""

from dataclasses import dataclass
from datetime import datetime

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.tokens import client_results, issued_at, parse_token, session_ids
from clustercert.authn.oidc.verification import Verifier, require_passed

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
# Some issuers write no type, or `JWT`. `events` tells logout tokens from other tokens.
_TYPES = frozenset({"logout+jwt", "application/logout+jwt", "jwt"})


@dataclass(frozen=True, slots=True)
class IssuerLogout:
    """Which sessions of an issuer's users have ended.

    Attributes:
        sid: the issuer's id of the session; None means all sessions of the user.
        sub: the issuer's id of the user; None if the token has only `sid`.
        at: when the token was issued.
    """

    issuer: OidcIssuer
    sid: str | None
    sub: str | None
    at: datetime


async def verified_logout(verifier: Verifier, text: str) -> IssuerLogout:
    """Verify a logout token. Raises TokenRefused or Unavailable."""
    token = parse_token(text, _TYPES)
    issuer = verifier.issuers.get(token.issuer)
    if issuer is None or issuer.console is None:
        raise TokenRefused("iss", token.issuer, "exactly the URL of an issuer with a client for the console")
    token = await verifier.verify_signature(issuer, token)
    require_passed(client_results(issuer, issuer.console, token, verifier.now()))
    claims = token.claims
    if not isinstance(claims.get("jti"), str) or not claims["jti"]:
        raise TokenRefused("jti", claims.get("jti"), "the token's id, text")
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        raise TokenRefused("events", events, f"an object with the member {LOGOUT_EVENT}")
    if "nonce" in claims:
        raise TokenRefused("nonce", "a nonce", "no nonce, which only ID tokens have")
    sid, sub = session_ids(claims)
    if sid is None and sub is None:
        raise TokenRefused("sid", None, "the claim sid or sub")
    return IssuerLogout(issuer, sid, sub, issued_at(token))
