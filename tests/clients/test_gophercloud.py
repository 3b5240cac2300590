"""Debian's gophercloud, as a Go program would use it: login, catalog, own user, clusters, kubeconfig."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.wait import SECONDS

if TYPE_CHECKING:
    from support.installed_demo import Demo

SOURCE = Path(__file__).with_name("gophercloud") / "main.go"
GOPATH = Path("/usr/share/gocode")
LIBRARY = GOPATH / "src" / "github.com" / "gophercloud" / "gophercloud"

pytestmark = pytest.mark.skipif(
    shutil.which("go") is None or not LIBRARY.exists(),
    reason="Go or golang-github-gophercloud-gophercloud-dev is not installed",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("go")
    env = os.environ | {"GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(folder / "cache")}
    built = folder / "client"
    subprocess.run(["go", "build", "-o", built, SOURCE], env=env, check=True, timeout=3 * SECONDS)
    return built


@pytest.mark.parametrize("name", ["demo", "eip_demo", "tls_demo"])
def test_gophercloud_gets_a_kubeconfig(program: Path, name: str, request: pytest.FixtureRequest) -> None:
    demo: Demo = request.getfixturevalue(name)
    tenant = demo.own
    env = {
        "OS_AUTH_URL": f"{tenant.url}/v3",
        "OS_USERNAME": tenant.user_name,
        "OS_PASSWORD": tenant.password,
        "OS_DOMAIN_ID": tenant.domain_id,
        "OS_TENANT_NAME": tenant.region,
        "OS_REGION_NAME": tenant.region,
        "CLUSTER_ID": tenant.cluster_id,
        "CLIENT_CA": str(tenant.client_ca),
        # Go trusts only these CAs.
        "SSL_CERT_FILE": str(tenant.tls_ca or ""),
    }
    done = subprocess.run([program], env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"ccev2.0", "identity"} <= set(found["types"])
    assert (found["user"], found["user_id"]) == (tenant.user_name, tenant.user_id)
    assert found["domain_id"] == tenant.domain_id
    assert tenant.cluster_id in found["clusters"]
    assert found["is_missing"] is True
    assert found["common_name"] == tenant.user_id
    assert found["hours"] == 24
    assert found["server"].startswith("https://")
    assert found["current_context"]
    assert found["contexts"] >= 1
