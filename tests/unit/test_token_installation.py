"""What a cluster needs whose credentials are tokens: installed, changed and removed by an administrator."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.kube_api import ClientIdentity, KubeApi
from clustercert.kubernetes import token_installation
from clustercert.kubernetes.cluster_objects import ClusterRefused, ForeignObject, ObjectReference
from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAMESPACES_POLICY
from clustercert.kubernetes.token_installation import (
    TokenInstallation,
    added_roles,
    installed_objects,
    wait_until_enforced,
)
from clustercert.model import ClusterOptions
from clustercert.model.clusters import Registration
from clustercert.model.errors import Conflict, InvalidRequest, RemoteFailed
from clustercert.model.group_roles import RoleGrant
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, USERS_NAMESPACE
from clustercert.model.token_objects import TokenObjects
from support.apiserver import ApiServer, kinds
from support.apiserver.kinds import Kind

INSTALLATION, OTHER = "a" * 32, "b" * 32
OPTIONS = ClusterOptions(group_roles={"dev": ("clusterrole/edit@shop", "clusterrole/view")})
CLUSTER_WIDE = ClusterOptions(group_roles={"dev": ("clusterrole/view",)})


@pytest.fixture
def double(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        running.add_namespace("shop")
        yield running


@contextlib.asynccontextmanager
async def installed_by(
    double: ApiServer, *groups: str, installation: str = INSTALLATION
) -> AsyncIterator[TokenInstallation]:
    identity = ClientIdentity(double._own_ca.client_identity_pem("somebody", groups), b"")
    async with KubeApi(double.url, double.server_ca.read_bytes(), identity) as api:
        yield TokenInstallation(api, installation)


def as_root(double: ApiServer) -> contextlib.AbstractAsyncContextManager[TokenInstallation]:
    return installed_by(double, "system:masters")


def registration(double: ApiServer) -> Registration:
    return Registration("prod", double.url, double.server_ca.read_bytes(), signer="token", options=OPTIONS)


def ignore(_reference: ObjectReference, _result: str) -> None:
    """Report nothing."""


def names(double: ApiServer, kind: Kind, namespace: str = "") -> set[str]:
    return {each["metadata"]["name"] for each in double.storage.all(kind, namespace)}


async def test_all_objects_are_applied_and_the_account_gets_a_token(double: ApiServer) -> None:
    async with as_root(double) as installed:
        assert await installed.check_administrator() == "somebody"
        [note] = await installed.check_cluster(OPTIONS)
        assert note.startswith("clusterrole/edit@shop: its holder can")
        done: list[str] = []
        for _ in range(2):
            await installed.apply(installed.documents(OPTIONS), lambda _what, result: done.append(result))
        token = await installed.new_token()
    assert done == ["created"] * (len(done) // 2) + ["updated"] * (len(done) // 2)
    assert {NAMESPACES_POLICY, BINDINGS_POLICY} <= names(double, kinds.POLICIES)
    accepted = double.tokens.accept(token)
    assert accepted.who.username == f"system:serviceaccount:{ACCESS_NAMESPACE}:{ISSUER_ACCOUNT}"
    async with KubeApi(double.url, double.server_ca.read_bytes(), None) as api:
        api.use_token(token)
        await wait_until_enforced(api, registration(double), INSTALLATION)


async def test_a_policy_that_denies_nothing_is_named(
    double: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_installation, "ENFORCED_SECONDS", 0.0)
    async with as_root(double) as installed:
        await installed.apply(installed.documents(OPTIONS), ignore)
        token = await installed.new_token()
    double.storage.delete(kinds.POLICY_BINDINGS, "", BINDINGS_POLICY)
    async with KubeApi(double.url, double.server_ca.read_bytes(), None) as api:
        api.use_token(token)
        with pytest.raises(RemoteFailed, match=f"{BINDINGS_POLICY} is missing"):
            await wait_until_enforced(api, registration(double), INSTALLATION)


async def test_only_an_administrator_of_the_whole_cluster_may_install(double: ApiServer) -> None:
    double.bind("editors", "edit")
    async with installed_by(double, "editors") as installed:
        with pytest.raises(InvalidRequest, match="somebody of the kubeconfig is not an administrator"):
            await installed.check_administrator()


async def test_an_expired_credential_is_named(double: ApiServer) -> None:
    async with as_root(double) as installed:
        double.now = lambda: datetime.now(UTC) + timedelta(days=3650)
        with pytest.raises(ClusterRefused, match="accept the kubeconfig's credential"):
            await installed.check_administrator()


async def test_what_the_cluster_lacks_is_named_before_anything_is_written(double: ApiServer) -> None:
    async with as_root(double) as installed:
        for text, said in (
            ("clusterrole/view@gone", "no namespace gone"),
            ("clusterrole/gone", "no clusterrole/gone"),
            ("role/gone@shop", "no role/gone@shop"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                await installed.check_cluster(ClusterOptions(group_roles={"dev": (text,)}))
        double.version = "v1.29.4"
        with pytest.raises(InvalidRequest, match=r"v1\.29\.4.*need 1\.30"):
            await installed.check_cluster(OPTIONS)
    assert USERS_NAMESPACE not in names(double, kinds.NAMESPACES)


async def test_a_dangerous_role_is_refused_for_the_whole_cluster(double: ApiServer) -> None:
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    double.storage.create(kinds.CLUSTER_ROLES, "", {"metadata": {"name": "reader"}, "rules": [rule]})
    async with as_root(double) as installed:
        with pytest.raises(
            InvalidRequest, match=r"holder can read or write Secrets.*clusterrole/reader@NAMESPACE"
        ):
            await installed.check_cluster(ClusterOptions(group_roles={"dev": ("clusterrole/reader",)}))


async def test_the_namespaces_of_another_installation_and_of_others_are_refused(double: ApiServer) -> None:
    async with installed_by(double, "system:masters", installation=OTHER) as other:
        await other.apply(other.documents(OPTIONS), ignore)
    async with as_root(double) as installed:
        with pytest.raises(ForeignObject, match=OTHER):
            await installed.check_cluster(OPTIONS)
        with pytest.raises(ForeignObject, match=OTHER):
            await installed.everything()
    double.storage.replace(
        kinds.NAMESPACES, "", USERS_NAMESPACE, lambda old: {**old, "metadata": {"name": USERS_NAMESPACE}}
    )
    async with as_root(double) as installed:
        with pytest.raises(ForeignObject, match="is not from clustercert"):
            await installed.check_cluster(OPTIONS)


async def test_a_cluster_without_the_namespaces_is_the_wrong_one(double: ApiServer) -> None:
    async with as_root(double) as installed:
        with pytest.raises(Conflict, match="Name a kubeconfig of the right cluster"):
            await installed.require_installed(OPTIONS)


def issue(double: ApiServer, number: str) -> None:
    """Create the account and the bindings of a credential."""
    made = TokenObjects(INSTALLATION, number, "id", "ann", datetime.now(UTC))
    double.storage.create(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE, made.account_document())
    for document in made.binding_documents(sorted(added_roles(ClusterOptions(), OPTIONS))):
        kind = kinds.ROLE_BINDINGS if document["kind"] == "RoleBinding" else kinds.CLUSTER_ROLE_BINDINGS
        namespace = "shop" if kind is kinds.ROLE_BINDINGS else ""
        double.storage.create(kind, namespace, document)


async def test_rights_and_bindings_of_a_removed_role_are_deleted(double: ApiServer) -> None:
    async with as_root(double) as installed:
        await installed.apply(installed.documents(OPTIONS), ignore)
        issue(double, "1" * 40)
        assert await installed.stale(OPTIONS) == []
        await installed.delete(await installed.stale(CLUSTER_WIDE), ignore)
    assert names(double, kinds.ROLE_BINDINGS, "shop") == names(double, kinds.ROLES, "shop") == set()
    assert f"clustercert-{'1' * 40}-1" in names(double, kinds.CLUSTER_ROLE_BINDINGS)
    assert added_roles(CLUSTER_WIDE, OPTIONS) == [RoleGrant("ClusterRole", "edit", "shop")]


async def test_nothing_of_ours_is_left_and_everything_else_stays(double: ApiServer) -> None:
    def stored() -> dict[str, set[tuple[str, str]]]:
        return {
            kind.plural: {
                (each["metadata"].get("namespace", ""), each["metadata"]["name"])
                for each in double.storage.all(kind)
            }
            for kind in kinds.KINDS
            if kind.stored
        }

    before = stored()
    async with as_root(double) as installed:
        await installed.apply(installed.documents(OPTIONS), ignore)
        issue(double, "1" * 40)
        deleted: list[str] = []
        references = await installed.everything()
        await installed.delete(references, lambda reference, _result: deleted.append(reference.kind))
        assert await installed.everything() == []
    assert stored() == before
    # Rights end first, and the policies protect the namespaces until nothing is left in them.
    order = list(dict.fromkeys(deleted))
    assert order.index("ClusterRoleBinding") < order.index("ServiceAccount")
    assert order[-3:] == ["ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy", "Namespace"]


def test_an_invalid_map_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cluster-admin"):
        installed_objects(INSTALLATION, replace(OPTIONS, group_roles={"a": ("clusterrole/cluster-admin",)}))
