"""Builds the requests that are sent, as bytes of HTTP/1.1: with a token, a signature or a CSR."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.pki.request_signature import (
    TIMESTAMP_FORMAT,
    SignatureCredential,
    SignedParts,
    payload_hash,
    sign,
)

BODY = json.dumps({"duration": 1}).encode()
JSON = {"Content-Type": "application/json"}
CSR_NAME = "bench"


@dataclass(frozen=True, slots=True)
class Who:
    """A user with a project. Their secrets belong to a store that is deleted after the run."""

    host: str
    project_id: str
    cluster_id: str
    token: str
    access_key: str
    secret_key: str

    def path(self, cluster_id: str | None = None, project_id: str | None = None) -> str:
        """Return the path of POST clustercert."""
        project = project_id or self.project_id
        return f"/api/v3/projects/{project}/clusters/{cluster_id or self.cluster_id}/clustercert"


def http(method: str, path: str, host: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Encode a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {headers[name]}" for name in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def with_token(who: Who, body: bytes = BODY) -> list[bytes]:
    """Return one POST, which is sent repeatedly."""
    return [http("POST", who.path(), who.host, JSON | {"X-Auth-Token": who.token}, body)]


def closing(requests: Sequence[bytes]) -> list[bytes]:
    """Return the requests with `Connection: close`."""
    return [request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) for request in requests]


def signed(who: Who, paths: Iterable[str] | None = None) -> list[bytes]:
    """Return a POST for each path, signed like Huawei Cloud's SDKs. The signatures are valid for 15 minutes."""
    now = datetime.now(UTC)
    return [_signed("POST", who, path, now, BODY) for path in (paths or [who.path()])]


def signed_gets(who: Who, paths: Iterable[str]) -> list[bytes]:
    """Return a signed GET for each path."""
    now = datetime.now(UTC)
    return [_signed("GET", who, path, now) for path in paths]


def signed_at_many_times(who: Who, count: int) -> list[bytes]:
    """Return POSTs with different signatures, which are at most a few minutes old."""
    now = datetime.now(UTC)
    times = (now - timedelta(seconds=number % 300) for number in range(count))
    return [_signed("POST", who, f"{who.path()}?n={number}", time, BODY) for number, time in enumerate(times)]


def _signed(method: str, who: Who, path: str, now: datetime, body: bytes = b"") -> bytes:
    return http(method, path, who.host, signed_headers(method, who, path, now, body), body)


def signed_headers(method: str, who: Who, path: str, now: datetime, body: bytes = b"") -> dict[str, str]:
    """Return the headers of a request that is signed like Huawei Cloud's SDKs."""
    signed = {
        "content-type": "application/json",
        "host": who.host,
        "x-sdk-date": now.strftime(TIMESTAMP_FORMAT),
    }
    raw_path, _, query = path.partition("?")
    parts = SignedParts(
        method=method,
        raw_path=raw_path,
        raw_query=query,
        headers=tuple((name.encode(), value.encode()) for name, value in signed.items()),
        payload_hash=payload_hash(body),
    )
    authorization = sign(parts, SignatureCredential("flat", who.access_key), who.secret_key.encode())
    return JSON | {"X-Sdk-Date": signed["x-sdk-date"], "Authorization": authorization}


def csr_pem() -> str:
    """Create a CSR for a new P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CSR_NAME)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def with_csr(who: Who) -> list[bytes]:
    """Return POSTs with a token, each with a CSR for a different key."""
    bodies = [json.dumps({"duration": 1, "csr": csr_pem()}).encode() for _ in range(64)]
    return [request for body in bodies for request in with_token(who, body)]


def listing(who: Who) -> list[bytes]:
    """Return a GET for the list of the project's clusters."""
    path = f"/api/v3/projects/{who.project_id}/clusters"
    return [http("GET", path, who.host, {"X-Auth-Token": who.token})]


def showing(who: Who) -> list[bytes]:
    """Return a GET for one cluster."""
    path = f"/api/v3/projects/{who.project_id}/clusters/{who.cluster_id}"
    return [http("GET", path, who.host, {"X-Auth-Token": who.token})]
