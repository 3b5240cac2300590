"""Requests a certificate for a cluster, with a private key that is created on this machine or by the service."""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from clustercert.cli.kubeconfig.validation import LocalKey, ValidatedKubeconfig, validated_kubeconfig
from clustercert.cli.options import LifetimeOptions
from clustercert.client.connection import ApiError
from clustercert.policy.lifetime import SHORTEN

if TYPE_CHECKING:
    from clustercert.client import Client

_HEADER = "X-Clustercert-Access-Request"


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A request for a certificate for a cluster.

    Attributes:
        local_key: whether to create the private key on this machine.
        access_request: the id of the access request whose groups the certificate has. A certificate that would outlive
            the access request is shortened.
    """

    project_id: str
    cluster_id: str
    lifetime: LifetimeOptions
    local_key: bool = True
    reason: str | None = None
    access_request: str | None = None

    def send(self, client: "Client") -> ValidatedKubeconfig:
        """Request the certificate, and return the validated kubeconfig. Raises ClientError or CommandError."""
        key = LocalKey() if self.local_key else None
        options = replace(
            self.lifetime.issue_options(),
            csr=key.csr_pem() if key else None,
            reason=self.reason,
            access_request=self.access_request,
        )
        if self.access_request is not None and options.expires_in is not None:
            options = replace(options, shorten=True)
        try:
            response = client.issue(self.project_id, self.cluster_id, options)
        except ApiError as error:
            raise self._refusal(error) from error
        found = validated_kubeconfig(response.body, key)
        is_used = self.access_request is not None and response.headers.get(_HEADER) == self.access_request
        return replace(found, access_request=self.access_request) if is_used else found

    def _refusal(self, error: ApiError) -> ApiError:
        """Return the error with advice: options instead of API fields, and the command that explains a refusal."""
        if self.lifetime.expires_in is not None:
            advice = "Give a shorter --expires-in, or leave it out."
        else:
            advice = "Request less, or --duration -1 for the longest allowed."
        message = error.message.replace(SHORTEN, advice)
        if self.lifetime.expire_at is not None and message.startswith("expire_at: "):
            message = message.replace("expire_at", "--expire-at", 1)
        if error.http_status == HTTPStatus.FORBIDDEN:
            request = f" --request {self.access_request}" if self.access_request is not None else ""
            message += f" `clustercert explain {self.cluster_id}{request}` shows the reason."
        return ApiError(message, error.http_status)
