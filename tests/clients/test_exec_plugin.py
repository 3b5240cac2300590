"""kubectl with what `clustercert kubeconfig merge` writes: the exec plugin and embedded certificates."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support import patient_plugin
from support.apiserver import ApiServer
from support.installed_demo import Demo, program
from support.kubeconfig_checks import ADMINS
from support.kubectl import kubectl
from support.registered_cluster import RegisteredCluster, register
from support.wait import SECONDS

NAMES = ("desk-a", "desk-b")
NAMESPACES = ("get", "namespaces", "-o", "name")
PARALLEL = 8


@dataclass(frozen=True)
class Desk:
    """A home directory with a login, and two registered clusters with their API servers."""

    demo: Demo
    home: Path
    clusters: dict[str, RegisteredCluster]
    servers: dict[str, ApiServer]

    @property
    def config(self) -> Path:
        return self.home / ".kube" / "config"

    def cli(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program(), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, **variables},
        )

    def log_in(self) -> None:
        tenant = self.demo.own
        done = self.cli(
            *("login", tenant.url, "--user", tenant.user_name, "--domain", "demo"),
            *("--project", tenant.project_id, "--ca-file", str(tenant.tls_ca)),
            CLUSTERCERT_PASSWORD=tenant.password,
        )
        assert done.returncode == 0, done.stderr

    def merge(self, *arguments: str) -> None:
        done = self.cli("kubeconfig", "merge", *arguments)
        assert done.returncode == 0, done.stderr

    def issued(self, name: str) -> int:
        cluster_id = self.clusters[name].tenant.cluster_id
        with closing(sqlite3.connect(self.demo.data_dir / "clustercert.db")) as store:
            query = "SELECT count(*) FROM certificate WHERE cluster_id = ?"
            return int(store.execute(query, (cluster_id,)).fetchone()[0])


@pytest.fixture(scope="module")
def installed(
    tls_demo: Demo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, RegisteredCluster], dict[str, ApiServer]]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    with ApiServer(folders[NAMES[0]]) as first, ApiServer(folders[NAMES[1]]) as second:
        servers = dict(zip(NAMES, (first, second), strict=True))
        clusters = {name: register(tls_demo, name, server) for name, server in servers.items()}
        for name, server in servers.items():
            server.bind(ADMINS, "cluster-admin")
            server.trust(clusters[name].ca_bundle_pem)
            # A registered cluster is found within a second.
            clusters[name].issue()
        yield clusters, servers


@pytest.fixture
def desk(
    tls_demo: Demo,
    installed: tuple[dict[str, RegisteredCluster], dict[str, ApiServer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    one = Desk(tls_demo, tmp_path, *installed)
    one.log_in()
    return one


def test_contexts_of_two_clusters_switch(desk: Desk) -> None:
    desk.merge(*NAMES)

    for name in NAMES:
        seen = len(desk.servers[name].seen)
        assert kubectl(desk.config, "config", "use-context", name).returncode == 0
        done = kubectl(desk.config, *NAMESPACES)
        assert done.stdout.split() == ["namespace/default", "namespace/kube-system"], done.stderr
        assert len(desk.servers[name].seen) > seen


@pytest.mark.full
def test_entries_are_found_after_kubectl_wrote_the_file(desk: Desk) -> None:
    desk.merge(*NAMES, "--expires-in", "1h")
    kubectl(desk.config, "config", "use-context", NAMES[0])
    done = kubectl(desk.config, "config", "set-context", "--current", "--namespace", "kube-system")
    assert done.returncode == 0, done.stderr

    desk.merge(NAMES[0])

    context = kubectl(desk.config, "config", "view", "--minify", "-o", "jsonpath={..namespace}")
    assert context.stdout == "kube-system"
    listed = json.loads(desk.cli("kubeconfig", "list", "-o", "json").stdout)
    assert [row["context"] for row in listed] == list(NAMES)
    assert desk.cli("kubeconfig", "unmerge", "--all").returncode == 0
    left = yaml.safe_load(desk.config.read_text())
    assert not any(left[field] for field in ("clusters", "users", "contexts", "current-context"))


@pytest.mark.full
def test_parallel_kubectl_gets_one_certificate(desk: Desk) -> None:
    name = NAMES[0]
    desk.merge(name, "--use")
    patient_plugin.use_in(desk.config, Path(program()).with_name("python"))
    before = desk.issued(name)

    with ThreadPoolExecutor(PARALLEL) as pool:
        done = list(pool.map(lambda _: kubectl(desk.config, "get", "--raw", "/version"), range(PARALLEL)))

    assert [each.stderr for each in done if each.returncode] == []
    assert desk.issued(name) == before + 1


@pytest.mark.full
def test_without_a_login_kubectl_ends_with_the_command_to_run(desk: Desk) -> None:
    desk.merge(NAMES[0], "--use")
    assert desk.cli("logout").returncode == 0

    namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: new}}"
    done = kubectl(desk.config, "apply", "-f", "-", stdin=namespace)

    assert done.returncode == 1
    assert "You are not logged in at " in done.stderr
    assert "Run `clustercert login`." in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("form", ["--embed", "--files"])
def test_certificates_without_the_plugin_work(desk: Desk, form: str) -> None:
    desk.merge(NAMES[1], form, "--use")
    done = kubectl(desk.config, *NAMESPACES)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_a_refused_certificate_is_replaced_on_request(desk: Desk) -> None:
    name = NAMES[1]
    desk.merge(name, "--use")
    server, bundle = desk.servers[name], desk.clusters[name].ca_bundle_pem
    server.trust(b"")
    try:
        refused = kubectl(desk.config, "get", "--raw", "/api/v1/namespaces")
        assert refused.returncode == 1
    finally:
        server.trust(bundle)
    before = desk.issued(name)
    tenant = desk.clusters[name].tenant

    refreshed = desk.cli("credential", tenant.cluster_id, "--refresh")

    assert refreshed.returncode == 0, refreshed.stderr
    assert desk.issued(name) == before + 1
    assert kubectl(desk.config, *NAMESPACES).returncode == 0
