"""The names of the files of a setup, and the values that they contain."""

import posixpath
from dataclasses import dataclass, field

from clustercert.kubernetes.setup.choices import GivenChoices, SetupChoices
from clustercert.kubernetes.setup.distributions import DISTRIBUTIONS
from clustercert.model import Cluster, JsonObject

CLIENT_CA = "client-ca.pem"
CLIENT_CA_BUNDLE = "client-ca-bundle.pem"
AUTHORIZATION = "authorization-config.yaml"
WEBHOOK = "webhook.kubeconfig"
AUDIT_POLICY = "audit-policy.yaml"
AUDIT_WEBHOOK = "audit-webhook.kubeconfig"
RBAC = "rbac.yaml"
ADMISSION = "admission.yaml"
CERTIFICATE_REQUESTS = "certificate-requests.yaml"
SERVICE_ACCESS = "service-access.yaml"
SERVICE_ACCOUNTS = "service-accounts.yaml"
SIGNER_ACCESS = "signer-access.yaml"
README = "README.md"
SETUP = "setup.toml"

# The webhook's endpoints.
AUTHORIZE = "authorize"
AUDIT_EVENTS = "audit-events"

# The files for the control plane, in the order in which README.md names them.
FOR_CONTROL_PLANE = (CLIENT_CA, AUTHORIZATION, WEBHOOK, AUDIT_POLICY, AUDIT_WEBHOOK)
FOR_CLUSTER = (RBAC, ADMISSION, CERTIFICATE_REQUESTS, SERVICE_ACCESS, SERVICE_ACCOUNTS, SIGNER_ACCESS)
FOR_DISTRIBUTIONS = tuple(name for each in DISTRIBUTIONS.values() for name in each.files)
NAMES = (*FOR_CONTROL_PLANE, *FOR_CLUSTER, *FOR_DISTRIBUTIONS, README, SETUP)
"""The names of all files."""


def removed(name: str) -> str:
    """Return the name that a manifest gets when `kubernetes setup` no longer writes it.

    The file is kept, because the operator needs the file to delete the file's objects from the cluster.
    """
    return f"removed-{name}"


def replacement(name: str) -> str:
    """Return the name for the new version of a file that was edited by hand. The edited file stays as it is."""
    return f"new-{name}"


def webhook_path(cluster_id: str, endpoint: str) -> str:
    """Return the path at which the API server of a cluster calls the webhook."""
    return f"/clustercert/v1/kubernetes/clusters/{cluster_id}/{endpoint}"


def secret_of(cluster: Cluster) -> str:
    """Return the name of the Secret in a management cluster that contains the control plane's files for a cluster."""
    return f"clustercert-{cluster.id}"


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """The certificate and key with which an API server connects, in PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Setup:
    """The values in the files of one cluster.

    Attributes:
        client_cas_pem: the client CAs to add to the API server's bundle; empty if the bundle already has all of them.
        choices: the values of all options.
        given: the options that were given in this run or in earlier runs.
        groups: the Kubernetes groups that the policy grants.
        templates: the templates from which the policy makes names of groups.
        signs_itself: whether the cluster signs with its own CA, which its API server trusts already.
        token: one of the cluster's webhook tokens. Keep the token secret.
        client: the certificate and key with which the API server connects; `None` if the webhook requires no client
            certificate. Keep the key secret.
        previous_files: the files for the cluster that an earlier setup wrote.
        previous_authorization: the AuthorizationConfiguration to update. An operator's additions are kept.
    """

    cluster: Cluster
    client_cas_pem: bytes
    choices: SetupChoices
    given: GivenChoices
    groups: tuple[str, ...]
    templates: tuple[str, ...]
    token: str
    client: WebhookClient | None = None
    signs_itself: bool = False
    previous_files: tuple[str, ...] = ()
    previous_authorization: JsonObject | None = None

    @property
    def has_two_client_cas(self) -> bool:
        """Whether the API servers have to trust the old and the new client CA of a rotation."""
        return self.client_cas_pem.count(b"-----BEGIN CERTIFICATE-----") > 1

    @property
    def adds_ca(self) -> bool:
        """Whether the API server must trust a further client CA."""
        return bool(self.client_cas_pem)

    @property
    def unbound(self) -> tuple[str, ...]:
        """The policy's groups without a ClusterRole."""
        return tuple(each for each in self.groups if each not in self.choices.bind)

    @property
    def kubeconfig(self) -> str:
        """The path of the webhook's kubeconfig on the control plane."""
        return posixpath.join(self.choices.folder, WEBHOOK)

    @property
    def client_ca_bundle(self) -> str:
        """The path of the file with the API server's previous client CAs and the client CAs of this service."""
        return posixpath.join(self.choices.folder, CLIENT_CA_BUNDLE)

    @property
    def secret(self) -> str:
        """The name of the Secret with the files for the control plane, in a management cluster."""
        return secret_of(self.cluster)
