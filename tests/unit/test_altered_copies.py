"""Altered copies are what they should be: the same signed content, valid by the CA's key, with another hash."""

import hashlib

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from clustercert.kubernetes.verify.certificates import altered_copy
from clustercert.model import ClientCA, KeyType
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request
from support import altered_certificates
from support.altered_certificates import Parts
from support.apiserver.peer_certificate import Presented, read
from support.leaf_builder import LeafBuilder
from support.samples import CA_ID, CA_NOT_BEFORE, CLUSTER_ID, ISSUED_AT, grant

CAS: tuple[KeyType, ...] = ("ec-p256", "ec-p384", "rsa-2048", "ed25519")
KEYS = {key_type: new_key(key_type) for key_type in CAS}


def leaf(key_type: KeyType) -> bytes:
    """A leaf whose signature can be shifted."""
    key = KEYS[key_type]
    certificate = new_client_ca("clustercert test", key, CA_NOT_BEFORE, ISSUED_AT - CA_NOT_BEFORE)
    ca = ClientCA(id=CA_ID, cluster_id=CLUSTER_ID, certificate=certificate, sealed_key=None)
    while True:
        request = new_signing_request(grant(), KEYS["ec-p256"].public_key(), ca, takes_serial=True)
        der = LeafBuilder(certificate, key).build(request)
        if altered_certificates.can_be_shifted(der):
            return der


def verify(key_type: KeyType, signature: bytes, tbs: bytes) -> None:
    """Raises InvalidSignature."""
    key = KEYS[key_type].public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        digest = hashes.SHA384() if key_type == "ec-p384" else hashes.SHA256()
        key.verify(signature, tbs, ec.ECDSA(digest))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, tbs, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey)
        key.verify(signature, tbs)


@pytest.mark.parametrize("key_type", CAS)
def test_each_copy_is_signed_the_same_and_has_another_hash(key_type: KeyType) -> None:
    original = leaf(key_type)
    tbs = x509.load_der_x509_certificate(original).tbs_certificate_bytes
    copies = altered_certificates.copies(original)
    assert copies.keys() == altered_certificates.kinds_of(key_type)
    known = {hashlib.sha256(each).digest() for each in (original, *copies.values())}
    assert len(known) == 1 + len(copies)
    for copy in copies.values():
        assert Parts.of(copy).tbs == tbs
        presented = read(copy)
        assert presented.tbs == tbs
        # What is left of it after Go has read it.
        verify(key_type, presented.signature, tbs)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384"])
def test_a_twin_is_a_certificate_to_every_parser(key_type: KeyType) -> None:
    original = leaf(key_type)
    twin = altered_certificates.copies(original)["twin"]
    parsed = x509.load_der_x509_certificate(twin)
    verify(key_type, parsed.signature, parsed.tbs_certificate_bytes)
    assert parsed.signature != x509.load_der_x509_certificate(original).signature
    # The program's own, made by a library, is the same.
    assert altered_copy(original) == twin
    assert altered_copy(twin) == original


@pytest.mark.parametrize("key_type", ["rsa-2048", "ed25519"])
def test_other_signatures_have_no_twin(key_type: KeyType) -> None:
    assert altered_copy(leaf(key_type)) is None


def test_the_library_takes_no_appended_elements() -> None:
    """The reason why the double is told of copies in a header: no TLS client of ours can present these."""
    for kind, copy in altered_certificates.copies(leaf("ec-p256")).items():
        if "null" in kind or "kilobyte" in kind:
            with pytest.raises(ValueError, match="ExtraData"):
                x509.load_der_x509_certificate(copy)


@pytest.mark.parametrize(
    "changed",
    [
        lambda parts: parts.der + altered_certificates.NULL,  # behind the outer SEQUENCE
        lambda parts: Parts(parts.tbs, altered_certificates.NULL, parts.signature).der,
        lambda parts: (
            Parts(
                parts.tbs,
                parts.algorithm,
                parts.signature[:2] + b"\x01" + parts.signature[3:-1] + bytes([parts.signature[-1] | 1]),
            ).der
        ),
        lambda parts: b"",
    ],
    ids=["behind", "algorithm", "unused-bits", "nothing"],
)
def test_what_go_refuses_is_refused(changed: object) -> None:
    assert callable(changed)
    with pytest.raises(ValueError, match=r"."):
        read(changed(Parts.of(leaf("ec-p256"))))


def test_a_forged_copy_does_not_verify() -> None:
    original = Parts.of(leaf("ec-p256"))
    forged = Parts(original.tbs.replace(b"clustercert:admins", b"clustercert:masters"[:18]), *_rest(original))
    presented: Presented = read(forged.der)
    with pytest.raises(InvalidSignature):
        verify("ec-p256", presented.signature, presented.tbs)


def _rest(parts: Parts) -> tuple[bytes, bytes]:
    return parts.algorithm, parts.signature
