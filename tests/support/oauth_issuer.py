"""An OIDC issuer with the endpoints of OAuth, in this process. Tests change its answers to attack clients."""

import base64
import contextlib
import hashlib
import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import httpx2

from clustercert.client.oidc.issuer import LoginIssuer
from clustercert.model.login_client import LoginClient
from support.oidc import IssuerServer, Response
from support.wait import SECONDS

CLIENT_ID = "clustercert"
Form = dict[str, str]


@dataclass
class Behavior:
    """What tests change.

    Attributes:
        claims: changes of the claims in tokens; a value of None leaves a claim out.
        redirect: changes the parameters of the redirect to the client.
        token: changes the body of a successful token response.
        responses: by path, instead of the issuer's own.
        device: error codes of the next polls of a device code.
        rotates: whether each use of a refresh token gives another one.
        secret: of the client; None for a public client.
    """

    claims: dict[str, object] = field(default_factory=dict)
    redirect: Callable[[Form], Form] = lambda parameters: parameters
    token: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body
    responses: dict[str, Response] = field(default_factory=dict)
    device: list[str] = field(default_factory=list)
    rotates: bool = True
    secret: str | None = None


class OAuthIssuer(IssuerServer):
    """Logs everybody in as the user of `behavior.claims`, without a page.

    Attributes:
        forms: what was posted, by path.
        logins: the requests to the authorization endpoint.
        refresh_tokens: the valid ones. A refresh token that is used again ends all logins.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.behavior = Behavior()
        self.forms: list[tuple[str, Form]] = []
        self.logins: list[Form] = []
        self.refresh_tokens: set[str] = set()
        self._used: set[str] = set()
        self._device_challenge = ""
        self._codes: dict[str, Form] = {}
        self._http.RequestHandlerClass = _handler(self)

    @property
    def document(self) -> dict[str, Any]:
        paths = {
            "jwks_uri": "keys",
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "device_authorization_endpoint": "device",
            "revocation_endpoint": "revoke",
        }
        return {
            "issuer": self.url,
            "authorization_response_iss_parameter_supported": True,
            "code_challenge_methods_supported": ["S256"],
        } | {name: f"{self.url}/{path}" for name, path in paths.items()}

    def publish_document(self, **changed: object) -> None:
        """Publish a discovery document. A value of None leaves a field out."""
        document = {name: value for name, value in (self.document | changed).items() if value is not None}
        self.responses["/.well-known/openid-configuration"] = Response(json.dumps(document).encode())

    def login_issuer(self, **changed: Any) -> LoginIssuer:
        """The issuer as a service describes it."""
        client = LoginClient(**{"client_id": CLIENT_ID, "scopes": ("openid", "profile"), **changed})
        return LoginIssuer("sso", self.url, client, self.ca_file.read_text())

    @contextlib.contextmanager
    def running(self) -> Iterator["OAuthIssuer"]:
        self.publish_document()
        with super().running():
            yield self

    def count(self, grant: str) -> int:
        """The number of token requests with this grant type."""
        return sum(form.get("grant_type") == grant for path, form in self.forms if path == "/token")

    def redirect_of(self, address: str) -> str:
        """Open an address of the issuer like a browser. Returns the address to which the issuer redirects."""
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        response = httpx2.get(address, verify=tls, trust_env=False, timeout=SECONDS)
        assert response.status_code == 303, response.text
        return str(response.headers["location"])

    def authorize(self, query: Form) -> Response:
        self.logins.append(query)
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        answer = self.behavior.redirect({"code": code, "state": query["state"], "iss": self.url})
        return Response(b"", 303, {"Location": f"{query['redirect_uri']}?{urlencode(answer)}"})

    def post(self, path: str, form: Form) -> Response:
        self.forms.append((path, form))
        self._device_challenge = form.get("code_challenge", self._device_challenge)
        if path in self.behavior.responses:
            return self.behavior.responses[path]
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, self.behavior.secret):
            return _error("invalid_client", 401)
        if path == "/device":
            return _json(
                {
                    "device_code": "d" * 32,
                    "user_code": "WDJB-MJHT",
                    "verification_uri": f"{self.url}/enter",
                    "verification_uri_complete": f"{self.url}/enter?code=WDJB-MJHT",
                    "expires_in": 600,
                    "interval": 1,
                }
            )
        if path == "/revoke":
            self.refresh_tokens.discard(form["token"])
            return Response(b"")
        return {
            "authorization_code": self._by_code,
            "refresh_token": self._by_refresh_token,
            "urn:ietf:params:oauth:grant-type:device_code": self._by_device_code,
        }[form["grant_type"]](form)

    def _by_code(self, form: Form) -> Response:
        query = self._codes.pop(form["code"], None)
        if query is None or query["redirect_uri"] != form["redirect_uri"]:
            return _error("invalid_grant")
        if (query["code_challenge_method"], query["code_challenge"]) != ("S256", _challenge(form)):
            return _error("invalid_grant")
        return self._tokens(nonce=query["nonce"])

    def _by_refresh_token(self, form: Form) -> Response:
        used = form["refresh_token"]
        if used in self._used:
            self.refresh_tokens.clear()
        if used not in self.refresh_tokens:
            return _error("invalid_grant")
        if self.behavior.rotates:
            self.refresh_tokens.discard(used)
            self._used.add(used)
        return self._tokens()

    def _by_device_code(self, form: Form) -> Response:
        if _challenge(form) != self._device_challenge:
            return _error("invalid_grant")
        if self.behavior.device:
            return _error(self.behavior.device.pop(0))
        return self._tokens()

    def _tokens(self, **claims: object) -> Response:
        body: dict[str, Any] = {
            "token_type": "Bearer",
            "id_token": self.token(**claims, **self.behavior.claims),
            "access_token": self.token(**self.behavior.claims),
        }
        if self.behavior.rotates or not self.refresh_tokens:
            body["refresh_token"] = secrets.token_urlsafe(16)
            self.refresh_tokens.add(body["refresh_token"])
        return _json(self.behavior.token(body))


def _challenge(form: Form) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
    return digest.rstrip(b"=").decode()


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(body).encode(), status, {"Content-Type": "application/json"})


def _error(code: str, status: int = 400) -> Response:
    return _json({"error": code, "error_description": "as the test wants"}, status)


def _basic(authorization: str) -> Form:
    """The client's id and secret from the header, under the names that they have in a form."""
    client_id, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
    return {"client_id": unquote_plus(client_id), "client_secret": unquote_plus(secret), "by": "header"}


def _single(query: str) -> Form:
    return {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}


def _handler(issuer: OAuthIssuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            issuer.requests.append(parts.path)
            if parts.path == "/authorize":
                response = issuer.authorize(_single(parts.query))
            else:
                response = issuer.responses.get(parts.path, Response(b"{}", 404))
            self._send(parts.path, response)

        def do_POST(self) -> None:
            form = _single(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if (authorization := self.headers["Authorization"]) is not None:
                form |= _basic(authorization)
            self._send(self.path, issuer.post(self.path, form))

        def _send(self, path: str, response: Response) -> None:
            issuer.behavior.responses.get(path, response).send(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    return Handler
