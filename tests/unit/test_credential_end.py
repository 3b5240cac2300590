"""How a credential ends, by the controls of its cluster, its groups, its revocation, and its use after that."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from clustercert.certificates.controls import Control, ControlName
from clustercert.certificates.credential_end import CredentialEnd, credential_end, enforcement_of
from clustercert.store.certificates.views import CertificateView
from clustercert.store.clusters.enforcement_state import ClusterContact

NOW = datetime(2026, 12, 2, 12, tzinfo=UTC)
SECONDS: dict[ControlName, int | None] = {
    "webhook": 3,
    "binding": 2,
    "admission": 1,
    "ca": None,
    "expiry": None,
}


def controls(set_up: Collection[str]) -> tuple[Control, ...]:
    return tuple(
        Control(name, name in {*set_up, "ca", "expiry"}, "", "", within_seconds=seconds)
        for name, seconds in SECONDS.items()
    )


def certificate(
    *groups: str,
    revoked: timedelta | None = None,
    used: timedelta | None = None,
    refused: timedelta | None = None,
) -> CertificateView:
    """A certificate that was revoked, used and refused this long ago."""
    return CertificateView(
        fingerprint=bytes(32),
        serial="1",
        cluster_id="c",
        project_id="p",
        ca_id="ca",
        user_id="u",
        user_name="alice",
        groups=groups,
        not_before=NOW - timedelta(days=3),
        not_after=NOW + timedelta(days=3),
        key_type="ec-p256",
        key_origin="csr",
        auth_method="token",
        source_address="192.0.2.1",
        request_id="r",
        reason=None,
        issued_at=NOW - timedelta(days=3),
        credential_number="n",
        id=1,
        revoked_at=NOW - revoked if revoked is not None else None,
        revoked_by="operator" if revoked is not None else None,
        revocation_reason=None,
        first_seen_at=None,
        last_seen_at=None,
        altered_at=None,
        revoked_used_at=NOW - used if used is not None else None,
        refused_at=NOW - refused if refused is not None else None,
    )


VERIFIED, QUIET = ClusterContact("verified"), ClusterContact("quiet")


def end(set_up: Collection[str], *groups: str, **times: timedelta) -> CredentialEnd:
    return credential_end(certificate(*groups, **times), VERIFIED, controls(set_up), NOW)


@pytest.mark.parametrize(
    ("set_up", "of_all", "alone", "in_a_group"),
    [
        ((), ("none", None), ("none", "expiry"), ("none", "expiry")),
        (("webhook",), ("all", 3), ("all", "webhook"), ("all", "webhook")),
        (("webhook", "binding", "admission"), ("all", 3), ("all", "webhook"), ("all", "webhook")),
        (("binding",), ("bound", 2), ("all", "binding"), ("none", "ca")),
        (("binding", "admission"), ("bound", 2), ("all", "binding"), ("writes", "admission")),
        (("admission",), ("writes", 1), ("writes", "admission"), ("writes", "admission")),
    ],
)
def test_controls_say_which_requests_are_refused(
    set_up: tuple[str, ...],
    of_all: tuple[str, int | None],
    alone: tuple[str, str],
    in_a_group: tuple[str, str],
) -> None:
    found = enforcement_of(VERIFIED, controls(set_up))
    assert (found.refuses, found.within_seconds, found.enforced_by) == (*of_all, set_up)
    for each, expected in ((end(set_up), alone), (end(set_up, "team:blue"), in_a_group)):
        assert (each.enforcement.refuses, each.ends_by) == expected
        assert each.stopped_by == (*each.enforcement.enforced_by, "ca", "expiry")
        assert (each.state, each.has_access, each.revoked_at) == ("live", True, None)


@pytest.mark.parametrize(
    ("set_up", "used", "has_access"),
    [
        ((), None, True),
        (("admission",), None, True),
        (("webhook",), None, False),
        (("binding",), None, False),
        # A use within the last day shows that the control does not work.
        (("webhook",), timedelta(minutes=5), True),
        (("webhook",), timedelta(days=1, minutes=5), False),
        # This use was before the revocation.
        (("webhook",), timedelta(days=2, minutes=5), False),
    ],
)
def test_a_revoked_certificate_gives_access_unless_all_requests_are_refused(
    set_up: tuple[str, ...], used: timedelta | None, has_access: bool
) -> None:
    times = {"revoked": timedelta(days=2)} | ({"used": used} if used is not None else {})
    found = end(set_up, **times)
    assert (found.state, found.has_access) == ("revoked", has_access)
    assert (found.revoked_at, found.revoked_by) == (NOW - timedelta(days=2), "operator")
    is_after = used is not None and used < timedelta(days=2)
    assert (found.used_after_revocation_at is not None) is is_after


def test_only_the_ca_ends_the_access_of_masters() -> None:
    found = end(("webhook", "binding", "admission"), "system:masters", revoked=timedelta(0))
    assert (found.enforcement.refuses, found.ends_by, found.has_access) == ("none", "ca", True)
    assert found.stopped_by == ("ca", "expiry")
    assert "Replace the client CA" in str(found.enforcement.lacking)


def test_what_is_missing_is_said() -> None:
    webhook = Control("webhook", False, "", "", lacking="A webhook token exists.")
    assert enforcement_of(VERIFIED, [webhook]).lacking == "A webhook token exists."
    assert enforcement_of(VERIFIED, [webhook], certificate()).lacking == "A webhook token exists."


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("set_up", "times", "refusal"),
    [
        (("webhook",), {}, None),
        (("webhook",), {"revoked": HOUR}, "expected"),
        (("webhook",), {"revoked": HOUR, "refused": HOUR / 2}, "refused"),
        # Another API server of the cluster accepted the certificate, before or after the refusal.
        (("webhook",), {"revoked": HOUR, "refused": HOUR / 2, "used": HOUR / 3}, "used"),
        (("webhook",), {"revoked": HOUR, "refused": HOUR / 3, "used": HOUR / 2}, "used"),
        (("webhook",), {"revoked": 3 * DAY, "refused": HOUR, "used": 2 * DAY}, "refused"),
        # The use and the refusal were before this revocation: an earlier one was undone.
        (("webhook",), {"revoked": HOUR, "refused": 2 * HOUR, "used": 3 * HOUR}, "expected"),
        (("admission",), {"revoked": HOUR}, "only_writes"),
        ((), {"revoked": HOUR}, "none"),
        # The webhook was asked, although it is not known to be set up any more.
        ((), {"revoked": 2 * DAY, "refused": 2 * DAY - HOUR}, "refused"),
    ],
)
def test_a_refusal_is_only_said_if_it_was_seen(
    set_up: tuple[str, ...], times: dict[str, timedelta], refusal: str | None
) -> None:
    found = end(set_up, **times)
    assert found.refusal == refusal
    is_expected = "revoked" in times and set_up
    seconds = SECONDS["webhook" if "webhook" in set_up else "admission"]
    by = NOW - times["revoked"] + timedelta(seconds=seconds or 0) if is_expected else None
    assert found.expected_by == by


@pytest.mark.parametrize(
    ("groups", "times", "refusal"),
    [
        (("team:blue",), {"revoked": HOUR}, "unknown"),
        (("team:blue",), {"revoked": 3 * DAY, "refused": 2 * DAY}, "refused"),
        (("system:masters",), {"revoked": HOUR}, "none"),
        (("team:blue",), {}, None),
    ],
)
def test_in_a_quiet_cluster_no_refusal_is_promised(
    groups: tuple[str, ...], times: dict[str, timedelta], refusal: str | None
) -> None:
    found = credential_end(certificate(*groups, **times), QUIET, controls(()), NOW)
    assert (found.refusal, found.has_access, found.expected_by) == (refusal, True, None)
    assert found.enforcement.state == "quiet"
