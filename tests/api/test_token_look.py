"""The look at a cluster whose credentials are tokens: what stops issuing there, and what is only named."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAME, NAMESPACES_POLICY
from clustercert.kubernetes.token_look import Look, look
from clustercert.model.kubernetes import ACCESS_NAMESPACE, USERS_NAMESPACE
from clustercert.model.token_objects import CLUSTER_ROLE_BINDINGS_PATH, RBAC
from support import samples
from support.apiserver import ApiServer, kinds
from support.token_cluster import CLUSTER_ROLES, GROUP_ROLES, INSTALLATION, TokenCluster

pytestmark = pytest.mark.slow

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MERGE = "application/merge-patch+json"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TokenCluster]:
    with ApiServer(tmp_path) as double, closing(TokenCluster(double)) as ready:
        ready.set_up()
        yield ready


def looked(
    cluster: TokenCluster,
    group_roles: Mapping[str, tuple[str, ...]] | None = None,
    *,
    allow_cluster_admin: bool = False,
    token: str = "",
    installation: str = INSTALLATION,
) -> Look:
    """Look with the token of the service's account."""
    registered = samples.cluster()
    options = replace(
        registered.options,
        group_roles=group_roles or GROUP_ROLES,
        allow_cluster_admin=allow_cluster_admin,
    )

    async def run() -> Look:
        async with KubeApi(cluster.double.url, cluster.double.server_ca.read_bytes(), None) as api:
            api.use_token(token or cluster.issuer)
            return await look(api, replace(registered, options=options), installation)

    return asyncio.run(run())


def problem(cluster: TokenCluster, **options: Any) -> str:
    return looked(cluster, **options).problem or ""


def test_a_cluster_that_is_set_up_has_no_problem_and_names_dangerous_roles(cluster: TokenCluster) -> None:
    before = cluster.snapshot()
    found = looked(cluster)
    assert (found.problem, found.version, found.unusable, found.excess) == (None, "v1.32.0", {}, ())
    assert set(found.dangers) == {"clusterrole/edit@shop", "clusterrole/admin@team", "role/deployer@team"}
    assert found.dangers["role/deployer@team"] == ("start workloads",)
    assert cluster.snapshot() == before


@pytest.mark.parametrize("version", ["v1.29.9", "v1.29.15-eks-1234", "v1.9.0", "v0.40.0"])
def test_an_old_api_server_is_a_problem(cluster: TokenCluster, version: str) -> None:
    cluster.double.version = version
    assert (
        problem(cluster)
        == f"Kubernetes {version} lacks admission policies. Upgrade the cluster to 1.30 or newer."
    )


def test_newer_api_servers_of_vendors_are_none(cluster: TokenCluster) -> None:
    for version in ("v1.30.0", "v1.33.5-gke.1080000", "v1.31.4-r0-31.0.10", "v2.0.0"):
        cluster.double.version = version
        assert problem(cluster) == ""


@pytest.mark.parametrize("policy", [NAMESPACES_POLICY, BINDINGS_POLICY])
@pytest.mark.parametrize("part", ["validatingadmissionpolicies", "validatingadmissionpolicybindings"])
def test_a_missing_policy_is_a_problem(cluster: TokenCluster, policy: str, part: str) -> None:
    assert cluster.ask(cluster.root, "DELETE", f"{ADMISSION}/{part}/{policy}").status_code == 200
    assert problem(cluster).startswith(f"The admission policy {policy} is missing, or allows a request")


def test_a_policy_that_only_warns_is_a_problem(cluster: TokenCluster) -> None:
    path = f"{ADMISSION}/validatingadmissionpolicybindings/{BINDINGS_POLICY}"
    changed = {"spec": {"validationActions": ["Warn", "Audit"]}}
    assert cluster.ask(cluster.root, "PATCH", path, changed, None, MERGE).status_code == 200
    assert "or allows a request" in problem(cluster)


def test_a_namespace_that_refuses_bindings_is_no_problem(
    cluster: TokenCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its admins can set a quota. The policy is tested in another namespace."""
    full, create = {"team"}, KubeApi.create

    async def created(api: KubeApi, path: str, *rest: Any, **named: Any) -> Any:
        if any(path.endswith(f"/namespaces/{name}/rolebindings") for name in full):
            raise ApiServerRefused(403, "exceeded quota: no-bindings")
        return await create(api, path, *rest, **named)

    monkeypatch.setattr(KubeApi, "create", created)
    assert problem(cluster) == ""
    full = {"shop"}
    assert problem(cluster) == ""
    full = {"shop", "team"}
    assert f"{BINDINGS_POLICY} could not be tested" in problem(cluster)
    full = {"team"}
    namespaced: dict[str, tuple[str, ...]] = {"devs": GROUP_ROLES["devs"]}
    path = f"{ADMISSION}/validatingadmissionpolicybindings/{BINDINGS_POLICY}"
    assert cluster.ask(cluster.root, "DELETE", path).status_code == 200
    assert "or allows a request" in problem(cluster, group_roles=namespaced)


def test_a_service_that_administrates_the_cluster_is_a_problem(cluster: TokenCluster) -> None:
    """The policies exempt administrators."""
    subjects = [{"kind": "ServiceAccount", "name": "issuer", "namespace": ACCESS_NAMESPACE}]
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}
    binding = {"metadata": {"name": "too-much"}, "roleRef": reference, "subjects": subjects}
    assert cluster.ask(cluster.root, "POST", CLUSTER_ROLE_BINDINGS_PATH, binding).status_code == 201
    found = looked(cluster)
    assert "or allows a request" in (found.problem or "")
    assert len(found.excess) == 9


def test_more_rights_of_the_service_are_named(cluster: TokenCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    cluster.double.storage.create(
        kinds.ROLES, USERS_NAMESPACE, {"metadata": {"name": "more"}, "rules": rules}
    )
    cluster.double.storage.create(
        kinds.ROLE_BINDINGS,
        USERS_NAMESPACE,
        {
            "metadata": {"name": "more"},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "more"},
            "subjects": [{"kind": "ServiceAccount", "name": "issuer", "namespace": ACCESS_NAMESPACE}],
        },
    )
    found = looked(cluster)
    assert (found.problem, found.excess) == (None, (f"get secrets in {USERS_NAMESPACE}",))


def test_a_role_that_gained_dangerous_rights_for_the_whole_cluster_is_a_problem(
    cluster: TokenCluster,
) -> None:
    view = cluster.double.storage.get(kinds.CLUSTER_ROLES, "", "view")
    view["rules"].append({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]})
    assert cluster.ask(cluster.root, "PUT", f"{CLUSTER_ROLES}/view", view).status_code == 200
    found = looked(cluster)
    assert found.problem == (
        "The role clusterrole/view gives the right to run commands in pods, or connect to them. In the whole cluster, "
        "its holder could keep access after a revocation. Remove these rights from the role, or map the role in a "
        "namespace: clusterrole/view@NAMESPACE."
    )
    assert found.dangers["clusterrole/view"] == ("run commands in pods, or connect to them",)


def test_a_role_for_the_whole_cluster_that_cannot_be_checked_is_a_problem(cluster: TokenCluster) -> None:
    issuer = cluster.double.storage.get(kinds.CLUSTER_ROLES, "", NAME)
    reading = [rule for rule in issuer["rules"] if "view" in rule.get("resourceNames", ())]
    assert [rule["verbs"] for rule in reading] == [["bind"], ["get"]]
    issuer["rules"].remove(reading[1])
    assert cluster.ask(cluster.root, "PUT", f"{CLUSTER_ROLES}/{NAME}", issuer).status_code == 200
    said = problem(cluster)
    assert said.startswith("The service may bind the role clusterrole/view, but may not read it.")


def test_cluster_admin_is_no_problem_if_the_operator_allowed_it(tmp_path: Path) -> None:
    group_roles = {"ops": ("clusterrole/cluster-admin",)}
    with ApiServer(tmp_path) as double, closing(TokenCluster(double, group_roles)) as ready:
        ready.set_up(allow_cluster_admin=True)
        found = looked(ready, group_roles, allow_cluster_admin=True)
        assert (found.problem, list(found.dangers)) == (None, ["clusterrole/cluster-admin"])
        assert "Set allow_cluster_admin" in problem(ready, group_roles=group_roles)


def test_missing_and_unmapped_roles_are_named(cluster: TokenCluster) -> None:
    """Other groups still get credentials."""
    assert cluster.ask(cluster.root, "DELETE", "/api/v1/namespaces/team").status_code == 200
    wider: dict[str, tuple[str, ...]] = {**GROUP_ROLES, "new": ("clusterrole/edit@people",)}
    found = looked(cluster, wider)
    assert found.problem is None
    assert found.unusable == {
        "clusterrole/admin@team": "The service may not bind the role.",
        "clusterrole/edit@people": "The service may not bind the role.",
        "role/deployer@team": "The service may not read the role.",
    }
    assert cluster.ask(cluster.root, "DELETE", f"{CLUSTER_ROLES}/view").status_code == 200
    found = looked(cluster)
    assert (found.problem, found.unusable["clusterrole/view"]) == (None, "The role is missing.")


def test_namespaces_of_another_installation_are_a_problem(cluster: TokenCluster) -> None:
    assert "does not belong to this installation" in problem(cluster, installation="2" * 32)
    labels = {"metadata": {"labels": {"clustercert/installation": None}}}
    path = f"/api/v1/namespaces/{ACCESS_NAMESPACE}"
    assert cluster.ask(cluster.root, "PATCH", path, labels, None, MERGE).status_code == 200
    assert problem(cluster).startswith(f"The namespace {ACCESS_NAMESPACE} does not belong")


def test_a_deleted_namespace_is_a_problem(cluster: TokenCluster) -> None:
    assert cluster.ask(cluster.root, "DELETE", f"/api/v1/namespaces/{USERS_NAMESPACE}").status_code == 200
    assert problem(cluster).startswith(f"The namespace {USERS_NAMESPACE} is missing")


def test_missing_rights_of_the_service_are_a_problem(cluster: TokenCluster) -> None:
    path = f"/apis/{RBAC}/v1/namespaces/{USERS_NAMESPACE}/rolebindings/{NAME}"
    assert cluster.ask(cluster.root, "DELETE", path).status_code == 200
    said = problem(cluster)
    assert f"may not create serviceaccounts in {USERS_NAMESPACE}" in said
    assert f"create serviceaccounts/token in {USERS_NAMESPACE}" in said
    assert "create serviceaccounts/token in clustercert-access" not in said


def test_the_token_of_another_account_is_a_problem(cluster: TokenCluster) -> None:
    assert "belongs to system:serviceaccount:people:root" in problem(cluster, token=cluster.root)


def test_an_api_server_that_tells_no_ids_of_tokens_is_a_problem(cluster: TokenCluster) -> None:
    cluster.double.tokens.tells_ids = False
    assert "ServiceAccountTokenJTI" in problem(cluster)


def test_a_token_that_is_not_accepted_is_an_error(cluster: TokenCluster) -> None:
    with pytest.raises(ApiServerRefused) as refused:
        looked(cluster, token="x.y.z")
    assert refused.value.http_status == 401
