"""What makes a kube-apiserver use the files: its flags, kubeadm's form of them, and the audit policy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clustercert.manifests import MASTERS
from clustercert.model import JsonObject

AUDIT_COMMENT = """\
What clustercert reads: which client certificates are used, and those of system:masters, whom no authorizer sees.
Metadata is enough for that. Where the API server has an audit policy already, keep it and see that it logs these
requests at Metadata or more."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the files lie on the control plane; absolute paths.

    Attributes:
        folder: of all of them.
        client_cas: the file of --client-ca-file: the CAs that were in it before, and the cluster's client CAs.
        audit_policy, audit_kubeconfig: None where audit events aren't sent.
    """

    folder: str
    client_cas: str
    authorization: str
    audit_policy: str | None = None
    audit_kubeconfig: str | None = None

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags of kube-apiserver, without their dashes."""
        audit = {
            "audit-policy-file": self.audit_policy,
            "audit-webhook-config-file": self.audit_kubeconfig,
        }
        return {
            "client-ca-file": self.client_cas,
            "authorization-config": self.authorization,
            **{flag: path for flag, path in audit.items() if path is not None},
        }


def kubeadm_patch(placed: Placed) -> JsonObject:
    """What to merge into kubeadm's ClusterConfiguration."""
    return {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": [{"name": flag, "value": path} for flag, path in placed.flags.items()],
            # The folder and not its files: a file that is mounted alone stays the old one when another is renamed
            # over it.
            "extraVolumes": [
                {
                    "name": "clustercert",
                    "hostPath": placed.folder,
                    "mountPath": placed.folder,
                    "readOnly": True,
                    "pathType": "Directory",
                }
            ],
        },
    }


def audit_policy(groups: Iterable[str]) -> JsonObject:
    """The least that shows every use of a client certificate which isn't the cluster's own traffic.

    The first rule that matches decides, so that whoever is a member of system:masters or of a group of the policy
    isn't hidden by being a member of another group as well.
    """
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "userGroups": list(dict.fromkeys([MASTERS, *groups]))},
            {
                "level": "None",
                "userGroups": ["system:nodes", "system:serviceaccounts", "system:unauthenticated"],
            },
            {"level": "Metadata"},
        ],
    }
