"""The stages of issuance: request, grant, signing request, issued certificate, ledger record."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from clustercert.model.access_requests import RequestedAccess
from clustercert.model.choices import CredentialKind, KeyOrigin, LeafProfile
from clustercert.model.clusters import ClientCA, Cluster
from clustercert.model.credentials import credential_group
from clustercert.model.keys import PrivateKey, PublicKey
from clustercert.model.kubernetes import CA_PROVER, TOKEN_ID, VERIFIER, X509_ID
from clustercert.model.requests import AuthMethod


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """A caller's request, parsed and validated, before the policy decides.

    Attributes:
        duration: whole days, or -1 for the longest allowed; None if another field specifies the lifetime.
        expire_at: the requested end of validity, whole seconds; takes precedence over `duration`.
        expires_in: the requested lifetime, whole seconds; used instead of `duration` and `expire_at`.
        shorten: whether to shorten a lifetime that exceeds the limit, instead of denying the request.
        public_key: the public key in a verified CSR; None if the service generates the key pair.
        reason: for the audit event; printable text of at most 512 characters. A blank reason becomes None.
        credential: what the caller can use. A cluster issues only one kind of credential.
        access_request: the id of the caller's access request that provides the groups; None for the groups that the
            caller has without a request.
    """

    duration: int | None = None
    expire_at: datetime | None = None
    expires_in: timedelta | None = None
    shorten: bool = False
    public_key: PublicKey | None = None
    reason: str | None = None
    access_request: str | None = None
    credential: CredentialKind = "certificate"

    def __post_init__(self) -> None:
        if self.reason is not None and not self.reason.strip():
            object.__setattr__(self, "reason", None)


@dataclass(frozen=True, slots=True)
class Grant:
    """The policy's decision: the leaf's subject and validity.

    Attributes:
        rule: the name of the first matching rule; None for the service's own certificates.
        rules: the names of all matching rules, in order.
        username: the CN: the caller's user id, or a name that the policy chose and that only this user may have.
        groups: the Kubernetes groups, in the order of the rules; each group is an O of the certificate.
        not_before: the back-dated start of validity, in whole seconds.
        not_after: the end of validity, in whole seconds.
        trace: the decision trace, as JSON values; ignored when grants are compared.
        left_out: the groups that the cluster's `group_roles` does not have, and that the credential therefore lacks.
        access: the requested access that gives some of the groups; None without an access request. Ignored when grants
            are compared: an approval may be given while a certificate is issued.
    """

    rule: str | None
    username: str
    groups: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    trace: Mapping[str, object] = field(default_factory=dict, compare=False)
    rules: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    access: RequestedAccess | None = field(default=None, compare=False)

    @property
    def access_request_id(self) -> str | None:
        """The id of the access request, or None."""
        return self.access.request_id if self.access is not None else None


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """The certificate that a signer must return.

    Attributes:
        credential_number: 40 lower-case hex digits; the certificate's last O is the credential group of this number.
            Empty only for a certificate without a credential group, which `kubernetes verify` uses to test the
            webhook's mode known-only.
        serial: the required serial, positive, at most 159 bits. If None, the signer chooses the serial.
        profile: how the signer encodes the leaf.
        csr: a CSR (DER) with this subject, signed with the leaf's key; None if the signer needs no CSR.
        spki: the public key as SubjectPublicKeyInfo, DER.
    """

    grant: Grant
    public_key: PublicKey
    ca: ClientCA
    credential_number: str = ""
    serial: int | None = None
    profile: LeafProfile = "own"
    csr: bytes | None = field(default=None, repr=False)
    spki: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spki = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        object.__setattr__(self, "spki", spki)


@dataclass(frozen=True, slots=True)
class Issued:
    """An issued certificate or token that is recorded durably in the ledger.

    Attributes:
        grant: the policy's decision, with the validity as signed.
        leaf_der: the certificate in DER, signed directly by the cluster's client CA; empty for a token.
        private_key: the generated key; None if the caller sent a CSR, and for a token.
        serial: lower-case hex.
        credential_number: 40 lower-case hex digits, see `credentials`.
        fingerprint: see `CertificateRecord`, in lower-case hex.
        token: the token, with the time of its expiry; None for a certificate.
    """

    grant: Grant
    cluster: Cluster
    leaf_der: bytes
    private_key: PrivateKey | None
    serial: str
    credential_number: str
    fingerprint: str
    token: "IssuedToken | None" = None


def jti_fingerprint(jti: str) -> bytes:
    """Return the fingerprint of the token with this jti, 32 bytes: the SHA-256 of the UUID with hyphens."""
    return hashlib.sha256(jti.encode()).digest()


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token of a service account that was created for one credential.

    Attributes:
        text: the token (JWT), a secret.
        jti: the token's id, a UUID with hyphens in lower case. kube-apiserver's credential id is `JTI=` and this id.
        account: the name of the service account in the namespace `clustercert-users`.
        expires_at: when the token expires, whole seconds; at the earliest 10 minutes after its creation. If the grant's
            `not_after` is earlier, the service deletes the account at `not_after`.
    """

    text: str = field(repr=False)
    jti: str
    account: str
    expires_at: datetime

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the jti, 32 bytes: the token's name in the ledger."""
        return jti_fingerprint(self.jti)

    @property
    def serial(self) -> str:
        """The hex digits of the jti."""
        return UUID(self.jti).hex


@dataclass(frozen=True, slots=True)
class Preview:
    """The result of a `dryRun`: what would be issued.

    Attributes:
        organizations: the O attributes of the subject, in order. The credential group ends with a placeholder,
            because no certificate is issued.
        issuer: the CA's subject, as a string in the format of RFC 4514; empty for a token.
        key_type: the type of the CSR's key, or of the key that would be generated; empty for a token.
        credential: whether a certificate or a token would be issued.
    """

    grant: Grant
    organizations: tuple[str, ...]
    issuer: str
    key_type: str
    credential: CredentialKind = "certificate"


VERIFICATIONS: Mapping[str, AuthMethod] = {VERIFIER: "cli", CA_PROVER: "service"}
"""The users of the service's own temporary certificates, with the authentication method of each.

No authenticator returns these methods, so no user of an identity system has such a certificate."""


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """An issued certificate or token in the ledger. See `Grant`, `Caller` and `Issued` for other fields.

    Attributes:
        fingerprint: 32 bytes; unique. For a certificate, the SHA-256 of `der`, called `X509SHA256` in kube-apiserver.
            For a token, the SHA-256 of its jti.
        serial: for a token, the hex digits of its jti.
        key_type: empty for a token, as is `der`.
        groups: the Kubernetes groups without the credential group.
        rule: the name of the matching policy rule; None for the service's own certificates.
        username: the subject's CN if the policy chose a name; None if the CN is the user's id.
        credential_number: unique, see `credentials`.
        access_request_id: the access request whose groups the certificate has; None without a request.
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
    credential_number: str
    rule: str | None = None
    username: str | None = None
    access_request_id: str | None = None
    kind: CredentialKind = "certificate"

    @property
    def common_name(self) -> str:
        """The CN of the subject."""
        return self.username or self.user_id

    @property
    def credential_id(self) -> str:
        """The name of the credential in audit logs of API servers: `X509SHA256=…` or `JTI=…`."""
        if self.kind == "token":
            return f"{TOKEN_ID}{UUID(hex=self.serial)}"
        return f"{X509_ID}{self.fingerprint.hex()}"

    @property
    def is_verification(self) -> bool:
        """Whether the service issued the certificate to itself, to verify a cluster or to prove a client CA."""
        return VERIFICATIONS.get(self.user_id) == self.auth_method

    @property
    def organizations(self) -> tuple[str, ...]:
        """The O attributes of the subject, in order; for a token, the groups whose roles are bound."""
        return (
            self.groups if self.kind == "token" else (*self.groups, credential_group(self.credential_number))
        )


@dataclass(frozen=True, slots=True)
class RecordedIssue:
    """A certificate that any process issued, as recorded in the audit log.

    Attributes:
        source: the source address of the request.
    """

    request_id: str
    user_id: str
    project_id: str
    source: str
