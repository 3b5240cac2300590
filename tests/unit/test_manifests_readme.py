"""The README.md of a setup: releases, token exchange, and when to write the files again."""

from typing import Any

import pytest

from clustercert.kubernetes.setup.readme import readme
from clustercert.kubernetes.setup.values import Setup
from clustercert.model import ClusterOptions
from support.cluster_setup import cluster_setup

SETUP = cluster_setup(control_plane_dir="/etc/k")
FILES = ("rbac.yaml", "client-ca.pem")


def test_readme_explains_older_releases() -> None:
    text = readme(SETUP, FILES)
    assert "apiserver.config.k8s.io/v1beta1" in text
    assert "can't be revoked, because" not in text


def test_readme_says_where_its_commands_run() -> None:
    text = " ".join(readme(SETUP, FILES).split())
    assert (
        "on the server of clustercert as root: the command `clustercert` there runs as the service's user"
        in text
    )
    assert "`DIR` in the commands is this folder." in text


def test_readme_requires_1_32_for_known_only() -> None:
    text = readme(cluster_setup(mode="known-only"), FILES)
    assert "Mode known-only requires Kubernetes 1.32 or newer" in text
    assert "v1beta1" not in text


def test_readme_includes_the_audit_webhook_in_a_token_exchange() -> None:
    assert "`audit-webhook.kubeconfig` too" in readme(SETUP, FILES)
    assert "audit-webhook.kubeconfig" not in readme(cluster_setup(audit=False), FILES)


def test_readme_says_that_the_webhook_comes_before_rbac() -> None:
    text = " ".join(readme(SETUP, FILES).split())
    assert "must come before RBAC and every other entry that allows requests" in text
    assert "**In `authorization-config.yaml`, the entry `clustercert`" in text


IN_CLUSTER = (*FILES, "service-access.yaml")


def setup_with(**options: Any) -> Setup:
    return cluster_setup(ClusterOptions(**options))


def test_readme_has_a_way_without_the_control_plane() -> None:
    for options, files in (
        ({"admission": True}, (*IN_CLUSTER, "admission.yaml")),
        ({"credential_roles": {"admin": "cluster-admin"}}, IN_CLUSTER),
    ):
        text = readme(setup_with(**options), files)
        assert "**Without access to the control plane**" in text
        assert "do only steps 1 and 4" in text
    assert "Without access to the control plane" not in readme(SETUP, FILES)


def test_readme_says_how_to_remove_the_objects_in_the_cluster() -> None:
    policy = readme(setup_with(admission=True), (*IN_CLUSTER, "admission.yaml"))
    assert "--no-admission" in policy
    assert "step 1 of the new README.md" in policy
    assert "--no-credential-roles" not in policy
    bindings = readme(setup_with(credential_roles={"admin": "cluster-admin"}), IN_CLUSTER)
    assert "--no-credential-roles" in bindings
    assert "step 1 of the new README.md" in bindings
    assert "admission.yaml" not in bindings
    assert "kubectl delete" not in readme(SETUP, FILES)


@pytest.mark.parametrize("files", [FILES, (*IN_CLUSTER, "admission.yaml")])
def test_readme_has_no_trailing_spaces(files: tuple[str, ...]) -> None:
    lines = readme(setup_with(credential_roles={"admin": "cluster-admin"}), files).splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
