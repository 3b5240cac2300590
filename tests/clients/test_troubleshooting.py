"""The messages of kubectl in docs/troubleshooting.md, provoked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer
from support.certificate_authority import Authority
from support.installation import installation_with_webhook
from support.installed_demo import Demo
from support.kubectl import kubectl, written
from support.registered_cluster import RegisteredCluster, register
from support.wait import eventually

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
LIST = ("get", "--raw", "/api/v1/namespaces")


@pytest.fixture
def cluster(tls_demo: Demo, apiserver: ApiServer) -> RegisteredCluster:
    return register(tls_demo, f"troubled-{os.urandom(4).hex()}", apiserver)


def said(folder: Path, kubeconfig: Any, *words: str) -> str:
    """What kubectl says with this kubeconfig. It must fail."""
    done = kubectl(written(folder, json.dumps(kubeconfig).encode()), *words)
    assert done.returncode != 0
    return done.stderr


def assert_explained(message: str, printed: str) -> None:
    """The page quotes it, and kubectl printed it."""
    assert f"`{message}`" in PAGE.read_text(encoding="utf-8")
    assert all(part.strip() in printed for part in message.split("…")), printed


def test_a_certificate_of_an_unknown_ca(cluster: RegisteredCluster, tmp_path: Path) -> None:
    kubeconfig = cluster.issue().json()
    printed = said(tmp_path, kubeconfig, "get", "namespaces")
    assert_explained("You must be logged in to the server", printed)


def test_groups_without_rights(cluster: RegisteredCluster, apiserver: ApiServer, tmp_path: Path) -> None:
    apiserver.trust(cluster.ca_bundle_pem)
    printed = said(tmp_path, cluster.issue().json(), *LIST)
    assert_explained("Forbidden", printed)
    assert_explained("cannot list", printed)


def test_an_api_server_with_another_ca(
    cluster: RegisteredCluster, authority: Authority, tmp_path: Path
) -> None:
    kubeconfig = cluster.issue().json()
    kubeconfig["clusters"][0]["cluster"].pop("certificate-authority-data")
    (tmp_path / "other.pem").write_bytes(authority.certificate_pem)
    kubeconfig["clusters"][0]["cluster"]["certificate-authority"] = str(tmp_path / "other.pem")
    assert_explained("certificate signed by unknown authority", said(tmp_path, kubeconfig, *LIST))


def test_a_revoked_certificate_before_kubectl_knows_the_groups_of_the_api(
    tls_demo: Demo, tmp_path: Path
) -> None:
    """kubectl asks for the groups first, and hides the reason of the refusal."""
    with installation_with_webhook(tls_demo, tmp_path, "undiscovered") as one:
        holder = one.issue()
        one.revoke(holder)
        eventually(lambda: not holder.lists_namespaces())
        kubeconfig = json.loads(holder.kubeconfig.read_text(encoding="utf-8"))
        listed = said(tmp_path, kubeconfig, "get", "namespaces")
        assert_explained("memcache.go", listed)
        assert_explained("Error from server (Forbidden): unknown", listed)
        assert_explained(
            "the selfsubjectreviews API is not enabled in the cluster or you do not have permission to call it",
            said(tmp_path, kubeconfig, "auth", "whoami"),
        )
        assert_explained(
            "failed to download openapi: unknown",
            said(tmp_path, kubeconfig, "apply", "-f", str(one.setup_folder / "rbac.yaml")),
        )


def test_a_plugin_that_is_not_there(cluster: RegisteredCluster, tmp_path: Path) -> None:
    kubeconfig = cluster.issue().json()
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(tmp_path / "kubectl-clustercert"),
        "interactiveMode": "Never",
    }
    kubeconfig["users"][0]["user"] = {"exec": plugin}
    assert_explained(
        "getting credentials: exec: … no such file or directory", said(tmp_path, kubeconfig, *LIST)
    )
