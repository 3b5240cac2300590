"""An authorization request with PKCE, and the check of its response."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from clustercert.client.connection import one_line
from clustercert.client.oidc.errors import IssuerError, LoginRefused, OAuthError
from clustercert.client.oidc.grants import IssuerClient
from clustercert.client.oidc.pkce import challenge, new_secret
from clustercert.client.oidc.tokens import Tokens


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A request for an authorization code. Its response is used once.

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
        query = {
            **self.client.parameters,
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "state": self.state,
            "nonce": self.nonce,
            **challenge(self.verifier),
        }
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    def is_response(self, parameters: Mapping[str, str]) -> bool:
        """Whether the parameters of a redirect belong to this request."""
        return secrets.compare_digest(parameters.get("state", "").encode(), self.state.encode())

    def tokens(self, parameters: Mapping[str, str]) -> Tokens:
        """Exchange the code in a response for tokens. Raises ClientError."""
        issuer = self.client.issuer
        sender = parameters.get("iss")
        # Source: RFC 9207, 2.4.
        if sender != issuer.url and (sender is not None or self.client.endpoints.sends_issuer):
            raise IssuerError(
                f"The answer in the browser is not from {issuer.url}, so it is not used. Log in again."
            )
        error, code = parameters.get("error"), parameters.get("code")
        if error == "access_denied":
            raise LoginRefused(f"The login was denied at {issuer.url}.")
        if error is not None:
            raise OAuthError(one_line(error), one_line(parameters.get("error_description", "")), issuer.url)
        if not code:
            raise IssuerError(f"The answer of {issuer.url} in the browser has no code. Log in again.")
        return self.client.exchange_code(code, self.verifier, self.redirect_uri, self.nonce)
