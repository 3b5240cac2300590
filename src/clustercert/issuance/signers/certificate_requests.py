"""Has a cluster sign a certificate, through the API `certificates.k8s.io/v1`.

Source: Kubernetes documentation, "Certificates and Certificate Signing Requests"; measured on 1.32 and 1.36.
"""

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509

from clustercert.issuance.signers.account_tokens import AccountToken
from clustercert.kube_api import UNEXPECTED_RESPONSE, ApiServerRefused, KubeApi, printable, segment
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, RemoteFailed, SignerError, Unavailable
from clustercert.model.kubernetes import CLIENT_SIGNER, MANAGED_BY
from clustercert.pki.certificates import certificate_der
from clustercert.pki.keys import PARSE_ERRORS
from clustercert.pki.leaf import der_pem

logger = structlog.get_logger()

API_VERSION = "certificates.k8s.io/v1"
PATH = f"/apis/{API_VERSION}/certificatesigningrequests"
# The label with the id of the cluster in this service, so that two services don't delete each other's requests.
CLUSTER_LABEL = "clustercert/cluster"
# kube-apiserver refuses a shorter validity.
SHORTEST = timedelta(minutes=10)
# A request that is older than this is a leftover of a process that was killed.
LEFTOVER_AGE = timedelta(minutes=10)

_MAX_OBJECT_BYTES = 128 * 1024
_MAX_LIST_BYTES = 2 * 1024 * 1024
_LIST_LIMIT = 50
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
_CONFLICT = 409
_MAX_REASON = 100
_DELETE_SECONDS = 5.0


class NotSigned(Unavailable):
    """The cluster has not signed within the time limit."""


@dataclass(slots=True)
class CertificateRequests:
    """Creates, approves and deletes CertificateSigningRequests with one service account."""

    cluster_id: str
    _deletions: set[asyncio.Task[None]] = field(default_factory=set)

    async def sign(
        self,
        api: KubeApi,
        account: AccountToken,
        csr_der: bytes,
        usages: Sequence[str],
        lifetime: timedelta,
        *,
        seconds: float | None = None,
    ) -> tuple[bytes, ...]:
        """Have the cluster sign a CSR. Returns the certificates in the cluster's answer, DER.

        Args:
            seconds: time limit for the signature, after which NotSigned is raised; `None` for no limit.

        Always deletes the request, also after a failure or a cancellation. Raises SignerError, RemoteFailed or
        Unavailable.
        """
        name = f"clustercert-{secrets.token_hex(16)}"
        request_spec = {
            "request": base64.b64encode(certificate_request_pem(csr_der)).decode(),
            "signerName": CLIENT_SIGNER,
            "expirationSeconds": int(lifetime.total_seconds()),
            "usages": list(usages),
        }
        try:
            await self._create(api, name, request_spec)
            await self._approve(api, account, name, request_spec)
            async with asyncio.timeout(seconds):
                return await self._signed(api, name)
        except TimeoutError as error:
            if seconds is None:
                raise
            raise NotSigned(
                f"The cluster did not sign a certificate within {seconds:g} seconds. Try again later.",
                retry_after=5,
            ) from error
        finally:
            self._delete_later(api, name)

    async def delete_leftovers(self, api: KubeApi, account: AccountToken, now: datetime) -> int:
        """Delete old requests of this service for this cluster. Returns their number.

        Raises ApiServerRefused, RemoteFailed or Unavailable.
        """
        selector = ",".join(f"{key}={value}" for key, value in self._labels().items())
        parameters = {"labelSelector": selector, "limit": str(_LIST_LIMIT)}
        listed = (await api.get(PATH, parameters, max_bytes=_MAX_LIST_BYTES)).get("items")
        if not isinstance(listed, list):
            raise RemoteFailed(UNEXPECTED_RESPONSE)
        # The API server may ignore the limit.
        names = [name for each in listed[:_LIST_LIMIT] if (name := _leftover(each, account.username, now))]
        for name in names:
            await api.delete(f"{PATH}/{segment(name)}")
        return len(names)

    async def close(self) -> None:
        """Wait for the deletions that are under way, for at most a few seconds."""
        if self._deletions:
            _, late = await asyncio.wait(self._deletions, timeout=_DELETE_SECONDS)
            for task in late:
                task.cancel()

    async def _create(self, api: KubeApi, name: str, request_spec: JsonObject) -> None:
        metadata = {"name": name, "labels": self._labels()}
        document: dict[str, object] = {
            "apiVersion": API_VERSION,
            "kind": "CertificateSigningRequest",
            "metadata": metadata,
            "spec": request_spec,
        }
        try:
            await api.create(PATH, document, max_bytes=_MAX_OBJECT_BYTES)
        except ApiServerRefused as refused:
            # The client sends a request again after a lost connection, so the first attempt may have succeeded.
            if refused.http_status != _CONFLICT:
                raise

    async def _approve(
        self, api: KubeApi, account: AccountToken, name: str, request_spec: JsonObject
    ) -> None:
        """Approve a request if the request in the cluster is still exactly as this service created it."""
        found = await api.get(f"{PATH}/{name}", max_bytes=_MAX_OBJECT_BYTES)
        spec, status = found.get("spec"), found.get("status") or {}
        if not isinstance(spec, dict) or not isinstance(status, dict):
            raise RemoteFailed(UNEXPECTED_RESPONSE)
        expected = {**request_spec, "username": account.username, "uid": account.uid}
        if differing := [key for key, value in expected.items() if spec.get(key) != value]:
            raise SignerError(
                "The certificate request in the cluster differs from the request that this service created:"
                f" {', '.join(differing)}. The request was not approved."
            )
        if status.get("conditions"):
            raise SignerError(
                "Another program decided about this service's certificate request in the cluster, so this"
                " service did not use the request. Tell the operator to find the program."
            )
        approval = {
            "type": "Approved",
            "status": "True",
            "reason": "CreatedByClustercert",
            "message": "This account created the request for a certificate that the policy of clustercert grants.",
        }
        await api.replace(
            f"{PATH}/{name}/approval", {**found, "status": {**status, "conditions": [approval]}}
        )

    async def _signed(self, api: KubeApi, name: str) -> tuple[bytes, ...]:
        """Wait until the request is signed."""
        pause = _FIRST_PAUSE
        while True:
            status = (await api.get(f"{PATH}/{name}", max_bytes=_MAX_OBJECT_BYTES)).get("status")
            if isinstance(status, dict):
                if encoded := status.get("certificate"):
                    return _certificates(encoded)
                _require_no_failure(status)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _delete_later(self, api: KubeApi, name: str) -> None:
        task = asyncio.create_task(self._delete(api, name))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete(self, api: KubeApi, name: str) -> None:
        try:
            await api.delete(f"{PATH}/{name}")
        except ClustercertError as error:
            logger.warning(
                "certificate request not deleted", cluster=self.cluster_id, request=name, error=error.message
            )

    def _labels(self) -> dict[str, str]:
        return {**MANAGED_BY, CLUSTER_LABEL: self.cluster_id}


def certificate_request_pem(csr_der: bytes) -> bytes:
    """Encode a CSR as a PEM block. RFC 7468 section 7. The cluster's admission policy allows only this form."""
    return der_pem(csr_der).replace(b" CERTIFICATE-----", b" CERTIFICATE REQUEST-----")


def _certificates(encoded: object) -> tuple[bytes, ...]:
    try:
        pem = base64.b64decode(str(encoded), validate=True)
        return tuple(certificate_der(each) for each in x509.load_pem_x509_certificates(pem))
    except PARSE_ERRORS as error:
        raise RemoteFailed(UNEXPECTED_RESPONSE) from error


def _require_no_failure(status: JsonObject) -> None:
    conditions = status.get("conditions")
    for each in conditions if isinstance(conditions, list) else ():
        if isinstance(each, dict) and each.get("type") in ("Denied", "Failed"):
            reason = printable(str(each.get("reason", "")), _MAX_REASON)
            raise RemoteFailed(
                f"The cluster did not sign a certificate: the request has the condition {each['type']}"
                f" ({reason}). Tell the operator."
            )


def _leftover(found: object, username: str, now: datetime) -> str | None:
    """Return the name of a request if this account created the request longer than `LEFTOVER_AGE` ago."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        metadata, spec = found["metadata"], found["spec"]  # type: ignore[index] # a wrong type is a TypeError
        created = datetime.strptime(metadata["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if spec["username"] == username and now - created > LEFTOVER_AGE:
            return str(metadata["name"])
    return None
