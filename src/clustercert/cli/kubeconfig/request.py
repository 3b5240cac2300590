"""Requests a certificate for a cluster, with a private key that is created on this machine or by the service."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from clustercert.cli.kubeconfig.validation import LocalKey, ValidatedKubeconfig, validated_kubeconfig
from clustercert.cli.options import LifetimeOptions
from clustercert.client import LONGEST, IssueOptions
from clustercert.client.connection import ApiError
from clustercert.policy.lifetime import SHORTEN

if TYPE_CHECKING:
    from clustercert.client import Client
    from clustercert.client.connection import ApiResponse

# Ignore smaller clock differences, which come from the resolution of the Date header and the duration of the request.
_CLOCK_DIFFERENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class IssuedKubeconfig:
    """A validated kubeconfig with a new certificate.

    Attributes:
        clock_offset: how much this machine's clock is ahead of the service's clock.
    """

    kubeconfig: ValidatedKubeconfig
    clock_offset: timedelta

    @property
    def expires(self) -> datetime:
        """The end of the certificate's validity, by this machine's clock."""
        return self.kubeconfig.not_after + self.clock_offset


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A request for a certificate for a cluster.

    Attributes:
        local_key: whether to create the private key on this machine.
    """

    project_id: str
    cluster_id: str
    lifetime: LifetimeOptions
    local_key: bool = True
    reason: str | None = None

    def send(self, client: "Client") -> IssuedKubeconfig:
        """Request the certificate, and return the validated kubeconfig. Raises ClientError or CommandError."""
        key = LocalKey() if self.local_key else None
        csr_pem = key.csr_pem() if key else None
        try:
            response = self._send(client, csr_pem, datetime.now(UTC))
        except ApiError as error:
            # If the clocks differ, the requested time of expiry may be in the past by the service's clock.
            offset = self._offset_by_request(client) if error.http_status == 400 else timedelta(0)  # noqa: PLR2004
            if not offset:
                raise
            response = self._send(client, csr_pem, datetime.now(UTC) - offset)
        return IssuedKubeconfig(validated_kubeconfig(response.body, key), clock_offset(response))

    def _send(self, client: "Client", csr_pem: str | None, now: datetime) -> "ApiResponse":
        """Request a certificate. If the lifetime is refused, requests the longest allowed, within the tolerance."""
        lifetime = self.lifetime.lifetime(now)
        options = IssueOptions(lifetime.duration, lifetime.expire_at, csr_pem, self.reason)
        try:
            return client.issue(self.project_id, self.cluster_id, options)
        except ApiError as error:
            refusal = self._refusal(error)
            if error.http_status != 403 or options.expire_at is None:  # noqa: PLR2004 - the status of "too long"
                raise refusal from error
            longest = client.longest_not_after(self.project_id, self.cluster_id)
            if options.expire_at - longest > lifetime.tolerance:
                raise refusal from error
        return client.issue(
            self.project_id, self.cluster_id, replace(options, duration=LONGEST, expire_at=None)
        )

    def _refusal(self, error: ApiError) -> ApiError:
        """Return the error with advice about the lifetime that names options instead of API fields."""
        if self.lifetime.expires_in is not None:
            advice = "Give a shorter --expires-in, or leave it out."
        else:
            advice = "Request less, or --duration -1 for the longest allowed."
        message = error.message.replace(SHORTEN, advice)
        if self.lifetime.expire_at is not None and message.startswith("expire_at: "):
            message = message.replace("expire_at", "--expire-at", 1)
        return ApiError(message, error.http_status)

    def _offset_by_request(self, client: "Client") -> timedelta:
        path = f"/api/v3/projects/{self.project_id}/clusters/{self.cluster_id}"
        return clock_offset(client.exchange("GET", path))


def clock_offset(response: "ApiResponse") -> timedelta:
    """Return how much this machine's clock is ahead of the service's clock; zero for a small or unknown difference."""
    try:
        there = parsedate_to_datetime(response.headers.get("Date", ""))
        offset = datetime.now(UTC) - there
    except (ValueError, TypeError):
        return timedelta(0)
    return offset if abs(offset) > _CLOCK_DIFFERENCE else timedelta(0)
