"""Leaves that a cluster's own signer signs: which differences from the request are accepted, and which are not."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from clustercert.model import ClientCA, KeyType, SigningRequest
from clustercert.model.errors import InvalidRequest, SignerError
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, leaf_profile, new_signing_request
from support.apiserver.certificate_requests import BACKDATE, signed_leaf
from support.asn1 import SEQUENCE, der, inside, resigned
from support.certificate_authority import Authority
from support.samples import CA_ID, CLUSTER_ID, grant

AUTHORITY = Authority("kubernetes")
CA = ClientCA(
    id=CA_ID, cluster_id=CLUSTER_ID, certificate=AUTHORITY.certificate, sealed_key=None, signer="csr_api"
)
KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}
GROUPS = ("team-b", "clustercert:editors", "z", "a", "a group, with a comma")
SIGNED_AT = AUTHORITY.certificate.not_valid_before_utc + timedelta(minutes=30)
HOUR = timedelta(hours=1)


def asked(key_type: KeyType = "ec-p256", lifetime: timedelta = HOUR) -> SigningRequest:
    wanted = replace(grant(groups=GROUPS), not_before=SIGNED_AT - BACKDATE, not_after=SIGNED_AT + lifetime)
    key = KEYS[key_type]
    return new_signing_request(
        wanted, key.public_key(), CA, takes_serial=False, profile="kubernetes", private_key=key
    )


def signed(
    request: SigningRequest, at: datetime = SIGNED_AT, lifetime: timedelta = HOUR, *usages: str
) -> bytes:
    """What the cluster signs for the CSR of a request."""
    assert request.csr is not None
    csr = x509.load_der_x509_csr(request.csr)
    rsa = ("key encipherment",) if request.spki.find(bytes.fromhex("2a864886f70d0101")) >= 0 else ()
    usages = usages or ("client auth", "digital signature", *rsa)
    return signed_leaf(csr, usages, AUTHORITY.certificate, AUTHORITY.key, at, lifetime)


@pytest.mark.parametrize("key_type", KEYS)
def test_what_a_cluster_signs_is_accepted(key_type: KeyType) -> None:
    request = asked(key_type)
    leaf = signed(request)
    parsed = x509.load_der_x509_certificate(leaf)
    checked = check_leaf((leaf,), request)
    assert checked.der == leaf
    assert checked.serial == parsed.serial_number
    assert (checked.not_before, checked.not_after) == (SIGNED_AT - BACKDATE, SIGNED_AT + HOUR)
    assert leaf_profile(parsed) == "kubernetes"
    # All groups are in one set, which DER has sorted.
    organizations = [each.value for each in parsed.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert organizations != [*GROUPS, f"clustercert:credential:{request.credential_number}"]
    assert sorted(organizations) == sorted([*GROUPS, f"clustercert:credential:{request.credential_number}"])


def test_the_validity_is_what_the_cluster_signed() -> None:
    request = asked(lifetime=timedelta(hours=8))
    late = SIGNED_AT + timedelta(seconds=7)
    checked = check_leaf((signed(request, late, timedelta(minutes=10)),), request)
    assert checked.not_before == late - BACKDATE
    assert checked.not_after == late + timedelta(minutes=10)


@pytest.mark.parametrize("at", [SIGNED_AT - timedelta(minutes=6), SIGNED_AT + timedelta(minutes=6)])
def test_a_start_far_from_the_requested_one_is_refused(at: datetime) -> None:
    request = asked()
    with pytest.raises(SignerError, match="Set the clocks"):
        check_leaf((signed(request, at, timedelta(minutes=10)),), request)


def test_a_longer_validity_is_refused() -> None:
    request = asked()
    with pytest.raises(SignerError, match="valid for longer than requested"):
        check_leaf((signed(request, lifetime=HOUR + timedelta(seconds=1)),), request)


def test_another_ca_is_refused() -> None:
    request = asked()
    assert request.csr is not None
    ca, csr = Authority("kubernetes"), x509.load_der_x509_csr(request.csr)
    other = signed_leaf(csr, ("client auth", "digital signature"), ca.certificate, ca.key, SIGNED_AT, HOUR)
    with pytest.raises(SignerError):
        check_leaf((other,), request)


def other_subject(name: x509.Name) -> Callable[[SigningRequest], bytes]:
    """Signs for another subject, with the right key."""

    def sign(request: SigningRequest) -> bytes:
        key = KEYS["ec-p256"]
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
        return signed(replace(request, csr=csr.public_bytes(Encoding.DER)))

    return sign


def test_a_dropped_an_added_and_a_changed_group_are_refused() -> None:
    request = asked()
    assert request.csr is not None
    attributes = list(x509.load_der_x509_csr(request.csr).subject)
    added = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes")
    renamed = x509.NameAttribute(NameOID.COMMON_NAME, "somebody-else")
    for wrong in (
        [attributes[0], *attributes[2:]],
        attributes[1:],
        [*attributes, added],
        [*attributes[:-1], renamed],
    ):
        with pytest.raises(SignerError, match="differs from the request in: subject"):
            check_leaf((other_subject(x509.Name(wrong))(request),), request)
    twice = [attributes[0], attributes[1], attributes[1], *attributes[3:]]
    with pytest.raises(SignerError):
        check_leaf((other_subject(x509.Name(twice))(request),), request)


def test_another_key_is_refused() -> None:
    request = asked()
    other = KEYS["ec-p384"]
    wrong = new_signing_request(
        request.grant, other.public_key(), CA, takes_serial=False, profile="kubernetes", private_key=other
    )
    with pytest.raises(SignerError, match="key"):
        check_leaf((signed(replace(wrong, csr=wrong.csr)),), request)


@pytest.mark.parametrize(
    "usages", [("client auth",), ("client auth", "digital signature", "key encipherment")]
)
def test_other_key_usages_are_refused(usages: tuple[str, ...]) -> None:
    request = asked()
    with pytest.raises(SignerError, match="extensions"):
        check_leaf((signed(request, SIGNED_AT, HOUR, *usages),), request)


def test_a_further_extension_is_refused() -> None:
    request = asked()
    key = KEYS["ec-p256"]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert request.csr is not None
    names = x509.SubjectAlternativeName([x509.DNSName("api.example.com")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.load_der_x509_csr(request.csr).subject)
        .add_extension(names, critical=False)
        .sign(key, SHA256())
    )
    leaf = signed(replace(request, csr=csr.public_bytes(Encoding.DER)))
    assert any(
        each.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        for each in x509.load_der_x509_certificate(leaf).extensions
    )
    with pytest.raises(SignerError, match="extensions"):
        check_leaf((leaf,), request)


def test_a_bit_that_was_changed_anywhere_is_refused() -> None:
    request = asked()
    leaf = signed(request)
    for at in range(len(leaf)):
        altered = bytearray(leaf)
        altered[at] ^= 1
        with pytest.raises(SignerError):
            check_leaf((bytes(altered),), request)


def test_further_content_that_the_ca_signed_is_refused() -> None:
    request = asked()
    leaf = x509.load_der_x509_certificate(signed(request))
    issuer_id = der(0x81, b"\0\0\xff")
    changed = resigned(leaf, AUTHORITY.key, unique_ids=issuer_id)
    with pytest.raises(SignerError):
        check_leaf((changed.public_bytes(Encoding.DER),), request)
    # The same times in the other encoding.
    times = inside(inside(leaf.tbs_certificate_bytes)[4])
    longer = [der(0x18, b"20" + inside(der(SEQUENCE, each))[0][2:]) for each in times]
    changed = resigned(leaf, AUTHORITY.key, validity=der(SEQUENCE, *longer))
    with pytest.raises(SignerError, match="encoding"):
        check_leaf((changed.public_bytes(Encoding.DER),), request)


def test_a_callers_own_key_is_refused_with_advice() -> None:
    with pytest.raises(InvalidRequest, match="only for keys that this service generates"):
        new_signing_request(
            grant(), KEYS["ec-p256"].public_key(), CA, takes_serial=False, profile="kubernetes"
        )


def test_the_credential_group_is_first_in_the_csr() -> None:
    request = asked()
    assert request.csr is not None
    first, *_ = x509.load_der_x509_csr(request.csr).subject
    assert first.value == f"clustercert:credential:{request.credential_number}"


def test_a_leaf_far_larger_than_requested_is_not_parsed() -> None:
    request = asked()
    leaf = signed(request)
    with pytest.raises(SignerError, match=r"has \d+ bytes, far more than requested"):
        check_leaf((leaf + bytes(2048),), request)
