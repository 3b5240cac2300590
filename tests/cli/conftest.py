import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from clustercert.cli.login import oidc_login
from clustercert.client import connection
from clustercert.client.oidc import issuer
from clustercert.model.ids import new_id
from support.access_site import AccessCluster, AccessSite, running
from support.apiserver import ApiServer
from support.command_line import PASSWORD, Operator, new_operator
from support.operated_cluster import OperatedCluster, tls_service
from support.remote_site import RemoteSite, remote_site
from support.user_site import UserSite, served
from support.wait import SECONDS

# A job in the background of a shell ignores Ctrl-C, and so would the commands that are to be interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def interrupts() -> None:
    """Let Ctrl-C interrupt a test. The command `serve`, run in this process, lets Ctrl-C end the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Let commands in this process wait long for servers: a busy machine can take more than 10 seconds to answer."""
    with (
        patch.object(connection, "CONNECT_SECONDS", SECONDS),
        patch.object(issuer, "RESPONSE_SECONDS", SECONDS),
        patch.object(oidc_login, "_LONGEST_WAIT_SECONDS", SECONDS),
    ):
        yield


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return new_operator(tmp_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory that is empty except for the file `password`."""
    for name in os.environ:
        if name.startswith(("CLUSTERCERT", "OS_", "KUBE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("CONFIG", "CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{folder}_HOME", str(tmp_path / folder.lower()))
    (tmp_path / "password").write_text(PASSWORD)
    return tmp_path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, str]]:
    operator = new_operator(tmp_path_factory.mktemp("service"))
    operator.output("project", "create", "eu-de")
    with tls_service(operator) as url:
        yield operator, url


@pytest.fixture
def site(made: tuple[Operator, str], tmp_path: Path) -> Iterator[OperatedCluster]:
    operator, url = made
    with ApiServer(tmp_path) as cluster:
        operator.output(
            *("cluster", "add", "prod", "--project", "eu-de"),
            *("--internal-url", cluster.url, "--server-ca", cluster.server_ca),
        )
        try:
            cluster.trust(operator.output("cluster", "ca", "show", "prod", "--bundle").encode())
            yield OperatedCluster(operator, cluster, url)
        finally:
            operator.output("cluster", "remove", "prod", "--yes")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSite]:
    """A service of this module's own."""
    with served(tmp_path_factory.mktemp("world")) as site:
        yield site


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteSite]:
    """A service with people of all roles. Tests issue certificates there, and leave clusters and roles as they are."""
    with remote_site(tmp_path_factory) as site:
        yield site


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessSite]:
    """People who ask for access and decide about requests, for a cluster of each test."""
    with running(tmp_path_factory.mktemp("people")) as site:
        yield site


@pytest.fixture
def cluster(people: AccessSite) -> Iterator[AccessCluster]:
    """A cluster of the test's own, for which people ask for access."""
    made = people.add_cluster(f"c-{new_id()[:8]}")
    yield made
    people.operator.output("cluster", "remove", made.id, "--yes")
