import itertools
from asyncio import CancelledError
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.issuance.service import MAX_REPEATS
from clustercert.model import Caller, CertificateRecord, IssueRequest, SigningRequest
from clustercert.model.errors import (
    ClustercertError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
    Unauthenticated,
    Unavailable,
)
from clustercert.model.events.issuance import CertificateIssued
from clustercert.pki.keys import new_key
from clustercert.policy.templates import UserNameTemplate
from support.issuance_doubles import (
    CA,
    CHOSEN_SERIAL,
    CLUSTER,
    REQUEST,
    ChangingRights,
    Clusters,
    ClusterSigner,
    FailingSigner,
    HonestSigner,
    MemoryLedger,
    SerialChoosingSigner,
    issuance,
)
from support.leaf_checks import assert_client_leaf, assert_subject, credential_number_of, spki
from support.samples import (
    BACKDATE,
    CLUSTER_ID,
    ISSUED_AT,
    NOW,
    OTHER_PROJECT_ID,
    POLICY,
    PROJECT_ID,
    USER_ID,
    caller,
    client_ca,
    grant,
)

# What is issued


async def test_what_is_issued_is_the_grant_signed_by_the_clusters_ca() -> None:
    issued = await issuance().issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)
    leaf = x509.load_der_x509_certificate(issued.leaf_der)
    assert_client_leaf(
        leaf,
        ca=CA.ca_certificate,
        username=USER_ID,
        groups=["clustercert:admins"],
        issued_at=NOW,
        lifetime=timedelta(days=30),
    )
    assert issued.private_key is not None
    assert spki(issued.private_key.public_key()) == spki(leaf.public_key())
    assert issued.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()
    assert int(issued.serial, 16) == leaf.serial_number
    assert issued.credential_number == issued.serial == credential_number_of(leaf)
    assert issued.cluster == CLUSTER


async def test_a_csrs_key_is_certified_and_no_key_is_made() -> None:
    key = new_key("ed25519")
    ask = replace(REQUEST, public_key=key.public_key())
    issued = await issuance().issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    assert issued.private_key is None
    assert spki(x509.load_der_x509_certificate(issued.leaf_der).public_key()) == spki(key.public_key())


async def test_a_validity_that_the_signer_shortened_is_what_is_answered_and_recorded() -> None:
    late, longest = timedelta(seconds=2), timedelta(hours=1)
    ledger = MemoryLedger()
    service = issuance({"local": ClusterSigner(longest, late)}, ledger)
    issued = await service.issue(caller("member"), PROJECT_ID, CLUSTER_ID, REQUEST)
    leaf = x509.load_der_x509_certificate(issued.leaf_der)
    validity = ISSUED_AT + late - BACKDATE, ISSUED_AT + late + longest
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == validity
    assert (issued.grant.not_before, issued.grant.not_after) == validity
    [(record, event)] = ledger.entries
    assert isinstance(event, CertificateIssued)
    assert (record.not_before, record.not_after) == (event.not_before, event.not_after) == validity
    assert record.issued_at == NOW
    assert record.groups == event.organizations[:-1] == ("clustercert:editors", "builders")


async def test_a_signer_that_needs_a_csr_of_its_own_signs_no_callers_key() -> None:
    ledger = MemoryLedger()
    service = issuance({"local": ClusterSigner(timedelta(hours=1))}, ledger)
    ask = replace(REQUEST, public_key=new_key("ed25519").public_key())
    with pytest.raises(InvalidRequest, match="csr: the cluster itself signs"):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    assert ledger.entries == []


async def test_each_issue_has_its_own_key_and_serial() -> None:
    one = issuance()
    issued = [await one.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST) for _ in range(3)]
    assert len({spki(x509.load_der_x509_certificate(each.leaf_der).public_key()) for each in issued}) == 3
    assert len({each.serial for each in issued}) == 3
    assert len({each.credential_number for each in issued}) == 3


# What is recorded


async def test_the_recorded_time_of_issue_is_the_time_of_the_decision() -> None:
    ledger = MemoryLedger()
    ticks = itertools.count()
    service = replace(issuance(ledger=ledger), now=lambda: NOW + timedelta(seconds=next(ticks)))
    await service.issue(caller("member"), PROJECT_ID, CLUSTER_ID, REQUEST)
    ((record, event),) = ledger.entries
    assert record.not_before == record.issued_at.replace(microsecond=0) - BACKDATE
    assert event.at == record.issued_at


async def test_certificate_and_audit_event_are_recorded_before_anything_leaves() -> None:
    ledger = MemoryLedger()
    issued = await issuance(ledger=ledger).issue(caller("member"), PROJECT_ID, CLUSTER_ID, REQUEST)
    ((record, event),) = ledger.entries
    leaf = x509.load_der_x509_certificate(issued.leaf_der)
    assert record == CertificateRecord(
        fingerprint=leaf.fingerprint(hashes.SHA256()),
        serial=issued.serial,
        cluster_id=CLUSTER_ID,
        project_id=PROJECT_ID,
        ca_id=CA.id,
        user_id=USER_ID,
        user_name="alice",
        groups=("clustercert:editors", "builders"),
        not_before=ISSUED_AT - BACKDATE,
        not_after=ISSUED_AT + timedelta(days=30),
        key_type="ec-p256",
        key_origin="generated",
        auth_method="token",
        source_address="192.0.2.1",
        request_id="f" * 32,
        reason="incident 4711",
        issued_at=NOW,
        der=leaf.public_bytes(Encoding.DER),
        rule="member",
        credential_number=credential_number_of(leaf),
    )
    assert (event.kind, event.at, event.project_id) == ("certificate.issued", NOW, PROJECT_ID)
    assert (event.actor, event.subject) == (caller().actor, issued.fingerprint)
    assert isinstance(event, CertificateIssued)
    assert (event.serial, event.common_name) == (issued.serial, USER_ID)
    assert event.credential_number == record.credential_number
    own_group = f"clustercert:credential:{record.credential_number}"
    assert event.organizations == ("clustercert:editors", "builders", own_group)
    assert_subject(leaf, USER_ID, ["clustercert:editors", "builders", own_group])
    assert dict(event.caller) == {
        "name": "alice",
        "domain_id": caller().user.domain.id,
        "domain_name": "default",
        "groups": (),
        "roles": ("member",),
        "service_roles": (),
        "auth_method": "token",
        "issuer": "built-in",
        "credential_id": "",
    }
    assert event.request == {
        "duration": 30,
        "expire_at": None,
        "expires_in": None,
        "shorten": False,
        "csr": False,
        "key_type": "ec-p256",
        "reason": "incident 4711",
    }
    assert event.cluster == {
        "id": CLUSTER_ID,
        "name": "production",
        "labels": {},
        "signer": "local",
        "ca_id": CA.id,
        "ca_not_after": CA.not_after,
        "credential_roles": None,
        "project": None,
    }


async def test_a_signer_chosen_serial_is_kept_beside_the_number() -> None:
    ledger = MemoryLedger()
    service = issuance({"local": SerialChoosingSigner()}, ledger)
    issued = [await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST) for _ in range(2)]
    assert len({each.credential_number for each in issued}) == 2
    for each, (record, event) in zip(issued, ledger.entries, strict=True):
        leaf = x509.load_der_x509_certificate(each.leaf_der)
        assert leaf.serial_number == int(record.serial, 16) == CHOSEN_SERIAL
        assert isinstance(event, CertificateIssued)
        assert record.serial == each.serial == event.serial
        assert record.credential_number == each.credential_number == event.credential_number
        assert_client_leaf(
            leaf,
            ca=CA.ca_certificate,
            username=USER_ID,
            groups=["clustercert:admins"],
            issued_at=NOW,
            lifetime=timedelta(days=30),
            credential_number=record.credential_number,
        )


async def test_a_csr_is_recorded_as_such() -> None:
    ledger = MemoryLedger()
    ask = replace(REQUEST, public_key=new_key("rsa-2048").public_key())
    await issuance(ledger=ledger).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    ((record, _),) = ledger.entries
    assert (record.key_origin, record.key_type) == ("csr", "rsa-2048")


async def test_nothing_leaves_that_could_not_be_recorded() -> None:
    ledger = MemoryLedger(failure=Unavailable("The database does not answer."))
    with pytest.raises(Unavailable):
        await issuance(ledger=ledger).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)


@pytest.mark.parametrize(
    ("who", "project_id", "cluster_id", "ask", "refusal"),
    [
        (caller("admin"), PROJECT_ID, "00000000-0000-4000-8000-000000000000", REQUEST, NotFound),
        (caller("admin"), PROJECT_ID, "production", REQUEST, NotFound),
        (caller("admin"), OTHER_PROJECT_ID, CLUSTER_ID, REQUEST, NotFound),
        (caller(), PROJECT_ID, CLUSTER_ID, REQUEST, NotFound),
        (caller("auditor"), PROJECT_ID, CLUSTER_ID, REQUEST, Forbidden),
        (caller("reader"), PROJECT_ID, CLUSTER_ID, REQUEST, Forbidden),
        (caller("admin"), PROJECT_ID, CLUSTER_ID, IssueRequest(), InvalidRequest),
        (caller("admin"), PROJECT_ID, CLUSTER_ID, IssueRequest(expire_at=NOW), InvalidRequest),
    ],
    ids=[
        "no such cluster",
        "a name for an id",
        "another project",
        "no role",
        "a role without a rule",
        "too long",
        "neither",
        "ended",
    ],
)
async def test_what_is_refused_is_neither_signed_nor_recorded(
    who: Caller, project_id: str, cluster_id: str, ask: IssueRequest, refusal: type[ClustercertError]
) -> None:
    ledger = MemoryLedger()
    never = FailingSigner(AssertionError("signed"))  # type: ignore[arg-type] # not to be raised
    service = issuance({"local": never}, ledger)
    with pytest.raises(refusal):
        await service.issue(who, project_id, cluster_id, ask)
    with pytest.raises(refusal):
        await service.preview(who, project_id, cluster_id, ask)
    assert ledger.entries == []


async def test_a_chosen_user_name_is_the_common_name_of_one_user_alone() -> None:
    ledger = MemoryLedger()
    policy = replace(POLICY, username=UserNameTemplate("{user.name}"))
    service = replace(issuance(ledger=ledger), policy=policy)
    issued = await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)
    ((record, event),) = ledger.entries
    assert isinstance(event, CertificateIssued)
    leaf = x509.load_der_x509_certificate(issued.leaf_der)
    assert_subject(
        leaf, "alice", ["clustercert:admins", f"clustercert:credential:{record.credential_number}"]
    )
    assert (record.user_id, record.username, event.common_name) == (USER_ID, "alice", "alice")
    assert event.actor.id == USER_ID
    with pytest.raises(Forbidden, match="belongs to another user"):
        await service.issue(caller("admin", user_id="0" * 32), PROJECT_ID, CLUSTER_ID, REQUEST)
    assert len(ledger.entries) == 1


async def test_a_refusal_has_the_trace_of_the_decision() -> None:
    service = issuance()
    for decide in (service.issue, service.preview):
        with pytest.raises(Forbidden) as raised:
            await decide(caller("reader"), PROJECT_ID, CLUSTER_ID, REQUEST)
        assert raised.value.trace == {
            "roles": ["reader"],
            "decided_at": NOW.isoformat(),
            "key_type": "ec-p256",
            "skipped_rules": ["admin", "member"],
            "rule": "reader",
            "rules": ["reader"],
            "groups": ["clustercert:viewers"],
            "allowed_until": (ISSUED_AT + timedelta(hours=8)).isoformat(),
            "allowed_by": "rule",
            "requested_not_after": (ISSUED_AT + timedelta(days=30)).isoformat(),
            "shortened": False,
        }


async def test_a_caller_without_a_role_is_not_even_looked_up() -> None:
    """The same answer, and the same work, for a cluster that exists and one that does not."""
    clusters = Clusters()
    with pytest.raises(NotFound):
        await issuance(clusters=clusters).issue(caller(), PROJECT_ID, CLUSTER_ID, REQUEST)
    assert clusters.asked == []


async def test_a_preview_says_what_would_be_issued_and_signs_and_records_nothing() -> None:
    ledger = MemoryLedger()
    never = FailingSigner(AssertionError("signed"))  # type: ignore[arg-type] # not to be raised
    service = issuance({"local": never}, ledger)
    preview = await service.preview(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)
    assert preview.grant == grant()
    assert preview.organizations == ("clustercert:admins", "clustercert:credential:<number>")
    assert preview.issuer == "CN=clustercert test"
    assert preview.key_type == "ec-p256"
    of_csr = replace(REQUEST, public_key=new_key("ec-p384").public_key())
    assert (await service.preview(caller("admin"), PROJECT_ID, CLUSTER_ID, of_csr)).key_type == "ec-p384"
    assert ledger.entries == []


# Signers that fail


@pytest.mark.parametrize("failure", [SignerError("No key."), RemoteFailed("Down."), Unavailable("Later.")])
async def test_a_signers_failure_is_the_requests(failure: ClustercertError) -> None:
    ledger = MemoryLedger()
    with pytest.raises(type(failure)) as raised:
        await issuance({"local": FailingSigner(failure)}, ledger).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST
        )
    assert raised.value is failure
    assert ledger.entries == []


async def test_a_cluster_of_a_signer_that_is_not_installed_gets_nothing() -> None:
    with pytest.raises(SignerError):
        await issuance({"another": HonestSigner()}).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)


# Rights that change during the request


@pytest.mark.parametrize("changes", [1, MAX_REPEATS - 1])
async def test_rights_may_change_if_the_decision_stays_the_same(changes: int) -> None:
    ledger, rights = MemoryLedger(), ChangingRights(changes)
    issued = await issuance(ledger=ledger).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, rights)
    assert [record.fingerprint.hex() for record, _ in ledger.entries] == [issued.fingerprint]
    assert rights.changes == 0


@pytest.mark.parametrize(
    ("changes", "later", "error"),
    [
        (1, caller("member"), Unavailable),
        (1, caller(in_projects={}), NotFound),
        (1, caller("stranger"), Forbidden),
        (1000, caller("admin"), Unavailable),
    ],
    ids=["other groups", "no role", "no rule", "too many changes"],
)
async def test_a_changed_decision_before_the_record_leaves_nothing(
    changes: int, later: Caller, error: type[ClustercertError]
) -> None:
    ledger = MemoryLedger()
    with pytest.raises(error):
        await issuance(ledger=ledger).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, ChangingRights(changes, later)
        )
    assert ledger.entries == []


async def test_a_change_of_the_cluster_during_the_request_counts() -> None:
    clusters = Clusters()

    class RenamingSigner(HonestSigner):
        async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
            clusters.known = replace(CLUSTER, name="renamed")
            return await super().sign(request)

    service = issuance({"local": RenamingSigner()}, clusters=clusters)
    with pytest.raises(Unavailable, match="changed while the certificate"):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, ChangingRights(1))


async def test_a_request_goes_on_with_the_client_ca_that_signed_until_a_moment_ago() -> None:
    clusters, ledger = Clusters(), MemoryLedger()

    class RotatingSigner(HonestSigner):
        async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
            clusters.known = replace(CLUSTER, client_ca=replace(client_ca(new_key("ec-p256")), id="b" * 32))
            return await super().sign(request)

    service = issuance({"local": RotatingSigner()}, ledger, clusters)
    await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, ChangingRights(1))
    assert [record.ca_id for record, _ in ledger.entries] == [CLUSTER.client_ca.id]


@dataclass
class FailingAuthentication(ChangingRights):
    """Rights change after the certificate is recorded. Authentication then raises `failure`."""

    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    failure: BaseException = field(default_factory=lambda: Unauthenticated("the token is unknown"))

    def is_current(self) -> bool:
        return not self.ledger.entries

    async def authenticate(self) -> Caller:
        raise self.failure


@pytest.mark.parametrize(
    "failure", [Unauthenticated("the token is unknown"), Unavailable("The store failed."), CancelledError()]
)
async def test_a_recorded_certificate_that_is_not_returned_is_withdrawn(failure: BaseException) -> None:
    ledger, withdrawn = MemoryLedger(), []

    async def withdraw(record: CertificateRecord) -> None:
        withdrawn.append(record)

    service = replace(issuance(ledger=ledger), withdraw=withdraw)
    rights = FailingAuthentication(0, ledger=ledger, failure=failure)
    with pytest.raises(type(failure)):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, rights)
    assert withdrawn == [record for record, _ in ledger.entries]
    assert len(withdrawn) == 1
