"""Fills in remove.md, the template for REMOVE.md: the steps with which clustercert leaves a cluster.

The order keeps revoked certificates denied. First, the client CA and the webhook are removed from the API server
together. Then the objects that deny revoked certificates are deleted.
"""

import posixpath
from pathlib import Path

from clustercert.kubernetes.setup.choices import GivenChoices, SetupError, read_choices
from clustercert.kubernetes.setup.readme import chosen_text
from clustercert.kubernetes.setup.values import (
    CLIENT_CA,
    CLIENT_CA_BUNDLE,
    FOR_CONTROL_PLANE,
    SERVICE_ACCESS,
    SETUP,
    SIGNER_ACCESS,
    removed,
    secret_of,
)
from clustercert.model import Cluster
from clustercert.model.kubernetes import MANAGED_BY
from clustercert.secure_file import write_private

REMOVE = "REMOVE.md"

_KINDS = ("namespaces", "clusterrolebindings", "clusterroles")
_POLICY_KINDS = ("validatingadmissionpolicybindings", "validatingadmissionpolicies")


def write_removal(folder: Path, cluster: Cluster) -> Path:
    """Write REMOVE.md into the folder that `kubernetes setup` wrote.

    Returns the path of REMOVE.md. Raises SetupError or OSError.
    """
    choices = read_choices(folder / SETUP)
    if choices is None:
        raise SetupError(
            f"{folder} has no {SETUP}. The options in this file, such as the distribution, decide the "
            "steps. Name the folder that `clustercert kubernetes setup` wrote for the cluster. If the "
            "folder is lost, write the folder again, with the same --distribution and --control-plane-dir."
        )
    choices.require_cluster(cluster.id, folder)
    in_cluster = any((folder / name).exists() for name in (SERVICE_ACCESS, removed(SERVICE_ACCESS)))
    path = folder / REMOVE
    write_private(path, removal(cluster, choices, in_cluster=in_cluster))
    return path


def removal(cluster: Cluster, choices: GivenChoices, *, in_cluster: bool) -> str:
    """Return the content of REMOVE.md, in Markdown.

    Args:
        in_cluster: whether the service has had access to the cluster, for bindings or the admission policy.
    """
    signs_itself = SIGNER_ACCESS in choices.written
    conditions = {
        "in_cluster": in_cluster,
        "audit": choices.audit,
        "service_accounts": choices.service_accounts != "none",
        "adds_ca": not signs_itself or CLIENT_CA in choices.written,
        "signs_itself": signs_itself,
    }
    copied = [name for name in FOR_CONTROL_PLANE if name in choices.written]
    text = chosen_text("remove.md", choices.distribution, conditions)
    return text.format(
        name=cluster.name,
        cluster_id=cluster.id,
        folder=choices.folder,
        copied=" ".join(posixpath.join(choices.folder, name) for name in (*copied, CLIENT_CA_BUNDLE)),
        secret=secret_of(cluster),
        commands="\n".join(_commands(choices)),
    )


def _commands(choices: GivenChoices) -> list[str]:
    """Return the commands that delete all objects of this service by their label, and look for objects that are left.

    API servers before 1.30 may not know the kinds of the policies, and have no policies of this service.
    """
    [label] = (f"{name}={value}" for name, value in MANAGED_BY.items())
    kinds = [",".join(_KINDS), *([] if choices.uses_flags else [",".join(_POLICY_KINDS)])]
    deletions = [f"kubectl delete {each} -l {label}" for each in kinds]
    # The rights to read addresses and client CAs of API servers are in namespaces of Kubernetes.
    deletions.append(f"kubectl delete roles,rolebindings -A -l {label}")
    found = [f"kubectl get {','.join(kinds)} -l {label}", f"kubectl get roles,rolebindings -A -l {label}"]
    return [*deletions, *found]
