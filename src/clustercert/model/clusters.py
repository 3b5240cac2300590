"""Registered clusters and the CAs that sign for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cryptography import x509


@dataclass(frozen=True, slots=True)
class ClientCA:
    """The CA that signs one cluster's client certificates; its certificate goes into `--client-ca-file`.

    Attributes:
        id: 32 hex digits.
        certificate: the CA certificate.
        sealed_key: the PKCS#8 DER private key, sealed (see `sealing`); None where a signer holds it elsewhere.
        state: `next` is in the bundle and does not sign yet, `active` signs, `retired` is out of use.
        not_after: the certificate's.
    """

    id: str
    cluster_id: str
    certificate: x509.Certificate
    sealed_key: bytes | None
    state: Literal["next", "active", "retired"] = "active"
    not_after: datetime = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "not_after", self.certificate.not_valid_after_utc)


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
        admission: keep what is revoked in the cluster, for its ValidatingAdmissionPolicy.
        admission_by_number: `kubernetes verify` has seen that the policy in the cluster reads credential numbers; until
            then, hashes are kept beside them.
    """

    mode: Literal["default", "known-only"] = "default"
    exemptions: tuple[str, ...] = ("system:*",)
    listed_masters: tuple[str, ...] = ()
    credential_roles: Mapping[str, str] | None = None
    admission: bool = False
    admission_by_number: bool = False


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
