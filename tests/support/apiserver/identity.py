"""Identity and validation of client certificates in kube-apiserver."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

AUTHENTICATED = "system:authenticated"
MASTERS = "system:masters"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"

_FOR_CLIENTS = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as authorizers see it; `credential_id` is None without a certificate."""

    username: str
    groups: tuple[str, ...]
    credential_id: str | None

    @classmethod
    def of(cls, leaf: x509.Certificate, presented_der: bytes | None = None) -> "Identity":
        """CN and O of the subject; anonymous where there is no CN, as kube-apiserver has it.

        The hash is that of the bytes that were presented, which may be another encoding.
        """
        names = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        groups = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        if not names:
            return ANONYMOUS
        der = presented_der or leaf.public_bytes(serialization.Encoding.DER)
        fingerprint = hashlib.sha256(der).hexdigest()
        return cls(names[-1], (*groups, AUTHENTICATED), f"X509SHA256={fingerprint}")

    @property
    def extra(self) -> Mapping[str, Sequence[str]]:
        return {} if self.credential_id is None else {CREDENTIAL_ID: [self.credential_id]}

    @property
    def user_info(self) -> Mapping[str, object]:
        info: dict[str, object] = {"username": self.username, "groups": list(self.groups)}
        return {**info, "extra": self.extra} if self.extra else info


ANONYMOUS = Identity("system:anonymous", ("system:unauthenticated",), None)


class ClientBundle:
    """The CAs of `--client-ca-file`; each of them is an anchor, a root or not."""

    def __init__(self, pem: bytes) -> None:
        """Raises ValueError if the PEM has no certificate or a malformed one."""
        self._anchors = x509.load_pem_x509_certificates(pem)

    def believes(self, chain: Sequence[x509.Certificate], now: datetime) -> bool:
        """Whether the chain, leaf first, leads to an anchor, is valid now and has the client EKU."""
        leaf, *intermediates = (crypto.X509.from_cryptography(certificate) for certificate in chain)
        store = crypto.X509Store()
        for anchor in self._anchors:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(now)
        try:
            crypto.X509StoreContext(store, leaf, intermediates).verify_certificate()
        except crypto.X509StoreContextError:
            return False
        return _is_for_clients(chain[0])


def _is_for_clients(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return not _FOR_CLIENTS.isdisjoint(usage)
