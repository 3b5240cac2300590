"""The messages of kubectl in docs/troubleshooting.md, provoked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer
from support.certificate_authority import Authority
from support.installed_demo import Demo
from support.kubectl import kubectl, written
from support.registered_cluster import RegisteredCluster, register

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
