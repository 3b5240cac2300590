"""OAuth grants and tokens of an OIDC issuer, and the client's checks of tokens."""

import base64
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http import HTTPStatus
from typing import Self

from clustercert.client import clock_difference
from clustercert.client.connection import json_object, one_line
from clustercert.client.oidc.issuer import (
    Endpoints,
    IssuerConnections,
    IssuerError,
    IssuerResponse,
    IssuerUnreachable,
    LoginIssuer,
    LoginRefused,
    OAuthError,
    discover,
)
from clustercert.model import JsonObject, rfc3339
from clustercert.model.oauth import (
    authorization_url,
    challenge,
    claimed_time,
    is_sent_by,
    new_secret,
    wrong_audience,
    wrong_authorized_party,
    wrong_events,
    wrong_issuer,
    wrong_nonce,
)
from clustercert.model.requests import is_https_url

# The longest token that the service accepts.
MAX_TOKEN = 16 * 1024
# A token is replaced 30 seconds before its expiry, or a tenth of its lifetime before its expiry if this time is
# shorter.
_EARLY = timedelta(seconds=30)
# The largest accepted difference between the clocks of this machine and the issuer.
_SKEW = timedelta(minutes=5)
_PARTS = 3
_USER_CLAIMS = ("preferred_username", "email", "name", "repository", "project_path", "sub")
# Claims in the tokens of CI jobs that issuers' settings often require.
_SHOWN_CLAIMS = (
    "project_path",
    "project_id",
    "namespace_id",
    "ref_path",
    "repository",
    "repository_id",
    "repository_owner_id",
    "ref",
    "environment",
)
# Source: RFC 8628, section 3.4.
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# The default interval between two polls. Source: RFC 8628, section 3.2.
_INTERVAL_SECONDS = 5
_LONGEST_INTERVAL, _LONGEST_WAIT = 60, 1800
_MAX_TEXT = 4096
_MAX_USER_CODE = 64
# Error codes for a refresh token that is expired, revoked or already used, and for a user who has to log in again.
_NEEDS_LOGIN = frozenset({"invalid_grant", "interaction_required", "login_required", "consent_required"})
# Source: RFC 8628, section 3.5.
_SLOW_DOWN_SECONDS = 5


@dataclass(frozen=True, slots=True)
class OidcTokens:
    """The tokens of a login.

    Attributes:
        bearer: the token that the client sends to the service with each request.
        refresh: the refresh token; `None` if the issuer sent none.
        expires_at: when to replace `bearer`, shortly before the token expires.
        subject: the user's id at the issuer.
        user: the user's name, for messages.
    """

    bearer: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_at: datetime
    subject: str
    user: str


def claims_of(token: str) -> JsonObject:
    """Return the claims of a JWT, without verifying the JWT. Raises ValueError if the token is not a JWT."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != _PARTS or not token.isascii():
        raise ValueError("not a JWT")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return json_object(json.loads(payload))
    except (ValueError, TypeError, RecursionError):
        raise ValueError("not a JWT") from None


def describe_refused(token: str) -> str:
    """Return a sentence that helps to find out why a service refused a JWT.

    The sentence says that the JWT has expired by this machine's clock, or else names the audience, the expiry and the
    claims that issuers' settings often require: the service does not say which of them is wrong. Raises ValueError if
    `token` is not a JWT with the claim `exp`.
    """
    claims = claims_of(token)
    try:
        expires = claimed_time(claims["exp"])
    except (LookupError, ValueError):
        raise ValueError("the JWT has no valid claim exp") from None
    if expires <= datetime.now(UTC):
        return f"The token expired at {rfc3339(expires)}, so use a new token."
    audience = claims.get("aud")
    named = ", ".join(map(str, audience)) if isinstance(audience, list) else str(audience)
    held = [
        f"{name} {one_line(str(claims[name]))}"
        for name in _SHOWN_CLAIMS
        if isinstance(claims.get(name), str | int)
    ]
    also = f" The token has {', '.join(held)}." if held else ""
    return (
        f"The token is for the audience {one_line(named)}, and expires at {rfc3339(expires)}.{also} An "
        "operator of the service can see with `clustercert identity explain` whether `audiences` or "
        "`claims` of the issuer exclude the token."
    )


def tokens_of(token: str, refresh: str | None = None) -> OidcTokens:
    """Return the token and the refresh token, with the expiry and the user from the claims of `token`.

    Raises ValueError if `token` is not a JWT with the claims `exp` and `sub`.
    """
    claims = claims_of(token)
    try:
        expires, issued = claimed_time(claims["exp"]), claimed_time(claims.get("iat", claims["exp"]))
        subject = str(claims["sub"])
    except (LookupError, ValueError):
        raise ValueError("the JWT has no valid claims exp and sub") from None
    names = [value for value in map(claims.get, _USER_CLAIMS) if isinstance(value, str) and value]
    early = min(_EARLY, max(expires - issued, timedelta(0)) / 10)
    return OidcTokens(token, refresh, expires - early, subject, one_line(names[0]) if names else subject)


def tokens_from_response(
    issuer: LoginIssuer, body: JsonObject, *, nonce: str | None = None, subject: str | None = None
) -> OidcTokens:
    """Check and return the tokens in a successful token response. Raises IssuerError.

    Args:
        nonce: the nonce of the authorization request.
        subject: the id of the user whose login is refreshed. A token for another user is refused.
    """
    id_token, kind = body.get("id_token"), issuer.client.bearer
    if id_token is not None or kind == "id":
        check_id_token(issuer, _id_claims(issuer, id_token), nonce)
    bearer = id_token if kind == "id" else body.get("access_token")
    try:
        tokens = tokens_of(bearer if isinstance(bearer, str) else "", _refresh_token(body))
    except ValueError:
        raise IssuerError(
            f"The issuer {issuer.url} sent no {kind} token that the service can read. Ask an operator of the"
            " service to check login_token and login_parameters of this issuer."
        ) from None
    _check_resource(issuer, tokens)
    if subject is not None and not secrets.compare_digest(subject.encode(), tokens.subject.encode()):
        raise IssuerError(f"The issuer {issuer.url} sent a token for another user. Log in again.")
    return tokens


def check_id_token(issuer: LoginIssuer, claims: Mapping[str, object], nonce: str | None) -> None:
    """Check issuer, audience and nonce of an ID token, and that it is not a logout token. Raises IssuerError."""
    client = issuer.client
    trusted = (*client.trusted_audiences, *([client.resource] if client.resource is not None else []))
    wrong = (
        wrong_issuer(claims, issuer.url)
        or wrong_audience(claims, client.client_id, trusted)
        or wrong_authorized_party(claims, client.client_id)
        or wrong_events(claims)
        or (wrong_nonce(claims, nonce) if nonce is not None else None)
    )
    if wrong is not None:
        raise IssuerError(
            f"The ID token of {issuer.url} is not for this login: the claim {wrong.name} is wrong. Log in again. If "
            "this repeats, ask the operator of the service."
        )


def _id_claims(issuer: LoginIssuer, id_token: object) -> JsonObject:
    try:
        return claims_of(id_token if isinstance(id_token, str) else "")
    except ValueError:
        raise IssuerError(
            f"The issuer {issuer.url} sent no ID token. Ask an operator of the service to check scopes and"
            " login_token of this issuer."
        ) from None


def _check_resource(issuer: LoginIssuer, tokens: OidcTokens) -> None:
    resource, audience = issuer.client.resource, claims_of(tokens.bearer).get("aud")
    if resource is not None and resource not in (audience if isinstance(audience, list) else [audience]):
        raise IssuerError(
            f"The issuer {issuer.url} sent a token that is not for {resource}, so the token is not used. Ask an"
            " operator of the service whether the issuer knows this resource."
        )


def check_clock(issuer: LoginIssuer, tokens: OidcTokens) -> None:
    """Raise IssuerError if this machine's clock differs too much from the issuer's clock."""
    claims, now = claims_of(tokens.bearer), datetime.now(UTC)
    issued = claims.get("iat")
    began = claimed_time(issued) if isinstance(issued, int | float) else min(now, tokens.expires_at)
    if began - now > _SKEW or tokens.expires_at <= now:
        raise IssuerError(clock_difference.described(now, began, f"that of {issuer.url}"))


def _refresh_token(body: JsonObject) -> str | None:
    value = body.get("refresh_token")
    is_valid = (
        isinstance(value, str) and 1 <= len(value) <= MAX_TOKEN and value.isascii() and value.isprintable()
    )
    return str(value) if is_valid else None


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """A user code, which the user enters in any browser, and a device code, with which the client polls for tokens.

    Attributes:
        verifier: the PKCE verifier. RFC 8628 does not use PKCE, but Keycloak requires PKCE if the client is
            configured for PKCE. Other issuers ignore the parameter.
        complete_uri: `uri` with the user code in it; `None` if the issuer did not send this URI.
        seconds: how long the code is valid.
        interval: seconds between two polls.
    """

    code: str = field(repr=False)
    verifier: str = field(repr=False)
    user_code: str
    uri: str
    complete_uri: str | None
    seconds: float
    interval: float


class RefreshRefused(OAuthError):
    """The refresh token is no longer valid, or the issuer sent no ID token in exchange. The user must log in."""


class IssuerClient:
    """A public OAuth client of one issuer.

    The methods raise OAuthError if the issuer returns an error, or another ClientError.
    """

    def __init__(self, issuer: LoginIssuer) -> None:
        self.issuer = issuer
        self._connections = IssuerConnections(issuer.ca_pem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connections.close()

    @cached_property
    def endpoints(self) -> Endpoints:
        """The issuer's endpoints, from its discovery document."""
        return discover(self._connections, self.issuer.url)

    @property
    def parameters(self) -> Mapping[str, str]:
        """The parameters of all requests that start a login."""
        client = self.issuer.client
        return {**client.request_parameters, "client_id": client.client_id, "scope": " ".join(client.scopes)}

    def exchange_code(self, code: str, verifier: str, redirect_uri: str, nonce: str) -> OidcTokens:
        """Exchange an authorization code for tokens."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        body = self._tokens(form | {"code_verifier": verifier})
        tokens = tokens_from_response(self.issuer, body, nonce=nonce)
        check_clock(self.issuer, tokens)
        return tokens

    def refresh(self, refresh_token: str, subject: str) -> OidcTokens:
        """Get new tokens for the user with this subject. Raises RefreshRefused if the refresh token is not valid.

        Callers save the tokens, and then call `check_clock`.
        """
        try:
            body = self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})
        except OAuthError as error:
            if error.error in _NEEDS_LOGIN:
                raise RefreshRefused(error.error, "", self.issuer.url) from error
            raise
        if self.issuer.client.bearer == "id" and "id_token" not in body:
            # OpenID Connect Core 1.0, section 12.2, allows a response without an ID token.
            raise RefreshRefused("no_id_token", "", self.issuer.url)
        tokens = tokens_from_response(self.issuer, body, subject=subject)
        # An issuer that does not rotate refresh tokens sends no new refresh token. Then keep the old refresh token.
        return tokens if tokens.refresh is not None else replace(tokens, refresh=refresh_token)

    def device_code(self) -> DeviceCode:
        """Request a device code, for a login without a browser on this machine. Source: RFC 8628, section 3.2."""
        address = self.endpoints.device
        if address is None:
            raise IssuerError(
                f"The issuer {self.issuer.url} has no login by device code. Log in without --device, on a machine "
                "with a browser."
            )
        verifier = new_secret()
        response = self._connections.post(address, {**self.parameters, **challenge(verifier)})
        return _device_code(self._checked(response), verifier, self.issuer.url)

    def poll(self, device: DeviceCode) -> OidcTokens:
        """Request the tokens for a device code. Raises OAuthError, also while the user has not decided yet."""
        form = {"grant_type": _DEVICE_GRANT, "device_code": device.code, "code_verifier": device.verifier}
        tokens = tokens_from_response(self.issuer, self._tokens(form))
        check_clock(self.issuer, tokens)
        return tokens

    def revoke(self, refresh_token: str) -> bool:
        """Revoke a refresh token. Returns False if the issuer does not support revocation. Source: RFC 7009."""
        address = self.endpoints.revocation
        if address is None:
            return False
        form = {"token": refresh_token, "token_type_hint": "refresh_token"}
        self._checked(self._connections.post(address, {**form, **self._identification}))
        return True

    @property
    def _identification(self) -> Mapping[str, str]:
        return {"client_id": self.issuer.client.client_id}

    def _tokens(self, form: Mapping[str, str]) -> JsonObject:
        parameters = self.issuer.client.request_parameters
        response = self._connections.post(
            self.endpoints.token, {**parameters, **form, **self._identification}
        )
        return self._checked(response)

    def _checked(self, response: IssuerResponse) -> JsonObject:
        """Return the body of a successful response. Raises OAuthError or IssuerUnreachable for other responses."""
        if response.status == HTTPStatus.OK:
            return response.body
        error, description = response.body.get("error"), response.body.get("error_description")
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or not isinstance(error, str):
            raise IssuerUnreachable(
                f"The issuer {self.issuer.url} answered with status {response.status}. Try again later."
            )
        text = one_line(description) if isinstance(description, str) else ""
        raise OAuthError(one_line(error), text, self.issuer.url)


def _device_code(body: JsonObject, verifier: str, issuer: str) -> DeviceCode:
    code, user_code, uri = (body.get(name) for name in ("device_code", "user_code", "verification_uri"))
    complete = body.get("verification_uri_complete")
    if (
        not (isinstance(code, str) and 1 <= len(code) <= _MAX_TEXT)
        or not (isinstance(user_code, str) and 1 <= len(user_code) <= _MAX_USER_CODE)
        or not all(is_https_url(each) and len(str(each)) <= _MAX_TEXT for each in (uri, complete or uri))
    ):
        raise IssuerError(
            f"The issuer {issuer} sent a device code that is not valid. Log in without --device."
        )
    return DeviceCode(
        code=code,
        verifier=verifier,
        user_code=user_code,
        uri=str(uri),
        complete_uri=str(complete) if complete else None,
        seconds=_bounded(body.get("expires_in"), _LONGEST_WAIT, _LONGEST_WAIT),
        interval=_bounded(body.get("interval"), _INTERVAL_SECONDS, _LONGEST_INTERVAL),
    )


def _bounded(value: object, default: float, highest: float) -> float:
    """Return the value, or the default if the value is not a number, limited to the range from 1 to `highest`."""
    number = value if isinstance(value, int | float) else default
    return min(max(number, 1), highest)


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A request for an authorization code. Use each request for only one login.

    Attributes:
        state: binds the response to the request.
        nonce: binds the ID token to the request.
        verifier: proves to the token endpoint that this client made the request.
    """

    client: IssuerClient
    redirect_uri: str
    state: str = field(default_factory=new_secret, repr=False)
    nonce: str = field(default_factory=new_secret, repr=False)
    verifier: str = field(default_factory=new_secret, repr=False)

    @property
    def url(self) -> str:
        """The address to open in a browser. Raises ClientError."""
        address = self.client.endpoints.authorization
        if address is None:
            raise IssuerError(
                f"The issuer {self.client.issuer.url} has no login in a browser. Try `clustercert login --device`."
            )
        client = self.client.issuer.client
        return authorization_url(
            address,
            client_id=client.client_id,
            scopes=client.scopes,
            redirect_uri=self.redirect_uri,
            state=self.state,
            nonce=self.nonce,
            verifier=self.verifier,
            parameters=client.request_parameters,
        )

    def is_response(self, parameters: Mapping[str, str]) -> bool:
        """Whether the parameters of a redirect belong to this request."""
        return secrets.compare_digest(parameters.get("state", "").encode(), self.state.encode())

    def tokens(self, parameters: Mapping[str, str]) -> OidcTokens:
        """Exchange the code in a response for tokens. Raises ClientError."""
        issuer = self.client.issuer
        if not is_sent_by(issuer.url, parameters, sends_issuer=self.client.endpoints.sends_issuer):
            raise IssuerError(
                f"The answer in the browser is not from {issuer.url}, so the answer is not used. Log in again."
            )
        error, code = parameters.get("error"), parameters.get("code")
        if error == "access_denied":
            raise LoginRefused(f"The login was denied at {issuer.url}. Log in again, and allow the login.")
        if error is not None:
            raise OAuthError(one_line(error), one_line(parameters.get("error_description", "")), issuer.url)
        if not code:
            raise IssuerError(
                f"{issuer.url} sent the browser back without an authorization code. Log in again."
            )
        return self.client.exchange_code(code, self.verifier, self.redirect_uri, self.nonce)


def log_in_by_device_code(
    client: IssuerClient,
    show: Callable[[DeviceCode], None],
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> OidcTokens:
    """Let the user log in at the issuer with a device code, and return the tokens. Raises ClientError.

    Args:
        show: shows the user the code, and the address at which to enter the code.
    """
    device = client.device_code()
    show(device)
    interval, deadline = device.interval, now() + device.seconds
    while now() + interval < deadline:
        sleep(interval)
        try:
            return client.poll(device)
        except IssuerUnreachable:
            # RFC 8628, section 3.5: poll less often after a time-out.
            interval = min(interval * 2, _LONGEST_INTERVAL)
        except OAuthError as error:
            if error.error == "access_denied":
                raise LoginRefused(
                    f"The login was denied at {client.issuer.url}. Log in again, and allow the login."
                ) from error
            if error.error == "expired_token":
                break
            if error.error == "slow_down":
                interval = min(interval + _SLOW_DOWN_SECONDS, _LONGEST_INTERVAL)
            elif error.error != "authorization_pending":
                raise
    raise LoginRefused("Nobody entered the code in time. Run `clustercert login --device` again.")
