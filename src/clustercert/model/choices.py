"""Types whose values are fixed strings.

This module imports no other module, because the command line imports this module at start-up.
"""

from typing import Literal

AccessRequestPart = Literal["access", "extension"]
"""The parts of an access request that approvers decide on."""

AccessRequestState = Literal["pending", "approved", "active", "denied", "expired", "ended", "finished"]
"""The state of an access request; see `model.access_requests`."""

CaState = Literal["next", "active", "retiring", "retired"]
"""The state of a client CA. `next` will sign, `active` signs, `retiring` signed, and `retired` has lost its key."""

CertificateState = Literal["live", "revoked", "expired"]
"""The state of a certificate. A certificate that is both revoked and expired has the state `revoked`."""

CredentialKind = Literal["certificate", "token"]
"""The kinds of credentials: X.509 client certificates, or tokens of service accounts in the cluster."""

DistributionName = Literal["kubeadm", "k3s", "rke2", "talos", "kamaji", "cluster-api"]
"""The Kubernetes distributions for which `kubernetes setup` writes files."""

"""The JSON type of a cluster's addresses in CCE's API. With `auto`, the type depends on the client."""

EnforcementState = Literal[
    "unreviewed",
    "none",
    "used",
    "incomplete",
    "only_writes",
    "quiet",
    "unverified",
    "bindings",
    "tokens",
    "verified",
]
"""How well a cluster enforces revocations; see `store.clusters.enforcement_state`."""

FailurePolicy = Literal["NoOpinion", "Deny"]
"""What an API server does if the authorization webhook does not respond: use only RBAC, or deny the request."""

FleetOrder = Literal["name", "ca_start", "ca_end", "verified"]
"""The order of a list of clusters: by name, or the oldest or first-ending client CA or verification first."""

KeyOrigin = Literal["generated", "csr", "none"]
"""Whether the service generated the private key, or the caller sent a CSR. `none`: a token, which has no key."""

KeyType = Literal["ec-p256", "ec-p384", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096"]
"""Types of generated keys. A CSR may also contain an RSA key of another size, which has the type `rsa-<bits>`."""

LeafProfile = Literal["own", "kubernetes", "token"]
"""How a signer encodes leaves: exactly as this service does, or as kube-controller-manager does.

A signer with `token` signs no leaves: see `pki.signer.TokenIssuer`.

With `kubernetes`, the order of groups, the validity and the extensions may differ from the request, and the signer
needs a CSR. See `docs/security-model.md`.
"""

ManagedKubernetes = Literal["cce", "eks", "gke", "aks", "gardener"]
"""Managed Kubernetes that does not accept certificates of this service."""

ProofOutcome = Literal["accepted", "refused", "failed"]
"""How an API server treated a certificate of a client CA. `failed`: the API server did not
authenticate the certificate or was not reached, so nothing is proved."""

RefusalState = Literal["used", "refused", "expected", "only_writes", "unknown", "none"]
"""Whether the refusal of a revoked credential was seen; see `certificates.credential_end`."""

RequestSeverity = Literal["good", "warn", "bad", "plain"]
"""How urgent the state of an access request is for its user and approvers. `plain`: nothing needs to be done."""

RevocationControl = Literal["webhook", "binding", "admission"]
"""The mechanisms that can enforce a revocation in a cluster; see `docs/kubernetes.md`."""

RevocationReason = Literal[
    "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"
]
"""Reasons that apply to client certificates. Source: RFC 5280 section 5.3.1."""

RotationChoice = Literal["running", "failing", "ready"]
"""Which rotations a list has: all running ones, those with a problem, or those that can be completed."""

RotationState = Literal["planned", "distributed", "issuing", "draining", "complete", "aborted"]
"""The state of the rotation of a client CA; see `model.ca_rotation`."""

ServerRole = Literal["all", "api", "webhook"]
"""Which requests a process serves: all, only requests from clients, or only requests from API servers."""

ServiceAccountAccess = Literal["review", "keys", "none"]
"""How service account tokens are verified: by a request to the API server, by the API server's keys, or not at all."""

WebhookMode = Literal["default", "known-only"]
"""The webhook's decision about client certificates that this service did not issue: no opinion, or denied."""

MAX_TTL_SECONDS = 300
"""The longest time for which an API server may cache a response of the webhook."""
