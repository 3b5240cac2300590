"""Runs step-ca as a peer: it signs CSRs for one-time tokens, with its durable database (Badger)."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from bench import processes, wrk
from bench.peers import Peer
from bench.traffic import CSR_NAME, JSON, csr_pem, http
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import key_pem, new_key

PACKAGE = "golang-github-smallstep-certificates-dev"
# Debian's folder of Go libraries. The package has no program, so `build` makes one.
GOPATH = Path("/usr/share/gocode")
LIBRARY = GOPATH / "src" / "github.com" / "smallstep" / "certificates"
PROGRAM = Path(__file__).with_name("stepca_server") / "main.go"

PROVISIONER = "bench"
CSRS = 64
# More than it answers in a second, because it refuses a token that was used before.
TOKENS_A_SECOND = 6000
TOKEN_SECONDS = 300


def installed() -> bool:
    """Whether its library and a compiler are there."""
    return LIBRARY.exists() and shutil.which("go") is not None


def version() -> str:
    """Return the version of the package."""
    asked = ["dpkg-query", "-W", "-f", "${Version}", PACKAGE]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True, slots=True)
class StepCA:
    """The running server, and the key that its tokens are signed with."""

    peer: Peer
    key: ec.EllipticCurvePrivateKey
    host: str

    def load(self, connections: int, seconds: float) -> wrk.Load:
        """Run a load in which each request has a token of its own."""
        requests = list(self._requests(round(TOKENS_A_SECOND * max(1, seconds))))
        return replace(self.peer, requests=requests).load(connections, seconds)

    def _requests(self, count: int) -> Iterator[bytes]:
        csrs = [csr_pem() for _ in range(CSRS)]
        for number in range(count):
            body = {"csr": csrs[number % CSRS], "ott": _token(self.key, f"https://{self.host}/1.0/sign")}
            yield http("POST", "/1.0/sign", self.host, JSON, json.dumps(body).encode())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[StepCA]:
    """Serve its sign call during the block, over TLS with a certificate of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = _build(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    port = processes.free_port()
    _configure(folder, port, key)
    log = folder / "step-ca.log"
    with processes.running(
        [program, "ca.json"],
        log,
        lambda: processes.listens(port),
        env={"STEPPATH": str(folder)},
        cwd=folder,
    ) as pid:
        host = f"127.0.0.1:{port}"
        yield StepCA(Peer(f"https://{host}", (), [pid]), key, host)


def _build(folder: Path) -> Path:
    program = folder.parent / "step-ca.program"
    subprocess.run(
        ["go", "build", "-o", program, PROGRAM],
        env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH)},
        # The compiler warns about calls of old functions in C libraries.
        capture_output=True,
        check=True,
    )
    return program


def _configure(folder: Path, port: int, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the files that its own set-up makes, with a CA like this service's client CAs."""
    ca_key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    (folder / "ca.pem").write_bytes(chain_pem((new_client_ca("bench", ca_key, now, timedelta(days=3650)),)))
    (folder / "ca.key").write_bytes(key_pem(ca_key))
    provisioner = {
        "type": "JWK",
        "name": PROVISIONER,
        "key": _jwk(key.public_key()),
        "claims": {"defaultTLSCertDuration": "24h"},
    }
    configuration = {
        "root": str(folder / "ca.pem"),
        "crt": str(folder / "ca.pem"),
        "key": str(folder / "ca.key"),
        "address": f"127.0.0.1:{port}",
        "dnsNames": ["127.0.0.1"],
        "logger": {"format": "text"},
        "db": {"type": "badgerv2", "dataSource": str(folder / "db")},
        "authority": {"provisioners": [provisioner]},
    }
    (folder / "ca.json").write_text(json.dumps(configuration))


def _jwk(key: ec.EllipticCurvePublicKey) -> Mapping[str, str]:
    point = key.public_numbers()
    coordinates = {"x": _base64(point.x.to_bytes(32)), "y": _base64(point.y.to_bytes(32))}
    return {"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": PROVISIONER, **coordinates}


def _token(key: ec.EllipticCurvePrivateKey, audience: str) -> str:
    now = int(time.time())
    claims = {
        "iss": PROVISIONER,
        "sub": CSR_NAME,
        "sans": [CSR_NAME],
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + TOKEN_SECONDS,
        "jti": secrets.token_hex(16),
    }
    header = {"alg": "ES256", "typ": "JWT", "kid": PROVISIONER}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64(r.to_bytes(32) + s.to_bytes(32))}"


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
