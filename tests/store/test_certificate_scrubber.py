"""The integrity check of the ledger finds rows that differ from their certificates, and reports each once."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from clustercert.audit.retention import CertificateScrubber
from clustercert.model import CertificateRecord, SigningRequest
from clustercert.pki.certificates import certificate_der, fingerprint
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request, serial_hex
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import JobCursor
from support.issuance_doubles import ClusterSigner
from support.leaf_builder import LeafBuilder
from support.samples import CA_KEY, CA_NOT_BEFORE, NOW, POLICY, USER_ID, client_ca, grant
from support.stores import NOW as EARLIER
from support.stores import Store, blob, certificate_record, patient

# What these tests ask is decided in Python. Other files read and write the same tables on PostgreSQL.
pytestmark = pytest.mark.long_on_server


def real_record(number: int = 1) -> CertificateRecord:
    """Return the record of a certificate that a CA has really signed."""
    request = new_signing_request(grant(), new_key("ec-p256").public_key(), client_ca(), takes_serial=True)
    return record_of(request, number)


def record_of(request: SigningRequest, number: int = 1) -> CertificateRecord:
    """Return the ledger's record for an issued certificate."""
    leaf = x509.load_der_x509_certificate(LeafBuilder(request.ca.ca_certificate, CA_KEY).build(request))
    made, _ = certificate_record()
    return replace(
        made,
        fingerprint=fingerprint(leaf),
        serial=serial_hex(leaf.serial_number),
        cluster_id=request.ca.cluster_id,
        ca_id=request.ca.id,
        user_id=USER_ID,
        groups=request.grant.groups,
        not_before=request.grant.not_before,
        not_after=request.grant.not_after,
        issued_at=NOW,
        request_id=f"{number:032x}",
        der=certificate_der(leaf),
        credential_number=request.credential_number,
    )


async def with_ca(store: Store, der: bytes) -> None:
    """Insert a CA, and the rows to which it refers."""
    for statement in (
        "INSERT INTO domain (id, name, enabled) VALUES ('d', 'd', true)",
        (
            "INSERT INTO project (id, domain_id, name, description, enabled, labels)"
            " VALUES ('p', 'd', 'p', '', true, '{}')"
        ),
    ):
        store.execute(statement)
    ca = client_ca()
    now = store.time(NOW)
    store.execute(
        "INSERT INTO cluster (id, project_id, name, internal_url, san_urls, api_servers, server_ca_pem, signer,"
        " version, labels, options, created_at, updated_at)"
        " VALUES (?, 'p', 'c', '', '[]', '[]', ?, 'local', '', '{}', '{}', ?, ?)",
        ca.cluster_id,
        b"",
        now,
        now,
    )
    store.execute(
        "INSERT INTO client_ca (id, cluster_id, certificate_der, state, signer, not_before, not_after)"
        " VALUES (?, ?, ?, 'active', 'local', ?, ?)",
        ca.id,
        ca.cluster_id,
        der,
        now,
        now,
    )


async def record_all(database: Database, *records: CertificateRecord) -> None:
    ledger, (_, event) = Ledger(database), certificate_record()
    for record in records:
        await ledger.record(record, replace(event, subject=record.fingerprint.hex()))


async def test_issued_certificates_have_no_findings(database: Database, store: Store) -> None:
    await record_all(database, *(real_record(number) for number in range(5)))
    checker = CertificateScrubber(database, POLICY, lambda: NOW)
    await with_ca(store, certificate_der(client_ca().ca_certificate))
    done = [await checker.step(2) for _ in range(4)]
    assert [one.count for one in done] == [2, 2, 1, 2]
    assert [one.mismatches for one in done] == [(), (), (), ()]
    assert store.rows("SELECT count(*) FROM audit_event WHERE kind = 'certificate.mismatch'") == [(0,)]
    # Another process continues where this one stopped.
    assert await JobCursor(database, "certificates").value() == "2"


async def cluster_record(late: timedelta = timedelta()) -> CertificateRecord:
    """Return the record of a certificate that a cluster's own signer has signed."""
    key = new_key("ec-p256")
    request = new_signing_request(
        grant(groups=("b", "a")),
        key.public_key(),
        client_ca(),
        takes_serial=False,
        profile="kubernetes",
        private_key=key,
    )
    [der] = await ClusterSigner(timedelta(hours=1), late).sign(request)
    leaf = x509.load_der_x509_certificate(der)
    return replace(
        record_of(request),
        fingerprint=fingerprint(leaf),
        serial=serial_hex(leaf.serial_number),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        der=der,
    )


async def test_certificates_that_the_cluster_signed_have_no_findings(
    database: Database, store: Store
) -> None:
    await record_all(database, await cluster_record(timedelta(seconds=3)))
    checker = CertificateScrubber(database, POLICY, lambda: NOW)
    assert (await checker.step()).mismatches == ()
    await with_ca(store, certificate_der(client_ca().ca_certificate))
    assert (await checker.step()).mismatches == ()


@pytest.mark.parametrize("name", ["groups", "begin", "end", "issued at", "credential number", "user"])
async def test_a_changed_row_of_a_certificate_that_the_cluster_signed_is_reported(
    database: Database, store: Store, name: str
) -> None:
    column, value = CHANGES[name]
    await record_all(database, await cluster_record())
    store.execute(
        f"UPDATE certificate SET {column} = ?", store.time(value) if isinstance(value, datetime) else value
    )
    assert (await CertificateScrubber(database, POLICY, lambda: NOW).step()).mismatches


CHANGES = {
    "fingerprint": ("fingerprint", b"f" * 32),
    "serial": ("serial", "01"),
    "user": ("user_id", "mallory"),
    "groups": ("groups", '["system:masters"]'),
    "credential number": ("credential_number", "0" * 40),
    "no credential number": ("credential_number", ""),
    "begin": ("not_before", EARLIER),
    "end": ("not_after", EARLIER + timedelta(days=3650)),
    "issued at": ("issued_at", EARLIER - timedelta(days=1)),
    "key type": ("key_type", "rsa-2048"),
    "der": ("der", b"nothing"),
    "another's der": ("der", real_record().der),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_column_that_was_changed_is_reported(database: Database, store: Store, name: str) -> None:
    column, value = CHANGES[name]
    await record_all(database, real_record())
    stored = store.time(value) if isinstance(value, datetime) else value
    store.execute(f"UPDATE certificate SET {column} = ?", stored)
    checker = CertificateScrubber(database, POLICY, lambda: NOW)
    checked = await checker.step()
    [mismatch] = checked.mismatches
    event = store.events()[-1]
    assert event["kind"] == "certificate.mismatch"
    [(of,)] = store.rows("SELECT fingerprint FROM certificate")
    assert event["subject"] == blob(of).hex()
    assert event["detail"]["problems"] == list(mismatch.problems)  # type: ignore[index] # an object
    if name in {"fingerprint", "serial", "key type"}:
        assert mismatch.problems == (f"The certificate differs from its row in: {column}.",)


async def test_a_change_after_a_full_round_is_reported_in_the_next_round(
    database: Database, store: Store
) -> None:
    await record_all(database, real_record())
    checker = CertificateScrubber(database, POLICY, lambda: NOW)
    assert (await checker.step()).mismatches == ()
    store.execute("UPDATE certificate SET user_id = 'mallory'")
    await checker.step()
    assert store.events()[-1]["kind"] == "certificate.mismatch"


def mismatches(store: Store) -> int:
    return len([said for said in store.events() if said["kind"] == "certificate.mismatch"])


async def test_a_mismatch_is_recorded_once_until_it_changes_or_is_gone(
    database: Database, store: Store
) -> None:
    await record_all(database, *(real_record(number) for number in range(3)))
    right = store.rows("SELECT serial FROM certificate WHERE id = 2")[0][0]
    recorded = []
    for serial in ("01", "01", "02", right, "02", "02"):
        store.execute("UPDATE certificate SET serial = ? WHERE id = 2", serial)
        # Each round runs in another process.
        checker = CertificateScrubber(database, POLICY, lambda: NOW)
        found = [len((await checker.step(2)).mismatches) for _ in range(2)]
        assert found == [0 if serial == right else 1, 0]
        recorded.append(mismatches(store))
    # The finding does not depend on the wrong serial.
    assert recorded == [1, 1, 1, 1, 2, 2]
    store.execute("UPDATE certificate SET user_id = 'mallory' WHERE id = 2")
    await CertificateScrubber(database, POLICY, lambda: NOW).step()
    assert mismatches(store) == 3


async def test_findings_of_pruned_certificates_are_deleted(database: Database, store: Store) -> None:
    await record_all(database, *(real_record(number) for number in range(3)))
    store.execute("UPDATE certificate SET serial = '01'")
    checker = CertificateScrubber(database, POLICY, lambda: NOW)
    await checker.step()
    kept = "SELECT count(*) FROM progress WHERE name LIKE 'mismatch %'"
    assert store.rows(kept) == [(3,)]
    store.execute("DELETE FROM certificate WHERE id <> 2")
    await checker.step()
    assert store.rows(kept) == [(1,)]
    assert mismatches(store) == 3


async def test_replicas_that_find_a_mismatch_at_once_record_it_once(database: Database, store: Store) -> None:
    await record_all(database, *(real_record(number) for number in range(5)))
    store.execute("UPDATE certificate SET serial = '01'")
    others = [patient(store.url) for _ in range(3)]
    checkers = [CertificateScrubber(one, POLICY, lambda: NOW) for one in (database, *others)]
    checked = await asyncio.gather(*(checker.step() for checker in checkers))
    assert [len(one.mismatches) for one in checked] == [5] * 4
    assert mismatches(store) == 5
    for one in others:
        await one.close()


async def test_a_certificate_of_another_ca_is_reported(database: Database, store: Store) -> None:
    other = new_client_ca("clustercert test", new_key("ec-p256"), CA_NOT_BEFORE, timedelta(days=3650))
    await record_all(database, real_record())
    await with_ca(store, certificate_der(other))
    [mismatch] = (await CertificateScrubber(database, POLICY, lambda: NOW).step()).mismatches
    assert mismatch.problems
    assert "differs from its row" not in mismatch.problems[0]


async def test_a_name_that_is_no_longer_allowed_is_reported_until_expiry(
    database: Database, store: Store
) -> None:
    masters = grant(groups=("system:masters",))
    key = new_key("ec-p256").public_key()
    record = record_of(new_signing_request(masters, key, client_ca(), takes_serial=True))
    await record_all(database, record)
    allowed = replace(POLICY, allowed_system_names=frozenset({"system:masters"}))
    assert (await CertificateScrubber(database, allowed, lambda: NOW).step()).mismatches == ()
    [mismatch] = (await CertificateScrubber(database, POLICY, lambda: NOW).step()).mismatches
    assert mismatch.problems[0].startswith("Not allowed now: system:masters")
    ended = masters.not_after + timedelta(seconds=1)
    assert (await CertificateScrubber(database, POLICY, lambda: ended).step()).mismatches == ()
