"""Validates a kubeconfig from a service before kubectl uses it.

kubectl runs the `exec` commands and reads the files that a kubeconfig names, so fields with commands or file names are
rejected.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from clustercert.cli.credential.certificate_files import MAX_CERTIFICATE_BYTES, lifetime_of
from clustercert.cli.options import CommandError
from clustercert.client.connection import json_object
from clustercert.model import CREDENTIAL_PREFIX, JsonObject
from clustercert.pki.certificates import chain_pem, is_issued_by
from clustercert.pki.keys import key_pem, spki_der

_CLUSTER_FIELDS = ("server", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name")
_CONTEXT_FIELDS = ("cluster", "user")
_CREDENTIAL_FIELDS = {"client-certificate-data", "client-key-data"}
_MAX_ISSUERS = 4


class LocalKey:
    """A new key pair. The private key stays on this machine."""

    def __init__(self) -> None:
        self.private_key = ec.generate_private_key(ec.SECP256R1())

    def csr_pem(self) -> str:
        """Create a CSR without a subject: the service takes the identity from the caller."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.private_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class ValidatedKubeconfig:
    """A kubeconfig that contains only known fields.

    Attributes:
        contexts: the names of the contexts.
        lifetime: the time from the issue to the expiry of the certificate.
        username, groups: the identity in the certificate, without the credential group.
        access_request: the id of the access request whose groups the certificate has, or `None`.
    """

    document: JsonObject
    contexts: tuple[str, ...]
    username: str
    groups: tuple[str, ...]
    not_after: datetime
    lifetime: timedelta
    access_request: str | None = None

    @property
    def credential(self) -> dict[str, str]:
        """The certificate and the private key, as PEM that is encoded in base64."""
        (user,) = _items(self.document, "users")
        return {field: str(value) for field, value in json_object(user["user"]).items()}


def validated_kubeconfig(answer: JsonObject, key: LocalKey | None) -> ValidatedKubeconfig:
    """Validate the service's kubeconfig, and insert the local key if given. Raises CommandError."""
    try:
        return _validated(answer, key)
    except (LookupError, TypeError, ValueError) as error:
        raise CommandError("The service's response is not a kubeconfig with a client certificate.") from error


def _validated(answer: JsonObject, key: LocalKey | None) -> ValidatedKubeconfig:
    clusters = [
        {"name": str(item["name"]), "cluster": _only(item["cluster"], _CLUSTER_FIELDS)}
        for item in _items(answer, "clusters")
    ]
    contexts = [
        {"name": str(item["name"]), "context": _only(item["context"], _CONTEXT_FIELDS)}
        for item in _items(answer, "contexts")
    ]
    (user,) = _items(answer, "users")
    leaf, credential = _credential(json_object(user["user"]), key)
    document: JsonObject = {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": clusters,
        "users": [{"name": str(user["name"]), "user": credential}],
        "contexts": contexts,
        "current-context": str(answer["current-context"]),
    }
    return ValidatedKubeconfig(
        document=document,
        contexts=tuple(str(item["name"]) for item in contexts),
        username="".join(_values(leaf, NameOID.COMMON_NAME)),
        groups=tuple(
            group
            for group in _values(leaf, NameOID.ORGANIZATION_NAME)
            if not group.startswith(CREDENTIAL_PREFIX)
        ),
        not_after=leaf.not_valid_after_utc,
        lifetime=lifetime_of(leaf),
    )


def _credential(user: JsonObject, key: LocalKey | None) -> tuple[x509.Certificate, JsonObject]:
    """Return the certificate and the user entry for the kubeconfig."""
    if unknown := user.keys() - _CREDENTIAL_FIELDS:
        raise CommandError(
            "The service's kubeconfig has fields that could make kubectl run programs or read files: "
            f"{', '.join(sorted(unknown))}. It was not used."
        )
    sent_pem = _decoded(user["client-certificate-data"])
    if len(sent_pem) > MAX_CERTIFICATE_BYTES:
        raise CommandError(f"The service's certificate is larger than {MAX_CERTIFICATE_BYTES // 1024} KiB.")
    leaf, *others = x509.load_pem_x509_certificates(sent_pem)
    if key is None:
        pem = _decoded(user["client-key-data"])
        public_key = load_pem_private_key(pem, password=None).public_key()
    else:
        pem = key_pem(key.private_key)
        public_key = key.private_key.public_key()
    if spki_der(leaf.public_key()) != spki_der(public_key):
        raise CommandError("The service's certificate does not match the private key in the kubeconfig.")
    return leaf, {
        "client-certificate-data": base64.b64encode(chain_pem((leaf, *_issuers(leaf, others)))).decode(),
        "client-key-data": base64.b64encode(pem).decode(),
    }


def _issuers(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> Iterator[x509.Certificate]:
    """Yield the issuers of the leaf certificate, in the order of the chain, without a self-signed CA.

    Skips certificates that do not belong to the chain, because programs could mistake a certificate file for a list of
    trusted CAs.
    """
    certificate = leaf
    for _ in range(_MAX_ISSUERS):
        found = next((each for each in others if is_issued_by(certificate, each)), None)
        if found is None or found.subject == found.issuer:
            return
        yield found
        certificate = found


def _decoded(value: object) -> bytes:
    return base64.b64decode(str(value), validate=True)


def _only(value: object, fields: Sequence[str]) -> JsonObject:
    """Copy only the known fields of an object."""
    found = json_object(value)
    return {field: found[field] for field in fields if field in found}


def _items(answer: JsonObject, field: str) -> list[JsonObject]:
    items = answer[field]
    if not isinstance(items, list):
        raise TypeError(f"{field} is not a list")
    return [json_object(item) for item in items]


def _values(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(oid))
