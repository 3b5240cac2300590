"""Recognising presented certificates by their signed content: on both databases."""

import os
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from clustercert.kubernetes.webhook.recognition import Recognition, Recognized
from clustercert.kubernetes.webhook.review import RequestSender, parse_identity
from clustercert.model import CertificateRecord
from clustercert.model.issuance import jti_fingerprint
from clustercert.model.kubernetes import CREDENTIAL_ID
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from support.credential_cache import PATIENT, recorded
from support.samples import CLUSTER_ID, cluster
from support.statements import Statements
from support.token_clusters import record_token

EVERYBODY = "system:authenticated"
PREFIX = "clustercert:credential:"


@pytest.fixture
async def recognition(database: Database, feed: RevocationFeed) -> Recognition:
    return Recognition(CredentialCache(database, feed, PATIENT))


def shown(record: CertificateRecord) -> RequestSender:
    """The identity that an API server sends for a certificate."""
    return RequestSender(record.user_id, (*record.organizations, EVERYBODY), (record.fingerprint,))


async def one(recognition: Recognition, who: RequestSender) -> Recognized:
    (found,) = await recognition.recognize(CLUSTER_ID, who)
    return found


async def test_a_chosen_user_name_is_compared_instead_of_the_id(
    database: Database, recognition: Recognition
) -> None:
    record = await recorded(database, cluster_id=CLUSTER_ID, username="alice@example.com")
    by_id = shown(record)
    assert (await one(recognition, by_id)).fault == "forged"
    found = await one(recognition, replace(by_id, username="alice@example.com"))
    assert found.credential is not None
    assert (found.credential.user_id, found.fault) == (record.user_id, None)


async def test_a_certificate_is_recognised_by_its_group(database: Database, recognition: Recognition) -> None:
    record = await recorded(database, cluster_id=CLUSTER_ID)
    who = shown(record)
    whole = await one(recognition, who)
    assert whole.credential is not None
    assert whole.credential.fingerprint == whole.fingerprint == record.fingerprint
    assert not whole.altered
    # API servers before 1.32 send no credential id.
    unsaid = await one(recognition, replace(who, fingerprints=()))
    assert (unsaid.credential, unsaid.fingerprint, unsaid.altered) == (whole.credential, None, False)
    copy = os.urandom(32)
    altered = await one(recognition, replace(who, fingerprints=(copy,)))
    assert (altered.credential, altered.fingerprint, altered.altered) == (whole.credential, copy, True)
    for also in (
        replace(who, fingerprints=(record.fingerprint, copy)),
        replace(who, fingerprints=(), malformed=True),
    ):
        assert (await one(recognition, also)).altered
    # Order and duplicates of groups do not matter.
    shuffled = replace(who, groups=(EVERYBODY, *record.organizations[::-1], record.groups[0]))
    assert await one(recognition, shuffled) == whole


async def test_another_identity_with_a_known_number_is_forged(
    database: Database, recognition: Recognition
) -> None:
    record = await recorded(database, cluster_id=CLUSTER_ID)
    other = await recorded(database, cluster_id=CLUSTER_ID, user_id="another")
    who, own = shown(record), f"{PREFIX}{record.credential_number}"
    forged = {
        "another user": replace(who, username="another"),
        "a group more": replace(who, groups=(*who.groups, "system:masters")),
        "a group less": replace(who, groups=(own, EVERYBODY)),
        "everybody's other group": replace(who, groups=(*who.groups, "system:unauthenticated")),
        "another's number too": replace(who, groups=(*who.groups, f"{PREFIX}{other.credential_number}")),
        "an unknown number too": replace(who, groups=(*who.groups, f"{PREFIX}{'0' * 40}")),
        "a malformed number too": replace(who, groups=(*who.groups, PREFIX)),
        "another's number": replace(who, groups=(*record.groups, f"{PREFIX}{other.credential_number}")),
        "an id of another kind": replace(who, has_other_ids=True),
        "only an id of another kind": replace(who, fingerprints=(), has_other_ids=True),
        "upper case": replace(who, groups=(*record.groups, own.upper().replace(PREFIX.upper(), PREFIX))),
        "a digit less": replace(who, groups=(*record.groups, own[:-1])),
        "a digit more": replace(who, groups=(*record.groups, own + "0")),
        "a line feed more": replace(who, groups=(*record.groups, own + "\n")),
        "no number": replace(who, groups=(*record.groups, PREFIX)),
    }
    for name, each in forged.items():
        found = await one(recognition, each)
        assert (name, found.fault, found.credential, found.claims_ours) == (name, "forged", None, True)


async def test_foreign_and_unknown_numbers_claim_ours(database: Database, recognition: Recognition) -> None:
    record = await recorded(database, cluster_id="another")
    elsewhere = await one(recognition, shown(record))
    assert (elsewhere.fault, elsewhere.credential, elsewhere.claims_ours) == ("other_cluster", None, True)
    stranger = RequestSender("bob", (f"{PREFIX}{'0' * 40}", EVERYBODY), (record.fingerprint,))
    unknown = await one(recognition, stranger)
    assert (unknown.fault, unknown.credential, unknown.claims_ours) == ("unknown", None, True)


async def test_certificates_without_a_credential_group_are_unknown_whatever_their_hash(
    database: Database, recognition: Recognition
) -> None:
    """Their hash is not signed, so the ledger is not asked about it."""
    record = await recorded(database, cluster_id=CLUSTER_ID)
    statements = Statements(database)
    who = RequestSender(
        record.user_id, (*record.groups, EVERYBODY), (record.fingerprint, bytes(32)), malformed=True
    )
    assert await recognition.recognize(CLUSTER_ID, who) == [
        Recognized(fingerprint, fault="unknown") for fingerprint in (record.fingerprint, bytes(32), None)
    ]
    # Without a certificate there is nothing to recognise.
    assert await recognition.recognize(CLUSTER_ID, replace(who, fingerprints=(), malformed=False)) == []
    assert statements.texts == []


async def token_recorded(database: Database, **changed: object) -> CertificateRecord:
    return await record_token(database, replace(cluster(), id=CLUSTER_ID), **changed)


def with_token(record: CertificateRecord, jti: str | None = None) -> RequestSender:
    """The identity that an API server sends for a token."""
    username = f"system:serviceaccount:clustercert-users:alice-{record.credential_number}"
    extra = {CREDENTIAL_ID: [f"JTI={jti or UUID(hex=record.serial)}"]}
    return parse_identity(username, ["system:serviceaccounts", EVERYBODY], extra)


async def test_a_token_is_recognized_by_its_account_and_id(
    database: Database, recognition: Recognition
) -> None:
    record = await token_recorded(database)
    found = await one(recognition, with_token(record))
    assert found.credential is not None
    assert (found.fingerprint, found.fault, found.altered) == (record.fingerprint, None, False)
    # API servers before 1.32 send no credential id.
    assert (await one(recognition, replace(with_token(record), token_ids=()))).credential == found.credential


async def test_another_token_of_an_account_is_unknown(database: Database, recognition: Recognition) -> None:
    record = await token_recorded(database)
    foreign = str(uuid4())
    found = await one(recognition, with_token(record, foreign))
    assert (found.credential, found.fault, found.claims_ours) == (None, "unknown", True)
    assert found.fingerprint == jti_fingerprint(foreign)
    name = replace(with_token(record), username="system:serviceaccount:clustercert-users:default")
    assert (await one(recognition, name)).fault == "unknown"


async def test_accounts_and_certificates_are_not_taken_for_each_other(
    database: Database, recognition: Recognition
) -> None:
    token = await token_recorded(database, cluster_id="5" * 8 + CLUSTER_ID[8:])
    assert (await one(recognition, with_token(token))).fault == "other_cluster"
    certificate = await recorded(database, cluster_id=CLUSTER_ID)
    as_account = replace(with_token(certificate, "none"), token_ids=())
    assert (await one(recognition, as_account)).fault == "forged"
    token = await token_recorded(database)
    as_certificate = RequestSender(
        token.user_id, (*token.groups, PREFIX + token.credential_number, EVERYBODY), (os.urandom(32),)
    )
    assert (await one(recognition, as_certificate)).fault == "forged"
