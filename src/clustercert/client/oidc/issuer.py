"""An OIDC issuer as the client sees it: discovery, requests and errors."""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from clustercert import __version__
from clustercert.client.connection import (
    OWN,
    ApiError,
    ClientError,
    HttpRequest,
    HttpTransport,
    ServiceClient,
    json_object,
    one_line,
    service_url,
    through_proxy,
    tls_context,
)
from clustercert.model import JsonObject
from clustercert.model.login_client import DISCOVERY_PATH, OWN_PARAMETERS, LoginClient
from clustercert.model.oauth import announces_sender, supports_pkce
from clustercert.model.requests import is_https_url, is_loopback_redirect, is_service_url

# The maximum size of a response. Discovery documents have a few KiB, tokens at most 16 KiB.
MAX_RESPONSE_BYTES = 256 * 1024
RESPONSE_SECONDS = 10.0
_REDIRECTS = range(300, 400)
_MAX_ITEMS = 100
_MAX_TEXT = 4096


class IssuerUnreachable(ClientError, status=503, code="CCE.01503001"):
    """The issuer could not be reached, or did not answer."""


class IssuerError(ClientError):
    """The issuer's response can't be used. The message says what the operator of the issuer or service should do."""


class LoginRefused(ClientError, status=401, code="CCE.01401001"):
    """The user or the issuer denied the login, or nobody completed the login in time."""


class OAuthError(ClientError):
    """The issuer returned an error that RFC 6749 or RFC 8628 defines.

    Attributes:
        error: the error code, such as `invalid_grant`.
    """

    def __init__(self, error: str, description: str, where: str) -> None:
        text = f"{error}: {description}" if description else error
        super().__init__(f"{where} answered with an error ({text}).{_REMEDIES.get(error, '')}")
        self.error = error


_CHECK = " Ask an operator of the service to compare the service's settings with the client's settings at the issuer"
_REMEDIES = {
    "access_denied": " The login was denied, by you or by the issuer.",
    "expired_token": " Nobody completed the login in time. Log in again.",
    "invalid_client": f"{_CHECK}: client_id, and that the client is public.",
    "invalid_grant": " Log in again.",
    "invalid_scope": f"{_CHECK}: scopes.",
    "unauthorized_client": f"{_CHECK}: the grants that the client may use.",
    "unsupported_grant_type": f"{_CHECK}: the grants that the client may use.",
}


class IssuerResponse(NamedTuple):
    """A response. `body` is `{}` if the response has no JSON object."""

    status: int
    body: JsonObject


class IssuerConnections:
    """Connections to the hosts of one issuer. The methods raise IssuerError, IssuerUnreachable or ClientError.

    Args:
        ca_pem: replaces the CAs that this machine trusts.
    """

    def __init__(self, ca_pem: str | None) -> None:
        self._tls = tls_context(ca_pem)
        self._open: dict[str, HttpTransport] = {}

    def close(self) -> None:
        for transport in self._open.values():
            transport.close()

    def get(self, url: str) -> IssuerResponse:
        return self._send("GET", url, {}, b"")

    def post(self, url: str, form: Mapping[str, str]) -> IssuerResponse:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._send("POST", url, headers, urlencode(form).encode())

    def _send(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> IssuerResponse:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._open:
            self._open[origin] = HttpTransport(origin, self._tls, RESPONSE_SECONDS)
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        common = {
            "Host": parts.netloc,
            "User-Agent": f"clustercert/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        started = time.monotonic()
        with _translate_failures(origin):
            reply = self._open[origin].send(HttpRequest(method, target, {**common, **headers}, content))
            received = reply.body(MAX_RESPONSE_BYTES)
        if received is None:
            raise IssuerError(f"The answer of {origin} is larger than {MAX_RESPONSE_BYTES // 1024} KiB.")
        if ServiceClient.trace is not None:
            milliseconds = (time.monotonic() - started) * 1000
            ServiceClient.trace(f"{method} {origin}{parts.path}: {reply.status}, {milliseconds:.0f} ms")
        if reply.status in _REDIRECTS:
            raise IssuerError(
                f"{origin}{parts.path} redirects to a different address. The redirect is not followed. Ask an operator "
                "of the service to check the issuer's address."
            )
        return IssuerResponse(reply.status, _parsed(received))


def _parsed(content: bytes) -> JsonObject:
    try:
        return json_object(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return {}


@contextmanager
def _translate_failures(origin: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise IssuerUnreachable(
            f"The issuer {origin} did not answer in time{through_proxy(origin)}. Check the network, and try again "
            "later."
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise IssuerError(
            f"The certificate of the issuer {origin} is not trusted ({one_line(error.verify_message)}). Name its CA "
            "with `clustercert login --issuer-ca-file FILE`."
        ) from error
    except (http.client.HTTPException, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise IssuerUnreachable(
            f"The issuer {origin} can't be reached{through_proxy(origin)} "
            f"({one_line(reason or str(error)) or type(error).__name__}). Check the network connection, and whether a "
            "firewall or proxy blocks the issuer."
        ) from error


@dataclass(frozen=True, slots=True)
class LoginIssuer:
    """An OIDC issuer, with the settings for logins that the service returns.

    Attributes:
        name: the service's short name for the issuer.
        url: the issuer's URL, exactly as in the claim `iss`.
        ca_pem: the CAs to trust for the issuer's server; `None` for this machine's CAs.
    """

    name: str
    url: str
    client: LoginClient
    ca_pem: str | None = None

    @classmethod
    def parse(cls, body: JsonObject) -> "LoginIssuer":
        """Parse an issuer from the response of `GET /clustercert/v1/issuers`.

        Raises LookupError, TypeError or ValueError if the issuer is malformed.
        """
        url, redirects = body["issuer"], _texts(body["redirect_uris"])
        if not is_https_url(url) or not redirects or not all(map(is_loopback_redirect, redirects)):
            raise ValueError("an address of the issuer is not valid")
        parameters = {str(name): _text(value) for name, value in json_object(body["parameters"]).items()}
        bearer, ca_pem = body["token"], body["ca_pem"]
        resource = None if body["resource"] is None else _text(body["resource"])
        if bearer not in ("id", "access") or parameters.keys() & OWN_PARAMETERS:
            raise ValueError("the client ID for the issuer is not valid")
        client = LoginClient(
            _text(body["client_id"]),
            _texts(body["scopes"]),
            redirects,
            bearer,
            parameters,
            resource,
            _texts(body["trusted_audiences"]),
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
            "trusted_audiences": list(self.client.trusted_audiences),
            "ca_pem": self.ca_pem,
        }


@dataclass(frozen=True, slots=True)
class LoginOffer:
    """The issuers at which users of a service can log in.

    Attributes:
        urls: all addresses of the service, as the service lists them.
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


def login_offer(service: ServiceClient) -> LoginOffer:
    """Ask a service for the issuers at which users can log in. Raises ClientError."""
    try:
        body = service.exchange("GET", f"{OWN}/issuers").body
    except ApiError as error:
        # Other CCE services have no list of issuers.
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
            "to check the issuer's address."
        )
    if document.get("issuer") != issuer:
        raise IssuerError(
            f"The discovery document of {issuer} names a different issuer. Ask an operator of the service to check the "
            "issuer's address."
        )
    if not supports_pkce(document):
        raise IssuerError(
            f"The issuer {issuer} does not support PKCE with S256, which `login` needs. Ask "
            "the operator of the issuer to enable it."
        )
    token = _endpoint(document, "token_endpoint", issuer)
    if token is None:
        raise IssuerError(
            f"The discovery document of {issuer} has no token_endpoint. Ask the operator of "
            "the issuer to correct the document."
        )
    return Endpoints(
        authorization=_endpoint(document, "authorization_endpoint", issuer),
        token=token,
        device=_endpoint(document, "device_authorization_endpoint", issuer),
        revocation=_endpoint(document, "revocation_endpoint", issuer),
        sends_issuer=announces_sender(document),
    )


def _endpoint(document: Mapping[str, object], name: str, issuer: str) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not is_https_url(value) or len(str(value)) > _MAX_TEXT:
        raise IssuerError(
            f"In the discovery document of {issuer}, {name} is not an https URL. Ask the "
            "operator of the issuer to correct the document."
        )
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT or not value.isprintable():
        raise ValueError("The value is not a short text.")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise TypeError("The value is not a short list.")
    return tuple(map(_text, value))
