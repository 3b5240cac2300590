from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.errors import (
    ClustercertError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
    Unavailable,
)
from clustercert.keypair import new_key
from clustercert.model import Ask, Caller, CertificateRecord
from issuing import (
    ASK,
    CA,
    CHOSEN_SERIAL,
    CLUSTER,
    Book,
    Clusters,
    FailingSigner,
    HonestSigner,
    SerialChoosingSigner,
    issuance,
)
from leaf import assert_client_leaf, assert_subject, credential_number_of, spki
from nouns import (
    BACKDATE,
    CLUSTER_ID,
    ISSUED_AT,
    NOW,
    OTHER_PROJECT_ID,
    PROJECT_ID,
    USER_ID,
    caller,
    grant,
)

# What is issued


async def test_what_is_issued_is_the_grant_signed_by_the_clusters_ca() -> None:
    issued = await issuance().issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK)
    leaf = x509.load_der_x509_certificate(issued.leaf_der)
    assert_client_leaf(
        leaf,
        ca=CA.certificate,
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
    ask = replace(ASK, public_key=key.public_key())
    issued = await issuance().issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    assert issued.private_key is None
    assert spki(x509.load_der_x509_certificate(issued.leaf_der).public_key()) == spki(key.public_key())


async def test_each_issue_has_its_own_key_and_serial() -> None:
    one = issuance()
    issued = [await one.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK) for _ in range(3)]
    assert len({spki(x509.load_der_x509_certificate(each.leaf_der).public_key()) for each in issued}) == 3
    assert len({each.serial for each in issued}) == 3
    assert len({each.credential_number for each in issued}) == 3


# What is recorded


async def test_certificate_and_audit_event_are_recorded_before_anything_leaves() -> None:
    book = Book()
    issued = await issuance(ledger=book).issue(caller("member"), PROJECT_ID, CLUSTER_ID, ASK)
    ((record, event),) = book.entries
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
    assert (event.actor, event.subject, event.origin) == (USER_ID, issued.fingerprint, caller().origin)
    assert event.detail["reason"] == "incident 4711"
    assert event.detail["serial"] == issued.serial
    assert event.detail["common_name"] == USER_ID
    assert event.detail["credential_number"] == record.credential_number
    own_group = f"clustercert:credential:{record.credential_number}"
    assert event.detail["organizations"] == ["clustercert:editors", "builders", own_group]
    assert_subject(leaf, USER_ID, ["clustercert:editors", "builders", own_group])
    assert event.detail["key_origin"] == "generated"


async def test_where_the_signer_chooses_the_serial_number_and_serial_are_both_kept() -> None:
    book = Book()
    service = issuance({"local": SerialChoosingSigner()}, book)
    issued = [await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK) for _ in range(2)]
    assert len({each.credential_number for each in issued}) == 2
    for each, (record, event) in zip(issued, book.entries, strict=True):
        leaf = x509.load_der_x509_certificate(each.leaf_der)
        assert leaf.serial_number == int(record.serial, 16) == CHOSEN_SERIAL
        assert record.serial == each.serial == event.detail["serial"]
        assert record.credential_number == each.credential_number == event.detail["credential_number"]
        assert_client_leaf(
            leaf,
            ca=CA.certificate,
            username=USER_ID,
            groups=["clustercert:admins"],
            issued_at=NOW,
            lifetime=timedelta(days=30),
            credential_number=record.credential_number,
        )


async def test_a_csr_is_recorded_as_such() -> None:
    book = Book()
    ask = replace(ASK, public_key=new_key("rsa-2048").public_key())
    await issuance(ledger=book).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    ((record, _),) = book.entries
    assert (record.key_origin, record.key_type) == ("csr", "rsa-2048")


async def test_nothing_leaves_that_could_not_be_recorded() -> None:
    book = Book(failure=Unavailable("The database does not answer."))
    with pytest.raises(Unavailable):
        await issuance(ledger=book).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK)


@pytest.mark.parametrize(
    ("who", "project_id", "cluster_id", "ask", "refusal"),
    [
        (caller("admin"), PROJECT_ID, "00000000-0000-4000-8000-000000000000", ASK, NotFound),
        (caller("admin"), PROJECT_ID, "production", ASK, NotFound),
        (caller("admin"), OTHER_PROJECT_ID, CLUSTER_ID, ASK, NotFound),
        (caller(), PROJECT_ID, CLUSTER_ID, ASK, NotFound),
        (caller("auditor"), PROJECT_ID, CLUSTER_ID, ASK, Forbidden),
        (caller("reader"), PROJECT_ID, CLUSTER_ID, ASK, Forbidden),
        (caller("admin"), PROJECT_ID, CLUSTER_ID, Ask(), InvalidRequest),
        (caller("admin"), PROJECT_ID, CLUSTER_ID, Ask(expire_at=NOW), InvalidRequest),
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
    who: Caller, project_id: str, cluster_id: str, ask: Ask, refusal: type[ClustercertError]
) -> None:
    book = Book()
    never = FailingSigner(AssertionError("signed"))  # type: ignore[arg-type] # not to be raised
    service = issuance({"local": never}, book)
    with pytest.raises(refusal):
        await service.issue(who, project_id, cluster_id, ask)
    with pytest.raises(refusal):
        await service.preview(who, project_id, cluster_id, ask)
    assert book.entries == []


async def test_a_refusal_is_noted_before_it_is_told_and_a_dry_runs_is_not() -> None:
    book = Book()
    service = issuance(ledger=book)
    for _ in range(2):
        with pytest.raises(Forbidden) as raised:
            await service.issue(caller("reader"), PROJECT_ID, CLUSTER_ID, ASK)
        with pytest.raises(Forbidden):
            await service.preview(caller("reader"), PROJECT_ID, CLUSTER_ID, ASK)
    first, second = book.notes
    assert first == second
    assert (first.kind, first.project_id, first.actor) == ("certificate.refused", PROJECT_ID, USER_ID)
    assert (first.subject, first.origin, first.at) == (CLUSTER_ID, caller().origin, NOW)
    assert first.detail["message"] == raised.value.message
    assert first.detail["trace"] == {
        "roles": ["reader"],
        "passed_over": ["admin", "member"],
        "rule": "reader",
        "groups": ["clustercert:viewers"],
        "allowed_until": (ISSUED_AT + timedelta(hours=8)).isoformat(),
        "allowed_by": "rule",
        "wished_until": (ISSUED_AT + timedelta(days=30)).isoformat(),
        "clipped": False,
    }


@pytest.mark.parametrize("failure", [SignerError("No key."), RemoteFailed("Down.")])
async def test_a_signer_that_fails_is_noted(failure: ClustercertError) -> None:
    book = Book()
    with pytest.raises(type(failure)):
        await issuance({"local": FailingSigner(failure)}, book).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, ASK
        )
    [note] = book.notes
    assert (note.kind, note.detail["error"]) == ("certificate.failed", type(failure).__name__)


async def test_what_is_nobodys_decision_is_not_noted() -> None:
    book = Book()
    with pytest.raises(Unavailable):
        await issuance({"local": FailingSigner(Unavailable("Later."))}, book).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, ASK
        )
    assert book.notes == []


async def test_a_refusal_that_cannot_be_noted_is_not_told() -> None:
    book = Book(failure=Unavailable("The database does not answer."))
    with pytest.raises(Unavailable):
        await issuance(ledger=book).issue(caller("reader"), PROJECT_ID, CLUSTER_ID, ASK)


async def test_a_caller_without_a_role_is_not_even_looked_up() -> None:
    """The same answer, and the same work, for a cluster that exists and one that does not."""
    clusters = Clusters()
    with pytest.raises(NotFound):
        await issuance(clusters=clusters).issue(caller(), PROJECT_ID, CLUSTER_ID, ASK)
    assert clusters.asked == []


async def test_a_preview_says_what_would_be_issued_and_signs_and_records_nothing() -> None:
    book = Book()
    never = FailingSigner(AssertionError("signed"))  # type: ignore[arg-type] # not to be raised
    service = issuance({"local": never}, book)
    preview = await service.preview(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK)
    assert preview.grant == grant()
    assert preview.organizations == ("clustercert:admins", "clustercert:credential:<number>")
    assert preview.issuer == "CN=clustercert test"
    assert preview.key_type == "ec-p256"
    of_csr = replace(ASK, public_key=new_key("ec-p384").public_key())
    assert (await service.preview(caller("admin"), PROJECT_ID, CLUSTER_ID, of_csr)).key_type == "ec-p384"
    assert book.entries == []


# Signers that fail


@pytest.mark.parametrize("failure", [SignerError("No key."), RemoteFailed("Down."), Unavailable("Later.")])
async def test_a_signers_failure_is_the_requests(failure: ClustercertError) -> None:
    book = Book()
    with pytest.raises(type(failure)) as raised:
        await issuance({"local": FailingSigner(failure)}, book).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, ASK
        )
    assert raised.value is failure
    assert book.entries == []


async def test_a_cluster_of_a_signer_that_is_not_installed_gets_nothing() -> None:
    with pytest.raises(SignerError):
        await issuance({"another": HonestSigner()}).issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASK)
