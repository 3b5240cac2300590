"""Use case: deny a credential at a kube-apiserver, or return no opinion. The webhook never allows a request."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.pending_reports import ObservedUse
from clustercert.kubernetes.webhook.recognition import Recognition, Recognized
from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.model import ClusterOptions, Origin, rfc3339
from clustercert.observability import metrics
from clustercert.policy.templates import exemption_of, is_exempt
from clustercert.store.clusters.registry import ClusterWebhookConfig
from clustercert.store.kubernetes.credential_cache import CachedCertificate

WebhookOutcome = Literal[
    "no_opinion",
    "revoked",
    "retired_ca",
    "other_cluster",
    "unknown",
    "forged",
    "altered",
    "not_pinned",
    "too_large",
]

# kubectl asks the exec plugin for a new certificate after status 401, but not after 403. So a denied certificate stays
# in the plugin's cache.
_GET_ONE = (
    "Get another one: for kubectl's plugin, run `clustercert credential CLUSTER --refresh >/dev/null`; for a file,"
    " `clustercert kubeconfig get`."
)


@dataclass(frozen=True, slots=True)
class Decision:
    """The response to a SubjectAccessReview.

    Attributes:
        reason: why the credential is denied, written for the credential's holder; `None` for no opinion.
    """

    outcome: WebhookOutcome
    reason: str | None = None


NO_OPINION = Decision("no_opinion")
UNKNOWN = Decision(
    "unknown", f"This cluster accepts only certificates that clustercert issued for it. {_GET_ONE}"
)
NOT_RECORDED = Decision(
    "unknown", f"This certificate is not in the ledger of this clustercert installation. {_GET_ONE}"
)
ALTERED = Decision(
    "altered",
    f"This is an altered copy of a certificate. Use the certificate as it was issued. {_GET_ONE}",
)
RETIRED_CA = Decision("retired_ca", f"The client CA of this certificate was replaced. {_GET_ONE}")
NOT_PINNED = Decision(
    "not_pinned",
    "This certificate's name is exempt in this cluster, but its fingerprint is not pinned. Ask the operator to pin"
    " the certificate.",
)
TOO_LARGE = Decision("too_large", "This request is too large to review. Use fewer names in its selectors.")
_FAULTS = {
    "other_cluster": Decision(
        "other_cluster", f"This certificate was issued for another cluster. {_GET_ONE}"
    ),
    "forged": Decision("forged", f"This certificate does not match its credential number. {_GET_ONE}"),
}


@dataclass(frozen=True, slots=True)
class Authorization:
    """Answers SubjectAccessReviews.

    Attributes:
        policy_groups: the Kubernetes groups that the policy grants; their members are never exempt.
    """

    recognition: Recognition
    credential_usage: CredentialUsage
    now: Callable[[], datetime]
    policy_groups: Collection[str]

    async def decide(
        self, webhook_config: ClusterWebhookConfig, identity: RequestSender, origin: Origin, token_hash: bytes
    ) -> Decision:
        """Deny the request if any of its credentials is denied. Raises Unavailable."""
        decision = NO_OPINION
        for recognized in await self.recognition.recognize(webhook_config.cluster_id, identity):
            self._report_use(webhook_config, identity, recognized, origin, token_hash)
            if decision.reason is None:
                decision = self._decide_one(webhook_config, identity, recognized)
                self._report_refusal(recognized, decision)
        return decision

    def remembered_denial(
        self, webhook_config: ClusterWebhookConfig, identity: RequestSender, origin: Origin, token_hash: bytes
    ) -> Decision | None:
        """Return the denial of a certificate that was denied when the database last answered, or None.

        Does not read the database. While the database is down, an error could let the API server allow the certificate.
        A revocation that was undone in this time still counts.
        """
        recognized = self.recognition.remembered(webhook_config.cluster_id, identity)
        if recognized is None:
            return None
        decision = self._decide_one(webhook_config, identity, recognized)
        if decision.reason is None:
            return None
        self._report_use(webhook_config, identity, recognized, origin, token_hash)
        self._report_refusal(recognized, decision)
        return decision

    def _report_refusal(self, recognized: Recognized, decision: Decision) -> None:
        if decision.outcome == "revoked" and recognized.credential is not None:
            self.credential_usage.report_refusal(recognized.credential.id)

    def _report_use(
        self,
        webhook_config: ClusterWebhookConfig,
        identity: RequestSender,
        recognized: Recognized,
        origin: Origin,
        token_hash: bytes,
    ) -> None:
        now = self.now()
        self.credential_usage.report(
            ObservedUse(webhook_config, identity, recognized, now, now, origin, "webhook", token_hash)
        )

    def _decide_one(
        self, webhook_config: ClusterWebhookConfig, identity: RequestSender, recognized: Recognized
    ) -> Decision:
        if recognized.credential is not None:
            return _decide_known(webhook_config, recognized.credential, altered=recognized.altered)
        if recognized.fault in _FAULTS:
            return _FAULTS[recognized.fault]
        if recognized.claims_ours:
            return NOT_RECORDED
        if webhook_config.options.mode == "known-only":
            return self._decide_unknown(webhook_config.options, identity, recognized)
        return NO_OPINION

    def _decide_unknown(
        self, options: ClusterOptions, identity: RequestSender, recognized: Recognized
    ) -> Decision:
        """In mode known-only, decide about a certificate without a credential group."""
        fingerprints = () if recognized.fingerprint is None else (recognized.fingerprint.hex(),)
        named = (identity.username, identity.groups)
        if is_exempt(*named, fingerprints, options, self.policy_groups):
            return NO_OPINION
        return UNKNOWN if exemption_of(*named, options, self.policy_groups) is None else NOT_PINNED


def _decide_known(
    webhook_config: ClusterWebhookConfig, credential: CachedCertificate, *, altered: bool
) -> Decision:
    """Decide about a certificate that is in the ledger for this cluster."""
    if credential.revoked:
        return _revoked(credential.revoked_at)
    if credential.ca_id == webhook_config.denied_ca_id:
        return RETIRED_CA
    return ALTERED if altered else NO_OPINION


def count_decision(decision: Decision) -> None:
    _COUNTERS[decision.outcome].inc()


def _revoked(at: datetime | None) -> Decision:
    when = f" on {rfc3339(at)}" if at is not None else ""
    return Decision("revoked", f"This certificate was revoked{when}. {_GET_ONE}")


# Store the counters, because looking up a counter by its label takes longer than incrementing the counter.
_COUNTERS = {outcome: metrics.WEBHOOK_DECISIONS.labels(outcome) for outcome in get_args(WebhookOutcome)}
