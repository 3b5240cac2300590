import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from clustercert.cli.kubeconfig.validation import LocalKey, validated_kubeconfig
from clustercert.cli.options import CommandError
from clustercert.model import JsonObject
from clustercert.pki.certificates import chain_pem, csr_public_key
from clustercert.pki.keys import key_pem

NOT_AFTER = datetime(2026, 1, 15, 18, 30, tzinfo=UTC)
SUBJECT = x509.Name(
    [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "viewers"),
        x509.NameAttribute(NameOID.COMMON_NAME, "alice"),
    ]
)


def leaf(key: ec.EllipticCurvePrivateKey) -> str:
    """A certificate for a key, as a kubeconfig has it."""
    certificate = (
        x509.CertificateBuilder()
        .subject_name(SUBJECT)
        .issuer_name(SUBJECT)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOT_AFTER - timedelta(hours=8))
        .not_valid_after(NOT_AFTER)
        .sign(key, hashes.SHA256())
    )
    return base64.b64encode(chain_pem((certificate,))).decode()


def answer(certificate: str, key: ec.EllipticCurvePrivateKey | None, **credential: object) -> JsonObject:
    user: JsonObject = {"client-certificate-data": certificate, **credential}
    if key is not None:
        user["client-key-data"] = base64.b64encode(key_pem(key)).decode()
    return {
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": "https://k", "certificate-authority": "/etc/passwd"}}
        ],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "internal", "context": {"cluster": "c", "user": "user", "extensions": []}}],
        "current-context": "internal",
        "extensions": [{"name": "x"}],
    }


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_only_known_fields_are_kept() -> None:
    key = new_key()
    obtained = validated_kubeconfig(answer(leaf(key), key), None)

    assert obtained.document["clusters"] == [{"name": "c", "cluster": {"server": "https://k"}}]
    assert obtained.document["contexts"] == [
        {"name": "internal", "context": {"cluster": "c", "user": "user"}}
    ]
    assert set(obtained.document) == {
        "kind",
        "apiVersion",
        "preferences",
        "clusters",
        "users",
        "contexts",
        "current-context",
    }
    assert (obtained.username, obtained.groups, obtained.not_after) == ("alice", ("viewers",), NOT_AFTER)
    assert obtained.contexts == ("internal",)


def test_a_local_key_is_put_into_the_kubeconfig() -> None:
    local = LocalKey()
    assert csr_public_key(local.csr_pem()) == local.private_key.public_key()

    obtained = validated_kubeconfig(answer(leaf(local.private_key), None), local)

    users: Any = obtained.document["users"]
    pem = base64.b64decode(users[0]["user"]["client-key-data"])
    kept = load_pem_private_key(pem, password=None)
    assert kept.public_key() == local.private_key.public_key()


@pytest.mark.parametrize("field", ["exec", "auth-provider", "tokenFile", "client-key", "username"])
def test_fields_that_run_programs_or_read_files_are_refused(field: str) -> None:
    key = new_key()
    with pytest.raises(CommandError, match=field):
        validated_kubeconfig(answer(leaf(key), key, **{field: {"command": "rm"}}), None)


def test_a_certificate_for_another_key_is_refused() -> None:
    for key, local in ((new_key(), None), (None, LocalKey())):
        with pytest.raises(CommandError, match="does not match the private key"):
            validated_kubeconfig(answer(leaf(new_key()), key), local)


KEY = new_key()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"users": []},
        {"users": None},
        {"users": [{"name": "u", "user": {}}]},
        {"users": [{"name": "u", "user": []}]},
        {"users": [{"name": "u", "user": {"client-certificate-data": "%"}}]},
        {"users": [{"name": "u", "user": {"client-certificate-data": "AAAA", "client-key-data": "AAAA"}}]},
        {"clusters": {}},
        {"clusters": [1]},
        {"clusters": [{"name": "c", "cluster": None}]},
        {"contexts": [{"name": "c"}]},
    ],
)
def test_an_answer_that_is_not_a_kubeconfig_is_refused(wrong: JsonObject) -> None:
    with pytest.raises(CommandError, match="not a kubeconfig"):
        validated_kubeconfig((answer(leaf(KEY), KEY) | wrong) if wrong else {}, None)


def issued_by(
    issuer: tuple[x509.Certificate | None, ec.EllipticCurvePrivateKey],
    name: str,
    key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate from an issuer, or a self-signed one without a certificate of the issuer."""
    certificate, signing_key = issuer
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(certificate.subject if certificate is not None else own)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(NOT_AFTER - timedelta(hours=8))
        .not_valid_after(NOT_AFTER)
        .sign(signing_key, hashes.SHA256())
    )


def kept(*sent: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> list[x509.Certificate]:
    """The certificates that are written of those that a service sends."""
    pem = base64.b64encode(chain_pem(sent)).decode()
    credential = validated_kubeconfig(answer(pem, key), None).credential
    return x509.load_pem_x509_certificates(base64.b64decode(credential["client-certificate-data"]))


def test_only_the_chain_of_the_leaf_is_kept() -> None:
    key = new_key()
    root = issued_by((None, key), "root", key)
    middle = issued_by((root, key), "middle", key)
    end = issued_by((middle, key), "end", key)
    other_key = new_key()
    # It has the name of the leaf's issuer, but did not sign the leaf.
    false = issued_by((None, other_key), "middle", other_key)
    stranger = issued_by((false, other_key), "stranger", other_key)

    assert kept(end, middle, key=key) == [end, middle]
    assert kept(end, false, stranger, root, middle, key=key) == [end, middle]
    assert kept(end, key=key) == [end]


def test_at_most_four_issuers_are_kept() -> None:
    key = new_key()
    chain = [issued_by((None, key), "0", key)]
    for number in range(1, 8):
        chain.append(issued_by((chain[-1], key), str(number), key))
    sent = chain[::-1]
    assert kept(*sent, key=key) == sent[:5]


def test_a_chain_that_is_too_large_is_refused() -> None:
    key = new_key()
    certificate = issued_by((None, key), "leaf", key)
    pem = base64.b64encode(chain_pem((certificate,) * 200)).decode()
    with pytest.raises(CommandError, match="larger than 64 KiB"):
        validated_kubeconfig(answer(pem, key), None)


def test_text_beside_the_certificates_is_not_kept() -> None:
    key = new_key()
    pem = b"# a comment\n" + base64.b64decode(leaf(key)) + b"export PATH=/tmp\n"
    credential = validated_kubeconfig(answer(base64.b64encode(pem).decode(), key), None).credential
    assert (
        credential["client-certificate-data"]
        == base64.b64encode(chain_pem((x509.load_pem_x509_certificate(pem),))).decode()
    )
