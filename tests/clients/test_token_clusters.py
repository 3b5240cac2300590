"""A cluster whose credentials are tokens: kubectl with the plugin, and what the clients of CCE's API get there."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import openstack
import pytest
from huaweicloudsdkcce.v3 import ClusterCertDuration, ListClustersRequest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from openstack import exceptions
from otcextensions import sdk

from support import openstack_command
from support.apiserver import ApiServer
from support.go_clients import GoClient
from support.huaweicloud import cce_of, issue
from support.installed_demo import Demo, Tenant, operators_environment, program
from support.kubeconfig_checks import ADMINS
from support.kubectl import kubectl
from support.store_commands import on_store
from support.wait import SECONDS, eventually

NAME = "tokens"
SENTENCE = "Get a token with `clustercert kubeconfig get`"


@dataclass(frozen=True)
class TokenCluster:
    """A cluster of a running demo, and a tenant who may use it."""

    demo: Demo
    tenant: Tenant
    double: ApiServer

    @classmethod
    def add(cls, demo: Demo, double: ApiServer) -> "TokenCluster":
        added = subprocess.run(
            [
                program(),
                *on_store(
                    ["cluster", "add", NAME, "--project", demo.own.project_id, "--credential", "token"]
                ),
                *("--from-kubeconfig", str(double.admin_kubeconfig()), "--yes", "--output", "json"),
                *("--group-role", f"{ADMINS}=clusterrole/view"),
            ],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=operators_environment(demo),
        )
        assert added.returncode == 0, added.stderr
        return cls(demo, replace(demo.own, cluster_id=json.loads(added.stdout)["id"]), double)


@pytest.fixture(scope="module")
def cluster(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenCluster]:
    """A cluster of the demo without TLS, which the clients of CCE's API use."""
    with ApiServer(tmp_path_factory.mktemp("cluster")) as double:
        one = TokenCluster.add(demo, double)
        cce = cce_of(one.tenant)
        # A registered cluster is found within a second.
        eventually(
            lambda: (
                one.tenant.cluster_id
                in [each.metadata.uid for each in cce.list_clusters(ListClustersRequest()).items]
            )
        )
        yield one


def test_kubectl_gets_a_token_with_the_plugin(
    tls_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))

    def cli(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [program(), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, **variables},
        )
        assert done.returncode == 0, done.stderr
        return done

    with ApiServer(tmp_path) as double:
        one = TokenCluster.add(tls_demo, double)
        tenant = one.tenant
        cli(
            *("login", tenant.url, "--user", tenant.user_name, "--domain", "demo"),
            *("--project", tenant.project_id, "--ca-file", str(tenant.tls_ca)),
            CLUSTERCERT_PASSWORD=tenant.password,
        )
        eventually(lambda: NAME in cli("clusters").stdout)
        cli("kubeconfig", "merge", NAME, "--use")

        config = home / ".kube" / "config"
        listed = kubectl(config, "get", "namespaces", "-o", "name")
        assert "namespace/clustercert-users" in listed.stdout.split(), listed.stderr
        assert kubectl(config, "create", "namespace", "mine").returncode != 0

        cli("kubeconfig", "get", NAME, "--out", str(tmp_path / "separate.yaml"))
        separate = kubectl(tmp_path / "separate.yaml", "get", "namespaces", "-o", "name")
        assert separate.stdout == listed.stdout, separate.stderr


def test_the_python_sdk_of_huawei_cloud_raises_the_sentence(cluster: TokenCluster) -> None:
    cce = cce_of(cluster.tenant)

    with pytest.raises(ClientRequestException) as caught:
        issue(cce, cluster.tenant.cluster_id, ClusterCertDuration(duration=1))

    assert (caught.value.status_code, caught.value.error_code) == (409, "CCE.01409001")
    assert SENTENCE in caught.value.error_msg


def test_otcextensions_raises_the_sentence(cluster: TokenCluster) -> None:
    tenant = cluster.tenant
    connection = openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        region_name=tenant.region,
        project_id=tenant.project_id,
        auth_url=f"{tenant.url}/v3",
        username=tenant.user_name,
        password=tenant.password,
        user_domain_id=tenant.domain_id,
    )
    sdk.register_otc_extensions(connection)
    assert connection.cce.get_cluster(tenant.cluster_id).name == NAME

    with pytest.raises(exceptions.ConflictException) as caught:
        connection.cce.get_cluster_certificates(tenant.cluster_id)

    assert SENTENCE in str(caught.value)


def test_the_openstack_command_prints_the_sentence(cluster: TokenCluster) -> None:
    done = openstack_command.openstack(cluster.tenant, "cce", "cluster", "certificate", "show", NAME)
    assert (done.returncode, done.stdout) == (1, "")
    assert SENTENCE in " ".join(done.stderr.split())


@pytest.mark.parametrize("scoped", [True, False], ids=["gophertelekomcloud", "golangsdk"])
def test_requests_of_the_go_clients_get_the_sentence(cluster: TokenCluster, *, scoped: bool) -> None:
    tenant = cluster.tenant
    client = GoClient(
        tenant.url,
        tenant.access_key,
        tenant.secret_key,
        scoped=scoped,
        unsigned={"X-Project-Id": tenant.project_id},
    )
    for answer in (
        client.post(tenant.clustercert_path, {"duration": -1}),
        client.get(tenant.clustercert_path),
    ):
        assert (answer.status, answer.json()["errorCode"]) == (409, "CCE.01409001")
        assert SENTENCE in answer.json()["errorMessage"]
