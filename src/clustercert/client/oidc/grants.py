"""The requests of a public client to an issuer's token endpoint, and to those for device codes and revocation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from typing import Self

from clustercert.client.connection import one_line
from clustercert.client.oidc.errors import IssuerError, IssuerUnreachable, OAuthError
from clustercert.client.oidc.exchange import IssuerConnections, IssuerResponse
from clustercert.client.oidc.issuer import Endpoints, LoginIssuer, discover
from clustercert.client.oidc.pkce import challenge, new_secret
from clustercert.client.oidc.tokens import Tokens, tokens_from_response
from clustercert.model import JsonObject
from clustercert.model.addresses import is_https_url

# Source: RFC 8628, 3.4.
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# Source: RFC 8628, 3.2: the default.
_INTERVAL_SECONDS = 5
_LONGEST_INTERVAL, _LONGEST_WAIT = 60, 1800
_MAX_TEXT = 4096
_MAX_USER_CODE = 64
# Error codes for a refresh token that is expired, revoked or already used, and for a user who has to log in again.
_NEEDS_LOGIN = frozenset({"invalid_grant", "interaction_required", "login_required", "consent_required"})


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """A user code, which the user enters in any browser, and a device code, with which the client polls for tokens.

    Attributes:
        verifier: proves that this client made the request. RFC 8628 has no PKCE, but Keycloak demands it if its
            settings require PKCE for this client. Other issuers ignore it.
        complete_uri: `uri` with the user code in it; `None` if the issuer has none.
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
    """The refresh token is no longer valid, or gives no token for the service. So the user has to log in again."""


class IssuerClient:
    """A public client at one issuer. Raises ClientError, and OAuthError if the issuer answers with an error."""

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

    def exchange_code(self, code: str, verifier: str, redirect_uri: str, nonce: str) -> Tokens:
        """Exchange an authorization code for tokens."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        body = self._tokens(form | {"code_verifier": verifier})
        return tokens_from_response(self.issuer, body, nonce=nonce)

    def refresh(self, refresh_token: str, subject: str) -> Tokens:
        """Get new tokens for the user with this subject. Raises RefreshRefused if the refresh token is not valid."""
        try:
            body = self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})
        except OAuthError as error:
            if error.error in _NEEDS_LOGIN:
                raise RefreshRefused(error.error, "", self.issuer.url) from error
            raise
        if self.issuer.client.bearer == "id" and "id_token" not in body:
            # OpenID Connect Core 1.0, 12.2, allows a response without an ID token.
            raise RefreshRefused("no_id_token", "", self.issuer.url)
        tokens = tokens_from_response(self.issuer, body, subject=subject)
        # An issuer that does not rotate refresh tokens sends none.
        return tokens if tokens.refresh is not None else replace(tokens, refresh=refresh_token)

    def device_code(self) -> DeviceCode:
        """Start a login without a browser on this machine. Source: RFC 8628, 3.2."""
        address = self.endpoints.device
        if address is None:
            raise IssuerError(
                f"The issuer {self.issuer.url} has no login by device code. Log in without --device, on a machine "
                "with a browser."
            )
        verifier = new_secret()
        response = self._connections.post(address, {**self.parameters, **challenge(verifier)})
        return _device_code(self._checked(response), verifier, self.issuer.url)

    def poll(self, device: DeviceCode) -> Tokens:
        """Ask for the tokens of a device code. Raises OAuthError, also while the user has not decided."""
        form = {"grant_type": _DEVICE_GRANT, "device_code": device.code, "code_verifier": device.verifier}
        body = self._tokens(form)
        return tokens_from_response(self.issuer, body)

    def revoke(self, refresh_token: str) -> bool:
        """Revoke a refresh token. Returns whether the issuer can do that. Source: RFC 7009."""
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
        """Return the body of a successful response."""
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
    """Return a number of seconds from 1 to `highest`."""
    number = value if isinstance(value, int | float) else default
    return min(max(number, 1), highest)
