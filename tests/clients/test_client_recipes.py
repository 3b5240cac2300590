"""The recipes of docs/recipes.md for SDKs, the openstack command line and curl, run against a demo with TLS."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from support.apiserver import ApiServer
from support.installed_demo import Demo
from support.kubeconfig_checks import ADMINS
from support.page_service import environment, run_script
from support.page_steps import block
from support.registered_cluster import RegisteredCluster, register

RECIPES = "docs/recipes.md"
ADDRESS = "https://clustercert.example.com:8443"


@pytest.fixture
def cluster(tls_demo: Demo, apiserver: ApiServer) -> RegisteredCluster:
    apiserver.bind(ADMINS, "cluster-admin")
    found = register(tls_demo, f"recipe-{os.urandom(4).hex()}", apiserver)
    apiserver.trust(found.ca_bundle_pem)
    found.issue()  # by now the service knows the cluster
    return found


@pytest.fixture
def recipe_env(cluster: RegisteredCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of the recipes. The working folder has the service's CA."""
    tenant = cluster.tenant
    assert tenant.tls_ca is not None
    (tmp_path / "clustercert-ca.pem").write_bytes(tenant.tls_ca.read_bytes())
    monkeypatch.chdir(tmp_path)
    variables = {
        "AK": tenant.access_key,
        "SK": tenant.secret_key,
        "PROJECT_ID": tenant.project_id,
        "CLUSTER_ID": tenant.cluster_id,
        "TOKEN": tenant.token,
        "OS_USERNAME": tenant.user_name,
        "OS_PASSWORD": tenant.password,
        "OS_USER_DOMAIN_NAME": "demo",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def recipe(name: str, cluster: RegisteredCluster) -> str:
    text = block(RECIPES, f"recipe: {name}")
    assert ADDRESS in text
    shown = next(
        each["metadata"]["name"]
        for each in cluster.get(cluster.tenant.clusters_path)["items"]
        if each["metadata"]["uid"] == cluster.tenant.cluster_id
    )
    return (
        text.replace(ADDRESS, cluster.tenant.url)
        .replace('"prod"', f'"{shown}"')
        .replace("show prod", f"show {shown}")
    )


def executed(name: str, cluster: RegisteredCluster) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(recipe(name, cluster), f"{RECIPES}: {name}", "exec"), names)  # noqa: S102 - our own page
    return names


def assert_issued(pem: bytes, cluster: RegisteredCluster) -> None:
    ca = x509.load_pem_x509_certificate(cluster.tenant.client_ca.read_bytes())
    x509.load_pem_x509_certificate(pem).verify_directly_issued_by(ca)


def test_huaweicloudsdkcce(cluster: RegisteredCluster, recipe_env: dict[str, str]) -> None:
    kubeconfig = executed("huaweicloudsdkcce", cluster)["kubeconfig"]
    assert_issued(base64.b64decode(kubeconfig.users[0].user.client_certificate_data), cluster)


def test_otcextensions(cluster: RegisteredCluster, recipe_env: dict[str, str]) -> None:
    certificates = executed("otcextensions", cluster)["certificates"]
    assert_issued(base64.b64decode(certificates.client_certificate), cluster)


def test_openstack(cluster: RegisteredCluster, recipe_env: dict[str, str], tmp_path: Path) -> None:
    script = (
        recipe("openstack", cluster)
        .replace("=alice", f"={cluster.tenant.user_name}")
        .replace("=Default", "=demo")
    )
    env = environment(tmp_path) | recipe_env
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    said = run_script(script, tmp_path, env)
    assert "Available" in said
    assert base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode() in said


def test_curl(cluster: RegisteredCluster, recipe_env: dict[str, str], tmp_path: Path) -> None:
    said = run_script(recipe("curl", cluster), tmp_path, environment(tmp_path) | recipe_env)
    assert "kube-system" in said
    assert json.dumps(recipe_env["TOKEN"]) not in said
