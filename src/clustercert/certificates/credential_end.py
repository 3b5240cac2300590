"""How a credential ends, and which uses were seen. The API, the command line and the console all show this value."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from clustercert.certificates.controls import FAST_CONTROLS, Control, ControlName
from clustercert.model.choices import CertificateState, EnforcementState, RefusalState
from clustercert.model.kubernetes import MASTERS
from clustercert.model.times import is_recent
from clustercert.store.certificates.views import CertificateView
from clustercert.store.clusters.enforcement_state import ClusterContact

RefusedRequests = Literal["all", "bound", "writes", "none"]
"""Which requests with revoked certificates the API server refuses: all, only those with certificates that have a
binding, only those that write, or none."""

_SLOW_CONTROLS: tuple[ControlName, ...] = ("ca", "expiry")
_MASTERS_LACK = (
    "The API server never asks the webhook about members of system:masters. Replace the client CA."
)


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How a cluster refuses revoked certificates, as far as this service knows.

    Attributes:
        state: what was seen of the cluster; see `store.clusters.enforcement_state`.
        asked_at: when an API server last called the webhook; None if never.
        enforced_by: the fast controls that are set up and can stop the certificates, fastest first.
        within_seconds: the seconds from a revocation until the API server refuses the certificate; None without such a
            control.
        does_not_stop: a sentence that says what the fastest of these controls does not stop; None without a control.
        lacking: a sentence that says what is missing; None if nothing is known to be missing.
    """

    state: EnforcementState
    asked_at: datetime | None
    refuses: RefusedRequests
    enforced_by: tuple[ControlName, ...]
    within_seconds: int | None
    lacking: str | None
    does_not_stop: str | None = None

    def expected_by(self, revoked_at: datetime) -> datetime | None:
        """Return when the API server should refuse a credential revoked at this time; None without a control."""
        seconds = self.within_seconds
        return None if seconds is None else revoked_at + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class CredentialEnd:
    """How an unexpired certificate ends, and which uses were seen.

    Attributes:
        state: whether the certificate is revoked.
        has_access: whether the certificate gives access, as far as this service knows. Even a revoked certificate
            gives access if no control stops it, or if an API server allowed its use within the last day.
        stopped_by: the controls that can stop the certificate, fastest first.
        ends_by: the control that ends the access first: `ca` if the cluster has fast controls but none of them stops
        this certificate, and `expiry` if the cluster has no fast controls.
        revoked_at, revoked_by: when and by whom the certificate was revoked; None if the certificate is live.
        used_after_revocation_at: when an API server last allowed a request after the revocation; None if none was seen.
        refusal: whether a refusal was seen; None if the certificate is not revoked. `used`: an API server allowed a
            request after the revocation. `refused`: the webhook told the API server to refuse a request. `expected`: a
            control should stop the certificate, but nothing was seen yet. `only_writes`: the same for writes, and the
            API server accepts reads. `unknown`: the cluster is quiet, so nothing shows whether its API server still
            asks the webhook. `none`: nothing stops the certificate before it expires.
        refused_at: when the webhook last told the API server to refuse the certificate; None if it did not.
        expected_by: by when the API server should refuse the certificate, or its writes; None if nothing stops it.
    """

    state: CertificateState
    has_access: bool
    stopped_by: tuple[ControlName, ...]
    ends_by: ControlName
    enforcement: Enforcement
    revoked_at: datetime | None
    revoked_by: str | None
    used_after_revocation_at: datetime | None
    refusal: RefusalState | None
    refused_at: datetime | None
    expected_by: datetime | None


def enforcement_of(
    contact: ClusterContact, controls: Sequence[Control], certificate: CertificateView | None = None
) -> Enforcement:
    """Return how a cluster with these controls refuses a revoked certificate: this one, or by default any."""
    stopping = [
        each
        for each in controls
        if each.set_up and each.name in FAST_CONTROLS and (certificate is None or _stops(each, certificate))
    ]
    names = tuple(each.name for each in stopping)
    refuses: RefusedRequests = "none"
    if "webhook" in names or "account" in names or ("binding" in names and certificate is not None):
        refuses = "all"
    elif names:
        refuses = "bound" if "binding" in names else "writes"
    lacking = next((each.lacking for each in controls if each.lacking is not None), None)
    return Enforcement(
        contact.state,
        contact.asked_at,
        refuses,
        names,
        stopping[0].within_seconds if stopping else None,
        _MASTERS_LACK if certificate is not None and _is_of_masters(certificate) else lacking,
        stopping[0].does_not_stop if stopping else None,
    )


def credential_end(
    certificate: CertificateView, contact: ClusterContact, controls: Sequence[Control], now: datetime
) -> CredentialEnd:
    """Return how a certificate ends in a cluster with these controls."""
    enforcement = enforcement_of(contact, controls, certificate)
    state, used_at = certificate.state(now), certificate.used_after_revocation_at
    is_stopped = state != "live" and enforcement.refuses == "all"
    slow: ControlName = "ca" if enforcement_of(contact, controls).enforced_by else "expiry"
    return CredentialEnd(
        state=state,
        has_access=not is_stopped or is_recent(used_at, now),
        stopped_by=(
            *enforcement.enforced_by,
            *(each.name for each in controls if each.name in _SLOW_CONTROLS),
        ),
        ends_by=enforcement.enforced_by[0] if enforcement.enforced_by else slow,
        enforcement=enforcement,
        revoked_at=certificate.revoked_at,
        revoked_by=certificate.revoked_by,
        used_after_revocation_at=used_at,
        refusal=_refusal(certificate, enforcement, now),
        refused_at=certificate.refused_after_revocation_at,
        expected_by=enforcement.expected_by(certificate.revoked_at) if certificate.revoked_at else None,
    )


def _refusal(certificate: CertificateView, enforcement: Enforcement, now: datetime) -> RefusalState | None:
    """Return whether the refusal of a revoked certificate was seen."""
    used_at, refused_at = certificate.used_after_revocation_at, certificate.refused_after_revocation_at
    if certificate.revoked_at is None:
        return None
    # A refusal says nothing about the other API servers of the cluster, so a recent use counts even after a refusal.
    if used_at is not None and (refused_at is None or used_at >= refused_at or is_recent(used_at, now)):
        return "used"
    if refused_at is not None:
        return "refused"
    if enforcement.refuses == "writes":
        return "only_writes"
    if enforcement.refuses != "none":
        return "expected"
    return "unknown" if enforcement.state == "quiet" and not _is_of_masters(certificate) else "none"


def _is_of_masters(certificate: CertificateView) -> bool:
    """Whether the API server sees the certificate's holder in system:masters. No token gives this group."""
    return certificate.kind == "certificate" and MASTERS in certificate.groups


def _stops(control: Control, certificate: CertificateView) -> bool:
    """Whether a control can stop this certificate, if the control is set up."""
    # The API server never asks the webhook about members of system:masters, who can also remove the other controls.
    if _is_of_masters(certificate):
        return False
    return control.name != "binding" or certificate.has_only_credential_group
