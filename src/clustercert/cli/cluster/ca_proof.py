"""Tries temporary certificates of client CAs at API servers, from this machine."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.client.connection import HttpRequest, HttpTransport, one_line
from clustercert.kube_api import ClientIdentity, tls_context
from clustercert.model import JsonObject
from clustercert.model.choices import ProofOutcome
from clustercert.model.errors import RemoteFailed

SECONDS = 10.0
# The maximum length of a detail in the API.
MAX_DETAIL = 300
_MAX_RESPONSE_BYTES = 64 * 1024
_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


@dataclass(frozen=True, slots=True)
class TemporaryCertificate:
    """A certificate that the service issued for a proof, with its key, in PEM."""

    identity: ClientIdentity
    server_ca_pem: bytes

    def try_at(self, address: str) -> tuple[ProofOutcome, str]:
        """Return how the API server at an address treats the certificate, and the reason if nothing is proved."""
        try:
            status, body = self._review(address)
        except (http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
            return "failed", one_line(str(reason) or type(error).__name__)[:MAX_DETAIL]
        except RemoteFailed as error:
            return "failed", error.message[:MAX_DETAIL]
        if status == HTTPStatus.UNAUTHORIZED:
            return "refused", ""
        return self._judged(status, body)

    def _judged(self, status: int, body: JsonObject) -> tuple[ProofOutcome, str]:
        """Judge a response other than 401."""
        message = one_line(str(body.get("message", "")))
        # An API server that denies the request names the user whom it has authenticated.
        if status == HTTPStatus.FORBIDDEN and f'User "{self._username}"' in message:
            return "accepted", ""
        if status != HTTPStatus.CREATED:
            return "failed", f"The server answered with status {status}. {message}".strip()[:MAX_DETAIL]
        user = _mapping(_mapping(body.get("status")).get("userInfo"))
        name, groups = user.get("username"), user.get("groups")
        if (
            name != self._username
            or not isinstance(groups, list)
            or not self._groups <= set(map(str, groups))
        ):
            return "failed", one_line(f"The server sees the user {name}. Is the server a proxy?")[:MAX_DETAIL]
        return "accepted", ""

    @property
    def _username(self) -> str:
        return "".join(self._subject(NameOID.COMMON_NAME))

    @property
    def _groups(self) -> set[str]:
        return self._subject(NameOID.ORGANIZATION_NAME)

    def _subject(self, oid: x509.ObjectIdentifier) -> set[str]:
        subject = x509.load_pem_x509_certificate(self.identity.chain_pem).subject
        return {str(each.value) for each in subject.get_attributes_for_oid(oid)}

    def _review(self, address: str) -> tuple[int, JsonObject]:
        """Ask the API server which user it sees. Returns status and body."""
        transport = HttpTransport(address, tls_context(self.server_ca_pem, self.identity), SECONDS)
        try:
            target = urlsplit(address).path.rstrip("/") + _REVIEWS
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            reply = transport.send(HttpRequest("POST", target, headers, json.dumps(_REVIEW).encode()))
            content = reply.body(_MAX_RESPONSE_BYTES)
        finally:
            transport.close()
        try:
            return reply.status, dict(_mapping(json.loads(content or b"{}")))
        except (ValueError, RecursionError):
            return reply.status, {}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
