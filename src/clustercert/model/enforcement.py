"""Words for how well a cluster enforces revocations, for the console and the command line."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from clustercert.model.choices import EnforcementState

VERIFICATION_COUNTS = timedelta(days=30)
"""A cluster counts as verified for this long after `clustercert kubernetes verify` found no fault."""

Severity = Literal["good", "warn", "bad"]


class EnforcementWords(NamedTuple):
    """Words for a state of enforcement.

    Attributes:
        label: a few words, for a table.
        text: what this service has seen, and what to do.
    """

    label: str
    severity: Severity
    text: str


ENFORCEMENT_WORDS: Mapping[EnforcementState, EnforcementWords] = {
    "unreviewed": EnforcementWords(
        "webhook bypassed",
        "bad",
        "A certificate was used, but the API server did not ask the webhook. Without these calls, revocations have no"
        " effect. Check the API server's configuration, then run `clustercert kubernetes verify`.",
    ),
    "none": EnforcementWords(
        "not enforced",
        "bad",
        "The API server has never asked the webhook, and no other control is set up. A revoked certificate works until"
        " it expires. Set up a control with `clustercert kubernetes setup`.",
    ),
    "used": EnforcementWords(
        "used after revocation",
        "bad",
        "The API server accepted a revoked credential, and nobody has verified the cluster since. Find out why, then"
        " run `clustercert kubernetes verify`.",
    ),
    "incomplete": EnforcementWords(
        "webhook not called",
        "warn",
        "The cluster has a webhook token, but its API server has never asked the webhook. Another control is set up."
        " Finish the set-up of the webhook, or remove the token.",
    ),
    "only_writes": EnforcementWords(
        "only writes refused",
        "warn",
        "The admission policy refuses only writes with a revoked certificate. Reading works until the certificate"
        " expires.",
    ),
    "quiet": EnforcementWords(
        "quiet",
        "warn",
        "The API server has not asked the webhook for a day, and no use of a certificate is known since. So it is not"
        " known whether it still asks. To find out, run `clustercert kubernetes verify`.",
    ),
    "unverified": EnforcementWords(
        "not verified",
        "warn",
        "A control is set up, but `clustercert kubernetes verify` has not found within"
        f" {VERIFICATION_COUNTS.days} days that it works.",
    ),
    "bindings": EnforcementWords(
        "bindings, verified",
        "good",
        "This service deletes the binding of a revoked certificate in the cluster. `clustercert kubernetes verify`"
        " found that this works. Certificates without a binding work until they expire.",
    ),
    "tokens": EnforcementWords(
        "tokens, verified",
        "good",
        "This service deletes the bindings and the account of a revoked token in the cluster. `clustercert kubernetes"
        " verify` found that this works.",
    ),
    "verified": EnforcementWords(
        "enforced and verified",
        "good",
        "The API server asks the webhook about certificates, and `clustercert kubernetes verify` found that it refuses"
        " revoked ones.",
    ),
}
"""The words for each state, the worst state first."""


def enforcement_text(state: EnforcementState, called_at: str | None) -> str:
    """Return the words for a state in one paragraph, with the time when the API server last called the webhook."""
    label, _, text = ENFORCEMENT_WORDS[state]
    called = f" The API server last asked the webhook at {called_at}." if called_at is not None else ""
    return f"{label[0].upper()}{label[1:]}. {text}{called}"


WORKING: tuple[EnforcementState, ...] = tuple(
    state for state, words in ENFORCEMENT_WORDS.items() if words.severity == "good"
)
"""The states in which a control is set up, and found to work."""
