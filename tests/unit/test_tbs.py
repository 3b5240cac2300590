"""Our own encoding of a leaf against the library's: byte for byte the same."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from asn1 import inside
from clustercert.certificate import LeafBuilder, subject
from clustercert.keypair import key_type_of, new_key
from clustercert.model import Grant, KeyType, SigningRequest
from clustercert.tbs import ALGORITHM_DER, key_identifier, leaf_extensions, leaf_tbs, signed
from leaf import spki
from nouns import CA_KEY, client_ca, grant

KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}
CA = client_ca()


def encoded(leaf: x509.Certificate, request: SigningRequest, algorithm: bytes) -> bytes:
    """The leaf's first part as we write it, from the request and the serial alone."""
    ca = request.ca.certificate
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return leaf_tbs(
        serial=leaf.serial_number,
        signature_algorithm=algorithm,
        issuer=ca.subject.public_bytes(),
        subject=subject(request.grant).public_bytes(),
        not_before=request.grant.not_before,
        not_after=request.grant.not_after,
        spki=spki(request.public_key),
        extensions=leaf_extensions(
            rsa_key=isinstance(request.public_key, rsa.RSAPublicKey),
            authority_key_identifier=identifier.digest,
            spki=spki(request.public_key),
        ).values(),
    )


@pytest.mark.parametrize("key_type", get_args(KeyType))
@pytest.mark.parametrize("ca_key_type", get_args(KeyType))
def test_the_library_makes_the_same_leaf(key_type: KeyType, ca_key_type: KeyType) -> None:
    ca_key = KEYS[ca_key_type]
    request = SigningRequest(grant(), KEYS[key_type].public_key(), client_ca(ca_key))
    leaf = LeafBuilder(request.ca.certificate, ca_key).build(request)
    algorithm = ALGORITHM_DER["rsa" if ca_key_type.startswith("rsa") else ca_key_type]
    assert encoded(leaf, request, algorithm) == leaf.tbs_certificate_bytes
    whole = signed(leaf.tbs_certificate_bytes, algorithm, leaf.signature)
    assert whole == leaf.public_bytes(Encoding.DER)


START = datetime(2020, 1, 1, tzinfo=UTC)
TIMES = st.integers(0, 80 * 365 * 86400).map(lambda seconds: START + timedelta(seconds=seconds))
EDGE = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)


@given(
    username=st.text(min_size=1, max_size=16),
    groups=st.lists(st.text(min_size=1, max_size=64), max_size=20).map(tuple),
    not_before=st.one_of(TIMES, st.sampled_from([EDGE, EDGE + timedelta(seconds=1)])),
    lifetime=st.timedeltas(timedelta(0), timedelta(days=1825)).map(
        lambda each: each - each % timedelta(seconds=1)
    ),
)
@settings(max_examples=100)
def test_the_library_makes_the_same_leaf_for_any_grant(
    username: str, groups: tuple[str, ...], not_before: datetime, lifetime: timedelta
) -> None:
    wanted = Grant("admin", username, groups, not_before, not_before + lifetime)
    request = SigningRequest(wanted, KEYS["ec-p256"].public_key(), CA)
    leaf = LeafBuilder(CA.certificate, CA_KEY).build(request)
    assert encoded(leaf, request, ALGORITHM_DER["ec-p256"]) == leaf.tbs_certificate_bytes


@given(
    st.one_of(
        st.integers(1, 2**159 - 1),
        st.integers(0, 158).map(lambda bit: 1 << bit),
        st.integers(1, 159).map(lambda bit: (1 << bit) - 1),
    )
)
def test_any_serial_is_the_shortest_positive_integer(serial: int) -> None:
    request = SigningRequest(grant(), KEYS["ec-p256"].public_key(), CA)
    identifier = CA.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    tbs = leaf_tbs(
        serial=serial,
        signature_algorithm=ALGORITHM_DER["ec-p256"],
        issuer=CA.certificate.subject.public_bytes(),
        subject=subject(request.grant).public_bytes(),
        not_before=request.grant.not_before,
        not_after=request.grant.not_after,
        spki=spki(request.public_key),
        extensions=leaf_extensions(
            rsa_key=False, authority_key_identifier=identifier.digest, spki=spki(request.public_key)
        ).values(),
    )
    element = inside(tbs)[1]
    assert int.from_bytes(element[2:], "big", signed=True) == serial
    assert len(element) == 2 or element[2] != 0 or element[3] >= 0x80
    reread = x509.load_der_x509_certificate(signed(tbs, ALGORITHM_DER["ec-p256"], b"\x30\x00"))
    assert reread.serial_number == serial


@pytest.mark.parametrize("key_type", get_args(KeyType))
def test_a_key_identifier_is_the_librarys(key_type: KeyType) -> None:
    public_key = KEYS[key_type].public_key()
    assert key_type_of(public_key) == key_type
    assert key_identifier(spki(public_key)) == x509.SubjectKeyIdentifier.from_public_key(public_key).digest
