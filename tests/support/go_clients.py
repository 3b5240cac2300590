"""Requests of the Go clients, byte for byte, with signatures computed from the published rules.

Recorded on loopback: gophertelekomcloud (Terraform's OTC provider) and the golangsdk in Huawei Cloud's Terraform
provider. Does not use the service's code on purpose.
"""

import gzip
import hashlib
import hmac
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from support.wait import SECONDS

USER_AGENT = "golangsdk/2.0.0"

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `headers` by lower-case name."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class GoClient:
    """One of the two Go clients with an access key.

    Attributes:
        unsigned: headers that it adds after signing.
        scoped: OTC's scheme, with a credential scope and `host` signed; else Huawei's, without either.
        tls: how to verify a service with TLS.
    """

    url: str
    access_key: str
    secret_key: str
    scoped: bool
    unsigned: Headers
    tls: ssl.SSLContext | None = None

    def get(self, target: str, *, content_type: bool = True, at: datetime | None = None) -> Answer:
        return self._call("GET", target, b"", content_type=content_type, at=at)

    def post(self, target: str, body: object, *, at: datetime | None = None) -> Answer:
        """The body is compact JSON and ends in a line feed, as Go's encoder leaves it."""
        return self._call("POST", target, encoded(body), content_type=True, at=at)

    def _call(
        self, method: str, target: str, body: bytes, *, content_type: bool, at: datetime | None
    ) -> Answer:
        signed = {
            "Accept": "application/json",
            **({"Content-Type": "application/json"} if content_type else {}),
            **({"Host": urlsplit(self.url).netloc} if self.scoped else {}),
            "User-Agent": USER_AGENT,
            "X-Sdk-Date": (at or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ"),
        }
        authorization = self.authorization(method, target, signed, body)
        headers = {**signed, "Authorization": authorization, **self.unsigned}
        return send(self.url, method, target, headers, body, self.tls)

    def authorization(self, method: str, target: str, signed: Headers, body: bytes) -> str:
        names = ";".join(sorted(name.lower() for name in signed))
        digest = hashlib.sha256(_canonical_request(method, target, signed, names, body)).hexdigest()
        algorithm, moment = "SDK-HMAC-SHA256", signed["X-Sdk-Date"]
        if self.scoped:
            scope = (moment[:8], "", "", "sdk_request")
            text, key = [algorithm, moment, "/".join(scope), digest], _chained_key(self.secret_key, scope)
            credential = f"Credential={'/'.join((self.access_key, *scope))}"
        else:
            text, key = [algorithm, moment, digest], self.secret_key.encode()
            credential = f"Access={self.access_key}"
        signature = hmac.new(key, "\n".join(text).encode(), hashlib.sha256).hexdigest()
        return f"{algorithm} {credential}, SignedHeaders={names}, Signature={signature}"


def encoded(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def send(
    url: str,
    method: str,
    target: str,
    headers: Headers,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send these headers and those that Go's transport adds, and none of http.client."""
    host = urlsplit(url).netloc
    connection = (
        http.client.HTTPConnection(host, timeout=SECONDS)
        if tls is None
        else http.client.HTTPSConnection(host, timeout=SECONDS, context=tls)
    )
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    connection_headers = {"Host": urlsplit(url).netloc, "Connection": "close", "Accept-Encoding": "gzip"}
    if body:
        connection_headers["Content-Length"] = str(len(body))
    for name, value in {**connection_headers, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body or None)
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    if response.headers.get("Content-Encoding") == "gzip":
        raw = gzip.decompress(raw)
    return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, raw)


def _canonical_request(method: str, target: str, signed: Headers, names: str, body: bytes) -> bytes:
    parts = urlsplit(target)
    path = quote(parts.path, safe="/-._~")
    pairs = sorted(pair.partition("=") for pair in parts.query.split("&")) if parts.query else []
    query = "&".join(f"{name}={value}" for name, _, value in pairs)
    lines = "".join(f"{name.lower()}:{value.strip()}\n" for name, value in _by_name(signed))
    return "\n".join([method, f"{path}/", query, lines, names, hashlib.sha256(body).hexdigest()]).encode()


def _by_name(headers: Headers) -> Sequence[tuple[str, str]]:
    return sorted(headers.items(), key=lambda header: header[0].lower())


def _chained_key(secret_key: str, scope: Sequence[str]) -> bytes:
    key = b"SDK" + secret_key.encode()
    for step in scope:
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key
