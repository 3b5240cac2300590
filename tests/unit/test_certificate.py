import hashlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from clustercert.http.administration.cluster_bodies import ClusterBody
from clustercert.model import KeyType, PrivateKey, PublicKey, SigningRequest
from clustercert.model.errors import InvalidRequest
from clustercert.pki.certificates import (
    chain_pem,
    fingerprint,
    is_issued_by,
    parse_certificates,
    pem_fingerprints,
)
from clustercert.pki.client_ca import ca_subject, new_client_ca
from clustercert.pki.keys import key_der, key_pem, key_type_of, load_key_der, new_key
from clustercert.pki.leaf import new_signing_request, serial_hex
from support.certificate_authority import Authority, ca_of_key, slow_rsa_key
from support.leaf_builder import LeafBuilder
from support.leaf_checks import (
    assert_client_leaf,
    assert_signed_by,
    assert_subject,
    credential_number_of,
    openssl,
    openssl_subject,
    spki,
    usages,
)
from support.samples import CA_KEY, CA_NOT_BEFORE, ISSUED_AT, USER_ID, client_ca, cluster, grant

KEY_TYPES: tuple[KeyType, ...] = get_args(KeyType)
CA = client_ca()
LEAF_KEY = new_key("ec-p256")


def leaf_for(
    key: PublicKey | None = None,
    username: str = USER_ID,
    groups: tuple[str, ...] = ("clustercert:admins",),
    ca_key: PrivateKey = CA_KEY,
) -> x509.Certificate:
    ca = client_ca(ca_key)
    request = new_signing_request(
        grant(username, groups), key or LEAF_KEY.public_key(), ca, takes_serial=True
    )
    return x509.load_der_x509_certificate(LeafBuilder(ca.ca_certificate, ca_key).build(request))


def own_group(leaf: x509.Certificate) -> str:
    """The credential group of a leaf whose serial we chose."""
    assert credential_number_of(leaf) == f"{leaf.serial_number:040x}"
    return f"clustercert:credential:{leaf.serial_number:040x}"


@pytest.fixture(scope="module")
def keys() -> dict[KeyType, PrivateKey]:
    return {key_type: new_key(key_type) for key_type in KEY_TYPES}


# Keys


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_new_key_is_of_the_type_asked_for(key_type: KeyType, keys: dict[KeyType, PrivateKey]) -> None:
    public_key = keys[key_type].public_key()
    assert key_type_of(public_key) == key_type
    match key_type:
        case "ec-p256":
            assert isinstance(public_key, ec.EllipticCurvePublicKey)
            assert public_key.curve.name == "secp256r1"
        case "ec-p384":
            assert isinstance(public_key, ec.EllipticCurvePublicKey)
            assert public_key.curve.name == "secp384r1"
        case "ed25519":
            assert isinstance(public_key, ed25519.Ed25519PublicKey)
        case _:
            assert isinstance(public_key, rsa.RSAPublicKey)
            assert public_key.key_size == int(key_type[4:])
            assert public_key.public_numbers().e == 65537


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_key_survives_its_der(key_type: KeyType, keys: dict[KeyType, PrivateKey]) -> None:
    key = keys[key_type]
    assert spki(load_key_der(key_der(key)).public_key()) == spki(key.public_key())


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_openssl_reads_the_pem_of_a_key(key_type: KeyType, keys: dict[KeyType, PrivateKey]) -> None:
    openssl("pkey", "-check", "-noout", stdin=key_pem(keys[key_type]))


def test_a_key_of_a_kind_we_do_not_use_is_no_key_of_ours() -> None:
    with pytest.raises(ValueError):
        load_key_der(key_der(ed448.Ed448PrivateKey.generate()))  # type: ignore[arg-type] # the point


# Leaves


@pytest.mark.parametrize("ca_key_type", KEY_TYPES)
@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_leaf_is_a_client_certificate_and_nothing_more(
    key_type: KeyType, ca_key_type: KeyType, keys: dict[KeyType, PrivateKey]
) -> None:
    ca_key = keys[ca_key_type]
    leaf = leaf_for(keys[key_type].public_key(), ca_key=ca_key)
    assert_client_leaf(
        leaf,
        ca=client_ca(ca_key).ca_certificate,
        username=USER_ID,
        groups=["clustercert:admins"],
        issued_at=ISSUED_AT,
        lifetime=timedelta(days=30),
    )
    assert spki(leaf.public_key()) == spki(keys[key_type].public_key())


def test_a_leaf_has_no_subject_alternative_name() -> None:
    with pytest.raises(x509.ExtensionNotFound):
        leaf_for().extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)


def test_a_leaf_has_its_groups_in_the_rules_order() -> None:
    groups = ("zebra", "alpha", "clustercert:admins", "middle")
    leaf = leaf_for(groups=groups)
    assert_subject(leaf, USER_ID, [*groups, own_group(leaf)])


def test_a_leaf_of_no_other_group_has_its_credential_group() -> None:
    leaf = leaf_for(groups=())
    assert_subject(leaf, USER_ID, [own_group(leaf)])


def test_the_number_is_not_the_serial_where_the_signer_chooses_that() -> None:
    request = new_signing_request(grant(), LEAF_KEY.public_key(), CA, takes_serial=False)
    assert request.serial is None
    leaf = x509.load_der_x509_certificate(LeafBuilder(CA.ca_certificate, CA_KEY).build(request))
    number = credential_number_of(leaf)
    assert number == request.credential_number
    assert int(number, 16) != leaf.serial_number


def test_serials_are_new_each_time_and_positive_in_twenty_octets() -> None:
    serials = [leaf_for().serial_number for _ in range(256)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 2**159 for serial in serials)
    # Random bits: each of them is set somewhere and clear somewhere.
    for bit in range(112):
        assert len({serial >> bit & 1 for serial in serials}) == 2


def test_later_serials_are_larger() -> None:
    """By the time: within a second too, and than those of the release before, which had whole seconds."""
    before = time.time()
    serial = leaf_for().serial_number
    assert before - 2**-16 <= serial / 2**128 <= time.time()
    assert serial > (int(before) - 1) << 128 | (1 << 128) - 1


def test_the_authority_key_identifier_is_copied_from_the_ca() -> None:
    """A CA made elsewhere may number its key in another way than RFC 5280's first."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "foreign")])
    foreign = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(CA_KEY.public_key())
        .serial_number(1)
        .not_valid_before(CA_NOT_BEFORE)
        .not_valid_after(CA_NOT_BEFORE + timedelta(days=400))
        .add_extension(x509.SubjectKeyIdentifier(b"twelve bytes"), critical=False)
        .sign(CA_KEY, hashes.SHA256())
    )
    request = SigningRequest(grant=grant(), public_key=LEAF_KEY.public_key(), ca=CA)
    leaf = x509.load_der_x509_certificate(LeafBuilder(foreign, CA_KEY).build(request))
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == b"twelve bytes"


def test_the_issuer_is_computed_once_for_each_ca_certificate() -> None:
    renewed = client_ca(CA_KEY).certificate
    assert ca_subject(CA.certificate) is ca_subject(CA.certificate)
    assert ca_subject(renewed) is not ca_subject(CA.certificate)


# Names

EXACT_NAMES = [
    "a",
    "with space",
    " leading and trailing ",
    "comma, comma",
    "plus+plus",
    'quote"quote',
    "back\\slash",
    "semi;colon<angle>=equals#hash",
    "#leading hash",
    "O=other,CN=someone-else",
    "a/b:c@example.com",
    "Zoë Größe",
    "日本語の名前",
    "🦀🔐",
    "e\u0301 not composed",
    "x" * 64,
    "ä" * 32,
    "🔐" * 16,
]


@pytest.mark.parametrize("name", EXACT_NAMES)
def test_a_name_reads_back_exactly(name: str) -> None:
    leaf = leaf_for(username=name, groups=(name, f"{name[:60]}-2"))
    reread = x509.load_der_x509_certificate(leaf.public_bytes(Encoding.DER))
    assert_subject(reread, name, [name, f"{name[:60]}-2", own_group(leaf)])


@given(username=st.text(min_size=1, max_size=16), group=st.text(min_size=1, max_size=64))
def test_any_text_reads_back_exactly(username: str, group: str) -> None:
    leaf = leaf_for(username=username, groups=(group,))
    reread = x509.load_der_x509_certificate(leaf.public_bytes(Encoding.DER))
    assert_subject(reread, username, [group, own_group(leaf)])


@pytest.mark.parametrize(
    ("name", "as_openssl_says_it"),
    [
        ("comma, comma", r"comma\, comma"),
        ("plus+plus", r"plus\+plus"),
        ('quote"quote', r"quote\"quote"),
        ("back\\slash", r"back\\slash"),
        ("<a>;b", r"\<a\>\;b"),
        ("#hash", r"\#hash"),
        (" both ", r"\ both\ "),
        ("O=other,CN=someone-else", r"O=other\,CN=someone-else"),
        ("Zoë Größe", "Zoë Größe"),
        ("日本語", "日本語"),
        ("🔐", "🔐"),
    ],
)
def test_openssl_reads_the_same_name(name: str, as_openssl_says_it: str) -> None:
    leaf = leaf_for(username=name, groups=(name, "second"))
    assert (
        openssl_subject(leaf)
        == f"CN={as_openssl_says_it},O={own_group(leaf)},O=second,O={as_openssl_says_it}"
    )


# The client CA


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_client_ca_signs_leaves_and_nothing_below_it(
    key_type: KeyType, keys: dict[KeyType, PrivateKey]
) -> None:
    key = keys[key_type]
    ca = new_client_ca("clustercert a cluster", key, CA_NOT_BEFORE, timedelta(days=3650))
    assert ca.subject == ca.issuer
    assert [attribute.value for attribute in ca.subject] == ["clustercert a cluster"]
    assert ca.version is x509.Version.v3
    assert ca.not_valid_before_utc == CA_NOT_BEFORE
    assert ca.not_valid_after_utc == CA_NOT_BEFORE + timedelta(days=3650)
    assert {(extension.oid, extension.critical) for extension in ca.extensions} == {
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
    }
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usages(usage) == {"key_cert_sign", "crl_sign"}
    assert_signed_by(ca, ca)


# What is told of a certificate


def test_fingerprint_and_serial_are_what_openssl_prints() -> None:
    for _ in range(20):
        leaf = leaf_for()
        pem = leaf.public_bytes(Encoding.PEM)
        printed = openssl("x509", "-noout", "-serial", "-fingerprint", "-sha256", stdin=pem).decode().split()
        assert f"serial={serial_hex(leaf.serial_number).upper()}" in printed
        assert fingerprint(leaf).hex() == printed[-1].split("=")[1].replace(":", "").lower()


def test_a_chain_is_pem_leaf_first() -> None:
    leaf = leaf_for()
    assert x509.load_pem_x509_certificates(chain_pem((leaf, CA.ca_certificate))) == [leaf, CA.ca_certificate]
    assert parse_certificates(chain_pem((leaf, CA.ca_certificate))) == (leaf, CA.ca_certificate)


@pytest.mark.parametrize("pem", [b"", b"hello", key_pem(LEAF_KEY)])
def test_what_holds_no_certificate_is_refused_as_a_pem_of_certificates(pem: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_certificates(pem)


def test_times_after_2049_are_generalized_times_that_openssl_reads() -> None:
    ca = new_client_ca("far", CA_KEY, datetime(2049, 12, 31, tzinfo=UTC), timedelta(days=800))
    printed = openssl("x509", "-noout", "-dates", stdin=ca.public_bytes(Encoding.PEM)).decode()
    assert printed == "notBefore=Dec 31 00:00:00 2049 GMT\nnotAfter=Mar 10 00:00:00 2052 GMT\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fingerprints_of_pem_blocks_need_no_parsing(count: int) -> None:
    pem = chain_pem((CA.ca_certificate,) * count)
    assert pem_fingerprints(pem) == (fingerprint(CA.ca_certificate),) * count


def test_a_list_of_clusters_parses_no_certificate() -> None:
    """Parsing takes a thousand times as long, and a project's admin chooses the certificates."""
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    shown = ClusterBody.render(replace(cluster(), server_ca_pem=pem))
    assert shown["server_ca_sha256"] == [hashlib.sha256(bytes(3)).hexdigest()]


def test_a_ca_whose_key_is_slow_to_verify_with_issued_nothing() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    for key in (
        slow_rsa_key(),
        ec.generate_private_key(ec.SECP521R1()),
    ):
        ca = ca_of_key(key, name)
        ca.verify_directly_issued_by(ca)
        assert not is_issued_by(ca, ca)
    good = Authority("kubernetes").certificate
    assert is_issued_by(good, good)
    # Another CA of the same name, and a CA of another name.
    assert not is_issued_by(good, Authority("kubernetes").certificate)
    assert not is_issued_by(good, Authority("other").certificate)


def test_more_certificates_than_allowed_are_counted_not_parsed() -> None:
    pem = chain_pem((CA.ca_certificate,))
    assert len(parse_certificates(pem * 3, 3)) == 3
    broken = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
    for more in (pem * 4, broken * 4, pem.replace(b" CERTIFICATE", b" X509 CERTIFICATE") * 4):
        with pytest.raises(InvalidRequest, match=r"^4 CAs are more than 3\.$"):
            parse_certificates(more, 3)
