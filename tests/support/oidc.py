"""An OIDC issuer for tests: signing keys, tokens, and a server on loopback with TLS and a CA of its own."""

import contextlib
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from support.certificate_authority import Authority

if TYPE_CHECKING:
    from joserfc.jwk import KeyParameters

AUDIENCE = "clustercert"
URL = "https://sso.example.com/realms/acme"
Key = ECKey | RSAKey | OKPKey

_JOSE = jws.JWSRegistry(
    algorithms=["RS256", "RS512", "PS256", "ES256", "ES384", "ES512", "Ed25519", "EdDSA", "HS256", "none"],
    strict_check_header=False,
)


def new_key(key_id: str, curve: str = "P-256") -> Key:
    parameters: KeyParameters = {"kid": key_id, "use": "sig"}
    if curve == "RSA":
        return RSAKey.generate_key(2048, parameters)
    if curve == "Ed25519":
        return OKPKey.generate_key("Ed25519", parameters)
    return ECKey.generate_key(curve, parameters)


def algorithm_of(key: Key) -> str:
    if isinstance(key, RSAKey):
        return "RS256"
    return {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "Ed25519"}[key.curve_name]


def claims_of(issuer: str = URL, /, **changed: object) -> dict[str, object]:
    """The claims of an ID token, valid for five minutes. A value of None leaves the claim out."""
    now = int(time.time())
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "f3b1",
        "iat": now,
        "exp": now + 300,
        "preferred_username": "alice",
        "groups": ["team-blue"],
    }
    return {name: value for name, value in (claims | changed).items() if value is not None}


def signed(claims: dict[str, object] | bytes, key: Key, **header: object) -> str:
    """A token, signed by the key. `header` adds or changes parameters; a value of None leaves one out."""
    protected = {"alg": algorithm_of(key), "kid": key.kid, "typ": "JWT"} | header
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(
        {name: value for name, value in protected.items() if value is not None}, payload, key, registry=_JOSE
    )


def key_set(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


@dataclass
class Response:
    """A response of the issuer's server. `work` runs before it is sent."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    work: Callable[[], object] = lambda: None

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer the request that the handler has read."""
        self.work()
        handler.send_response(self.status)
        for name, value in ({"Content-Length": str(len(self.body))} | self.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body)


class IssuerServer:
    """A server with a discovery document and a key set, whose responses tests can change.

    Attributes:
        responses: by path. A missing path is a 404.
        requests: the paths that were requested.
    """

    def __init__(self, folder: Path) -> None:
        authority = Authority("issuer-ca")
        self.ca_file = folder / "issuer-ca.pem"
        self.ca_file.write_bytes(authority.certificate_pem)
        identity = folder / "issuer.pem"
        identity.write_bytes(
            authority.server_identity_pem("issuer", [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        )
        self.responses: dict[str, Response] = {}
        self.requests: list[str] = []
        self._http = _Listener(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity)
        self._http.tls = context
        self.url = f"https://127.0.0.1:{self._http.server_address[1]}"
        self.keys: tuple[Key, ...] = (new_key("first"),)
        self.publish(*self.keys)

    def publish(self, *keys: Key) -> None:
        """Publish these keys, and sign with the last one."""
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.responses["/.well-known/openid-configuration"] = Response(json.dumps(document).encode())
        self.responses["/keys"] = Response(key_set(*keys))
        # Last, because requests in other threads already use the key.
        self.keys = keys

    def token(self, **changed: object) -> str:
        return signed(claims_of(self.url, **changed), self.keys[-1])

    def settings(self, **changed: object) -> dict[str, Any]:
        """The settings of this issuer."""
        return {
            "name": "sso",
            "issuer": self.url,
            "audiences": [AUDIENCE],
            "ca_file": self.ca_file,
            "username": "preferred_username",
            "groups": "groups",
        } | changed

    @contextlib.contextmanager
    def running(self) -> Iterator["IssuerServer"]:
        thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join(60)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Listener(ThreadingHTTPServer):
    """TLS handshakes run in each connection's thread, so one slow client does not hold up the others."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    tls: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError), self.tls.wrap_socket(request, server_side=True) as secured:
            self.RequestHandlerClass(secured, client_address, cast("Any", self))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the issuer."""


def _handler(server: IssuerServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            server.responses.get(self.path, Response(b"{}", 404)).send(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    return Handler
