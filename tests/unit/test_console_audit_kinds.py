"""Which kinds of audit events the console's list can select, and which it marks for a check."""

from clustercert.http.console.pages.audit import ALERTS, KINDS
from scripts.generate_docs import event_types

# Kinds that only "All kinds" shows. Name a new kind here, or give it a line in KINDS; and decide about ALERTS.
UNLISTED = {
    "access_requests.pruned",
    "audit_batch.refused",
    "audit_log.begun",
    "certificate.failed",
    "certificate.mismatch",
    "certificates.pruned",
    "client_ca.key_deleted",
    "cluster_certificates.approved",
    "domain.created",
    "domain.disabled",
    "domain.enabled",
    "domain.removed",
    "enforcement.overflowed",
    "events.deleted",
    "issuers.loaded",
    "keys.created",
    "keys.retired",
    "keys.rotated",
    "project.created",
    "project.disabled",
    "project.enabled",
    "project.removed",
    "project.updated",
    "refusals.repeated",
    "revocation.undone",
    "revocations.pruned",
    "token.revoked",
    "webhook_token.created",
    "webhook_token.removed",
}


def selected(pattern: str) -> set[str]:
    """The kinds of events that a pattern of the API selects."""
    prefix = pattern.removesuffix("*")
    return {
        kind for kind in event_types() if kind == pattern or (prefix != pattern and kind.startswith(prefix))
    }


def test_every_kind_of_event_can_be_selected_or_is_left_out_on_purpose() -> None:
    patterns = [pattern for pattern, _ in KINDS if pattern]
    assert [pattern for pattern in patterns if not selected(pattern)] == []
    assert set(event_types()) - set().union(*map(selected, patterns)) == UNLISTED


def test_an_operator_is_asked_to_check_what_may_be_an_attack_or_a_loss() -> None:
    assert {kind for kind in event_types() if kind.startswith(ALERTS)} == {
        "authentication.failed",
        "ca_rotation.proof_lost",
        "certificate.failed",
        "certificate.mismatch",
        "cluster_tokens.foreign",
        "cluster_tokens.stopped",
        "cluster_tokens.unknown",
        "credential.altered",
        "credential.counted",
        "credential.exempt",
        "credential.masters",
        "credential.revoked_used",
        "credential.unknown",
    }
