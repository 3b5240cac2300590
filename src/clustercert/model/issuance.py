"""From what is asked for, by way of what is granted, to the certificate that the ledger keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from clustercert.model.clusters import ClientCA, Cluster
from clustercert.model.credentials import credential_group
from clustercert.model.keys import KeyOrigin, PrivateKey, PublicKey
from clustercert.model.requests import AuthMethod


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Members of `role` get `groups` for at most `max_lifetime`."""

    role: str
    groups: tuple[str, ...]
    max_lifetime: timedelta


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for, parsed and bounded, not yet decided.

    Attributes:
        duration: whole days 1 to 1825, or -1 for the longest allowed; None where `expire_at` says it.
        expire_at: the wished end, whole seconds; wins over `duration`.
        public_key: from a checked CSR; None lets the service make the key pair.
        clip: give the longest allowed where the wish is longer, instead of refusing it.
        reason: for the audit; printable text of at most 512 characters.
    """

    duration: int | None = None
    expire_at: datetime | None = None
    clip: bool = False
    public_key: PublicKey | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the policy allows: the whole identity and validity of the leaf.

    Attributes:
        rule: the name of the rule that decided.
        username: CN, the caller's user id.
        groups: the Kubernetes groups, in the rule's order; each is an O of the certificate.
        not_before: back-dated, whole seconds.
        not_after: whole seconds.
        trace: how the policy came to it, JSON values; two grants of the same are equal, however they came about.
    """

    rule: str
    username: str
    groups: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    trace: Mapping[str, object] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """What a signer is asked to certify, and what its answer is checked against.

    Attributes:
        credential_number: 40 lower-case hex digits; the certificate's last O is the credential group of this number.
            None for certificates that were issued without one, which are only checked again.
        serial: what the certificate's serial has to be, positive and of at most 159 bits; None leaves it to the
            signer.
        spki: the public key as SubjectPublicKeyInfo, DER.
    """

    grant: Grant
    public_key: PublicKey
    ca: ClientCA
    credential_number: str | None = None
    serial: int | None = None
    spki: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spki = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        object.__setattr__(self, "spki", spki)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is durable in the ledger and may leave the service.

    Attributes:
        leaf_der: the certificate, DER; its issuer is the root, and nothing stands between them.
        private_key: None where the caller sent a CSR.
        serial: lower-case hex.
        credential_number: 40 lower-case hex digits; the certificate is in the credential group of this number.
        fingerprint: SHA-256 of the leaf's DER, lower-case hex; what kube-apiserver calls `X509SHA256`.
    """

    grant: Grant
    cluster: Cluster
    leaf_der: bytes
    private_key: PrivateKey | None
    serial: str
    credential_number: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be issued, had it been asked for without `dryRun`.

    Attributes:
        organizations: every O of the certificate, in its order; the credential group has no number yet.
        issuer: the CA's subject, an RFC 4514 string.
        key_type: of the key that would be made or that the CSR brought.
    """

    grant: Grant
    organizations: tuple[str, ...]
    issuer: str
    key_type: str


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A leaf as the ledger keeps it. Field meanings as in `Grant`, `Caller` and `Issued`.

    Attributes:
        fingerprint: 32 bytes, SHA-256 of `der`; unique.
        groups: the Kubernetes groups without the credential group.
        rule: of the policy, that gave the grant; None where an older program recorded it.
        credential_number: names the certificate in its credential group, unique; None where an older program recorded
            it, see `credentials.number_of`.
    """

    fingerprint: bytes
    serial: str
    cluster_id: str
    project_id: str
    ca_id: str
    user_id: str
    user_name: str
    groups: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key_type: str
    key_origin: KeyOrigin
    auth_method: AuthMethod
    source_address: str
    request_id: str
    reason: str | None
    issued_at: datetime
    der: bytes
    rule: str | None = None
    credential_number: str | None = None

    @property
    def organizations(self) -> tuple[str, ...]:
        """Every O of the certificate, in its order."""
        if self.credential_number is None:
            return self.groups
        return (*self.groups, credential_group(self.credential_number))
