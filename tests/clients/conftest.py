"""The running service and the tools that the tests with real clients share."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support.apiserver import ApiServer
from support.apiserver_clients import client_of
from support.certificate_authority import Authority
from support.real_keystone import PREPARED, RealKeystone, running
from support.scripted_webhook import ScriptedWebhook

pytest.register_assert_rewrite(
    "support.altered_copy_scenarios",
    "support.keystone_installation",
    "support.kubeconfig_checks",
    "support.registered_cluster",
    "support.removal_scenario",
    "support.revocation_scenarios",
    "support.installation",
)

from support.installed_demo import Demo, start, stop  # noqa: E402
from support.keystone_installation import Service, Site  # noqa: E402
from support.keystone_installation import make as make_site  # noqa: E402
from support.page_tests import pytest_runtest_call  # noqa: F401, E402 - a hook

SETTINGS_OF_CLIENTS = (
    "OS_",
    "HUAWEICLOUD_",
    "KUBECONFIG",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "all_proxy",
    "XDG_",
    "CLUSTERCERT_",
)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of their own for the clients, which read and write settings there, and no settings of ours."""
    folder = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(SETTINGS_OF_CLIENTS) and name != "CLUSTERCERT_BIN":
            del os.environ[name]
    os.environ["HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo with a second tenant; its cluster has no external address."""
    demo = start(tmp_path_factory.mktemp("demo"), "--tenants", "1")
    yield demo
    stop(demo)


@pytest.fixture(scope="session")
def eip_demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo whose cluster has an external address."""
    demo = start(tmp_path_factory.mktemp("eip-demo"), "--with-eip")
    yield demo
    stop(demo)


@pytest.fixture(scope="session")
def tls_demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo with TLS, which API servers can ask; served by two processes."""
    demo = start(tmp_path_factory.mktemp("tls-demo"), "--tls", "--workers", "2")
    yield demo
    stop(demo)


@pytest.fixture(scope="session")
def keystone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKeystone]:
    """A real Keystone, which answers when a test begins. Tests change only what they made there."""
    if not PREPARED.exists():
        assert "CI" not in os.environ, "make keystone"
        pytest.skip("there is no .venvs/keystone: run make keystone")
    with running(tmp_path_factory.mktemp("keystone")) as one:
        yield one


@pytest.fixture(scope="session")
def site(keystone: RealKeystone, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A project in Keystone with a cluster here."""
    return make_site(tmp_path_factory.mktemp("site"), keystone)


@pytest.fixture(scope="session")
def service(site: Site) -> Iterator[Service]:
    """The service that asks the Keystone."""
    with site.serving() as one:
        yield one


@pytest.fixture
def apiserver(tmp_path: Path) -> Iterator[ApiServer]:
    """A double of kube-apiserver that trusts nobody yet."""
    folder = tmp_path / "apiserver"
    folder.mkdir()
    with ApiServer(folder) as server:
        yield server


@pytest.fixture
def webhook() -> Iterator[ScriptedWebhook]:
    with ScriptedWebhook() as one:
        yield one


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("clients-of-the-double")


@pytest.fixture
def as_bob(apiserver: ApiServer, authority: Authority, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A cluster administrator by RBAC."""
    apiserver.trust(authority.certificate_pem)
    apiserver.bind("issuer:cluster-admins", "cluster-admin")
    identity_pem = authority.client_identity_pem("bob", ["issuer:cluster-admins", "issuer:devs"])
    with client_of(apiserver, tmp_path, identity_pem) as client:
        yield client
