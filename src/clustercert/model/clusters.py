"""Registered clusters and their client CAs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cryptography import x509

from clustercert.model.choices import WebhookMode
from clustercert.model.identity import ProjectName
from clustercert.model.kubernetes import NODES


@dataclass(frozen=True, slots=True)
class ClientCA:
    """The CA that signs one cluster's client certificates; its certificate goes into `--client-ca-file`.

    Attributes:
        id: 32 hex digits.
        certificate: the CA certificate.
        sealed_key: the private key (PKCS#8 DER), sealed, see `pki.envelope`; None if a signer keeps the key elsewhere.
        state: `next` is in the CA bundle but does not sign yet, `active` signs, `retired` no longer signs.
        not_after: when the CA certificate expires.
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
    """How revocations and unknown certificates are enforced in a cluster.

    Attributes:
        mode: the webhook's decision on certificates not in the ledger: `default`: no opinion; `known-only`: deny.
        exemptions: user and group names exempt from `known-only`; a final asterisk is a wildcard.
        pins: fingerprints (lower-case hex) of the certificates of exempt components that the operator has confirmed.
        pin_components: whether `known-only` denies certificates of exempt components that are not in `pins`.
        listed_masters: fingerprints (lower-case hex) of certificates in `system:masters` that the operator accepts.
        credential_roles: maps a policy rule's name to the ClusterRole bound to each certificate's credential group.
            None if no certificate ever had such a binding; empty if only older certificates have one.
        admission: whether to write revocations to the cluster, for its ValidatingAdmissionPolicy.
        unauthorized_ttl_seconds: how long the API server caches that the webhook denied a credential or had no opinion.
    """

    mode: WebhookMode = "default"
    exemptions: tuple[str, ...] = (NODES,)
    pins: tuple[str, ...] = ()
    pin_components: bool = False
    listed_masters: tuple[str, ...] = ()
    credential_roles: Mapping[str, str] | None = None
    admission: bool = False
    unauthorized_ttl_seconds: int = 2


@dataclass(frozen=True, slots=True)
class Cluster:
    """A registered Kubernetes cluster.

    Attributes:
        id: a UUID.
        internal_url: the API server's address inside its network, `https://host:port`.
        external_url: the API server's public address (CCE: EIP), or None.
        san_urls: further addresses that the API server's certificate is valid for.
        server_ca_pem: the CA of the API server's certificate; one or more PEM blocks.
        signer: the signer's entry-point name.
        version: the Kubernetes version, such as `v1.32`; empty if it is not known.
        client_ca: the active client CA.
        project_name: None if the project does not exist.
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
    project_name: ProjectName | None = field(default=None, compare=False)
