"""The nouns, frozen. No behaviour beyond what their own fields say; no I/O.

Times are aware and in UTC. Ids of users, projects, domains, roles and groups are 32 lower-case hex digits,
cluster ids are UUIDs in their 8-4-4-4-12 form, because real clients check both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey
PublicKey = EllipticCurvePublicKey | RSAPublicKey | Ed25519PublicKey

KeyType = Literal["ec-p256", "ec-p384", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096"]
"""What a key is; a CSR may also bring RSA sizes in between, then named `rsa-<bits>`."""

KeyOrigin = Literal["generated", "csr"]
"""Who made a certificate's private key: this service, or the caller who sent a CSR."""

AuthMethod = Literal["token", "access_key", "cli", "service"]
"""How a caller proved who they are; `cli` is the operator at the store itself, `service` this program on its own."""

JsonObject = dict[str, object]


def utc_now() -> datetime:
    """The time, aware, UTC. Whoever needs it takes it as an argument; this is what they are given in earnest."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        address: the peer's IP address as text, or "local" for the command line.
        request_id: 32 hex digits, the one that the caller is told.
    """

    address: str
    request_id: str


@dataclass(frozen=True, slots=True)
class UnverifiedRequest:
    """A request as it came over the wire: what an authenticator judges before anything else reads it.

    Attributes:
        method: upper case.
        raw_path: percent-encoded, without the query.
        raw_query: percent-encoded, without the question mark.
        headers: as ASGI gives them: lower-case names, values as the bytes that were sent, repeats kept.
        body: all of it; signatures cover the very bytes.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    origin: Origin


@dataclass(frozen=True, slots=True)
class Domain:
    """A Keystone domain: the owner of users and projects."""

    id: str
    name: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Project:
    """A Keystone project. By the convention of the vendor SDKs it is named like its region."""

    id: str
    name: str
    domain: Domain
    description: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """A person or machine of the built-in identity. `id` becomes the CN of their certificates."""

    id: str
    name: str
    domain: Domain
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Role:
    """A Keystone role: `admin`, `member`, `reader`, the service-level `operator`, or any other name."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A Keystone group of users. It has nothing to do with the Kubernetes groups of a certificate."""

    id: str
    name: str
    domain: Domain


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """A role that a user or a group has in a project, or, without one, in the whole service."""

    role: Role
    actor: User | Group
    project: Project | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent the request, authenticated.

    Attributes:
        roles: role names by project id, sorted; only the projects that this credential reaches
            (a project-scoped token reaches one).
        service_roles: role names that hold for the whole service, such as `operator`.
        expires_at: when the credential itself ends, or None.
        credential_id: the access key's id, or the token's SHA-256 in hex; empty where there is neither.
    """

    user: User
    roles: Mapping[str, tuple[str, ...]]
    method: AuthMethod
    origin: Origin
    service_roles: tuple[str, ...] = ()
    expires_at: datetime | None = None
    credential_id: str = ""

    def roles_in(self, project_id: str) -> tuple[str, ...]:
        """The caller's role names in a project; empty where they have none."""
        return self.roles.get(project_id, ())


@dataclass(frozen=True, slots=True)
class ClientCA:
    """The CA that signs one cluster's client certificates; its certificate goes into `--client-ca-file`.

    Attributes:
        id: 32 hex digits.
        certificate: the CA certificate.
        sealed_key: the PKCS#8 DER private key, sealed (see `sealing`); None where a signer holds it elsewhere.
        state: `next` is in the bundle and does not sign yet, `active` signs, `retired` is out of use.
    """

    id: str
    cluster_id: str
    certificate: x509.Certificate
    sealed_key: bytes | None
    state: Literal["next", "active", "retired"] = "active"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How a cluster's credentials are guarded; what isn't said is the default.

    Attributes:
        mode: what its webhook answers for an X.509 credential id that the ledger doesn't know: no opinion, or denied.
        exemptions: patterns of user and group names that `known-only` spares; an asterisk at the end stands for
            anything.
        listed_masters: fingerprints (lower-case hex) of certificates in `system:masters` that the operator knows of.
        credential_roles: by the policy's rule, the ClusterRole that each certificate's own group is bound to. None
            where certificates never had such groups; empty where new ones don't, while what is bound is still
            looked after.
        admission: keep the revoked credential ids in the cluster, for its ValidatingAdmissionPolicy.
    """

    mode: Literal["default", "known-only"] = "default"
    exemptions: tuple[str, ...] = ("system:*",)
    listed_masters: tuple[str, ...] = ()
    credential_roles: Mapping[str, str] | None = None
    admission: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """A registered Kubernetes cluster.

    Attributes:
        id: UUID text.
        internal_url: the API server's address inside its network, `https://host:port`.
        external_url: its public address (CCE: EIP), or None.
        san_urls: further addresses that its server certificate is valid for, in order.
        server_ca_pem: the CA that signed the API server's own certificate; one or more PEM blocks.
        signer: the entry-point name of what signs for it.
        version: the Kubernetes version, such as `v1.32`.
        client_ca: the active client CA.
        options: how its credentials are guarded.
    """

    id: str
    project_id: str
    name: str
    internal_url: str
    external_url: str | None
    san_urls: tuple[str, ...]
    server_ca_pem: bytes
    signer: str
    version: str
    labels: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    client_ca: ClientCA
    options: ClusterOptions = ClusterOptions()


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
        groups: O, one per Kubernetes group, in the rule's order.
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
        serial: where something in the grant depends on it, positive and of at most 159 bits; None leaves it to the
            signer.
    """

    grant: Grant
    public_key: PublicKey
    ca: ClientCA
    serial: int | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is durable in the ledger and may leave the service.

    Attributes:
        chain: leaf first, without the root.
        private_key: None where the caller sent a CSR.
        serial: lower-case hex.
        fingerprint: SHA-256 of the leaf's DER, lower-case hex; what kube-apiserver calls `X509SHA256`.
    """

    grant: Grant
    cluster: Cluster
    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey | None
    serial: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be issued, had it been asked for without `dryRun`.

    Attributes:
        issuer: the CA's subject, an RFC 4514 string.
        key_type: of the key that would be made or that the CSR brought.
    """

    grant: Grant
    issuer: str
    key_type: str


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A leaf as the ledger keeps it. Field meanings as in `Grant`, `Caller` and `Issued`.

    Attributes:
        fingerprint: 32 bytes, SHA-256 of `der`; unique.
        rule: of the policy, that gave the grant; None where an older program recorded it.
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


RevocationReason = Literal[
    "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"
]
"""Why a certificate is revoked. Source: RFC 5280, 5.3.1; those that can be said of a client certificate."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What is not to be honoured any more: one certificate, or all of a user or a cluster up to an epoch.

    Attributes:
        id: as it was stored; 0 before.
        epoch: the generation that the revocation made; what was recorded in an older one is revoked.
        fingerprint: of the one certificate, 32 bytes; None where it is about a user or a cluster.
        user_id: whose; empty for everybody's.
        cluster_id: where; empty for all clusters.
        by: the actor's id, or `holder` where the certificate's key itself asked.
        note: free text of whoever revoked, or None.
        proved: whether the holder proved to have the key; such a revocation can't be undone.
        project_id: the project of the certificate or cluster; None where it is about a user in all clusters.
    """

    id: int
    epoch: int
    fingerprint: bytes | None
    user_id: str
    cluster_id: str
    at: datetime
    by: str
    reason: RevocationReason
    note: str | None = None
    proved: bool = False
    undone_at: datetime | None = None
    undone_by: str | None = None
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened; written in the same transaction as what it records.

    Attributes:
        kind: `noun.verb` in the past tense, such as `certificate.issued`.
        project_id: whose event it is, or None for the service's own.
        actor: the user id, or `cli:<operating-system user>`.
        subject: the id of what it happened to.
        detail: JSON values; nothing secret.
    """

    at: datetime
    kind: str
    project_id: str | None
    actor: str
    subject: str
    origin: Origin
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as the store keeps it: never the token itself.

    Attributes:
        hash: SHA-256 of the token text, 32 bytes.
        methods: Keystone's authentication methods, `password` and/or `token`.
        project_id, domain_id: its scope; at most one of the two.
    """

    hash: bytes
    user_id: str
    project_id: str | None
    domain_id: str | None
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An AK/SK pair as the store keeps it.

    Attributes:
        id: the access key (AK), 20 upper-case letters and digits.
        sealed_secret: the secret key (SK), sealed: HMAC needs it in the clear at each check.
        security_token_hash: SHA-256 of the security token that a temporary key must come with, or None.
        expires_at: the end of a temporary key, or None.
    """

    id: str
    user_id: str
    sealed_secret: bytes
    description: str
    enabled: bool
    created_at: datetime
    security_token_hash: bytes | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Members of `role` get `groups` for at most `max_lifetime`."""

    role: str
    groups: tuple[str, ...]
    max_lifetime: timedelta
