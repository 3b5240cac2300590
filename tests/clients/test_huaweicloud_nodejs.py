"""Huawei Cloud's SDK for NodeJS, unmodified. Each answer is checked against the types that the SDK declares."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.installed_demo import MISSING_CLUSTER, Demo
from support.kubeconfig_checks import assert_kubeconfig
from support.wait import SECONDS

ENVIRONMENT = Path(__file__).parents[2] / ".venvs" / "huaweicloud-nodejs"
PROGRAM = Path(__file__).with_name("huaweicloud_nodejs") / "calls.mjs"

pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".complete").exists(),
    reason="needs .venvs/huaweicloud-nodejs, which `make huaweicloud-nodejs` makes",
)


def called(demo: Demo, user_agent: str = "") -> dict[str, Any]:
    """Call the API with the SDK. Returns the answers by method, and the refusal of a missing cluster."""
    tenant = demo.own
    configuration = {
        "url": tenant.url,
        "accessKey": tenant.access_key,
        "secretKey": tenant.secret_key,
        "projectId": tenant.project_id,
        "clusterId": tenant.cluster_id,
        "missingClusterId": MISSING_CLUSTER,
        "userAgent": user_agent,
    }
    env = os.environ | ({"NODE_EXTRA_CA_CERTS": str(tenant.tls_ca)} if tenant.tls_ca else {})
    done = subprocess.run(
        ["node", PROGRAM],
        cwd=ENVIRONMENT,
        env=env,
        input=json.dumps(configuration),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(
    ("name", "user_agent"), [("demo", ""), ("eip_demo", "acme/1.0 (a comment)"), ("tls_demo", "")]
)
def test_each_answer_has_the_types_that_the_sdk_declares(
    name: str, user_agent: str, request: pytest.FixtureRequest
) -> None:
    demo: Demo = request.getfixturevalue(name)
    tenant = demo.own
    said = called(demo, user_agent)
    answers = said["answers"]
    assert {method: (each["status"], each["problems"]) for method, each in answers.items()} == {
        method: (200, [])
        for method in (
            "showVersion",
            "listClusters",
            "showCluster",
            "showClusterEndpoints",
            "createKubernetesClusterCert",
        )
    }
    shown = answers["showCluster"]["answer"]
    addresses = answers["showClusterEndpoints"]["answer"]["status"]
    types = ["Internal", "External"] if addresses["publicEndpoint"] else ["Internal"]
    assert [each["type"] for each in shown["status"]["endpoints"]] == types
    assert tenant.cluster_id in [
        each["metadata"]["uid"] for each in answers["listClusters"]["answer"]["items"]
    ]
    assert_kubeconfig(answers["createKubernetesClusterCert"]["answer"], tenant)
    assert said["refusal"]["status"] == 404
    assert said["refusal"]["code"] == "CCE.01404001"
    assert said["refusal"]["message"].startswith("Resource not found.")
    assert len(bytes.fromhex(said["refusal"]["requestId"])) == 16
