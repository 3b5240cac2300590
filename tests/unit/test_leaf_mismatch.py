"""One lie for each thing that `check_leaf` checks, told through the whole use case."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from clustercert.model import PrivateKey, SigningRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.errors import SignerError
from clustercert.pki.certificates import certificate_der
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, new_signing_request, subject
from support.asn1 import BIT_STRING, INTEGER, SEQUENCE, der, inside, resigned
from support.issuance_doubles import CA, REQUEST, MemoryLedger, issuance
from support.leaf_builder import LeafBuilder
from support.samples import (
    BACKDATE,
    CA_KEY,
    CA_NOT_BEFORE,
    CLUSTER_ID,
    ISSUED_AT,
    PROJECT_ID,
    USER_ID,
    caller,
    client_ca,
    grant,
)

OTHER_KEY = new_key("ec-p256")
OTHER_CA = client_ca(OTHER_KEY)


@dataclass
class Answering:
    """A signer that answers the DER of whatever it is told to make of the request."""

    answer: Callable[[SigningRequest], tuple[x509.Certificate, ...]]
    takes_serial: bool = False
    profile: LeafProfile = "own"

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        return tuple(certificate_der(certificate) for certificate in self.answer(request))


def leaf_of(request: SigningRequest) -> x509.Certificate:
    return signed_by(CA.ca_certificate, CA_KEY, request)


def signed_by(ca: x509.Certificate, ca_key: PrivateKey, request: SigningRequest) -> x509.Certificate:
    return x509.load_der_x509_certificate(LeafBuilder(ca, ca_key).build(request))


def builder_of(request: SigningRequest) -> x509.CertificateBuilder:
    """The right leaf, without its extensions."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject(request.grant, request.credential_number))
        .issuer_name(CA.ca_certificate.subject)
        .public_key(request.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(request.grant.not_before)
        .not_valid_after(request.grant.not_after)
    )


def with_extensions(
    change: Callable[[list[tuple[x509.ExtensionType, bool]]], list[tuple[x509.ExtensionType, bool]]],
) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    """The right leaf but for its extensions."""

    def answer(request: SigningRequest) -> tuple[x509.Certificate, ...]:
        builder = builder_of(request)
        right = [(each.value, each.critical) for each in leaf_of(request).extensions]
        for value, critical in change(right):
            builder = builder.add_extension(value, critical=critical)
        return (builder.sign(CA_KEY, hashes.SHA256()),)

    return answer


def instead(
    wrong: x509.ExtensionType, *, critical: bool
) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    return with_extensions(
        lambda right: [(wrong, critical) if each.oid == wrong.oid else (each, was) for each, was in right]
    )


def beside(
    more: x509.ExtensionType, *, critical: bool
) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    return with_extensions(lambda right: [*right, (more, critical)])


def granting(**changed: object) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    """The leaf for another grant."""
    return lambda request: (leaf_of(replace(request, grant=replace(request.grant, **changed))),)  # type: ignore[arg-type] # fields of Grant


def rewritten(**parts: bytes | None) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    return lambda request: (resigned(leaf_of(request), CA_KEY, **parts),)  # type: ignore[arg-type] # an EC key


def grouped(
    change: Callable[[list[str], str], list[str]],
) -> Callable[[SigningRequest], tuple[x509.Certificate, ...]]:
    """The right leaf but for its groups, made of the policy's and of the credential group."""

    def answer(request: SigningRequest) -> tuple[x509.Certificate, ...]:
        groups = change([*request.grant.groups], f"clustercert:credential:{request.credential_number}")
        changed = replace(request.grant, groups=tuple(groups))
        return (leaf_of(replace(request, grant=changed, credential_number="")),)

    return answer


def with_two_names(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """The right subject, with a second CN."""
    right = [attribute for rdn in subject(request.grant, request.credential_number).rdns for attribute in rdn]
    name = x509.Name([*right, x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    return (resigned(leaf_of(request), CA_KEY, subject=name.public_bytes()),)  # type: ignore[arg-type] # an EC key


def subject_in_one_rdn(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """O and CN as one multi-valued RDN: another name, which reads almost the same."""
    right = subject(request.grant, request.credential_number)
    attributes = [attribute for rdn in right.rdns for attribute in rdn]
    name = x509.Name([x509.RelativeDistinguishedName(attributes)])
    return (resigned(leaf_of(request), CA_KEY, subject=name.public_bytes()),)  # type: ignore[arg-type] # an EC key


def extensions_twice(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """Every extension twice."""
    (sequence,) = inside(inside(leaf_of(request).tbs_certificate_bytes)[-1])
    repeated = der(0xA3, der(SEQUENCE, *inside(sequence), *inside(sequence)))
    return (resigned(leaf_of(request), CA_KEY, extensions=repeated),)  # type: ignore[arg-type] # an EC key


def no_key_at_all(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """A subject public key of an algorithm that nobody has."""
    unknown = der(SEQUENCE, der(SEQUENCE, der(0x06, b"\x2a\x03\x04")), der(BIT_STRING, b"\0abc"))
    return (resigned(leaf_of(request), CA_KEY, key=unknown),)  # type: ignore[arg-type] # an EC key


def malformed_extension(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """A key usage whose value is not a BIT STRING."""
    (sequence,) = inside(inside(leaf_of(request).tbs_certificate_bytes)[-1])
    key_usage = der(
        SEQUENCE, bytes.fromhex("0603551d0f"), bytes.fromhex("0101ff"), der(0x04, b"\x02\x01\x05")
    )
    parts = [key_usage if b"\x55\x1d\x0f" in each else each for each in inside(sequence)]
    whole = der(0xA3, der(SEQUENCE, *parts))
    return (resigned(leaf_of(request), CA_KEY, extensions=whole),)  # type: ignore[arg-type] # an EC key


def weakly_signed(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    """The right leaf, signed by the right key over SHA-1."""
    ecdsa_with_sha1 = der(SEQUENCE, bytes.fromhex("06072a8648ce3d0401"))
    leaf, digest = leaf_of(request), hashes.SHA1()  # noqa: S303 - the point
    return (resigned(leaf, CA_KEY, digest, signature=ecdsa_with_sha1),)  # type: ignore[arg-type] # an EC key


def broken_signature(request: SigningRequest) -> tuple[x509.Certificate, ...]:
    changed = bytearray(leaf_of(request).public_bytes(Encoding.DER))
    changed[-1] ^= 1
    return (x509.load_der_x509_certificate(bytes(changed)),)


def lookalike_ca() -> x509.Certificate:
    """A CA of the same name with another key."""
    return new_client_ca("clustercert test", OTHER_KEY, CA_NOT_BEFORE, timedelta(days=3650))


STRANGERS_GROUP = f"clustercert:credential:{0x57:040x}"
LATER, EARLIER = timedelta(seconds=1), timedelta(seconds=-1)
NOT_AFTER = ISSUED_AT + timedelta(days=30)
NO_USAGE = dict.fromkeys(
    [
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ],
    False,
)
SIGNING = x509.KeyUsage(digital_signature=True, **(NO_USAGE | {"key_cert_sign": True}))
ENCIPHERING = x509.KeyUsage(digital_signature=True, **(NO_USAGE | {"key_encipherment": True}))
RIGHT_USAGE = x509.KeyUsage(digital_signature=True, **NO_USAGE)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

LIES: dict[str, Callable[[SigningRequest], tuple[x509.Certificate, ...]]] = {
    "no certificate": lambda request: (),
    "another key": lambda request: (leaf_of(replace(request, public_key=OTHER_KEY.public_key())),),
    "a key nobody can read": no_key_at_all,
    "another user": granting(username="somebody-else"),
    "another group": granting(groups=("system:masters",)),
    "one group more": granting(groups=("clustercert:admins", "system:masters")),
    "no group": granting(groups=()),
    "the subject in one RDN": subject_in_one_rdn,
    "the user in lower case": granting(username=USER_ID.upper()),
    "a second CN": with_two_names,
    "no credential group": grouped(lambda groups, own: groups),
    "another credential group": grouped(lambda groups, own: [*groups, STRANGERS_GROUP]),
    "a stranger's credential group beside its own": grouped(
        lambda groups, own: [*groups, STRANGERS_GROUP, own]
    ),
    "a stranger's credential group behind its own": grouped(
        lambda groups, own: [*groups, own, STRANGERS_GROUP]
    ),
    "its credential group twice": grouped(lambda groups, own: [*groups, own, own]),
    "its credential group before the others": grouped(lambda groups, own: [own, *groups]),
    "its credential number in upper case": grouped(
        lambda groups, own: [*groups, own[:-40] + own[-40:].upper()]
    ),
    "its credential number without its end": grouped(lambda groups, own: [*groups, own[:-1]]),
    "its credential number without its prefix": grouped(lambda groups, own: [*groups, own[-40:]]),
    "valid from a second earlier": granting(not_before=ISSUED_AT - BACKDATE + EARLIER),
    "valid from a second later": granting(not_before=ISSUED_AT - BACKDATE + LATER),
    "valid for a second longer": granting(not_after=NOT_AFTER + LATER),
    "valid for a second less": granting(not_after=NOT_AFTER + EARLIER),
    "version 1": rewritten(version=None, extensions=None),
    "serial zero": rewritten(serial=der(INTEGER, b"\0")),
    "a negative serial": rewritten(serial=der(INTEGER, b"\x80" + bytes(15))),
    "a serial of 21 octets": rewritten(serial=der(INTEGER, b"\x7f" + bytes(20))),
    "a serial of 160 bits": rewritten(serial=der(INTEGER, b"\0\x80" + bytes(19))),
    "an issuer's unique id": rewritten(unique_ids=der(0x81, b"\0unasked")),
    "a subject's unique id": rewritten(unique_ids=der(0x82, b"\0system:masters")),
    "a signature over SHA-1": weakly_signed,
    "no extensions": with_extensions(lambda right: []),
    "a CA": instead(x509.BasicConstraints(ca=True, path_length=None), critical=True),
    "basic constraints not critical": instead(
        x509.BasicConstraints(ca=False, path_length=None), critical=False
    ),
    "a key that signs certificates": instead(SIGNING, critical=True),
    "an elliptic key that enciphers": instead(ENCIPHERING, critical=True),
    "key usage not critical": instead(RIGHT_USAGE, critical=False),
    "a server's certificate": instead(x509.ExtendedKeyUsage([SERVER]), critical=False),
    "a server's certificate too": instead(x509.ExtendedKeyUsage([CLIENT, SERVER]), critical=False),
    "extended key usage critical": instead(x509.ExtendedKeyUsage([CLIENT]), critical=True),
    "another subject key identifier": instead(x509.SubjectKeyIdentifier(b"other"), critical=False),
    "another authority key identifier": instead(
        x509.AuthorityKeyIdentifier(b"other", None, None), critical=False
    ),
    "an alternative name": beside(
        x509.SubjectAlternativeName([x509.RFC822Name("root@example.com")]), critical=False
    ),
    "an unknown extension": beside(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=False
    ),
    "certificate policies": beside(
        x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)]),
        critical=False,
    ),
    "a TLS feature without a name": beside(
        x509.UnrecognizedExtension(ExtensionOID.TLS_FEATURE, bytes.fromhex("3003020163")), critical=False
    ),
    "an alternative name of a kind that nobody reads": beside(
        x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3002a300")),
        critical=False,
    ),
    "every extension twice": extensions_twice,
    "an extension nobody can read": malformed_extension,
    "a signature by another CA": lambda request: (signed_by(OTHER_CA.ca_certificate, OTHER_KEY, request),),
    "a signature by a CA of the same name": lambda request: (signed_by(lookalike_ca(), OTHER_KEY, request),),
    "a right leaf that another key signed": lambda request: (
        signed_by(CA.ca_certificate, OTHER_KEY, request),
    ),
    "another issuer's name": rewritten(
        issuer=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")]).public_bytes()
    ),
    "a broken signature": broken_signature,
    "the CA itself": lambda request: (CA.ca_certificate,),
    "the root behind the leaf": lambda request: (leaf_of(request), CA.ca_certificate),
    "a stranger behind the leaf": lambda request: (leaf_of(request), OTHER_CA.ca_certificate),
}
for missing in (
    "basicConstraints",
    "keyUsage",
    "extendedKeyUsage",
    "authorityKeyIdentifier",
    "subjectKeyIdentifier",
):
    LIES[f"no {missing}"] = with_extensions(
        lambda right, name=missing: [each for each in right if each[0].oid._name != name]  # type: ignore[misc] # name is bound early
    )


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # what some of the lies are about
@pytest.mark.parametrize("lie", LIES)
async def test_a_wrong_certificate_of_a_signer_is_refused_and_not_recorded(lie: str) -> None:
    ledger = MemoryLedger()
    service = issuance({"local": Answering(LIES[lie])}, ledger)
    with pytest.raises(SignerError) as found_out:
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)
    assert found_out.value.message.endswith(".")
    assert ledger.entries == []


async def test_a_leaf_that_outlives_its_ca_is_found_out() -> None:
    """The policy never grants it; the check stands on its own."""
    ca = client_ca(lifetime=timedelta(days=20))
    request = new_signing_request(grant(days=30), OTHER_KEY.public_key(), ca, takes_serial=True)
    with pytest.raises(SignerError, match="outlive"):
        check_leaf((LeafBuilder(ca.ca_certificate, CA_KEY).build(request),), request)


async def test_the_lying_signers_pass_when_they_do_not_lie() -> None:
    """Each way of lying above differs from these only in its lie."""
    for truth in (
        with_extensions(lambda right: right),
        with_extensions(lambda right: right[::-1]),
        rewritten(),
        granting(),
        grouped(lambda groups, own: [*groups, own]),
    ):
        ledger = MemoryLedger()
        service = issuance({"local": Answering(truth)}, ledger)
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST)
        assert len(ledger.entries) == 1


async def test_a_serial_that_was_not_requested_is_refused() -> None:
    request = new_signing_request(grant(), new_key("ec-p256").public_key(), CA, takes_serial=True)
    assert check_leaf((certificate_der(leaf_of(request)),), request).serial == request.serial
    with pytest.raises(SignerError, match="the requested serial"):
        check_leaf((certificate_der(leaf_of(replace(request, serial=None))),), request)
