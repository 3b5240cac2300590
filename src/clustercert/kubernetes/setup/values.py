"""The names of the files of a setup, and the values that they contain."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from clustercert.kubernetes.setup.authorization import WebhookClient, WebhookConfig, authorization_flags
from clustercert.model import Cluster, JsonObject
from clustercert.model.choices import ServiceAccountAccess

CLIENT_CA = "client-ca.pem"
AUTHORIZATION = "authorization-config.yaml"
WEBHOOK = "webhook.kubeconfig"
AUDIT_POLICY = "audit-policy.yaml"
AUDIT_WEBHOOK = "audit-webhook.kubeconfig"
RBAC = "rbac.yaml"
ADMISSION = "admission.yaml"
CERTIFICATE_REQUESTS = "certificate-requests.yaml"
SERVICE_ACCESS = "service-access.yaml"
SERVICE_ACCOUNTS = "service-accounts.yaml"
KUBEADM = "kubeadm.yaml"
README = "README.md"
SETUP = "setup.toml"

# The files for the control plane, in the order in which README.md names them.
FOR_CONTROL_PLANE = (CLIENT_CA, AUTHORIZATION, WEBHOOK, AUDIT_POLICY, AUDIT_WEBHOOK)
FOR_CLUSTER = (RBAC, ADMISSION, CERTIFICATE_REQUESTS, SERVICE_ACCESS, SERVICE_ACCOUNTS)
NAMES = (*FOR_CONTROL_PLANE, *FOR_CLUSTER, KUBEADM, README, SETUP)
"""The names of all files."""


def removed(name: str) -> str:
    """Return the new name of a file for the cluster that `kubernetes setup` no longer writes.

    The file is kept, because the operator needs it to delete its objects in the cluster.
    """
    return f"removed-{name}"


def replacement(name: str) -> str:
    """Return the name of the new version of a file that was edited by hand, which is not replaced."""
    return f"new-{name}"


@dataclass(frozen=True, slots=True)
class Setup:
    """The values in the files of one cluster.

    Attributes:
        client_cas_pem: the client CAs to add to the API server's bundle.
        service_url: the address of this service for the API server, without a trailing slash.
        service_ca_pem: the CA of the service's TLS certificate; `None` if the control plane trusts it already.
        client: the certificate and key with which the API server connects; `None` if it needs none; secret.
        token: one of the cluster's webhook tokens; secret.
        folder: the absolute path of the folder on the control plane.
        bound: the ClusterRole to bind to each group.
        unbound: the policy's groups without a ClusterRole.
        audit: whether the API server sends audit events.
        service_accounts: what this service asks the API server about tokens of service accounts.
        certificate_requests: whether an admission policy keeps holders of certificates from the cluster's own
            certificate requests.
        previous_files: the files for the cluster that an earlier setup wrote.
        previous_authorization: the AuthorizationConfiguration to update. An operator's additions are kept.
    """

    cluster: Cluster
    client_cas_pem: bytes
    service_url: str
    service_ca_pem: bytes | None
    token: str
    folder: str
    webhook: WebhookConfig
    bound: Mapping[str, str]
    unbound: tuple[str, ...]
    audit: bool
    client: WebhookClient | None = None
    service_accounts: ServiceAccountAccess = "none"
    certificate_requests: bool = False
    previous_files: tuple[str, ...] = ()
    previous_authorization: JsonObject | None = None

    @property
    def client_ca_bundle(self) -> str:
        """The path of the file with the API server's previous client CAs and those of this service."""
        return posixpath.join(self.folder, "client-ca-bundle.pem")

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags of kube-apiserver, without the leading dashes."""
        paths = {"client-ca-file": self.client_ca_bundle}
        if not self.webhook.uses_flags:
            paths["authorization-config"] = AUTHORIZATION
        if self.audit:
            paths |= {"audit-policy-file": AUDIT_POLICY, "audit-webhook-config-file": AUDIT_WEBHOOK}
        flags = {flag: posixpath.join(self.folder, path) for flag, path in paths.items()}
        return {**flags, **(authorization_flags(self.webhook) if self.webhook.uses_flags else {})}
