"""The folder that an operator copies to a control plane: which files it has, and what is in them."""

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from clustercert.manifests import access, admission, commented, to_yaml
from clustercert.manifests.authorization import (
    Asking,
    authorization_comment,
    authorization_configuration,
    webhook_kubeconfig,
)
from clustercert.manifests.control_plane import AUDIT_COMMENT, Placed, audit_policy, kubeadm_patch
from clustercert.manifests.readme import Told, readme
from clustercert.model import Cluster, JsonObject

CLIENT_CA = "client-ca.pem"
CLIENT_CA_BUNDLE = "client-ca-bundle.pem"
AUTHORIZATION = "authorization-config.yaml"
WEBHOOK = "webhook.kubeconfig"
AUDIT_WEBHOOK = "audit-webhook.kubeconfig"
AUDIT_POLICY = "audit-policy.yaml"
RBAC = "rbac.yaml"
ADMISSION = "admission.yaml"
SERVICE_ACCESS = "service-access.yaml"
KUBEADM = "kubeadm.yaml"
README = "README.md"

NAMES = (
    CLIENT_CA,
    AUTHORIZATION,
    WEBHOOK,
    AUDIT_POLICY,
    AUDIT_WEBHOOK,
    RBAC,
    ADMISSION,
    SERVICE_ACCESS,
    KUBEADM,
    README,
)
"""Every file that `files` may write."""

_KUBEADM_COMMENT = """\
Merge this into kubeadm's ClusterConfiguration: see README.md. For kubeadm.k8s.io/v1beta3 write extraArgs as a map:
`client-ca-file: …` in place of `- name: client-ca-file` and `value: …`."""
_CLIENT_CA_COMMENT = """\
The client CAs of the cluster {name}. They belong into the API server's --client-ca-file beside the CAs that are there
already, never instead of them: without those, nodes and the control plane itself can't authenticate any more.
"""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is written for one cluster.

    Attributes:
        client_cas_pem: the client CAs that belong into the API server's bundle.
        service_url: where the API server reaches this service, no slash at the end.
        service_ca_pem: the CA of the service's own certificate, or None for one that the control plane knows.
        token: a webhook token of the cluster; secret.
        folder: where the files will lie on the control plane, an absolute path.
        bound: the ClusterRole of each group.
        unbound: groups of the policy that have none.
        audit: send audit events too.
        previous_authorization: the AuthorizationConfiguration that is replaced; what an operator added to it stays.
        other_rbac: what an operator added to the RBAC bindings.
    """

    cluster: Cluster
    client_cas_pem: bytes
    service_url: str
    service_ca_pem: bytes | None
    token: str
    folder: str
    asking: Asking
    bound: Mapping[str, str]
    unbound: tuple[str, ...]
    audit: bool
    previous_authorization: JsonObject | None = None
    other_rbac: tuple[JsonObject, ...] = ()

    @property
    def placed(self) -> Placed:
        """Where the files will lie."""
        return Placed(
            folder=self.folder,
            client_cas=self.at(CLIENT_CA_BUNDLE),
            authorization=self.at(AUTHORIZATION),
            audit_policy=self.at(AUDIT_POLICY) if self.audit else None,
            audit_kubeconfig=self.at(AUDIT_WEBHOOK) if self.audit else None,
        )

    def at(self, name: str) -> str:
        """A file's path on the control plane."""
        return posixpath.join(self.folder, name)


def files(setup: Setup) -> dict[str, str]:
    """Every file by its name. Those that end in .kubeconfig hold the token."""
    options = setup.cluster.options
    roles = (options.credential_roles or {}).values()
    written = {
        CLIENT_CA: commented(
            _CLIENT_CA_COMMENT.format(name=setup.cluster.name), setup.client_cas_pem.decode()
        ),
        AUTHORIZATION: commented(
            authorization_comment(setup.asking),
            to_yaml([authorization_configuration(setup.asking, setup.previous_authorization)]),
        ),
        WEBHOOK: _kubeconfig(setup, "authorize"),
        RBAC: _rbac(setup),
        KUBEADM: commented(_KUBEADM_COMMENT, to_yaml([kubeadm_patch(setup.placed)])),
    }
    if setup.audit:
        written[AUDIT_POLICY] = commented(AUDIT_COMMENT, to_yaml([audit_policy(setup.asking.groups)]))
        written[AUDIT_WEBHOOK] = _kubeconfig(setup, "audit-events")
    if options.admission:
        written[ADMISSION] = to_yaml(admission.admission())
    if options.admission or roles:
        storage = () if options.admission else admission.storage()
        written[SERVICE_ACCESS] = to_yaml([*storage, *access.service_access(roles)])
    written[README] = readme(_told(setup, written.keys()))
    return written


def _kubeconfig(setup: Setup, what: str) -> str:
    url = f"{setup.service_url}/clustercert/v1/kubernetes/clusters/{setup.cluster.id}/{what}"
    return webhook_kubeconfig(url, setup.service_ca_pem, setup.token)


def _rbac(setup: Setup) -> str:
    written = [*access.bindings(setup.bound), *setup.other_rbac]
    documents = to_yaml(written) if written else ""
    if not setup.unbound:
        return documents
    groups = ", ".join(setup.unbound)
    return commented(
        f"Not bound here: {groups}. Bind them by hand, or with --bind GROUP=CLUSTERROLE.", documents
    )


def _told(setup: Setup, names: Collection[str]) -> Told:
    return Told(
        name=setup.cluster.name,
        cluster_id=setup.cluster.id,
        cluster_mode=setup.cluster.options.mode,
        asking=setup.asking,
        placed=setup.placed,
        admission=ADMISSION in names,
        in_the_cluster=[name for name in (RBAC, ADMISSION, SERVICE_ACCESS) if name in names],
        on_the_control_plane=[
            name for name in (CLIENT_CA, AUTHORIZATION, WEBHOOK, AUDIT_POLICY, AUDIT_WEBHOOK) if name in names
        ],
    )
