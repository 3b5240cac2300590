"""A kubeconfig as a service answered it, looked into before kubectl is.

kubectl runs what `exec` in a kubeconfig says, and reads the files that it names. Nothing of the kind is passed on.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from clustercert.client.wire import an_object
from clustercert.errors import ClustercertError
from clustercert.keypair import key_pem, spki_der
from clustercert.model import CREDENTIAL_PREFIX, JsonObject

_CLUSTER_FIELDS = ("server", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name")
_CONTEXT_FIELDS = ("cluster", "user")
_CREDENTIAL_FIELDS = {"client-certificate-data", "client-key-data"}


class UnexpectedKubeconfigError(ClustercertError):
    """What the service sent is not used; the message says why."""


class LocalKey:
    """A key pair that is made here and whose private half stays here."""

    def __init__(self) -> None:
        self.private_key = ec.generate_private_key(ec.SECP256R1())

    def csr_pem(self) -> str:
        """A request for its certificate. It names nobody: the service knows who asks."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.private_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Obtained:
    """A kubeconfig that has been looked into.

    Attributes:
        document: what is left of it.
        contexts: their names.
        username, groups: who kube-apiserver takes its holder for; the credential group is left out.
    """

    document: JsonObject
    contexts: tuple[str, ...]
    username: str
    groups: tuple[str, ...]
    not_after: datetime


def vetted(answer: JsonObject, key: LocalKey | None) -> Obtained:
    """The kubeconfig, with the key in it if that was made here. Raises UnexpectedKubeconfigError."""
    try:
        return _vetted(answer, key)
    except (LookupError, TypeError, ValueError) as error:
        raise UnexpectedKubeconfigError(
            "The service answered with something that is no kubeconfig with a client certificate."
        ) from error


def _vetted(answer: JsonObject, key: LocalKey | None) -> Obtained:
    clusters = [
        {"name": str(item["name"]), "cluster": _only(item["cluster"], _CLUSTER_FIELDS)}
        for item in _items(answer, "clusters")
    ]
    contexts = [
        {"name": str(item["name"]), "context": _only(item["context"], _CONTEXT_FIELDS)}
        for item in _items(answer, "contexts")
    ]
    (user,) = _items(answer, "users")
    leaf, credential = _credential(an_object(user["user"]), key)
    document: JsonObject = {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": clusters,
        "users": [{"name": str(user["name"]), "user": credential}],
        "contexts": contexts,
        "current-context": str(answer["current-context"]),
    }
    return Obtained(
        document=document,
        contexts=tuple(str(item["name"]) for item in contexts),
        username="".join(_values(leaf, NameOID.COMMON_NAME)),
        groups=tuple(
            group
            for group in _values(leaf, NameOID.ORGANIZATION_NAME)
            if not group.startswith(CREDENTIAL_PREFIX)
        ),
        not_after=leaf.not_valid_after_utc,
    )


def _credential(said: JsonObject, key: LocalKey | None) -> tuple[x509.Certificate, JsonObject]:
    """The certificate and what stands beside it in the kubeconfig."""
    if unknown := said.keys() - _CREDENTIAL_FIELDS:
        raise UnexpectedKubeconfigError(
            f"The service's kubeconfig would make kubectl do more than show a certificate, by "
            f"{', '.join(sorted(unknown))}. It is not used."
        )
    leaf = x509.load_pem_x509_certificate(_decoded(said["client-certificate-data"]))
    if key is None:
        pem = _decoded(said["client-key-data"])
        public_key = load_pem_private_key(pem, password=None).public_key()
    else:
        pem = key_pem(key.private_key)
        public_key = key.private_key.public_key()
    if spki_der(leaf.public_key()) != spki_der(public_key):
        raise UnexpectedKubeconfigError(
            "The service's certificate is for another key than the one beside it."
        )
    return leaf, {
        "client-certificate-data": said["client-certificate-data"],
        "client-key-data": base64.b64encode(pem).decode(),
    }


def _decoded(value: object) -> bytes:
    return base64.b64decode(str(value), validate=True)


def _only(value: object, fields: Sequence[str]) -> JsonObject:
    """The fields of an object that are known, as far as it has them."""
    said = an_object(value)
    return {field: said[field] for field in fields if field in said}


def _items(answer: JsonObject, field: str) -> list[JsonObject]:
    items = answer[field]
    if not isinstance(items, list):
        raise TypeError(f"{field} is not a list")
    return [an_object(item) for item in items]


def _values(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(oid))
