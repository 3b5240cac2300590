"""The real kubectl uses an access request from its approval to its end, without a command in between.

At the double of kube-apiserver, and at a real one where KUBEBUILDER_ASSETS names a folder with kube-apiserver, etcd and
kubectl. The output has the seconds of the steps.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support import patient_plugin
from support.access_site import REQUESTED, STANDING, AccessCluster, AccessSite, running
from support.apiserver import ApiServer
from support.exec_plugin import PROJECT, User, status_of
from support.installation import Cluster
from support.kube_apiserver import ASSETS, KubeApiServer, assets
from support.kubectl import written
from support.operated_cluster import SERVICE_CA
from support.wait import SECONDS, eventually

pytestmark = pytest.mark.slow
NAME = "prod"
KUBECTL = Path(__file__).parents[2] / ".venvs" / "clients" / "bin" / "kubectl"
# `cluster-admin` can read both. Kubernetes' role `view` has rules only where a controller manager runs.
STANDING_READ = "/api/v1/namespaces/default/configmaps"
REQUESTED_READ = "/api/v1/namespaces/default/secrets"
READER = "configmap-reader"
ROLE = f"""\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {READER}}}
rules: [{{apiGroups: [""], resources: [configmaps], verbs: [get, list]}}]
"""
BINDING = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "{group}"}}]
"""


@pytest.fixture
def people(tmp_path: Path) -> Iterator[AccessSite]:
    with running(tmp_path) as site:
        yield site


@pytest.mark.skipif(not KUBECTL.exists(), reason="needs .venvs/clients, which `make clients` makes")
def test_kubectl_has_the_requested_rights_from_the_approval_to_the_end(
    people: AccessSite, tmp_path: Path
) -> None:
    with ApiServer(tmp_path) as server:
        kubectl_uses_a_request(people, server, KUBECTL, tmp_path)


@pytest.mark.skipif(
    assets() is None, reason=f"{ASSETS} names no folder with kube-apiserver, etcd and kubectl"
)
def test_kubectl_has_the_requested_rights_at_a_real_api_server(people: AccessSite, tmp_path: Path) -> None:
    programs = assets()
    assert programs is not None
    folder = tmp_path / "kube-apiserver"
    folder.mkdir()
    with KubeApiServer(programs, folder) as server:
        kubectl_uses_a_request(people, server, programs / "kubectl", tmp_path)


def kubectl_uses_a_request(site: AccessSite, server: Cluster, program: Path, folder: Path) -> None:
    anna, cluster = site.anna, joined(site, server, program, folder)
    anna.output("kubeconfig", "merge", NAME)
    patient_plugin.use_in(anna.home / ".kube" / "config", sys.executable)

    def can_read(path: str, *options: str) -> bool:
        done = run_kubectl(program, anna, *options, "get", "--raw", path)
        assert done.returncode == 0 or "Forbidden" in done.stderr, done.stderr
        return done.returncode == 0

    refused = without_standing_access(site.guest, program)
    assert f"`clustercert request create {NAME} --group {REQUESTED} --for 1h --reason REASON`" in refused
    assert "The reason needs at least 10 characters." in refused

    eventually(lambda: can_read(STANDING_READ))
    assert not can_read(REQUESTED_READ)
    approvers = [threading.Thread(target=approve_next, args=(user,)) for user in (site.bert, site.carla)]
    for thread in approvers:
        thread.start()
    started = time.monotonic()
    request_id = cluster.ask()["id"]
    eventually(lambda: can_read(REQUESTED_READ))
    print(f"from `request create` to a working kubectl: {time.monotonic() - started:.1f} s")
    for thread in approvers:
        thread.join()

    used = kubeconfig_of_certificate(anna, cluster, folder)
    assert can_read(REQUESTED_READ, "--kubeconfig", str(used))
    started = time.monotonic()
    site.carla.output("request", "end", request_id, "--reason", "that is enough")
    eventually(lambda: not can_read(REQUESTED_READ, "--kubeconfig", str(used)))
    print(f"from `request end` to a refused certificate: {time.monotonic() - started:.1f} s")
    # The plugin asks about the request at most every 2 seconds. Until then, kubectl has the revoked certificate.
    eventually(lambda: can_read(STANDING_READ))
    assert not can_read(REQUESTED_READ)
    print(f"from `request end` to kubectl with standing access: {time.monotonic() - started:.1f} s")
    assert [(request, revoked) for request, revoked in cluster.certificates() if request] == [(request_id, 1)]


def without_standing_access(user: User, program: Path) -> str:
    """What kubectl says to a user to whom the policy grants nothing without a request."""
    user.output("kubeconfig", "merge", NAME)
    patient_plugin.use_in(user.home / ".kube" / "config", sys.executable)
    done = run_kubectl(program, user, "get", "namespaces")
    assert done.returncode == 1
    return done.stderr


def joined(site: AccessSite, server: Cluster, program: Path, folder: Path) -> AccessCluster:
    """Register an API server, which then trusts the client CA and asks the webhook. Bind the groups."""
    operator, control_plane = site.operator, folder / "control-plane"
    address = ("--internal-url", server.url, "--server-ca", server.server_ca)
    made = operator.output_json("cluster", "add", NAME, "--project", PROJECT, *address)
    operator.output(
        *("kubernetes", "setup", NAME, "--out", control_plane, "--control-plane-dir", control_plane),
        *("--webhook-url", site.url, "--webhook-ca", operator.folder / SERVICE_CA),
        *("--unauthorized-ttl", "500ms", "--timeout", "30s"),
    )
    server.trust(operator.output("cluster", "ca", "show", NAME, "--bundle").encode())
    server.authorize_with(control_plane / "authorization-config.yaml")
    server.serve()
    bindings = ((STANDING, READER), (REQUESTED, "cluster-admin"))
    documents = [
        BINDING.format(name=group.replace(":", "-"), role=role, group=group) for group, role in bindings
    ]
    done = subprocess.run(
        [program, "--kubeconfig", server.admin_kubeconfig(), "apply", "-f", "-"],
        input="---\n".join([ROLE, *documents]),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return AccessCluster(site, NAME, made["id"])


def run_kubectl(program: Path, user: User, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        env=user.environment,
    )


def approve_next(user: User) -> None:
    """Approve the first request that this user can decide, as soon as it is in the user's list."""

    def listed() -> str:
        done = user.run(
            "request", "list", "--to-decide", "-o", "name", command=patient_plugin.command(sys.executable)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    command = ("request", "approve", eventually(listed), "--reason", "agreed")
    done = user.run(*command, command=patient_plugin.command(sys.executable))
    assert done.returncode == 0, done.stderr


def kubeconfig_of_certificate(user: User, cluster: AccessCluster, folder: Path) -> Path:
    """A kubeconfig with the certificate that the plugin has cached now."""
    config = yaml.safe_load((user.home / ".kube" / "config").read_text())
    status = status_of(cluster.cache_file.read_text().partition("\n")[2])
    pair = {}
    for field, name in (("client-certificate", "clientCertificateData"), ("client-key", "clientKeyData")):
        pair[field] = str(written(folder, status[name].encode(), field))
    return written(
        folder, json.loads(json.dumps(config | {"users": [{**config["users"][0], "user": pair}]})), "used"
    )
