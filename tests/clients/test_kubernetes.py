"""kubectl and the Python client of Kubernetes with issued kubeconfigs, used as they come, against the double.

The cluster is registered with the double's own address and CA, and the double trusts the bundle that the
service prints for the cluster; nothing of a kubeconfig is changed on its way.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from support.apiserver import ApiServer
from support.installed_demo import Demo
from support.kubeconfig_checks import ADMINS, assert_kubeconfig, own_group
from support.kubectl import kubectl, written
from support.registered_cluster import RegisteredCluster, register


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as server:
        server.bind(ADMINS, "cluster-admin")
        yield server


@pytest.fixture(scope="module")
def cluster(tls_demo: Demo, apiserver: ApiServer) -> RegisteredCluster:
    registered = register(tls_demo, "double", apiserver)
    apiserver.trust(registered.ca_bundle_pem)
    return registered


@pytest.fixture(scope="module")
def foreign_cluster(tls_demo: Demo, cluster: RegisteredCluster, apiserver: ApiServer) -> RegisteredCluster:
    """Another cluster at the same address; the double does not trust its client CA."""
    return register(tls_demo, "foreign", apiserver)


def credential_id(leaf: x509.Certificate) -> str:
    return f"X509SHA256={hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()}"


def test_kubectl_is_who_the_service_says(cluster: RegisteredCluster, tmp_path: Path) -> None:
    kubeconfig = cluster.kubeconfig()

    whoami = kubectl(written(tmp_path, kubeconfig), "auth", "whoami", "-o", "json")

    assert whoami.returncode == 0, whoami.stderr
    leaf = assert_kubeconfig(kubeconfig, cluster.tenant)
    assert json.loads(whoami.stdout)["status"]["userInfo"] == {
        "username": cluster.tenant.user_id,
        "groups": [ADMINS, own_group(leaf), "system:authenticated"],
        "extra": {"authentication.kubernetes.io/credential-id": [credential_id(leaf)]},
    }


def test_the_fingerprint_in_the_header_is_the_credential_id(cluster: RegisteredCluster) -> None:
    answer = cluster.issue()

    leaf = assert_kubeconfig(answer.json(), cluster.tenant)
    assert credential_id(leaf) == f"X509SHA256={answer.headers['X-Clustercert-Fingerprint']}"
    assert format(leaf.serial_number, "x") == answer.headers["X-Clustercert-Serial"].lstrip("0")


def test_kubectl_lists_namespaces_and_reads_the_version(cluster: RegisteredCluster, tmp_path: Path) -> None:
    path = written(tmp_path, cluster.kubeconfig())

    namespaces = kubectl(path, "get", "namespaces", "-o", "name")
    version = kubectl(path, "version", "-o", "json")

    assert namespaces.stdout.split() == ["namespace/default", "namespace/kube-system"], namespaces.stderr
    assert json.loads(version.stdout)["serverVersion"]["gitVersion"] == "v1.32.0"


def test_kubectl_reads_the_yaml_form_as_it_comes(cluster: RegisteredCluster, tmp_path: Path) -> None:
    answer = cluster.issue(accept="application/yaml")

    whoami = kubectl(written(tmp_path, answer.content), "auth", "whoami", "-o", "json")

    assert answer.headers["Content-Type"].split(";")[0] == "application/yaml"
    leaf = assert_kubeconfig(yaml.safe_load(answer.content), cluster.tenant)
    user_info = json.loads(whoami.stdout)["status"]["userInfo"]
    assert user_info["extra"]["authentication.kubernetes.io/credential-id"] == [credential_id(leaf)]


def test_kubectl_config_view_understands_every_part(cluster: RegisteredCluster, tmp_path: Path) -> None:
    kubeconfig = cluster.kubeconfig()

    viewed = kubectl(written(tmp_path, kubeconfig), "config", "view", "--raw", "-o", "json")

    seen = json.loads(viewed.stdout)
    assert {name: seen[name] for name in ("clusters", "users", "contexts", "current-context")} == {
        name: kubeconfig[name] for name in ("clusters", "users", "contexts", "current-context")
    }


@pytest.mark.full
def test_kubectl_config_view_lists_the_external_contexts(eip_demo: Demo) -> None:
    contexts = kubectl(eip_demo.kubeconfig, "config", "get-contexts", "-o", "name")
    current = kubectl(eip_demo.kubeconfig, "config", "current-context")

    assert contexts.stdout.split() == ["external", "externalTLSVerify", "internal"]
    assert current.stdout.strip() == "external"


@pytest.mark.full
def test_every_external_context_reaches_the_server(
    tls_demo: Demo, apiserver: ApiServer, cluster: RegisteredCluster, tmp_path: Path
) -> None:
    url = apiserver.url.replace("127.0.0.1", "localhost")
    registered = register(tls_demo, "double-outside", apiserver, "--external-url", url, "--san-url", url)
    apiserver.trust(cluster.ca_bundle_pem + registered.ca_bundle_pem)
    path = written(tmp_path, registered.kubeconfig())

    contexts = kubectl(path, "config", "get-contexts", "-o", "name").stdout.split()
    statuses = {name: kubectl(path, "--context", name, "auth", "whoami").returncode for name in contexts}
    apiserver.trust(cluster.ca_bundle_pem)

    assert statuses == dict.fromkeys(["customSAN-0", "external", "externalTLSVerify", "internal"], 0)


def test_kubectl_with_another_clusters_certificate_is_refused(
    apiserver: ApiServer, foreign_cluster: RegisteredCluster, tmp_path: Path
) -> None:
    path = written(tmp_path, foreign_cluster.kubeconfig())
    already = len(apiserver.seen)

    whoami = kubectl(path, "auth", "whoami", "-o", "json")

    assert whoami.returncode != 0
    assert {(seen.identity, seen.status) for seen in apiserver.seen[already:]} == {(None, 401)}


def test_the_python_client_is_who_the_service_says(cluster: RegisteredCluster, tmp_path: Path) -> None:
    kubeconfig = cluster.kubeconfig()

    with kubernetes.config.new_client_from_config(str(written(tmp_path, kubeconfig))) as client:
        review = kubernetes.client.AuthenticationV1Api(client).create_self_subject_review(
            kubernetes.client.V1SelfSubjectReview()
        )
        namespaces = kubernetes.client.CoreV1Api(client).list_namespace()

    leaf = assert_kubeconfig(kubeconfig, cluster.tenant)
    user_info = review.status.user_info
    assert (user_info.username, user_info.groups) == (
        cluster.tenant.user_id,
        [ADMINS, own_group(leaf), "system:authenticated"],
    )
    assert user_info.extra["authentication.kubernetes.io/credential-id"] == [credential_id(leaf)]
    assert [namespace.metadata.name for namespace in namespaces.items] == ["default", "kube-system"]


def test_the_python_client_takes_the_document_from_memory(cluster: RegisteredCluster) -> None:
    with kubernetes.config.new_client_from_config_dict(cluster.kubeconfig()) as client:
        assert kubernetes.client.VersionApi(client).get_code().git_version == "v1.32.0"
