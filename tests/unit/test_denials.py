import pytest

from clustercert.audit.refusals import DenialAudit
from clustercert.model import Actor, AuditEvent
from clustercert.model.errors import (
    ClustercertError,
    Conflict,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RemoteFailed,
    SignerError,
    Unavailable,
)
from clustercert.model.events.issuance import CertificateRefused, event_request
from clustercert.model.events.operation import RequestRefused
from support.issuance_doubles import CA, REQUEST, Clusters, MemoryLedger
from support.samples import CLUSTER_ID, NOW, OTHER_PROJECT_ID, PROJECT_ID, USER_ID, caller


async def certificate_denial(failure: ClustercertError, project_id: str = PROJECT_ID) -> list[AuditEvent]:
    ledger = MemoryLedger()
    audit = DenialAudit(ledger, Clusters(), lambda: NOW)
    await audit.certificate(caller("admin"), project_id, CLUSTER_ID, REQUEST, failure)
    return ledger.notes


async def request_denial(failure: ClustercertError, path: str = "/x") -> list[AuditEvent]:
    ledger = MemoryLedger()
    await DenialAudit(ledger, Clusters(), lambda: NOW).request(
        caller("admin"), "POST", path, PROJECT_ID, failure
    )
    return ledger.notes


async def test_a_refused_certificate_is_recorded_with_its_trace() -> None:
    [event] = await certificate_denial(Forbidden("Too long.", trace={"rule": "admin"}))
    assert (event.kind, event.at, event.project_id) == ("certificate.refused", NOW, PROJECT_ID)
    assert (event.actor, event.subject) == (Actor(USER_ID, caller().origin), CLUSTER_ID)
    assert isinstance(event, CertificateRefused)
    assert (event.error, event.message, event.trace) == ("Forbidden", "Too long.", {"rule": "admin"})
    assert (event.caller["auth_method"], event.caller["roles"]) == ("token", ("admin",))
    assert (event.requested_project_id, event.request) == (PROJECT_ID, event_request(REQUEST, None))
    assert event.cluster is not None
    assert (event.cluster["id"], event.cluster["ca_id"]) == (CLUSTER_ID, CA.id)


async def test_an_invalid_body_is_refused_before_a_cluster_is_looked_up() -> None:
    ledger = MemoryLedger()
    audit = DenialAudit(ledger, Clusters(), lambda: NOW)
    await audit.certificate(caller("admin"), PROJECT_ID, CLUSTER_ID, None, InvalidRequest("No."))
    [event] = ledger.notes
    assert isinstance(event, CertificateRefused)
    assert (event.request, event.cluster) == (None, None)


@pytest.mark.parametrize(
    ("failure", "kinds"),
    [
        (InvalidRequest("No."), ["certificate.refused"]),
        (NotFound(), ["certificate.refused"]),
        (Unavailable("The CA has expired.", trace={"allowed_by": "ca"}), ["certificate.refused"]),
        (SignerError("No key."), ["certificate.failed"]),
        (RemoteFailed("Down."), ["certificate.failed"]),
        (Unavailable("Later."), []),
        (MethodNotAllowed("No GET."), []),
    ],
)
async def test_what_a_failed_certificate_request_is_recorded_as(
    failure: ClustercertError, kinds: list[str]
) -> None:
    assert [event.kind for event in await certificate_denial(failure)] == kinds


async def test_a_project_without_a_role_gets_no_event() -> None:
    [event] = await certificate_denial(NotFound(), OTHER_PROJECT_ID)
    assert isinstance(event, CertificateRefused)
    assert (event.project_id, event.requested_project_id) == (None, OTHER_PROJECT_ID)
    assert event.cluster is None


@pytest.mark.parametrize("failure", [NotFound(), InvalidRequest("No."), Conflict("No."), Unavailable("No.")])
async def test_other_requests_are_recorded_only_if_forbidden(failure: ClustercertError) -> None:
    assert await request_denial(failure) == []
    [event] = await request_denial(Forbidden("Not yours."))
    assert isinstance(event, RequestRefused)
    assert (event.kind, event.subject, event.method) == ("request.refused", "/x", "POST")


@pytest.mark.parametrize("path", ["/" + "x" * 5000, "/\0", "/\u202e" * 300])
async def test_a_recorded_path_is_short_and_printable(path: str) -> None:
    [event] = await request_denial(Forbidden("Not yours."), path)
    assert event.subject.isprintable()
    assert len(event.subject) <= 257


async def test_a_denial_that_cannot_be_recorded_is_unavailable() -> None:
    audit = DenialAudit(
        MemoryLedger(failure=Unavailable("The database does not answer.")), Clusters(), lambda: NOW
    )
    with pytest.raises(Unavailable):
        await audit.certificate(caller("reader"), PROJECT_ID, CLUSTER_ID, REQUEST, Forbidden("Too long."))
