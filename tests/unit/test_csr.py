from collections.abc import Callable
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import KeyType, PrivateKey
from clustercert.model.errors import InvalidRequest
from clustercert.pki.certificates import csr_public_key
from clustercert.pki.keys import key_pem, key_type_of, new_key
from support.asn1 import csr_of_version, flipped, pem, unsigned_csr
from support.leaf_checks import openssl, spki
from support.samples import SERVER_CA

LEAF_KEY = new_key("ec-p256")


def csr_pem(
    key: PrivateKey | dsa.DSAPrivateKey | ed448.Ed448PrivateKey,
    name: str = "somebody else",
    digest: hashes.HashAlgorithm | None = None,
) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
    )
    if digest is None and not isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        digest = hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type] # any key that signs


GOOD = csr_pem(LEAF_KEY)


@pytest.mark.parametrize("key_type", get_args(KeyType))
def test_the_public_key_of_a_csr_is_its_own(key_type: KeyType) -> None:
    key = new_key(key_type)
    assert spki(csr_public_key(csr_pem(key))) == spki(key.public_key())


@pytest.mark.parametrize(
    "same",
    [
        GOOD,
        GOOD.strip(),
        f"\n\n{GOOD}\n",
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(" CERTIFICATE REQUEST", " NEW CERTIFICATE REQUEST"),
    ],
    ids=["as made", "without the last newline", "with empty lines around", "with CRLF", "with the old label"],
)
def test_a_csr_in_any_form_of_the_same_block_is_read(same: str) -> None:
    assert spki(csr_public_key(same)) == spki(LEAF_KEY.public_key())


def test_openssl_made_csrs_are_read() -> None:
    made = openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                   "/dev/null", "-subj", "/CN=x").decode()  # fmt: skip
    assert key_type_of(csr_public_key(made)) == "ec-p256"


BROKEN: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "white space": lambda: " \n ",
    "not PEM": lambda: "hello",
    "two blocks": lambda: GOOD + GOOD,
    "two different blocks": lambda: GOOD + csr_pem(new_key("ed25519")),
    "text before": lambda: "Certificate Request:\n" + GOOD,
    "text after": lambda: GOOD + "trailing",
    "a private key before": lambda: key_pem(LEAF_KEY).decode() + GOOD,
    "a private key after": lambda: GOOD + key_pem(LEAF_KEY).decode(),
    "a private key alone": lambda: key_pem(LEAF_KEY).decode(),
    "a certificate": lambda: SERVER_CA.public_bytes(Encoding.PEM).decode(),
    "a certificate labelled as a request": lambda: pem(
        "CERTIFICATE REQUEST", SERVER_CA.public_bytes(Encoding.DER)
    ),
    "another label at its end": lambda: GOOD.replace("END CERTIFICATE REQUEST", "END CERTIFICATE"),
    "two labels that differ": lambda: GOOD.replace("END CERTIFICATE", "END NEW CERTIFICATE"),
    "no end": lambda: GOOD[: GOOD.index("-----END")],
    "cut short": lambda: GOOD[: len(GOOD) // 2] + "\n-----END CERTIFICATE REQUEST-----\n",
    "not base64": lambda: GOOD.replace("MII", "!!!").replace("MIH", "!!!").replace("MIG", "!!!"),
    "over 16 KiB": lambda: GOOD + "\n" * (16 * 1024 + 1 - len(GOOD)),
    "16 KiB in characters, more in bytes": lambda: GOOD + "ä" * 9000,
    "null character": lambda: GOOD + "\0",
    "lone surrogate": lambda: GOOD + "\ud800",
    "another version": lambda: csr_of_version(GOOD, 1),
    "bad signature": lambda: flipped(GOOD, 3),
    "bad signature of RSA": lambda: flipped(csr_pem(new_key("rsa-2048")), 3),
    "bad signature of Ed25519": lambda: flipped(csr_pem(new_key("ed25519")), 3),
    "P-521": lambda: csr_pem(ec.generate_private_key(ec.SECP521R1())),
    "P-224": lambda: csr_pem(ec.generate_private_key(ec.SECP224R1())),
    "secp256k1": lambda: csr_pem(ec.generate_private_key(ec.SECP256K1())),
    "Ed448": lambda: csr_pem(ed448.Ed448PrivateKey.generate()),
    "DSA": lambda: csr_pem(dsa.generate_private_key(2048)),
    "RSA-1024": lambda: csr_pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - the point
    "RSA-2047": lambda: csr_pem(rsa.generate_private_key(65537, 2047)),  # noqa: S505 - the point
    "RSA with exponent 3": lambda: csr_pem(rsa.generate_private_key(3, 2048)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_csr_that_is_not_exactly_one_good_request_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        csr_public_key(BROKEN[name]())
    assert refused.value.message.startswith("csr: ")
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize("exponent", [2**31 + 11, 2**2046 + 1])
def test_a_large_rsa_exponent_is_refused_before_verification(exponent: int) -> None:
    numbers = rsa.RSAPublicNumbers(exponent, (1 << 2047) + 12345678901)
    with pytest.raises(InvalidRequest, match=r"an exponent from 65537 to 2\^31"):
        csr_public_key(unsigned_csr(spki(numbers.public_key())))


def test_an_rsa_key_over_4096_bits_is_refused_before_verification() -> None:
    numbers = rsa.RSAPublicNumbers(65537, (1 << 8191) + 12345678901)
    assert numbers.public_key().key_size == 8192
    with pytest.raises(InvalidRequest, match="2048 to 4096"):
        csr_public_key(unsigned_csr(spki(numbers.public_key())))


@given(st.text(max_size=400))
def test_no_text_does_anything_but_be_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        csr_public_key(text)


@given(position=st.integers(min_value=0), replacement=st.integers(0, 255))
def test_a_changed_byte_of_a_csr_is_refused_or_changes_nothing(position: int, replacement: int) -> None:
    der_bytes = bytearray(x509.load_pem_x509_csr(GOOD.encode()).public_bytes(Encoding.DER))
    der_bytes[position % len(der_bytes)] = replacement
    try:
        key = csr_public_key(pem("CERTIFICATE REQUEST", bytes(der_bytes)))
    except InvalidRequest:
        return
    assert spki(key) == spki(LEAF_KEY.public_key())
