"""A small CA for tests: signs server certificates, and client certificates unknown to the service."""

import base64
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = timedelta(hours=1)


class Authority:
    """A P-256 CA in memory."""

    def __init__(self, common_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _dated(self._name, self._name, self._key.public_key(), datetime.now(UTC) + 24 * HOUR)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return self._key

    def intermediate_pem(self, common_name: str) -> bytes:
        """The certificate of another CA, signed by this one."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        builder = _dated(subject, self._name, key, datetime.now(UTC) + 12 * HOUR)
        certificate = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    def server_identity_pem(self, common_name: str, names: Sequence[x509.GeneralName]) -> bytes:
        """Key and certificate for a TLS server, in one PEM."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        return self._identity_pem(
            subject,
            ExtendedKeyUsageOID.SERVER_AUTH,
            datetime.now(UTC) + 12 * HOUR,
            x509.SubjectAlternativeName(names),
        )

    def client_identity_pem(
        self,
        common_name: str | None,
        groups: Sequence[str] = (),
        *,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        not_after: datetime | None = None,
    ) -> bytes:
        """Key and certificate for a Kubernetes user, in one PEM."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        if common_name is not None:
            attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        return self._identity_pem(x509.Name(attributes), usage, not_after or datetime.now(UTC) + HOUR)

    def _identity_pem(
        self,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        not_after: datetime,
        names: x509.SubjectAlternativeName | None = None,
    ) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _dated(subject, self._name, key.public_key(), not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        leaf = builder.sign(self._key, hashes.SHA256())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key_pem + leaf.public_bytes(serialization.Encoding.PEM)


def kubeconfig_document(url: str, server_ca_pem: bytes, identity_pem: bytes) -> bytes:
    """A JSON kubeconfig with this key and certificate (one PEM)."""
    identity_b64 = base64.b64encode(identity_pem).decode()
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(server_ca_pem).decode()}
    user = {"client-certificate-data": identity_b64, "client-key-data": identity_b64}
    document = {
        "kind": "Config",
        "apiVersion": "v1",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }
    return json.dumps(document).encode()


def _dated(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), not_after) - HOUR)
        .not_valid_after(not_after)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def large_ca_pem(size: int) -> bytes:
    """A self-signed certificate with about this number of bytes in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "large")])
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(size))
    builder = _dated(name, name, key.public_key(), datetime.now(UTC) + HOUR)
    return (
        builder.add_extension(padding, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def slow_rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key whose exponent has as many bits as its modulus: each verification takes a hundred times as long."""
    numbers = rsa.generate_private_key(65537, bits).private_numbers()
    p, q = numbers.p, numbers.q
    order = (p - 1) * (q - 1)
    exponent = next(each for each in range(order - 3, 0, -2) if math.gcd(each, order) == 1)
    d = pow(exponent, -1, order)
    return rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), numbers.iqmp, rsa.RSAPublicNumbers(exponent, p * q)
    ).private_key(unsafe_skip_rsa_key_validation=True)


def ca_of_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: x509.Name) -> x509.Certificate:
    """A self-signed CA with this key and name."""
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - HOUR)
        .not_valid_after(datetime.now(UTC) + HOUR)
        .sign(key, hashes.SHA256())
    )
