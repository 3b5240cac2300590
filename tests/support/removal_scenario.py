"""Removal of clustercert from a cluster, for the double and for a real kube-apiserver."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from support.installation import Installation
from support.installed_demo import operator
from support.kube_apiserver import NODE_AND_RBAC
from support.wait import eventually

OPTIONS = ("--admission", "--credential-role", "admin=cluster-admin")


def the_steps_of_the_removal_leave_nothing_behind(installation: Installation) -> None:
    """Of an installation with `OPTIONS`, which has every kind of object."""
    installation.set_up("--service-accounts", "review")
    installation.as_admin("apply", "-f", installation.setup_folder / "service-accounts.yaml")
    manifests = sorted(installation.setup_folder.glob("*.yaml"))
    names = [
        each.name for each in manifests if "kind: ClusterRole" in each.read_text() or "admission" in each.name
    ]
    assert _of_ours(installation, names) >= {
        "namespace/clustercert",
        "configmap/clustercert-revoked",
        "clusterrole.rbac.authorization.k8s.io/clustercert-token-reviews",
        "validatingadmissionpolicy.admissionregistration.k8s.io/clustercert-revoked",
    }
    lost = installation.issue()
    assert lost.lists_namespaces()

    operator(installation.demo, "kubernetes", "remove", installation.id, "--out", installation.setup_folder)
    steps = _steps(installation.setup_folder / "REMOVE.md")

    for command in steps["1"]:
        _run(installation, command)
    eventually(lambda: not lost.lists_namespaces())
    # Users may still get certificates. The binding of this one stays until step 3.
    late = installation.issue()
    assert late.lists_namespaces()

    installation.cluster.trust(b"")
    installation.cluster.authorize_with(_written(installation.setup_folder / "old.yaml", NODE_AND_RBAC))
    for holder in (lost, late):
        eventually(lambda holder=holder: "Unauthorized" in holder.kubectl("get", "--raw", "/version")[1])  # type: ignore[misc] # the lambda has no types

    *deletions, search, search_namespaces = steps["3"]
    # Don't wait: a bare kube-apiserver has no controller that ends the namespace.
    deleted = "".join(_run(installation, f"{command} --wait=false") for command in deletions)
    assert late.credential_group in deleted
    _end_namespace(installation)
    assert [_run(installation, command) for command in (search, search_namespaces)] == ["", ""]
    assert _of_ours(installation, names) == set()
    assert set(installation.as_admin("get", "namespaces", "-o", "name").split()) >= {"namespace/default"}

    for command in steps["4"]:
        _run(installation, command)
    clusters = json.loads(operator(installation.demo, "cluster", "list", "-o", "json"))
    assert installation.id not in {each["id"] for each in clusters}


def _end_namespace(installation: Installation) -> None:
    """Do what the controller manager does, if the namespace is still there."""
    found = installation.as_admin("get", "namespace", "clustercert", "--ignore-not-found", "-o", "json")
    if found:
        namespace = json.loads(found)
        assert namespace["status"]["phase"] == "Terminating"
        installation.as_admin("delete", "configmaps,roles,rolebindings", "--all", "-n", "clustercert")
        finished = json.dumps({**namespace, "spec": {"finalizers": []}})
        path = "/api/v1/namespaces/clustercert/finalize"
        installation.as_admin("replace", "--raw", path, "-f", "-", stdin=finished)


def _of_ours(installation: Installation, manifests: Sequence[str]) -> set[str]:
    """The objects of the manifests, and the bindings of credentials, that are in the cluster."""
    found = installation.as_admin("get", "clusterrolebindings", "-o", "name").split()
    names = {name for name in found if "clustercert" in name}
    for each in manifests:
        file = installation.setup_folder / each
        names |= set(installation.as_admin("get", "--ignore-not-found", "-o", "name", "-f", file).split())
    return names


def _steps(file: Path) -> dict[str, list[str]]:
    """The commands of each step."""
    _, *sections = re.split(r"^## (?=\d)", file.read_text(), flags=re.MULTILINE)
    return {
        section[0]: "".join(re.findall(r"```console\n(.*?)```", section, re.DOTALL)).splitlines()
        for section in sections
    }


def _run(installation: Installation, command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "kubectl":
        return installation.as_admin(*arguments)
    assert program == "clustercert"
    return operator(
        installation.demo, *arguments, *(["--yes"] if {"revoke", "remove"} & {*arguments} else [])
    )


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
