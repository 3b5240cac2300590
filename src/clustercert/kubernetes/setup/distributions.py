"""The Kubernetes distributions for which `kubernetes setup` writes files, and those in which clustercert can't work.

The facts were read in November 2026 in the sources of RKE2 1.36, Talos 1.14, Kamaji 26.8 and Cluster API 1.14, and in
the documentation and issues of k3s. The facts were not tested on clusters. The folder `steps` has the steps for
README.md, in a file for each distribution.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from clustercert.model.choices import DistributionName, ManagedKubernetes

_COMPONENTS = ("system:kube-controller-manager", "system:kube-scheduler")
KUBEADM_ADMINISTRATORS = "kubeadm:cluster-admins"
_KUBEADM_COMPONENTS = (*_COMPONENTS, KUBEADM_ADMINISTRATORS)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a distribution runs kube-apiserver.

    Attributes:
        title: the name in README.md.
        folder: the default folder of the files, as kube-apiserver sees it.
        files: the names of the files that are only for this distribution.
        reloads: whether kube-apiserver reads a file again when another file is renamed over it.
        takes_flags: whether `kubernetes setup` can write flags for Kubernetes 1.24 to 1.29.
        components: user names and groups in the client certificates of the control plane's components.
    """

    title: str
    folder: str
    files: tuple[str, ...]
    reloads: bool = False
    takes_flags: bool = False
    components: tuple[str, ...] = _COMPONENTS


DISTRIBUTIONS: Mapping[DistributionName, Distribution] = {
    "kubeadm": Distribution(
        "kubeadm",
        "/etc/kubernetes/clustercert",
        ("kubeadm.yaml",),
        reloads=True,
        takes_flags=True,
        components=_KUBEADM_COMPONENTS,
    ),
    "k3s": Distribution(
        "k3s",
        "/etc/rancher/k3s/clustercert",
        ("k3s.yaml",),
        reloads=True,
        # Source: k3s, pkg/daemons/control/deps/deps.go.
        components=(
            *_COMPONENTS,
            "system:kube-proxy",
            "system:k3s-controller",
            "k3s-cloud-controller-manager",
        ),
    ),
    "rke2": Distribution(
        "RKE2",
        "/etc/rancher/rke2/clustercert",
        ("rke2.yaml",),
        components=(
            *_COMPONENTS,
            "system:kube-proxy",
            "system:rke2-controller",
            "rke2-cloud-controller-manager",
        ),
    ),
    # Talos writes files only below /var.
    "talos": Distribution("Talos", "/var/lib/clustercert", ("talos.yaml", "talos-files.yaml")),
    "kamaji": Distribution(
        "Kamaji", "/etc/kubernetes/clustercert", ("kamaji.yaml",), components=_KUBEADM_COMPONENTS
    ),
    "cluster-api": Distribution(
        "Cluster API", "/etc/kubernetes/clustercert", ("cluster-api.yaml",), components=_KUBEADM_COMPONENTS
    ),
}

_REJECTED = (
    "has no documented setting for a further client CA, so it rejects all certificates of clustercert."
)
UNSUPPORTED: Mapping[ManagedKubernetes, str] = {
    "cce": f"CCE (Open Telekom Cloud, Huawei Cloud) {_REJECTED} Use CCE's own API instead: POST …/clustercert issues "
    "certificates for 1 day or longer, and on Huawei Cloud, POST …/clustercertrevoke revokes all certificates of a "
    "user.",
    "eks": f"EKS {_REJECTED} Use IAM with access entries instead, or associate your OIDC issuer with the cluster.",
    "gke": f"GKE {_REJECTED} Use Google identities instead, or Workforce Identity Federation for your own issuer.",
    "aks": f"AKS {_REJECTED} Use Microsoft Entra ID instead, or a JWT authenticator for your own OIDC issuer (a "
    "preview in 2026).",
    "gardener": f"Gardener {_REJECTED} Gardener also asks an authorization webhook only after RBAC, too late to deny a "
    "revoked certificate. Use Gardener's short-lived kubeconfigs instead (shoots/adminkubeconfig and "
    "shoots/viewerkubeconfig), or your OIDC issuer in structuredAuthentication.",
}
"""Why clustercert can't work in a managed Kubernetes, and what to use instead."""
