"""Reads KUBERNETES_EXEC_INFO, in which kubectl sends the version and the cluster to an exec plugin."""

import json

from clustercert.cli.credential.entry import Request

_GROUP = "client.authentication.k8s.io/"
# The fields of the cluster's extension `client.authentication.k8s.io/exec`, which `merge` writes.
_FIELDS = {"profile": "profile", "project_id": "project", "cluster_id": "cluster"}


def apply(request: Request, text: str) -> str | None:
    """Set the version in the request, and its missing options. Returns a message if the text is malformed."""
    try:
        info = json.loads(text)
        version = info["apiVersion"]
        if info["kind"] != "ExecCredential" or not version.startswith(_GROUP):
            return "KUBERNETES_EXEC_INFO is not an ExecCredential."
        config = ((info.get("spec") or {}).get("cluster") or {}).get("config") or {}
        given = {option: config[field] for field, option in _FIELDS.items() if field in config}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "KUBERNETES_EXEC_INFO is not an ExecCredential."
    if not all(isinstance(value, str) for value in given.values()):
        return (
            "The cluster's extension in the kubeconfig is damaged. Run `clustercert kubeconfig merge` again."
        )
    request.version = version.removeprefix(_GROUP)
    if request.cluster is None:
        for option, value in given.items():
            if getattr(request, option) is None:
                setattr(request, option, value)
    return None
