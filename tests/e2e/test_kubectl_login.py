"""The real kubectl, whose plugin finds that the login ended at the issuer."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import patient_plugin
from support.apiserver import ApiServer
from support.oidc_users import OidcUser, Site, running_site

pytestmark = pytest.mark.slow
KUBECTL = Path(__file__).parents[2] / ".venvs" / "clients" / "bin" / "kubectl"
PARALLEL = 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path) as running:
        yield running


@pytest.mark.skipif(not KUBECTL.exists(), reason="needs .venvs/clients, which `make clients` makes")
def test_twenty_kubectl_open_one_window(site: Site, tmp_path: Path) -> None:
    user = OidcUser.at(site, tmp_path, "alice")
    with ApiServer(tmp_path) as cluster:
        address = ("--internal-url", cluster.url, "--server-ca", cluster.server_ca)
        site.operator.output("cluster", "add", "lab", "--project", "eu-de", *address)
        cluster.trust(site.operator.output("cluster", "ca", "show", "lab", "--bundle").encode())
        cluster.bind("clustercert:admins", "cluster-admin")
        user.log_in_by_browser()
        user.output("kubeconfig", "merge", "lab", "--context-name", "lab")
        patient_plugin.use_in(user.home / ".kube" / "config", sys.executable)
        user.expire()
        user.end_at_the_issuer()
        issued = user.issued_here

        def list_namespaces(_: int) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [KUBECTL, "--context", "lab", "get", "namespaces", "-o", "name"],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                env=user.environment | user.browser,
            )

        with ThreadPoolExecutor(PARALLEL) as pool:
            outputs = list(pool.map(list_namespaces, range(PARALLEL)))
    assert {done.returncode for done in outputs} == {0}, outputs
    assert all("namespace/default" in done.stdout for done in outputs)
    assert len(user.windows) == 2, "one for the login, one for all kubectl"
    assert user.issued_here == issued + 1
