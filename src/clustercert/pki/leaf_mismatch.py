"""Compares a leaf with its request field by field if its encoding differs from ours. Errors name the wrong field."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from clustercert.model import SigningRequest
from clustercert.model.errors import SignerError
from clustercert.pki.client_ca import authority_key_identifier, key_usage
from clustercert.pki.keys import key_kind, spki_der

_CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)


def parse_reencoded_leaf(
    der: bytes, request: SigningRequest, subject_der: bytes
) -> tuple[int, bytes, tuple[str, ...]]:
    """Check that all fields are as requested. Returns (serial, signature, OIDs of the extensions in order).

    Does not compare the encoding. Raises SignerError, or InvalidSignature if the CA did not sign the leaf.
    """
    try:
        leaf = x509.load_der_x509_certificate(der)
        _check_fields(leaf, request, subject_der)
        order = tuple(extension.oid.dotted_string for extension in leaf.extensions)
        serial, signature = leaf.serial_number, leaf.signature
    except (SignerError, InvalidSignature):
        raise
    # The library does not document which errors it raises. For example, it raises KeyError for an unknown TLS feature.
    except Exception as error:
        raise SignerError("The signer's certificate can't be parsed, or names another issuer.") from error
    return serial, signature, order


def _check_fields(leaf: x509.Certificate, request: SigningRequest, subject_der: bytes) -> None:
    grant, ca, key = request.grant, request.ca.certificate, request.public_key
    usage = key_usage(rsa_key=key_kind(type(key)) == "rsa")
    expected: dict[tuple[x509.ObjectIdentifier, bool], x509.ExtensionType] = {
        (_NOT_A_CA.oid, True): _NOT_A_CA,
        (usage.oid, True): usage,
        (_CLIENT_AUTH.oid, False): _CLIENT_AUTH,
        (x509.AuthorityKeyIdentifier.oid, False): authority_key_identifier(ca),
        (x509.SubjectKeyIdentifier.oid, False): x509.SubjectKeyIdentifier.from_public_key(key),
    }
    found = {(extension.oid, extension.critical): extension.value for extension in leaf.extensions}
    validity = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    equal = {
        "key": spki_der(leaf.public_key()) == request.spki,
        "subject": leaf.subject.public_bytes() == subject_der,
        "version": leaf.version is x509.Version.v3,
        "validity": validity == (grant.not_before, grant.not_after),
        "extensions": found == expected,
    }
    if differing := [name for name, is_equal in equal.items() if not is_equal]:
        oids = sorted(oid.dotted_string for oid, _ in found.keys() ^ expected.keys())
        raise SignerError(
            f"The signer's certificate differs from the request in: {', '.join([*differing, *oids])}."
        )
    leaf.verify_directly_issued_by(ca)
