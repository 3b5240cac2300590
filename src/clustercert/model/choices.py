"""Fixed sets of values. The command line imports this module at start-up, so it imports no other module."""

from typing import Literal

CertificateState = Literal["live", "revoked", "expired"]
"""A certificate that is both revoked and expired is `revoked`."""

EndpointsForm = Literal["auto", "object", "list"]
"""The form of a cluster's addresses in CCE's API. `auto` depends on the client."""

FailurePolicy = Literal["NoOpinion", "Deny"]
"""What an API server does if the authorization webhook does not respond: use RBAC alone, or deny."""

KeyOrigin = Literal["generated", "csr"]
"""Whether the service generated the private key, or the caller sent a CSR."""

RevocationControl = Literal["webhook", "binding", "admission"]
"""The mechanisms that can enforce a revocation in a cluster; see `docs/kubernetes.md`."""

RevocationReason = Literal[
    "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"
]
"""Reasons that apply to client certificates. Source: RFC 5280, 5.3.1."""

ServerRole = Literal["all", "api", "webhook"]
"""Which requests a process serves: all, those from clients, or those from API servers."""

ServiceAccountAccess = Literal["review", "keys", "none"]
"""What this service asks an API server about tokens of service accounts: each token, the public keys, or nothing."""

WebhookMode = Literal["default", "known-only"]
"""The webhook's decision on client certificates that this service did not issue: no opinion, or denial."""

MAX_TTL_SECONDS = 300
"""The longest time for which an API server may cache an answer of the webhook."""
