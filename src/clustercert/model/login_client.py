"""The public OAuth client that people use to log in at an OIDC issuer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BearerKind = Literal["id", "access"]

DISCOVERY_PATH = "/.well-known/openid-configuration"
DEFAULT_REDIRECT = "http://127.0.0.1/callback"
# Parameters of OAuth and OpenID Connect that the client sets itself.
OWN_PARAMETERS = frozenset(
    {
        "client_assertion",
        "client_assertion_type",
        "client_id",
        "client_secret",
        "code",
        "code_challenge",
        "code_challenge_method",
        "code_verifier",
        "device_code",
        "grant_type",
        "nonce",
        "redirect_uri",
        "refresh_token",
        "request",
        "request_uri",
        "resource",
        "response_mode",
        "response_type",
        "scope",
        "state",
        "token",
        "token_type_hint",
    }
)


@dataclass(frozen=True, slots=True)
class LoginClient:
    """A public client at an issuer.

    Attributes:
        redirect_uris: addresses on the user's machine. An address without a port stands for any port.
        bearer: which token the service accepts: the ID token, or the access token.
        parameters: further parameters of requests to the issuer, such as `audience`.
        resource: the audience that access tokens are requested for (RFC 8707).
        trusted_audiences: audiences that an ID token may name besides `client_id` and `resource`.
    """

    client_id: str
    scopes: tuple[str, ...]
    redirect_uris: tuple[str, ...] = (DEFAULT_REDIRECT,)
    bearer: BearerKind = "id"
    parameters: Mapping[str, str] = field(default_factory=dict)
    resource: str | None = None
    trusted_audiences: tuple[str, ...] = ()

    @property
    def request_parameters(self) -> Mapping[str, str]:
        """The parameters of all requests for authorization and tokens. Source: RFC 8707 section 2."""
        return dict(self.parameters) | ({"resource": self.resource} if self.resource is not None else {})
