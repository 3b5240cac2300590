"""The issuers at which a service lets people log in, and their endpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from clustercert.client.administration import OWN
from clustercert.client.connection import ApiError, Connection, json_object, service_url
from clustercert.client.oidc.errors import IssuerError
from clustercert.client.oidc.exchange import IssuerConnections
from clustercert.model import JsonObject
from clustercert.model.addresses import is_https_url, is_loopback_redirect, is_service_url
from clustercert.model.login_client import DISCOVERY_PATH, OWN_PARAMETERS, LoginClient

_MAX_ITEMS = 100
_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class LoginIssuer:
    """An issuer as the service describes it.

    Attributes:
        name: the service's short name for it.
        url: the exact claim `iss`.
        ca_pem: the CAs of its server, `None` for those of this machine.
    """

    name: str
    url: str
    client: LoginClient
    ca_pem: str | None = None

    @classmethod
    def parse(cls, body: JsonObject) -> "LoginIssuer":
        """Parse an issuer from `GET /clustercert/v1/issuers`. Raises LookupError, TypeError or ValueError."""
        url, redirects = body["issuer"], _texts(body["redirect_uris"])
        if not is_https_url(url) or not redirects or not all(map(is_loopback_redirect, redirects)):
            raise ValueError("an address of the issuer is not valid")
        parameters = {str(name): _text(value) for name, value in json_object(body["parameters"]).items()}
        bearer, ca_pem = body["token"], body["ca_pem"]
        resource = None if body["resource"] is None else _text(body["resource"])
        if bearer not in ("id", "access") or parameters.keys() & OWN_PARAMETERS:
            raise ValueError("the client of the issuer is not valid")
        client = LoginClient(
            _text(body["client_id"]), _texts(body["scopes"]), redirects, bearer, parameters, resource
        )
        return cls(_text(body["name"]), _text(url), client, None if ca_pem is None else str(ca_pem))

    def body(self) -> JsonObject:
        """Return the issuer in the form that `parse` reads, for the saved login."""
        return {
            "name": self.name,
            "issuer": self.url,
            "client_id": self.client.client_id,
            "scopes": list(self.client.scopes),
            "redirect_uris": list(self.client.redirect_uris),
            "token": self.client.bearer,
            "parameters": dict(self.client.parameters),
            "resource": self.client.resource,
            "ca_pem": self.ca_pem,
        }


@dataclass(frozen=True, slots=True)
class LoginOffer:
    """What a service says about logins at issuers.

    Attributes:
        urls: the addresses of the service, as it says.
    """

    issuers: tuple[LoginIssuer, ...] = ()
    urls: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, LoginIssuer]:
        return {issuer.name: issuer for issuer in self.issuers}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The addresses in an issuer's discovery document.

    Attributes:
        sends_issuer: whether authorization responses have the parameter `iss` (RFC 9207).
    """

    authorization: str | None
    token: str
    device: str | None
    revocation: str | None
    sends_issuer: bool


def login_offer(service: Connection) -> LoginOffer:
    """Ask a service at which issuers people log in. Raises ClientError."""
    try:
        body = service.exchange("GET", f"{OWN}/issuers").body
    except ApiError as error:
        # The service is another CCE service, or an older version.
        if error.http_status in (HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED):
            return LoginOffer()
        raise
    with service.check_format():
        found, urls = body["issuers"], _texts(body["urls"])
        if not isinstance(found, list) or len(found) > _MAX_ITEMS:
            raise TypeError("The issuers are not a list.")
        if not all(map(is_service_url, urls)):
            raise ValueError("an address of the service is not valid")
        parsed = tuple(LoginIssuer.parse(json_object(each)) for each in found)
        return LoginOffer(parsed, tuple(service_url(each, plain_http=True) for each in urls))


def discover(connections: IssuerConnections, issuer: str) -> Endpoints:
    """Fetch the discovery document. Raises ClientError. Source: OpenID Connect Discovery 1.0, section 4."""
    response = connections.get(issuer.rstrip("/") + DISCOVERY_PATH)
    document = response.body
    if response.status != HTTPStatus.OK:
        raise IssuerError(
            f"The issuer {issuer} has no discovery document (status {response.status}). Ask an operator of the service "
            "to check its address."
        )
    if document.get("issuer") != issuer:
        raise IssuerError(f"The discovery document of {issuer} names another issuer, so it is not used.")
    methods = document.get("code_challenge_methods_supported")
    if methods is not None and not (isinstance(methods, list) and "S256" in methods):
        raise IssuerError(f"The issuer {issuer} does not support PKCE with S256, which `login` needs.")
    token = _endpoint(document, "token_endpoint", issuer)
    if token is None:
        raise IssuerError(f"The discovery document of {issuer} has no token_endpoint.")
    return Endpoints(
        authorization=_endpoint(document, "authorization_endpoint", issuer),
        token=token,
        device=_endpoint(document, "device_authorization_endpoint", issuer),
        revocation=_endpoint(document, "revocation_endpoint", issuer),
        sends_issuer=document.get("authorization_response_iss_parameter_supported") is True,
    )


def _endpoint(document: Mapping[str, object], name: str, issuer: str) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not is_https_url(value) or len(str(value)) > _MAX_TEXT:
        raise IssuerError(f"The discovery document of {issuer} has an address {name} that is not https.")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT or not value.isprintable():
        raise ValueError("The value is not a short text.")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise TypeError("The value is not a short list.")
    return tuple(map(_text, value))
