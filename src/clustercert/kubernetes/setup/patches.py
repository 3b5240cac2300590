"""The configuration that gives kube-apiserver its flags and files, in the form of each distribution."""

import base64
import posixpath
import shlex
from collections.abc import Callable, Mapping

from clustercert.kubernetes.setup.audit_policy import audit_policy
from clustercert.kubernetes.setup.authorization import api_server_flags, authorization_configuration
from clustercert.kubernetes.setup.documents import commented, to_yaml
from clustercert.kubernetes.setup.values import AUDIT_WEBHOOK, CLIENT_CA, WEBHOOK, Setup
from clustercert.model import JsonObject
from clustercert.model.choices import DistributionName
from clustercert.pki.certificates import chain_pem, parse_certificates

_CLIENT_CA_FLAG = "client-ca-file"
# All users may read the files: kube-apiserver runs as user 65534 in Talos, and Talos can't set the owner of a file.
_READABLE = 0o444

_COMMENTS = {
    "kubeadm.yaml": """\
Merge this into kubeadm's ClusterConfiguration: see README.md. In kubeadm.k8s.io/v1beta3 extraArgs is a map: write
`FLAG: VALUE` instead of `- name: FLAG` and `value: VALUE`.""",
    "k3s.yaml": """\
Copy this file to /etc/rancher/k3s/config.yaml.d on each server node: see README.md. The + adds to the flags in other
files.""",
    "rke2.yaml": """\
Copy this file to /etc/rancher/rke2/config.yaml.d on each server node: see README.md. The + adds to the values in other
files.""",
    "talos.yaml": "A patch for the machine configuration of the control-plane nodes: see README.md.",
    "talos-files.yaml": """\
SECRET: this file contains the webhook's token. A patch for the machine configuration of the control-plane nodes: see
README.md. 292 is the mode 0444.""",
    "kamaji.yaml": "A patch for the TenantControlPlane in the management cluster: see README.md.",
    "cluster-api.yaml": """\
Merge this into the KubeadmControlPlane in the management cluster: see README.md. In the API version v1beta1, extraArgs
is a map: write `FLAG: VALUE` instead of `- name: FLAG` and `value: VALUE`.""",
}


def patches(setup: Setup, written: Mapping[str, str]) -> dict[str, str]:
    """Return the content of the files that are only for this distribution, by name.

    Args:
        written: the files for the control plane, by name.
    """
    made = _PATCHES[setup.choices.distribution](setup, written)
    return {name: commented(_COMMENTS[name], to_yaml([document])) for name, document in made.items()}


def _kubeadm(setup: Setup, _: Mapping[str, str]) -> dict[str, JsonObject]:
    # In v1beta4, which needs kubeadm 1.31 or newer, extraArgs is a list instead of a map.
    is_older = setup.choices.uses_flags
    document: JsonObject = {
        "apiVersion": f"kubeadm.k8s.io/{kubeadm_version(setup)}",
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": dict(api_server_flags(setup)) if is_older else _named_flags(setup),
            "extraVolumes": _kubeadm_volumes(setup),
        },
    }
    return {"kubeadm.yaml": document}


def kubeadm_version(setup: Setup) -> str:
    """Return the API version of kubeadm's configuration file."""
    return "v1beta3" if setup.choices.uses_flags else "v1beta4"


def _k3s(setup: Setup, _: Mapping[str, str]) -> dict[str, JsonObject]:
    return {"k3s.yaml": {"kube-apiserver-arg+": _flags(setup)}}


def _rke2(setup: Setup, _: Mapping[str, str]) -> dict[str, JsonObject]:
    folder = setup.choices.folder
    return {
        "rke2.yaml": {
            "kube-apiserver-arg+": _flags(setup),
            "kube-apiserver-extra-mount+": [f"{folder}:{folder}:ro"],
        }
    }


def _talos(setup: Setup, written: Mapping[str, str]) -> dict[str, JsonObject]:
    folder = setup.choices.folder
    api_server: JsonObject = {
        "authorizationConfig": authorization_configuration(setup)["authorizers"],
        "extraVolumes": [{"hostPath": folder, "mountPath": folder, "readonly": True}],
    }
    if setup.choices.audit:
        api_server["auditPolicy"] = audit_policy(setup.groups)
        api_server["extraArgs"] = {"audit-webhook-config-file": posixpath.join(folder, AUDIT_WEBHOOK)}
    cluster: JsonObject = {"apiServer": api_server}
    if setup.adds_ca:
        cas = parse_certificates(setup.client_cas_pem)
        authorities = [{"crt": base64.b64encode(chain_pem((each,))).decode()} for each in cas]
        cluster = {"acceptedCAs": authorities, **cluster}
    files = [
        {
            "path": posixpath.join(folder, name),
            "permissions": _READABLE,
            "op": "create",
            "content": written[name],
        }
        for name in (WEBHOOK, AUDIT_WEBHOOK)
        if name in written
    ]
    return {
        "talos.yaml": {"cluster": cluster},
        "talos-files.yaml": {"machine": {"files": files}},
    }


def _kamaji(setup: Setup, _: Mapping[str, str]) -> dict[str, JsonObject]:
    volume = "clustercert"
    mounts = [{"name": volume, "mountPath": setup.choices.folder, "readOnly": True}]
    if setup.adds_ca:
        # Kamaji always sets --client-ca-file to this path.
        mounts.append(
            {
                "name": volume,
                "mountPath": "/etc/kubernetes/pki/ca.crt",
                "subPath": posixpath.basename(setup.client_ca_bundle),
                "readOnly": True,
            }
        )
    document: JsonObject = {
        "apiVersion": "kamaji.clastix.io/v1alpha1",
        "kind": "TenantControlPlane",
        "spec": {
            "controlPlane": {
                "deployment": {
                    "extraArgs": {
                        "apiServer": [
                            f"--{flag}={value}"
                            for flag, value in api_server_flags(setup).items()
                            if flag != _CLIENT_CA_FLAG
                        ]
                    },
                    "additionalVolumes": [{"name": volume, "secret": {"secretName": setup.secret}}],
                    "additionalVolumeMounts": {"apiServer": mounts},
                }
            }
        },
    }
    return {"kamaji.yaml": document}


def _cluster_api(setup: Setup, written: Mapping[str, str]) -> dict[str, JsonObject]:
    folder = setup.choices.folder
    files = [
        {
            "path": posixpath.join(folder, name),
            "owner": "root:root",
            "permissions": "0600",
            "contentFrom": {"secret": {"name": setup.secret, "key": name}},
        }
        for name in written
    ]
    client_ca, bundle = (
        shlex.quote(each) for each in (posixpath.join(folder, CLIENT_CA), setup.client_ca_bundle)
    )
    # Cluster API writes ca.crt before it runs these commands.
    commands = [f"cat /etc/kubernetes/pki/ca.crt {client_ca} > {bundle}"]
    document: JsonObject = {
        "apiVersion": "controlplane.cluster.x-k8s.io/v1beta2",
        "kind": "KubeadmControlPlane",
        "spec": {
            "kubeadmConfigSpec": {
                "files": files,
                **({"preKubeadmCommands": commands} if setup.adds_ca else {}),
                "clusterConfiguration": {
                    "apiServer": {
                        "extraArgs": _named_flags(setup),
                        "extraVolumes": _kubeadm_volumes(setup),
                    }
                },
            }
        },
    }
    return {"cluster-api.yaml": document}


_PATCHES: Mapping[DistributionName, Callable[[Setup, Mapping[str, str]], dict[str, JsonObject]]] = {
    "kubeadm": _kubeadm,
    "k3s": _k3s,
    "rke2": _rke2,
    "talos": _talos,
    "kamaji": _kamaji,
    "cluster-api": _cluster_api,
}


def _flags(setup: Setup) -> list[str]:
    return [f"{flag}={value}" for flag, value in api_server_flags(setup).items()]


def _named_flags(setup: Setup) -> list[dict[str, str]]:
    return [{"name": flag, "value": value} for flag, value in api_server_flags(setup).items()]


def _kubeadm_volumes(setup: Setup) -> list[dict[str, str | bool]]:
    folder = setup.choices.folder
    # Mount the folder: a single mounted file keeps its old content after a new file is renamed over it.
    return [
        {
            "name": "clustercert",
            "hostPath": folder,
            "mountPath": folder,
            "readOnly": True,
            "pathType": "Directory",
        }
    ]
