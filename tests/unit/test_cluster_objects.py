"""Objects of Kubernetes are applied, listed and deleted, and objects of others are left alone."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from clustercert.kube_api import ClientIdentity, KubeApi
from clustercert.kubernetes.cluster_objects import (
    ClusterRefused,
    ForeignObject,
    ObjectReference,
    apply_object,
    delete_object,
    find_object,
    list_objects,
    reference_of,
)
from clustercert.model import JsonObject
from clustercert.model.errors import RemoteFailed
from clustercert.model.kubernetes import INSTALLATION_LABEL, MANAGED_BY
from support.apiserver import ApiServer, kinds
from support.token_objects import MemoryApi

ROLE = "ClusterRole"
RBAC = "rbac.authorization.k8s.io"


@contextlib.asynccontextmanager
async def opened(folder: Path, *groups: str) -> AsyncIterator[tuple[ApiServer, KubeApi]]:
    with ApiServer(folder) as double:
        identity = ClientIdentity(double._own_ca.client_identity_pem("somebody", groups), b"")
        async with KubeApi(double.url, double.server_ca.read_bytes(), identity) as api:
            yield double, api


def role(name: str, *verbs: str) -> JsonObject:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": list(verbs)}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": ROLE,
        "metadata": {"name": name, "labels": dict(MANAGED_BY)},
        "rules": [rule],
    }


def binding(role_name: str) -> JsonObject:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "b", "namespace": "default", "labels": dict(MANAGED_BY)},
        "roleRef": {"apiGroup": RBAC, "kind": ROLE, "name": role_name},
        "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "default"}],
    }


def namespace(installation: str) -> JsonObject:
    labels = {**MANAGED_BY, INSTALLATION_LABEL: installation}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ours", "labels": labels}}


async def test_an_object_is_created_and_then_changed_and_keeps_what_others_added(tmp_path: Path) -> None:
    async with opened(tmp_path, "system:masters") as (double, api):
        assert await apply_object(api, role("r", "get")) == "created"
        labelled = role("r", "get")
        labelled["metadata"] = {"name": "r", "labels": {**MANAGED_BY, "team": "a"}}
        double.storage.replace(kinds.CLUSTER_ROLES, "", "r", lambda _old: labelled)
        assert await apply_object(api, role("r", "list")) == "updated"
        stored = double.storage.get(kinds.CLUSTER_ROLES, "", "r")
    assert stored["rules"][0]["verbs"] == ["list"]
    assert stored["metadata"]["labels"] == {**MANAGED_BY, "team": "a"}


async def test_a_binding_to_another_role_is_created_again(tmp_path: Path) -> None:
    async with opened(tmp_path, "system:masters") as (double, api):
        await apply_object(api, binding("view"))
        first = double.storage.get(kinds.ROLE_BINDINGS, "default", "b")
        await apply_object(api, binding("edit"))
        second = double.storage.get(kinds.ROLE_BINDINGS, "default", "b")
    assert (first["roleRef"]["name"], second["roleRef"]["name"]) == ("view", "edit")
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


async def test_objects_of_others_are_not_changed(tmp_path: Path) -> None:
    async with opened(tmp_path, "system:masters") as (double, api):
        double.storage.create(kinds.CLUSTER_ROLES, "", {"metadata": {"name": "r"}, "rules": []})
        with pytest.raises(ForeignObject, match="ClusterRole r already, and it is not from clustercert"):
            await apply_object(api, role("r", "get"))
        await apply_object(api, namespace("a" * 32))
        with pytest.raises(
            ForeignObject, match=f"belongs to another installation of clustercert \\({'a' * 32}"
        ):
            await apply_object(api, namespace("b" * 32))
        assert double.storage.get(kinds.CLUSTER_ROLES, "", "r")["rules"] == []


async def test_all_pages_of_a_list_are_read_and_objects_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path, "system:masters") as (double, api):
        for number in range(260):
            double.storage.create(kinds.CLUSTER_ROLES, "", role(f"r-{number}", "get"))
        selector = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
        found = [reference_of(each, ROLE) for each in await list_objects(api, ROLE, selector=selector)]
        assert len(set(found)) == 260
        await delete_object(api, found[0])
        await delete_object(api, found[0])
        assert await find_object(api, found[0]) is None
        assert len(await list_objects(api, ROLE, selector=selector)) == 259


async def test_long_objects_of_others_do_not_make_a_list_unreadable() -> None:
    """Who may write RoleBindings in a namespace could otherwise keep the objects of this service there."""
    api = MemoryApi(longest=20_000)
    path = f"/apis/{RBAC}/v1/rolebindings"
    subjects = [{"kind": "User", "name": "x" * 50}] * 200
    for number in range(40):
        api.add(path, {"metadata": {"name": f"b{number:02}"}, "subjects": subjects[: 200 * (number % 2)]})
    found = await list_objects(cast("KubeApi", api), "RoleBinding")
    assert [reference_of(each, "RoleBinding").name for each in found] == [f"b{n:02}" for n in range(40)]
    api.add(path, {"metadata": {"name": "c"}, "subjects": subjects * 3})
    with pytest.raises(RemoteFailed, match="sent too much"):
        await list_objects(cast("KubeApi", api), "RoleBinding")


async def test_a_refusal_has_the_servers_reason(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, api):
        with pytest.raises(
            ClusterRefused, match=r"refused to show ClusterRole r \(HTTP 403\): .*somebody"
        ) as refused:
            await apply_object(api, role("r", "get"))
    assert refused.value.http_status == 403


async def test_an_object_without_a_name_is_refused() -> None:
    with pytest.raises(RemoteFailed):
        reference_of({"metadata": {}}, ROLE)


def test_a_reference_is_a_readable_name_and_a_path() -> None:
    reference = ObjectReference("RoleBinding", "a", "b:c")
    assert str(reference) == "RoleBinding a/b:c"
    assert reference.path == "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings/b:c"
