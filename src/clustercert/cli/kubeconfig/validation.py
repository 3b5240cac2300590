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
from clustercert.model.errors import InvalidRequest
from clustercert.model.kubeconfigs import address_warning
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
        lifetime: the time from the issue to the expiry of the credential.
        username, groups: the identity in the certificate, without the credential group. A token has no groups: its
            service account has roles.
        not_after: the end of the credential. The service ends a token then, even if the token itself expires later.
        access_request: the id of the access request whose groups the credential has, or `None`.
        token_expires_at: when the token itself expires; `None` for a certificate.
        left_out: the groups that the token lacks, because they have no role in the cluster.
    """

    document: JsonObject
    contexts: tuple[str, ...]
    username: str
    groups: tuple[str, ...]
    not_after: datetime
    lifetime: timedelta
    access_request: str | None = None
    token_expires_at: datetime | None = None
    left_out: tuple[str, ...] = ()

    @property
    def credential(self) -> dict[str, str]:
        """The fields of the kubeconfig's user: a token, or a certificate and a private key as base64 of PEM."""
        (user,) = _items(self.document, "users")
        return {field: str(value) for field, value in json_object(user["user"]).items()}


def validated_kubeconfig(answer: JsonObject, key: LocalKey | None) -> ValidatedKubeconfig:
    """Validate the service's kubeconfig, and insert the local key if given. Raises CommandError."""
    try:
        return _validated(answer, key)
    except (LookupError, TypeError, ValueError) as error:
        raise CommandError("The service's response is not a kubeconfig with a client certificate.") from error


def validated_token(answer: JsonObject, not_after: datetime) -> ValidatedKubeconfig:
    """Validate the service's kubeconfig with a token. Raises CommandError.

    Args:
        not_after: when the service ends the credential.
    """
    try:
        return _validated_token(answer, not_after)
    except (LookupError, TypeError, ValueError, InvalidRequest) as error:
        raise CommandError("The service's response is not a kubeconfig with a token.") from error


def _validated_token(answer: JsonObject, not_after: datetime) -> ValidatedKubeconfig:
    from clustercert.issuance.signers.account_tokens import parse_token

    (user,) = _items(answer, "users")
    credential = json_object(user["user"])
    _refuse_unknown(credential, {"token"})
    token = parse_token(str(credential["token"]).encode())
    document = _document(answer, {"token": token.text})
    for each in _items(document, "clusters"):
        if (warning := address_warning(json_object(each["cluster"]))) is not None:
            raise CommandError(
                f"The service's kubeconfig was not used, because it would give the token away. {warning} Tell the "
                "operator of the service."
            )
    end = min(not_after, token.expires_at)
    return ValidatedKubeconfig(
        document=document,
        contexts=_names(document, "contexts"),
        username=token.username,
        groups=(),
        not_after=end,
        lifetime=end - token.issued_at,
        token_expires_at=token.expires_at,
    )


def _validated(answer: JsonObject, key: LocalKey | None) -> ValidatedKubeconfig:
    (user,) = _items(answer, "users")
    leaf, credential = _credential(json_object(user["user"]), key)
    document = _document(answer, credential)
    return ValidatedKubeconfig(
        document=document,
        contexts=_names(document, "contexts"),
        username="".join(_values(leaf, NameOID.COMMON_NAME)),
        groups=tuple(
            group
            for group in _values(leaf, NameOID.ORGANIZATION_NAME)
            if not group.startswith(CREDENTIAL_PREFIX)
        ),
        not_after=leaf.not_valid_after_utc,
        lifetime=lifetime_of(leaf),
    )


def _document(answer: JsonObject, credential: JsonObject) -> JsonObject:
    """Return the known fields of a kubeconfig, with the user's credential."""
    (user,) = _items(answer, "users")
    clusters = [
        {"name": str(item["name"]), "cluster": _only(item["cluster"], _CLUSTER_FIELDS)}
        for item in _items(answer, "clusters")
    ]
    contexts = [
        {"name": str(item["name"]), "context": _only(item["context"], _CONTEXT_FIELDS)}
        for item in _items(answer, "contexts")
    ]
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": clusters,
        "users": [{"name": str(user["name"]), "user": credential}],
        "contexts": contexts,
        "current-context": str(answer["current-context"]),
    }


def _names(document: JsonObject, field: str) -> tuple[str, ...]:
    return tuple(str(item["name"]) for item in _items(document, field))


def _refuse_unknown(user: JsonObject, known: set[str]) -> None:
    if unknown := user.keys() - known:
        raise CommandError(
            "The service's kubeconfig has fields that could make kubectl run programs or read files: "
            f"{', '.join(sorted(unknown))}. It was not used."
        )


def _credential(user: JsonObject, key: LocalKey | None) -> tuple[x509.Certificate, JsonObject]:
    """Return the certificate and the user entry for the kubeconfig."""
    _refuse_unknown(user, _CREDENTIAL_FIELDS)
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
