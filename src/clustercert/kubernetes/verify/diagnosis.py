"""Finds out why an API server accepts a revoked certificate in spite of the authorization webhook.

Source of the behavior: measurements with kube-apiserver 1.32 and 1.36, in `docs/kubernetes.md`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from clustercert.kubernetes.setup.webhook_check import HandshakeError, NoWebhook, check_webhook
from clustercert.kubernetes.verify.certificates import TemporaryCertificates, VerifiedService
from clustercert.kubernetes.verify.probe import Probe
from clustercert.kubernetes.webhook.credential_usage import FLUSH_SECONDS
from clustercert.model import Cluster
from clustercert.store.kubernetes.credential_usage import RESOLUTION

# Every process of this service notices a revocation within a second, and writes reports of wrong tokens every
# FLUSH_SECONDS.
NOTICED_SECONDS = 5.0
REPORTED_SECONDS = FLUSH_SECONDS + 5
# Part of the message with which the webhook denies a revoked certificate.
REVOKED = "certificate was revoked"

CACHED = (
    "The API server still uses a cached answer: set unauthorizedTTL to 2s (without it, Kubernetes uses 30s), or give a"
    " longer --wait."
)
BEHIND_RBAC = (
    "The webhook denies the certificate, but another authorizer allowed the request before: put the entry clustercert"
    " first in authorization-config.yaml, or Webhook before RBAC in --authorization-mode. On Talos, list all"
    " authorizers in this order. Gardener does not allow this order."
)
NOT_ASKED = (
    "The API server asked no webhook about the certificate: on every API server, set the flags that README.md of"
    " `clustercert kubernetes setup` lists, and check in the API server's log that it could load the files. (Kubernetes"
    " older than 1.30 does not count calls: check in the log also that no call failed.)"
)
NO_TOKEN = "The cluster has no webhook token: run `clustercert kubernetes setup`, and follow its README.md."
WRONG_TOKEN = (
    "The API server calls the webhook with a wrong token: run `clustercert kubernetes setup --force`, and give the new"
    " webhook.kubeconfig to the API server under a different name, as README.md describes."
)
NOT_OURS = (
    "A webhook answers, but does not deny the certificate. Check that webhook.kubeconfig has the address of this"
    " service, and that the service at this address uses the same database."
)
WRONG_CA = (
    "The calls of the API server fail before they have an answer, although the service answers here at {url}: correct"
    " the CA or the address in webhook.kubeconfig with --webhook-ca or --webhook-url of `clustercert kubernetes setup"
    " --force`, or the network between the API server and the service."
)
TLS = (
    "The TLS handshake with the service at {url} fails here too ({error}): start the service, or correct its"
    " certificate."
)
NO_ADDRESS = (
    "The calls of the API server fail before they have an answer: check the address and the CA in "
    "webhook.kubeconfig, and that the service is running."
)
UNANSWERED = (
    "{url} does not answer from here: {error}. Start the webhook with `clustercert serve --role webhook`, or correct"
    " webhook.public_url and the webhook's certificate, unless only the control plane can reach this address."
)
UNKNOWN = (
    "Check the flags and the order of authorizers as in README.md of `clustercert kubernetes setup`, that the service"
    " runs, and the address, CA and token in webhook.kubeconfig. To find out which of these is the cause, run this"
    " command again with a certificate that may read /metrics of the API server: with --rule, name a rule of the policy"
    " that needs only a role, and whose group is bound to cluster-admin."
)


def webhook_problem(service: VerifiedService, cluster: Cluster) -> str | None:
    """Return why the webhook does not answer this process, or `None` if it answers or its address is unknown."""
    url = service.webhook_url
    if url is None:
        return None
    try:
        check_webhook(url, service.webhook_ca_pem, cluster.id)
    except HandshakeError as error:
        return UNANSWERED.format(url=url, error=error)
    except NoWebhook as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class WebhookDiagnosis:
    """Finds the cause of a failed check, and returns advice about how to correct the fault.

    Attributes:
        started_at: when the verification started.
    """

    service: VerifiedService
    cluster: Cluster
    certificates: TemporaryCertificates
    started_at: datetime

    async def why_accepted(self, revoked: Probe, valid: Probe) -> str:
        """Return advice if the API server accepts a revoked certificate. Raises ClustercertError if the store fails."""
        if REVOKED in await revoked.new_denial():
            return CACHED
        if await self._is_denied_without_rights():
            return BEHIND_RBAC
        before = await valid.webhook_calls()
        await valid.new_denial()
        after = await valid.webhook_calls()
        if before is None or after is None:
            return await self._why_unanswered() or self._why_unknown()
        increased = {result for result in after if after[result] > before.get(result, 0)}
        if not increased:
            # Older API servers do not count webhook calls, so a call with a wrong token is still possible.
            return (None if after else await self._why_unanswered()) or NOT_ASKED
        if increased == {"success"}:
            return NOT_OURS
        return await self._why_unanswered() or self._why_unreachable()

    async def is_unanswered(self, revoked: Probe) -> bool:
        """Whether neither the API server nor this process gets an answer from the webhook. More time can't help then.

        An API server with the failurePolicy NoOpinion then accepts the revoked certificate.
        """
        return (
            REVOKED not in await revoked.new_denial()
            and webhook_problem(self.service, self.cluster) is not None
        )

    async def why_undecided(self) -> str:
        """Return advice if the API server has the failurePolicy Deny, and gets no answer from the webhook."""
        return await self._why_unanswered() or self._why_unreachable()

    async def _is_denied_without_rights(self) -> bool:
        """Whether the webhook denies a revoked certificate to which RBAC gives no rights."""
        issued = await self.certificates.issue_without_groups()
        probe = await self.certificates.open(issued)
        await self.service.revoke(issued)

        async def is_denied() -> bool:
            return REVOKED in await probe.new_denial()

        return await _within(NOTICED_SECONDS, is_denied)

    async def _why_unanswered(self) -> str | None:
        """Return advice if the API server's token is missing or wrong."""
        tokens = self.service.tokens
        if not await tokens.queries.tokens_of_cluster(self.cluster.id):
            return NO_TOKEN

        async def is_refused() -> bool:
            times = [each.refused_at for each in await tokens.queries.tokens_of_cluster(self.cluster.id)]
            return any(at is not None and at >= self.started_at - RESOLUTION for at in times)

        return WRONG_TOKEN if await _within(REPORTED_SECONDS, is_refused) else None

    def _why_unknown(self) -> str:
        problem = webhook_problem(self.service, self.cluster)
        return UNKNOWN if problem is None else f"{problem} {UNKNOWN}"

    def _why_unreachable(self) -> str:
        url = self.service.webhook_url
        if url is None:
            return NO_ADDRESS
        try:
            check_webhook(url, self.service.webhook_ca_pem, self.cluster.id)
        except HandshakeError as error:
            return TLS.format(url=url, error=error)
        except NoWebhook as error:
            return str(error)
        return WRONG_CA.format(url=url)


async def _within(seconds: float, holds: Callable[[], Awaitable[bool]]) -> bool:
    """Whether a condition becomes true within the given seconds. Tests the condition at least once."""
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.1)
    return True
