"""Use case: whether a kube-apiserver is to honour a credential. It only ever denies, and leaves the rest to RBAC."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from clustercert import metrics
from clustercert.model import Origin
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.recognition import Recognition, Recognized
from clustercert.webhook.review import Identity
from clustercert.webhook.sightings import Sighting, Sightings

Outcome = Literal["no_opinion", "revoked", "other_cluster", "unknown", "forged", "altered", "too_large"]

_ANOTHER = "Get one with `clustercert kubeconfig get`."


@dataclass(frozen=True, slots=True)
class Decision:
    """What is answered.

    Attributes:
        reason: why it is denied, for whoever shows the credential; None where there is no opinion.
    """

    outcome: Outcome
    reason: str | None = None


NO_OPINION = Decision("no_opinion")
OTHER_CLUSTER = Decision("other_cluster", f"This certificate was issued for another cluster. {_ANOTHER}")
UNKNOWN = Decision(
    "unknown", f"This cluster honours only certificates that clustercert issued for it. {_ANOTHER}"
)
NOT_RECORDED = Decision(
    "unknown", f"This certificate is not in the ledger of this clustercert installation. {_ANOTHER}"
)
FORGED = Decision("forged", f"This certificate is not the one that its credential number names. {_ANOTHER}")
ALTERED = Decision(
    "altered",
    f"This is an altered copy of a certificate. Use the certificate as it was issued. {_ANOTHER}",
)
TOO_LARGE = Decision(
    "too_large", "This request is too large to be judged. Make it smaller: fewer names in its selectors."
)
_FAULTS = {"other_cluster": OTHER_CLUSTER, "forged": FORGED}


class Authorization:
    """Answers SubjectAccessReviews.

    Attributes:
        policy_groups: the Kubernetes groups that the policy gives; members of them are never exempt.
    """

    def __init__(
        self,
        recognition: Recognition,
        sightings: Sightings,
        now: Callable[[], datetime],
        policy_groups: Collection[str],
    ) -> None:
        self._recognition = recognition
        self._sightings = sightings
        self._now = now
        self._policy_groups = policy_groups

    async def decide(self, gate: Gate, who: Identity, origin: Origin) -> Decision:
        """One denied credential denies, whatever the others are. Raises Unavailable."""
        decision = NO_OPINION
        for shown in await self._recognition.recognize(gate.cluster_id, who):
            now = self._now()
            self._sightings.note(Sighting(gate, who, shown, now, now, origin, "webhook"))
            if decision.reason is None:
                decision = self._judge(gate, who, shown)
        return decision

    def _judge(self, gate: Gate, who: Identity, shown: Recognized) -> Decision:
        known = shown.credential
        if known is not None:
            if known.revoked:
                return _revoked(known.revoked_at)
            return ALTERED if shown.altered else NO_OPINION
        if shown.fault in _FAULTS:
            return _FAULTS[shown.fault]
        if shown.claims_ours:
            return NOT_RECORDED
        known_only = gate.options.mode == "known-only"
        if known_only and not exempt(who, gate.options, self._policy_groups):
            return UNKNOWN
        return NO_OPINION


def counted(decision: Decision) -> Decision:
    """The same, counted."""
    _COUNTS[decision.outcome].inc()
    return decision


def _revoked(at: datetime | None) -> Decision:
    when = f" on {at:%Y-%m-%dT%H:%M:%SZ}" if at is not None else ""
    return Decision("revoked", f"This certificate was revoked{when}. {_ANOTHER}")


# Finding a labelled series takes longer than counting in it.
_COUNTS = {outcome: metrics.WEBHOOK_DECISIONS.labels(outcome) for outcome in get_args(Outcome)}
