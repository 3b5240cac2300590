"""Revocation lists as OpenSSL and a parser read them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import KeyType
from clustercert.model.errors import SignerError
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.crl import CrlContent, CrlEntry, check_crl, crl_pem, new_crl
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request, serial_hex
from support.leaf_builder import LeafBuilder
from support.leaf_checks import openssl
from support.samples import BACKDATE, CA_KEY, ISSUED_AT, client_ca, grant

NEXT = ISSUED_AT + timedelta(days=1)
CA = client_ca()
REVOKED = CrlEntry("0a" * 20, ISSUED_AT, "unspecified")


def content_of(entries: Sequence[CrlEntry] = (REVOKED,), number: int = 1) -> CrlContent:
    return CrlContent(entries, number, this_update=ISSUED_AT, next_update=NEXT)


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ed25519", "rsa-2048"])
def test_openssl_verifies_a_list_of_each_kind_of_ca(kind: KeyType, tmp_path: Path) -> None:
    key = new_key(kind)
    ca = new_client_ca("clustercert test", key, ISSUED_AT - BACKDATE, timedelta(days=30))
    (tmp_path / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    entry = CrlEntry("0a" * 20, ISSUED_AT, "keyCompromise")
    crl = new_crl(ca, key, CrlContent([entry], 7 << 40, this_update=ISSUED_AT, next_update=NEXT))
    (tmp_path / "crl.pem").write_bytes(crl_pem(crl))
    said = openssl("crl", "-in", tmp_path / "crl.pem", "-CAfile", tmp_path / "ca.pem", "-noout", "-text")
    text = said.decode()
    for expected in (
        "Version 2 (0x1)",
        "X509v3 Authority Key Identifier",
        "X509v3 CRL Number",
        "Serial Number: " + "0A" * 20,
        "Key Compromise",
        f"Last Update: {ISSUED_AT:%b %d %H:%M:%S %Y} GMT",
        f"Next Update: {NEXT:%b %d %H:%M:%S %Y} GMT",
    ):
        assert expected in text


def test_a_leaf_fails_the_check_once_it_is_listed(tmp_path: Path) -> None:
    key = new_key("ec-p256")
    leaves = [
        x509.load_der_x509_certificate(
            LeafBuilder(CA.ca_certificate, CA_KEY).build(
                new_signing_request(grant(), key.public_key(), CA, takes_serial=True)
            )
        )
        for _ in range(2)
    ]
    crl = new_crl(
        CA.ca_certificate,
        CA_KEY,
        content_of([CrlEntry(serial_hex(leaves[0].serial_number), ISSUED_AT, "unspecified")]),
    )
    files = {"ca.pem": CA.ca_certificate.public_bytes(Encoding.PEM), "crl.pem": crl_pem(crl)}
    files |= {f"leaf{number}.pem": leaf.public_bytes(Encoding.PEM) for number, leaf in enumerate(leaves)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    at = str(int(ISSUED_AT.timestamp()) + 60)
    check = (
        "verify",
        "-attime",
        at,
        "-crl_check",
        "-CAfile",
        tmp_path / "ca.pem",
        "-CRLfile",
        tmp_path / "crl.pem",
    )
    assert b"OK" in openssl(*check, tmp_path / "leaf1.pem")
    with pytest.raises(AssertionError, match="certificate revoked"):
        openssl(*check, tmp_path / "leaf0.pem")


REASONS = {
    "unspecified": None,
    "keyCompromise": x509.ReasonFlags.key_compromise,
    "affiliationChanged": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessationOfOperation": x509.ReasonFlags.cessation_of_operation,
}


@given(
    serials=st.lists(st.integers(1, (1 << 159) - 1), unique=True, max_size=20),
    reasons=st.lists(st.sampled_from(sorted(REASONS)), min_size=20, max_size=20),
    number=st.integers(0, (1 << 103) - 1),
    seconds=st.integers(0, 10**9),
)
def test_what_is_listed_is_what_a_parser_finds(
    serials: list[int], reasons: list[str], number: int, seconds: int
) -> None:
    now = ISSUED_AT + timedelta(seconds=seconds)
    entries = [
        CrlEntry(f"{serial:x}", now - timedelta(seconds=place), reason)  # type: ignore[arg-type] # one of the five
        for place, (serial, reason) in enumerate(zip(serials, reasons, strict=False))
    ]
    asked = CrlContent(entries, number, this_update=now, next_update=now + timedelta(days=1))
    der = new_crl(CA.ca_certificate, CA_KEY, asked)
    check_crl(der, CA.ca_certificate, asked)
    crl = x509.load_der_x509_crl(der)
    assert crl.is_signature_valid(CA_KEY.public_key())
    assert crl.issuer == CA.ca_certificate.subject
    assert (crl.last_update_utc, crl.next_update_utc) == (now, now + timedelta(days=1))
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    identifier = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert (
        identifier.value.key_identifier
        == CA.ca_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert [extension.critical for extension in crl.extensions] == [False, False]
    found = []
    for revoked in crl:
        said = [extension.value for extension in revoked.extensions]
        reason = said[0].reason if said and isinstance(said[0], x509.CRLReason) else None
        found.append((revoked.serial_number, revoked.revocation_date_utc, reason))
    assert found == [(int(entry.serial, 16), entry.revoked_at, REASONS[entry.reason]) for entry in entries]


def test_a_long_list_takes_time_in_proportion(tmp_path: Path) -> None:
    """Ten thousand: copying the list at each entry would take minutes for ten times as many."""
    entries = [CrlEntry(os.urandom(19).hex(), ISSUED_AT, "unspecified") for _ in range(10_000)]
    der = new_crl(CA.ca_certificate, CA_KEY, content_of(entries))
    assert len(x509.load_der_x509_crl(der)) == len(entries)


def test_another_crl_than_the_requested_one_is_refused() -> None:
    other_ca = new_client_ca("other", CA_KEY, ISSUED_AT - BACKDATE, timedelta(days=30))
    answers = [
        b"",
        b"0" * 100,
        new_crl(CA.ca_certificate, CA_KEY, content_of(())),
        new_crl(CA.ca_certificate, CA_KEY, content_of((REVOKED, replace(REVOKED, serial="0b")))),
        new_crl(CA.ca_certificate, CA_KEY, content_of(number=2)),
        new_crl(CA.ca_certificate, CA_KEY, replace(content_of(), next_update=NEXT + timedelta(seconds=1))),
        new_crl(CA.ca_certificate, new_key("ec-p256"), content_of()),
        new_crl(CA.ca_certificate, new_key("ed25519"), content_of()),
        new_crl(other_ca, CA_KEY, content_of()),
    ]
    for der in answers:
        with pytest.raises(SignerError):
            check_crl(der, CA.ca_certificate, content_of())
