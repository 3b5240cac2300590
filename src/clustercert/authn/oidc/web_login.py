"""Login of people at an OIDC issuer in a browser. The service is the OAuth client, with authorization code and PKCE."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from urllib.parse import quote_plus, urlencode

from clustercert.authn.oidc.claims import shown
from clustercert.authn.oidc.connection import FetchFailed, connected, discovery_document, send
from clustercert.authn.oidc.issuers import ConsoleClient, OidcIssuer
from clustercert.authn.oidc.login_attempts import LoginAttempt, LoginRefused
from clustercert.authn.oidc.tokens import (
    ID_TYPES,
    UnverifiedToken,
    id_token_results,
    login_time,
    parse_token,
    require_right,
    session_ids,
)
from clustercert.authn.oidc.verification import Verifier, require_passed
from clustercert.http_client import Response
from clustercert.model import JsonObject, rfc3339
from clustercert.model.errors import InvalidRequest, RemoteFailed, Unavailable
from clustercert.model.oauth import (
    announces_sender,
    authorization_url,
    is_sent_by,
    supports_pkce,
    wrong_authorized_party,
    wrong_issuer,
    wrong_nonce,
)
from clustercert.model.requests import is_https_url
from clustercert.secure_file import PrivateFileError

# After a failure, logins don't ask the issuer again for this time.
_PAUSE_SECONDS = 5
_DOCUMENT_SECONDS = 300
# Source: RFC 6749 section 4.1.2.1.
_ERROR_CODE = re.compile(r"[a-z_]{1,60}")
_RETRY = frozenset({"server_error", "temporarily_unavailable"})
_NO_LOGIN = frozenset({"access_denied", "login_required", "interaction_required", "consent_required"})


@dataclass(frozen=True, slots=True)
class WebLogin:
    """A login whose ID token is verified, but not yet mapped to a user.

    Attributes:
        claims: the claims of the ID token.
        authenticated_at: when the person last logged in at the issuer; None if the issuer did not say when.
    """

    claims: JsonObject = field(repr=False)
    authenticated_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Endpoints:
    """Addresses and abilities from an issuer's discovery document.

    Attributes:
        sends_issuer: whether authorization responses have the parameter `iss` (RFC 9207).
        secret_in_header: whether the token endpoint accepts `client_secret_basic`; else it needs `client_secret_post`.
    """

    authorization: str
    token: str
    sends_issuer: bool
    secret_in_header: bool

    @classmethod
    def parse(cls, document: JsonObject) -> Self:
        """Raises FetchFailed."""
        authorization, token = document.get("authorization_endpoint"), document.get("token_endpoint")
        if not is_https_url(authorization) or not is_https_url(token):
            raise FetchFailed(
                "the discovery document has no https addresses in authorization_endpoint and token_endpoint"
            )
        if not supports_pkce(document):
            raise FetchFailed("the issuer does not support PKCE with S256")
        # The default is in OpenID Connect Discovery 1.0, section 3.
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return cls(
            str(authorization),
            str(token),
            announces_sender(document),
            isinstance(methods, list) and "client_secret_basic" in methods,
        )


class IssuerLogins:
    """Logs people in at one issuer, whose settings have a client for the console."""

    def __init__(
        self,
        issuer: OidcIssuer,
        client: ConsoleClient,
        verifier: Verifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._client = client
        self._verifier = verifier
        self._clock = clock
        self._reading = asyncio.Lock()
        self._document: _Endpoints | FetchFailed | None = None
        self._document_until = float("-inf")

    async def address(self, attempt: LoginAttempt, redirect_uri: str) -> str:
        """Return the address at the issuer where the login begins. Raises Unavailable."""
        endpoints = await self._endpoints()
        parameters = {
            **self._client.parameters,
            "response_mode": "query",
            # With this parameter, the issuer must send `auth_time`. Source: OpenID Connect Core 1.0, section 3.1.2.1.
            "max_age": str(int(attempt.max_age.total_seconds())),
        }
        if attempt.again:
            parameters["prompt"] = "login"
        return authorization_url(
            endpoints.authorization,
            client_id=self._client.client_id,
            scopes=self.issuer.console_scopes,
            redirect_uri=redirect_uri,
            state=attempt.secret("state"),
            nonce=attempt.secret("nonce"),
            verifier=attempt.secret("verifier"),
            parameters=parameters,
        )

    async def complete(self, attempt: LoginAttempt, answer: Mapping[str, str], redirect_uri: str) -> WebLogin:
        """Exchange the code in the issuer's answer for an ID token, and verify the token.

        Raises LoginRefused, TokenRefused if the ID token is not accepted, InvalidRequest, RemoteFailed or Unavailable.

        Args:
            attempt: `is_answered_by` must have accepted the answer.
            answer: the query parameters of the request to which the issuer sent the browser.
        """
        endpoints = await self._endpoints()
        name = self.issuer.name
        if not is_sent_by(self.issuer.url, answer, sends_issuer=endpoints.sends_issuer):
            sender = shown(answer.get("iss")) or "nothing"
            raise LoginRefused(
                f"The answer is not from {name}, so the answer was not used. Log in again.",
                f"iss: the answer has {sender}; expected: {self.issuer.url}",
            )
        if (error := answer.get("error")) is not None:
            raise self._answered_error(error)
        code = answer.get("code")
        if not code:
            raise InvalidRequest(f"{name} sent no authorization code. Log in again.")
        id_token = await self._exchange(endpoints, code, attempt, redirect_uri)
        return await self._verified(attempt, id_token)

    async def _endpoints(self) -> _Endpoints:
        async with self._reading:
            if self._document is None or self._clock() >= self._document_until:
                try:
                    async with connected(self.issuer) as client:
                        self._document = _Endpoints.parse(await discovery_document(client, self.issuer))
                    self._document_until = self._clock() + _DOCUMENT_SECONDS
                except FetchFailed as error:
                    self._document, self._document_until = error, self._clock() + _PAUSE_SECONDS
            found = self._document
        if isinstance(found, FetchFailed):
            raise self._unreachable() from found
        return found

    def _unreachable(self) -> Unavailable:
        return Unavailable(
            f"The identity provider {self.issuer.name} can't be used now. Try again in a moment. If this"
            " lasts, ask an operator to read the log of this service.",
            retry_after=_PAUSE_SECONDS,
        )

    def _answered_error(self, error: str) -> Exception:
        """Return the failure for an error code. Sources: RFC 6749, OpenID Connect Core 1.0, section 3.1.2.6."""
        name = self.issuer.name
        code = error if _ERROR_CODE.fullmatch(error) else "an unknown error"
        if code == "invalid_grant":
            return LoginRefused(f"The login at {name} has expired, or was used before. Log in again.", code)
        if code in _NO_LOGIN:
            return LoginRefused(f"The login at {name} was denied or cancelled ({code}). Log in again.", code)
        if code in _RETRY:
            return Unavailable(f"{name} can't log you in now ({code}). Try again in a moment.")
        return RemoteFailed(
            f"{name} does not accept this service as a client ({code}). Ask an operator of this service to compare"
            " identity.issuers.console with the client's settings at the issuer: id, secret, scopes and redirect"
            " address."
        )

    async def _exchange(
        self, endpoints: _Endpoints, code: str, attempt: LoginAttempt, redirect_uri: str
    ) -> str:
        """Return the ID token for a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.secret("verifier"),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        secret = await asyncio.to_thread(self._secret)
        if secret is not None and endpoints.secret_in_header:
            headers["Authorization"] = _basic(self._client.client_id, secret)
        else:
            form |= {"client_id": self._client.client_id} | ({"client_secret": secret} if secret else {})
        try:
            async with connected(self.issuer) as client:
                body = urlencode(form).encode()
                response = await send(client, "POST", endpoints.token, headers=headers, body=body)
        except FetchFailed as error:
            raise self._unreachable() from error
        return self._id_token(response)

    def _secret(self) -> str | None:
        """Read the client's secret. Raises RemoteFailed; the cause of the error is for the log."""
        try:
            return self._client.read_secret()
        except PrivateFileError as error:
            raise RemoteFailed(
                f"This service can't read its secret for {self.issuer.name}. Ask an operator to read the log"
                " of this service."
            ) from error

    def _id_token(self, response: Response) -> str:
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            body = {}
        if response.status == 200 and isinstance(body.get("id_token"), str):  # noqa: PLR2004 - RFC 6749 section 5.1
            return str(body["id_token"])
        if response.status in (400, 401) and isinstance(body.get("error"), str):
            raise self._answered_error(body["error"])
        problem = "no ID token" if response.status == 200 else f"status {response.status}"  # noqa: PLR2004
        raise self._unreachable() from FetchFailed(f"{self.issuer.name}: the token endpoint sent {problem}")

    async def _verified(self, attempt: LoginAttempt, text: str) -> WebLogin:
        token = parse_token(text, ID_TYPES)
        require_right(wrong_issuer(token.claims, self.issuer.url))
        token = await self._verifier.verify_signature(self.issuer, token)
        require_passed(id_token_results(self.issuer, self._client, token, self._verifier.now()))
        require_right(wrong_authorized_party(token.claims, self._client.client_id))
        require_right(wrong_nonce(token.claims, attempt.secret("nonce")))
        session_ids(token.claims)
        return WebLogin(token.claims, self._authenticated_at(token, attempt))

    def _authenticated_at(self, token: UnverifiedToken, attempt: LoginAttempt) -> datetime | None:
        """Return when the person last logged in at the issuer. Raises LoginRefused if this was too long ago."""
        name, now = self.issuer.name, self._verifier.now()
        earliest, is_login = login_time(self.issuer, token)
        at = min(earliest + self.issuer.leeway, now)
        if is_login and earliest < now - attempt.max_age - 2 * self.issuer.leeway:
            raise LoginRefused(
                f"Your login at {name} is too old, and {name} did not ask you to log in again. Log out at {name}, then"
                " log in here again.",
                f"auth_time: the token has {rfc3339(at)}; expected: at most {attempt.max_age} ago",
            )
        if is_login or self._client.login_time == "iat":
            return at
        if attempt.again:
            raise LoginRefused(
                f"{name} did not say when you logged in, so the login does not count as a new login. Ask an"
                " operator of this service to let the issuer send the claim auth_time, or to set"
                ' identity.issuers.console.login_time = "iat".',
                "auth_time: the token has nothing",
            )
        return None


def _basic(client_id: str, secret: str) -> str:
    """Return the value of the header `Authorization`. Source: RFC 6749 section 2.3.1."""
    return "Basic " + base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()
