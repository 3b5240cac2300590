import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import HTTPMessage
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.cli.credential.cache import login_state
from clustercert.cli.credential.renewal import Credential
from clustercert.cli.kubeconfig.request import CertificateRequest
from clustercert.cli.options import LifetimeOptions
from clustercert.client import Client, IssueOptions
from clustercert.client.connection import ApiError, ApiResponse
from clustercert.model import JsonObject
from clustercert.model.times import rfc3339

HOUR = timedelta(hours=1)


@dataclass
class Service:
    """A service whose clock is behind this machine's by an offset. It refuses times in the past."""

    offset: timedelta
    requests: list[IssueOptions] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) - self.offset

    def issue(self, _project: str, _cluster: str, options: IssueOptions) -> ApiResponse:
        self.requests.append(options)
        assert options.expire_at is not None
        if options.expire_at < self.now + timedelta(minutes=15):
            raise ApiError("expire_at must be 15 minutes ahead", 400)
        assert options.csr is not None
        key = x509.load_pem_x509_csr(options.csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self._response(kubeconfig(key, self.now, options.expire_at))

    def exchange(self, _method: str, _path: str) -> ApiResponse:
        return self._response({})

    def _response(self, body: JsonObject) -> ApiResponse:
        headers = HTTPMessage()
        headers["Date"] = format_datetime(self.now, usegmt=True)
        return ApiResponse(headers, body)


def kubeconfig(key: ec.EllipticCurvePublicKey, not_before: datetime, not_after: datetime) -> JsonObject:
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")])
    leaf = (
        x509.CertificateBuilder(name, name, key, 1, not_before, not_after)
        .sign(authority, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    return {
        "clusters": [{"name": "internalCluster", "cluster": {"server": "https://10.0.0.5:6443"}}],
        "contexts": [{"name": "internal", "context": {"cluster": "internalCluster", "user": "user"}}],
        "users": [{"name": "user", "user": {"client-certificate-data": base64.b64encode(leaf).decode()}}],
        "current-context": "internal",
    }


def send(service: Service, expires_in: str) -> Credential:
    request = CertificateRequest("p", "c", LifetimeOptions(expires_in=expires_in))
    return Credential.from_issued(request.send(cast("Client", service)), "1:2 /login")


@pytest.mark.parametrize(
    ("offset", "expires_in", "lifetime"),
    [
        (timedelta(0), "8h", 8 * HOUR),
        (HOUR, "8h", 9 * HOUR),
        (-HOUR, "8h", 7 * HOUR),
        (HOUR, "30m", HOUR * 1.5),
        # The first request is refused, since its time of expiry is in the past.
        (-HOUR, "30m", HOUR / 2),
    ],
)
def test_expiry_is_told_by_this_machines_clock(
    offset: timedelta, expires_in: str, lifetime: timedelta
) -> None:
    credential = send(Service(offset), expires_in)

    now = datetime.now(UTC)
    assert abs(credential.expires - now - lifetime) < timedelta(minutes=10)
    entry = credential.cache_entry(now.timestamp())
    left = timedelta(seconds=entry.expires - entry.renew)
    assert abs(left - max(lifetime / 5, timedelta(minutes=5))) < timedelta(minutes=3)


def test_a_short_certificate_is_used_for_half_its_lifetime() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    entry = Credential("CERT", "KEY", now + timedelta(minutes=6), "1:2 /login").cache_entry(now.timestamp())
    assert (entry.renew - entry.issued, entry.expires - entry.issued) == (180, 360)
    assert json.loads(entry.body)["status"]["expirationTimestamp"] == rfc3339(now + timedelta(minutes=5))


def test_an_entry_from_the_future_is_not_used(tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.touch()
    now = datetime.now(UTC)
    state = login_state(str(login))
    entry = Credential("CERT", "KEY", now + HOUR, state).cache_entry(now.timestamp())
    assert entry.is_fresh(now.timestamp())
    assert not entry.is_fresh((now - HOUR).timestamp())
    assert not entry.is_usable((now + HOUR).timestamp())
