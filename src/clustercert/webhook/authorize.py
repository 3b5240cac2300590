"""Use case: whether a kube-apiserver is to honour a credential. It only ever denies, and leaves the rest to RBAC."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from clustercert import metrics
from clustercert.model import Origin
from clustercert.store.credentials import Credential, Credentials
from clustercert.store.webhook_tokens import Gate
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.review import Identity
from clustercert.webhook.sightings import Sighting, Sightings

Outcome = Literal["no_opinion", "revoked", "other_cluster", "unknown", "too_large"]

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
TOO_LARGE = Decision(
    "too_large", "This request is too large to be judged. Make it smaller: fewer names in its selectors."
)


class Authorization:
    """Decides."""

    def __init__(self, credentials: Credentials, sightings: Sightings, now: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._sightings = sightings
        self._now = now

    async def decide(self, gate: Gate, who: Identity, origin: Origin) -> Decision:
        """One denied credential denies, whatever the others are. Raises Unavailable."""
        decision = NO_OPINION
        if who.malformed and _known_only(gate, who):
            decision = UNKNOWN
        for fingerprint in who.fingerprints:
            known = await self._credentials.find(fingerprint)
            now = self._now()
            self._sightings.note(Sighting(gate, who, fingerprint, known, now, now, origin))
            if decision.reason is None:
                decision = _judged(gate, who, known)
        return decision


def counted(decision: Decision) -> Decision:
    """The same, counted."""
    _COUNTS[decision.outcome].inc()
    return decision


def _judged(gate: Gate, who: Identity, known: Credential | None) -> Decision:
    if known is None:
        return UNKNOWN if _known_only(gate, who) else NO_OPINION
    if known.cluster_id != gate.cluster_id:
        return OTHER_CLUSTER
    if known.revoked:
        return _revoked(known.revoked_at)
    return NO_OPINION


def _known_only(gate: Gate, who: Identity) -> bool:
    """Whether only certificates that the ledger knows are honoured of this user."""
    return gate.options.mode == "known-only" and not exempt(who, gate.options)


def _revoked(at: datetime | None) -> Decision:
    when = f" on {at:%Y-%m-%dT%H:%M:%SZ}" if at is not None else ""
    return Decision("revoked", f"This certificate was revoked{when}. {_ANOTHER}")


# Finding a labelled series takes longer than counting in it.
_COUNTS = {
    outcome: metrics.WEBHOOK_DECISIONS.labels(outcome)
    for outcome in ("no_opinion", "revoked", "other_cluster", "unknown", "too_large")
}
