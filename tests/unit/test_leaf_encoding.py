"""Our own encoding of a leaf against the library's: byte for byte the same."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import Grant, KeyType, PrivateKey, SigningRequest
from clustercert.pki.client_ca import ALGORITHM_DER, ca_subject
from clustercert.pki.keys import key_type_of, new_key
from clustercert.pki.leaf import MAX_NAME, encode_signed, key_identifier, new_signing_request, requested_tbs
from support.asn1 import inside
from support.leaf_builder import LeafBuilder
from support.leaf_checks import assert_signed_by, spki
from support.samples import CA_KEY, client_ca, grant

KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}
CA = client_ca()


def by_the_library(request: SigningRequest, ca_key: PrivateKey) -> x509.Certificate:
    """The leaf of the profile as the library's builder makes it: nothing of ours has a part in it."""
    ca = request.ca.ca_certificate
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    groups = [*request.grant.groups]
    if request.credential_number:
        groups.append(f"clustercert:credential:{request.credential_number}")
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    names.append(x509.NameAttribute(NameOID.COMMON_NAME, request.grant.username))
    serial = request.serial if request.serial is not None else x509.random_serial_number()
    unset = ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")
    usage = dict.fromkeys((*unset, "encipher_only", "decipher_only"), False)
    rsa_key = isinstance(request.public_key, rsa.RSAPublicKey)
    digest = hashes.SHA384() if key_type_of(ca_key.public_key()) == "ec-p384" else hashes.SHA256()
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(ca.subject)
        .public_key(request.public_key)
        .serial_number(serial)
        .not_valid_before(request.grant.not_before)
        .not_valid_after(request.grant.not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_encipherment=rsa_key, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key), critical=False)
        .sign(ca_key, None if isinstance(ca_key, ed25519.Ed25519PrivateKey) else digest)
    )


def by_us(leaf: x509.Certificate, request: SigningRequest, ca_key: PrivateKey) -> x509.Certificate:
    """Our leaf of the same request, with the same serial."""
    numbered = replace(request, serial=leaf.serial_number)
    return x509.load_der_x509_certificate(LeafBuilder(request.ca.ca_certificate, ca_key).build(numbered))


def encoded(leaf: x509.Certificate, request: SigningRequest) -> bytes:
    """The leaf's first part as we write it, from the request and the serial alone."""
    return requested_tbs(request, ca_subject(request.ca.ca_certificate), leaf.serial_number)


@pytest.mark.parametrize("key_type", get_args(KeyType))
@pytest.mark.parametrize("ca_key_type", get_args(KeyType))
def test_the_library_makes_the_same_leaf(key_type: KeyType, ca_key_type: KeyType) -> None:
    ca_key = KEYS[ca_key_type]
    request = new_signing_request(grant(), KEYS[key_type].public_key(), client_ca(ca_key), takes_serial=True)
    leaf = by_the_library(request, ca_key)
    algorithm = ALGORITHM_DER["rsa" if ca_key_type.startswith("rsa") else ca_key_type]
    assert encoded(leaf, request) == leaf.tbs_certificate_bytes
    whole = encode_signed(leaf.tbs_certificate_bytes, algorithm, leaf.signature)
    assert whole == leaf.public_bytes(Encoding.DER)
    ours = by_us(leaf, request, ca_key)
    assert ours.tbs_certificate_bytes == leaf.tbs_certificate_bytes
    assert ours.signature_algorithm_oid == leaf.signature_algorithm_oid
    assert_signed_by(ours, request.ca.ca_certificate)


START = datetime(2020, 1, 1, tzinfo=UTC)
TIMES = st.integers(0, 80 * 365 * 86400).map(lambda seconds: START + timedelta(seconds=seconds))
EDGE = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
# Whatever the policy may give, and the digits and the prefix that stand in a credential group too.
NAMES = st.one_of(
    st.text(min_size=1, max_size=64).filter(lambda name: len(name.encode()) <= MAX_NAME),
    st.sampled_from(["0" * 40, "clustercert:credential", "clustercert:admins", "ä" * 32, "x" * 64]),
)


@given(
    username=NAMES,
    groups=st.lists(NAMES, max_size=20).map(tuple),
    serial=st.one_of(st.integers(1, 2**159 - 1), st.integers(1, 300)),
    not_before=st.one_of(TIMES, st.sampled_from([EDGE, EDGE + timedelta(seconds=1)])),
    lifetime=st.timedeltas(timedelta(0), timedelta(days=1825)).map(
        lambda each: each - each % timedelta(seconds=1)
    ),
)
def test_the_library_makes_the_same_leaf_for_any_grant(
    username: str, groups: tuple[str, ...], serial: int, not_before: datetime, lifetime: timedelta
) -> None:
    """Also where the serial, and with it the credential number that is spliced in, begins with zeros."""
    wanted = Grant("admin", username, groups, not_before, not_before + lifetime)
    for number in (f"{serial:040x}", ""):
        request = SigningRequest(wanted, KEYS["ec-p256"].public_key(), CA, number, serial)
        leaf = by_the_library(request, CA_KEY)
        assert encoded(leaf, request) == leaf.tbs_certificate_bytes
        assert by_us(leaf, request, CA_KEY).tbs_certificate_bytes == leaf.tbs_certificate_bytes


@given(
    st.one_of(
        st.integers(1, 2**159 - 1),
        st.integers(0, 158).map(lambda bit: 1 << bit),
        st.integers(1, 159).map(lambda bit: (1 << bit) - 1),
    )
)
def test_any_serial_is_the_shortest_positive_integer(serial: int) -> None:
    request = SigningRequest(grant(), KEYS["ec-p256"].public_key(), CA, f"{serial:040x}")
    tbs = requested_tbs(request, ca_subject(CA.certificate), serial)
    element = inside(tbs)[1]
    assert int.from_bytes(element[2:], "big", signed=True) == serial
    assert len(element) == 2 or element[2] != 0 or element[3] >= 0x80
    reread = x509.load_der_x509_certificate(encode_signed(tbs, ALGORITHM_DER["ec-p256"], b"\x30\x00"))
    assert reread.serial_number == serial


@pytest.mark.parametrize("key_type", get_args(KeyType))
def test_a_key_identifier_is_the_librarys(key_type: KeyType) -> None:
    public_key = KEYS[key_type].public_key()
    assert key_type_of(public_key) == key_type
    assert key_identifier(spki(public_key)) == x509.SubjectKeyIdentifier.from_public_key(public_key).digest
