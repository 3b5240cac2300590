"""A kubeconfig as a service answered it, looked into before kubectl is.

kubectl runs what `exec` in a kubeconfig says, and reads the files that it names. Nothing of the kind is passed on.
"""

import base64
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from clustercert.certificate import key_pem, spki_der
from clustercert.errors import ClustercertError
from clustercert.model import JsonObject

_CLUSTER_FIELDS = ("server", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name")
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
        username, groups: who kube-apiserver takes its holder for.
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
        {
            "name": str(item["name"]),
            "cluster": {
                field: item["cluster"][field] for field in _CLUSTER_FIELDS if field in item["cluster"]
            },
        }
        for item in _items(answer, "clusters")
    ]
    contexts = [
        {
            "name": str(item["name"]),
            "context": {"cluster": str(item["context"]["cluster"]), "user": str(item["context"]["user"])},
        }
        for item in _items(answer, "contexts")
    ]
    (user,) = _items(answer, "users")
    leaf, credential = _credential(user["user"], key)
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
        groups=_values(leaf, NameOID.ORGANIZATION_NAME),
        not_after=leaf.not_valid_after_utc,
    )


def _credential(said: dict[str, str], key: LocalKey | None) -> tuple[x509.Certificate, JsonObject]:
    """The certificate and what stands beside it in the kubeconfig."""
    if unknown := said.keys() - _CREDENTIAL_FIELDS:
        raise UnexpectedKubeconfigError(
            f"The service's kubeconfig would make kubectl do more than show a certificate, by "
            f"{', '.join(sorted(unknown))}. It is not used."
        )
    leaf = x509.load_pem_x509_certificate(base64.b64decode(said["client-certificate-data"], validate=True))
    if key is None:
        pem = base64.b64decode(said["client-key-data"], validate=True)
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


def _items(answer: JsonObject, field: str) -> list[dict[str, dict[str, str]]]:
    """A list of named things; whoever reads it finds out whether that is what it is."""
    items = answer[field]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise TypeError(f"{field} is not a list of objects")
    return items


def _values(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(oid))
