"""Attacks on a cluster whose credentials are tokens, by people with other rights and by thieves of the service's token.

The double does what was measured at a real API server. Each attack must be denied, and must change nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAME, NAMESPACES_POLICY
from clustercert.model import JsonObject
from clustercert.model.group_roles import RoleGrant, parse_group_roles
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    CREDENTIAL_ID,
    INSTALLATION_LABEL,
    ISSUER_USER,
    USERS_NAMESPACE,
)
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    CLUSTER_ROLE_BINDINGS_PATH,
    RBAC,
    bindings_path,
    labels,
    role_bindings_path,
)
from support.apiserver import ApiServer, kinds
from support.token_cluster import (
    CLUSTER_ROLES,
    INSTALLATION,
    NUMBER,
    TokenCluster,
    binding_document,
    token_request,
)

pytestmark = pytest.mark.slow

ALICE = f"alice-{NUMBER}"
OTHER = "cd" * 20
ACCESS_ACCOUNTS = f"/api/v1/namespaces/{ACCESS_NAMESPACE}/serviceaccounts"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
MERGE = "application/merge-patch+json"
GROUPS = ("devs", "leads", "viewers")
VIEW, EDIT = RoleGrant("ClusterRole", "view"), RoleGrant("ClusterRole", "edit", "shop")
MALLORY = {"kind": "ServiceAccount", "name": "mallory", "namespace": "people"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TokenCluster]:
    with ApiServer(tmp_path) as double, closing(TokenCluster(double)) as ready:
        ready.set_up()
        yield ready


class Attack(NamedTuple):
    """One request."""

    name: str
    method: str
    path: str
    body: Mapping[str, object] | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    content_type: str = "application/json"


def acting(attack: Attack, user: str, **extra: str) -> Attack:
    """The same request by somebody who impersonates a user."""
    headers = {"Impersonate-User": user, **{f"Impersonate-Extra-{key}": text for key, text in extra.items()}}
    return attack._replace(name=f"{attack.name} as {user.rpartition(':')[2]}", headers=headers)


def account(name: str, installation: str = INSTALLATION, number: str = OTHER) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": labels(installation, number)},
    }


def secret(name: str) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "stolen", "annotations": {"kubernetes.io/service-account.name": name}},
    }


def pod(account_name: str) -> JsonObject:
    spec = {"serviceAccountName": account_name, "containers": [{"name": "a", "image": "b"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stolen"}, "spec": spec}


def subject(number: str, user: str = "alice", namespace: str = USERS_NAMESPACE) -> JsonObject:
    return {"kind": "ServiceAccount", "name": f"{user}-{number}", "namespace": namespace}


def bind(
    number: str,
    role: RoleGrant,
    *subjects: Mapping[str, object],
    name: str | None = None,
    installation: str = INSTALLATION,
) -> Attack:
    """Create a binding, by default with a correct name and correct labels."""
    document = binding_document(
        name or f"clustercert-{number}-0", role, subjects, labels(installation, number)
    )
    return Attack(f"bind {role} to {subjects}", "POST", bindings_path(role), document)


def everything_in(namespace: str) -> Iterator[Attack]:
    """Writes in one of the two namespaces that would give access to its accounts."""
    core, apps = f"/api/v1/namespaces/{namespace}", f"/apis/apps/v1/namespaces/{namespace}"
    accounts, roles = f"{core}/serviceaccounts", f"/apis/{RBAC}/v1/namespaces/{namespace}"
    victim = ALICE if namespace == USERS_NAMESPACE else "issuer"
    rules = [{"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}]
    yield Attack("mint a token", "POST", f"{accounts}/{victim}/token", token_request(86400 * 365))
    yield Attack("make a Secret with a token", "POST", f"{core}/secrets", secret(victim))
    yield Attack("start a pod", "POST", f"{core}/pods", pod(victim))
    yield Attack(
        "start a workload", "POST", f"{apps}/deployments", {"metadata": {"name": "stolen"}, "spec": {}}
    )
    yield Attack("create an account", "POST", accounts, account(f"mallory-{OTHER}"))
    yield Attack(
        "change an account", "PATCH", f"{accounts}/{victim}", {"metadata": {"labels": None}}, {}, MERGE
    )
    yield Attack("replace an account", "PUT", f"{accounts}/{victim}", account(victim))
    yield Attack("delete an account", "DELETE", f"{accounts}/{victim}")
    yield Attack("delete all accounts", "DELETE", accounts)
    yield Attack("write a role", "POST", f"{roles}/roles", {"metadata": {"name": "own"}, "rules": rules})
    own = binding_document("own", RoleGrant("ClusterRole", "edit", namespace), [MALLORY])
    yield Attack("bind oneself", "POST", f"{roles}/rolebindings", own)
    generated: Any = binding_document("", RoleGrant("ClusterRole", "view", namespace), [MALLORY])
    generated["metadata"] = {"generateName": "own-"}
    yield Attack("bind oneself with any name", "POST", f"{roles}/rolebindings", generated)
    yield Attack("unbind the service", "DELETE", f"{roles}/rolebindings/{NAME}")


def on_the_cluster() -> Iterator[Attack]:
    """Writes to the policies and bindings."""
    for kind in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
        for name in (NAMESPACES_POLICY, BINDINGS_POLICY):
            yield Attack(f"delete a policy of {kind}", "DELETE", f"{ADMISSION}/{kind}/{name}")
            yield Attack("change a policy", "PATCH", f"{ADMISSION}/{kind}/{name}", {"spec": {}}, {}, MERGE)
    yield Attack("delete a namespace", "DELETE", f"/api/v1/namespaces/{USERS_NAMESPACE}")
    yield bind(OTHER, VIEW, subject(OTHER, "mallory"))
    yield bind(OTHER, RoleGrant("ClusterRole", "cluster-admin"), MALLORY, name="own")
    yield bind(OTHER, EDIT, MALLORY)
    generated: Any = binding_document("", EDIT, [MALLORY])
    generated["metadata"] = {"generateName": f"clustercert-{OTHER[:-4]}"}
    for path in (
        CLUSTER_ROLE_BINDINGS_PATH + f"/clustercert-{NUMBER}-2",
        role_bindings_path("shop") + f"/clustercert-{NUMBER}-1",
        role_bindings_path("team") + f"/clustercert-{NUMBER}-0",
        role_bindings_path("team") + f"/clustercert-{NUMBER}-3",
    ):
        own = {"subjects": [subject(NUMBER), MALLORY]}
        yield Attack("add oneself to a binding", "PATCH", path, own, {}, MERGE)
        yield Attack("hide a binding", "PATCH", path, {"metadata": {"labels": None}}, {}, MERGE)


def as_the_service() -> Iterator[Attack]:
    """What the service's own account may do, by somebody who impersonates it."""
    direct = [
        Attack("create an account", "POST", ACCOUNTS_PATH, account(f"mallory-{OTHER}")),
        Attack("mint a token", "POST", f"{ACCOUNTS_PATH}/{ALICE}/token", token_request(3600)),
        Attack("mint its token", "POST", f"{ACCESS_ACCOUNTS}/issuer/token", token_request(3600)),
        Attack("delete an account", "DELETE", f"{ACCOUNTS_PATH}/{ALICE}"),
        Attack("delete a binding", "DELETE", f"{CLUSTER_ROLE_BINDINGS_PATH}/clustercert-{NUMBER}-2"),
        bind(OTHER, VIEW, subject(OTHER, "mallory")),
        bind(OTHER, VIEW, MALLORY),
    ]
    for each in direct:
        yield acting(each, ISSUER_USER)
        yield acting(each, ISSUER_USER, **{CREDENTIAL_ID.replace("/", "%2F"): "JTI=1"})
    for controller in ("namespace-controller", "generic-garbage-collector"):
        yield acting(direct[3], f"system:serviceaccount:kube-system:{controller}")


ATTACKS = (
    *everything_in(USERS_NAMESPACE),
    *everything_in(ACCESS_NAMESPACE),
    *on_the_cluster(),
    *as_the_service(),
)


@pytest.mark.parametrize("namespace", ["", "shop", "team"])
@pytest.mark.parametrize("role", ["edit", "admin"])
def test_nobody_with_edit_or_admin_gets_at_accounts_of_credentials(
    cluster: TokenCluster, role: str, namespace: str
) -> None:
    cluster.issue(GROUPS)
    mallory = cluster.person("mallory", role, namespace)
    before = cluster.snapshot()
    for attack in ATTACKS:
        answer = cluster.ask(
            mallory, attack.method, attack.path, attack.body, attack.headers, attack.content_type
        )
        assert answer.status_code == 403, (attack, answer.text)
        assert cluster.snapshot() == before, attack


def test_no_holder_of_a_mapped_role_gets_at_other_accounts(cluster: TokenCluster) -> None:
    cluster.issue(GROUPS)
    mallory = cluster.issue(GROUPS, OTHER, "mallory")
    before = cluster.snapshot()
    for attack in ATTACKS:
        if OTHER not in str(attack):
            answer = cluster.ask(
                mallory, attack.method, attack.path, attack.body, attack.headers, attack.content_type
            )
            assert answer.status_code == 403, (attack, answer.text)
            assert cluster.snapshot() == before, attack


@pytest.mark.parametrize(
    "attack",
    [each for each in everything_in(USERS_NAMESPACE) if "unbind" not in each.name],
    ids=lambda attack: attack.name,
)
def test_the_attacks_work_without_the_policies(cluster: TokenCluster, attack: Attack) -> None:
    cluster.issue(GROUPS)
    for name in (NAMESPACES_POLICY, BINDINGS_POLICY):
        answer = cluster.ask(cluster.root, "DELETE", f"{ADMISSION}/validatingadmissionpolicies/{name}")
        assert answer.status_code == 200
    mallory = cluster.person("mallory", "admin")
    answer = cluster.ask(
        mallory, attack.method, attack.path, attack.body, attack.headers, attack.content_type
    )
    assert answer.status_code in {200, 201}, answer.text


def stolen_token() -> Iterator[Attack]:
    """What a thief of the service's token may not do, even with all rights on roles and accounts."""
    yield bind(OTHER, VIEW, {"kind": "User", "apiGroup": RBAC, "name": "mallory"})
    yield bind(OTHER, VIEW, {"kind": "Group", "apiGroup": RBAC, "name": "system:serviceaccounts"})
    yield bind(OTHER, VIEW, MALLORY)
    yield bind(OTHER, VIEW)
    yield bind(OTHER, VIEW, subject(OTHER), subject(NUMBER))
    yield bind(OTHER, VIEW, subject(OTHER), MALLORY)
    yield bind(OTHER, VIEW, subject(NUMBER))
    yield bind(OTHER, VIEW, subject(OTHER, namespace="shop"))
    yield bind(OTHER, VIEW, {"kind": "ServiceAccount", "name": f"x{OTHER}", "namespace": USERS_NAMESPACE})
    yield bind(OTHER, VIEW, {"kind": "ServiceAccount", "name": "issuer", "namespace": ACCESS_NAMESPACE})
    yield bind(OTHER, VIEW, subject(OTHER), name="clustercert-x")
    yield bind(OTHER, VIEW, subject(OTHER), name=f"clustercert-{OTHER}-20")
    yield bind(OTHER, VIEW, subject(OTHER), name=f"clustercert-{NUMBER}-9")
    yield bind(OTHER, VIEW, subject(OTHER), installation="2" * 32)
    for role in (
        RoleGrant("ClusterRole", "cluster-admin"),
        RoleGrant("ClusterRole", "edit"),
        RoleGrant("ClusterRole", "edit", "team"),
        RoleGrant("ClusterRole", "view", "shop"),
        RoleGrant("ClusterRole", "edit", "kube-system"),
        RoleGrant("ClusterRole", "edit", USERS_NAMESPACE),
        RoleGrant("ClusterRole", "deployer", "team"),
        RoleGrant("Role", "extension-apiserver-authentication-reader", "kube-system"),
    ):
        yield bind(OTHER, role, subject(OTHER))
    own = f"{CLUSTER_ROLE_BINDINGS_PATH}/clustercert-{NUMBER}-2"
    yield Attack("change its binding", "PATCH", own, {"subjects": [MALLORY]}, {}, MERGE)
    yield Attack("change a label", "PATCH", own, {"metadata": {"labels": {"a": "b"}}}, {}, MERGE)
    yield Attack("delete another binding", "DELETE", f"{CLUSTER_ROLE_BINDINGS_PATH}/cluster-admin")
    yield Attack("delete a person's", "DELETE", f"{CLUSTER_ROLE_BINDINGS_PATH}/person-root")
    yield Attack("delete its own", "DELETE", f"{CLUSTER_ROLE_BINDINGS_PATH}/{NAME}")
    yield Attack("delete all bindings", "DELETE", role_bindings_path("people"))
    yield Attack("create another account", "POST", ACCOUNTS_PATH, account("mallory"))
    yield Attack("create without a number", "POST", ACCOUNTS_PATH, account(f"Mallory-{OTHER[1:]}"))
    foreign = account(f"mallory-{OTHER}", "2" * 32)
    yield Attack("create for another installation", "POST", ACCOUNTS_PATH, foreign)
    number = account(f"mallory-{OTHER}", number=NUMBER)
    yield Attack("create with another number", "POST", ACCOUNTS_PATH, number)
    bare: JsonObject = {"metadata": {"name": f"mallory-{OTHER}"}}
    yield Attack("create without labels", "POST", ACCOUNTS_PATH, bare)
    generated: JsonObject = {"metadata": {"generateName": f"mallory-{OTHER[:-5]}"}}
    yield Attack("create with a generated name", "POST", ACCOUNTS_PATH, generated)
    yield Attack("delete the default account", "DELETE", f"{ACCOUNTS_PATH}/default")
    yield Attack("change an account", "PATCH", f"{ACCOUNTS_PATH}/{ALICE}", {"a": "b"}, {}, MERGE)
    yield Attack("token of the default account", "POST", f"{ACCOUNTS_PATH}/default/token", token_request(600))
    yield Attack("another account of its namespace", "POST", ACCESS_ACCOUNTS, account(f"mallory-{OTHER}"))
    yield Attack("delete its account", "DELETE", f"{ACCESS_ACCOUNTS}/issuer")
    for each in everything_in(ACCESS_NAMESPACE):
        if each.name != "mint a token":
            yield each
    for name in (
        *("make a Secret with a token", "start a pod", "start a workload", "change an account"),
        *("replace an account", "write a role", "bind oneself"),
    ):
        yield next(each for each in everything_in(USERS_NAMESPACE) if each.name == name)


@pytest.mark.parametrize("rights", ["own", "everything but admission"])
def test_a_thief_of_the_services_token_binds_and_creates_only_credentials(
    cluster: TokenCluster, rights: str
) -> None:
    """RBAC denies a part of it. With more rights, admission alone denies all of it."""
    cluster.issue(GROUPS)
    if rights != "own":
        allowed = ["", RBAC, "apps"]
        rules = [{"apiGroups": allowed, "resources": ["*"], "verbs": ["*"]}]
        storage = cluster.double.storage
        storage.create(kinds.CLUSTER_ROLES, "", {"metadata": {"name": "more"}, "rules": rules})
        storage.create(
            kinds.CLUSTER_ROLE_BINDINGS,
            "",
            {
                "metadata": {"name": "more"},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "more"},
                "subjects": [{"kind": "ServiceAccount", "name": "issuer", "namespace": ACCESS_NAMESPACE}],
            },
        )
    cluster.double.storage.create(
        kinds.ROLE_BINDINGS,
        "people",
        {
            "metadata": {"name": "one"},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"},
            "subjects": [MALLORY],
        },
    )
    before = cluster.snapshot()
    for attack in stolen_token():
        answer = cluster.ask(
            cluster.issuer, attack.method, attack.path, attack.body, attack.headers, attack.content_type
        )
        assert answer.status_code == 403, (attack, answer.text)
        assert cluster.snapshot() == before, attack
        if rights != "own":
            assert "ValidatingAdmissionPolicy 'clustercert-token-" in answer.json()["message"], attack


def test_the_service_without_a_policy_is_limited_by_rbac(cluster: TokenCluster) -> None:
    """A role that is mapped in a namespace can't be bound in the whole cluster, nor in another namespace."""
    for name in (NAMESPACES_POLICY, BINDINGS_POLICY):
        cluster.ask(cluster.root, "DELETE", f"{ADMISSION}/validatingadmissionpolicies/{name}")
    for role in (
        RoleGrant("ClusterRole", "edit"),
        RoleGrant("ClusterRole", "edit", "team"),
        RoleGrant("ClusterRole", "edit", "people"),
        RoleGrant("ClusterRole", "edit", USERS_NAMESPACE),
        RoleGrant("ClusterRole", "cluster-admin"),
        RoleGrant("ClusterRole", "cluster-admin", "shop"),
        RoleGrant("Role", "extension-apiserver-authentication-reader", "kube-system"),
    ):
        attack = bind(OTHER, role, subject(OTHER))
        answer = cluster.ask(cluster.issuer, attack.method, attack.path, attack.body)
        assert answer.status_code == 403, (attack, answer.text)
    for path in ("/api/v1/secrets", f"/api/v1/namespaces/{USERS_NAMESPACE}/secrets", "/api/v1/pods"):
        assert cluster.ask(cluster.issuer, "GET", path).status_code == 403
    rules = {"metadata": {"name": "own"}, "rules": []}
    for path in (CLUSTER_ROLES, f"/apis/{RBAC}/v1/namespaces/{USERS_NAMESPACE}/roles"):
        assert cluster.ask(cluster.issuer, "POST", path, rules).status_code == 403
    impersonating = {"Impersonate-User": f"system:serviceaccount:{USERS_NAMESPACE}:{ALICE}"}
    assert cluster.ask(cluster.issuer, "POST", WHOAMI, {}, impersonating).status_code == 403


def test_a_client_certificate_with_the_services_name_writes_nothing(cluster: TokenCluster) -> None:
    """Whoever approves certificate requests can get one. Its credential id is that of a certificate."""
    cluster.issue(GROUPS)
    before = cluster.snapshot()
    with cluster.with_certificate(ISSUER_USER) as client:
        for attack in as_the_service():
            if (
                "Impersonate-User" in attack.headers
                and len(attack.headers) == 1
                and ISSUER_USER in str(attack)
            ):
                answer = client.request(attack.method, attack.path, json=attack.body)
                assert answer.status_code == 403, (attack, answer.text)
                assert "ValidatingAdmissionPolicy" in answer.json()["message"]
    assert cluster.snapshot() == before


def test_whoever_impersonates_an_account_in_the_whole_cluster_acts_as_its_user(cluster: TokenCluster) -> None:
    """Admission does not see this, so roles with this right are never mapped for the whole cluster."""
    cluster.issue(GROUPS)
    headers = {"Impersonate-User": f"system:serviceaccount:{USERS_NAMESPACE}:{ALICE}"}
    everywhere = cluster.person("mallory", "edit")
    assert cluster.ask(everywhere, "POST", WHOAMI, {}, headers).json()["status"]["userInfo"] == {
        "username": f"system:serviceaccount:{USERS_NAMESPACE}:{ALICE}",
        "groups": [
            *("system:serviceaccounts", f"system:serviceaccounts:{USERS_NAMESPACE}", "system:authenticated"),
        ],
    }
    in_namespace = cluster.person("eve", "edit", "shop")
    assert cluster.ask(in_namespace, "POST", WHOAMI, {}, headers).status_code == 403
    for role in ("edit", "admin"):
        with pytest.raises(ValueError, match="can act as any service account"):
            parse_group_roles({"devs": (f"clusterrole/{role}",)}, allow_cluster_admin=True)


def test_the_holder_of_edit_in_a_namespace_keeps_what_its_accounts_can_do_and_nothing_else(
    cluster: TokenCluster,
) -> None:
    """A token of another account of the namespace lives on. This is why such roles are bound in namespaces only."""
    mallory = cluster.issue(["devs"], OTHER, "mallory")
    shop = "/api/v1/namespaces/shop/serviceaccounts"
    assert cluster.ask(mallory, "POST", shop, {"metadata": {"name": "robot"}}).status_code == 201
    minted = cluster.ask(mallory, "POST", f"{shop}/robot/token", token_request(86400))
    robot = minted.json()["status"]["token"]
    assert cluster.end_bindings(["devs"], OTHER) == [200, 200]
    assert cluster.ask(cluster.issuer, "DELETE", f"{ACCOUNTS_PATH}/mallory-{OTHER}").status_code == 200
    cluster.double.now = lambda: datetime.now(UTC) + timedelta(seconds=10)
    assert cluster.ask(mallory, "POST", WHOAMI, {}).status_code == 401
    assert cluster.ask(robot, "POST", WHOAMI, {}).status_code == 201
    for attack in ATTACKS:
        answer = cluster.ask(
            robot, attack.method, attack.path, attack.body, attack.headers, attack.content_type
        )
        assert answer.status_code in {403, 404}, (attack, answer.text)


def test_a_credential_has_its_roles_and_ends_with_bindings_and_account(cluster: TokenCluster) -> None:
    alice = cluster.issue(GROUPS)
    who = cluster.ask(alice, "POST", WHOAMI, {}).json()["status"]["userInfo"]
    assert who["username"] == f"system:serviceaccount:{USERS_NAMESPACE}:{ALICE}"
    assert who["extra"][CREDENTIAL_ID][0].startswith("JTI=")
    namespaces, in_shop = "/api/v1/namespaces", "/api/v1/namespaces/shop/pods"
    assert cluster.ask(alice, "GET", namespaces).status_code == 200
    assert cluster.ask(alice, "POST", in_shop, pod("default")).status_code == 201
    assert cluster.ask(alice, "POST", "/api/v1/namespaces/people/pods", pod("default")).status_code == 403

    assert cluster.end_bindings(GROUPS) == [200] * 4
    assert cluster.ask(alice, "GET", namespaces).status_code == 403
    assert cluster.ask(cluster.issuer, "DELETE", f"{ACCOUNTS_PATH}/{ALICE}").status_code == 200
    assert cluster.ask(alice, "POST", WHOAMI, {}).status_code == 201
    cluster.double.now = lambda: datetime.now(UTC) + timedelta(seconds=10)
    assert cluster.ask(alice, "POST", WHOAMI, {}).status_code == 401


def test_no_token_of_an_account_survives_its_deletion(cluster: TokenCluster) -> None:
    """Not even a token that a thief of the service's token has minted, nor with an account of the same name."""
    cluster.issue(GROUPS)
    minted = cluster.ask(cluster.issuer, "POST", f"{ACCOUNTS_PATH}/{ALICE}/token", token_request(86400 * 365))
    stolen = minted.json()["status"]["token"]
    assert cluster.ask(stolen, "POST", WHOAMI, {}).status_code == 201
    assert cluster.ask(cluster.issuer, "DELETE", f"{ACCOUNTS_PATH}/{ALICE}").status_code == 200
    again = cluster.ask(cluster.issuer, "POST", ACCOUNTS_PATH, cluster.objects().account_document())
    assert again.status_code == 201
    cluster.double.now = lambda: datetime.now(UTC) + timedelta(seconds=10)
    assert cluster.ask(stolen, "POST", WHOAMI, {}).status_code == 401


def test_the_deletion_of_the_services_account_ends_a_stolen_token(cluster: TokenCluster) -> None:
    stolen = cluster.ask(cluster.issuer, "POST", f"{ACCESS_ACCOUNTS}/issuer/token", token_request(86400))
    token = stolen.json()["status"]["token"]
    assert cluster.ask(token, "GET", ACCOUNTS_PATH).status_code == 200
    assert cluster.ask(cluster.root, "DELETE", f"{ACCESS_ACCOUNTS}/issuer").status_code == 200
    cluster.double.now = lambda: datetime.now(UTC) + timedelta(seconds=10)
    assert cluster.ask(token, "GET", ACCOUNTS_PATH).status_code == 401


def test_administrators_may_repair_but_start_nothing(cluster: TokenCluster) -> None:
    cluster.issue(GROUPS)
    done = [
        cluster.ask(cluster.root, "POST", ACCOUNTS_PATH, account(f"bob-{OTHER}")),
        cluster.ask(cluster.root, "POST", f"{ACCOUNTS_PATH}/{ALICE}/token", token_request(600)),
        cluster.ask(cluster.root, "PATCH", f"{ACCOUNTS_PATH}/{ALICE}", {"metadata": {}}, None, MERGE),
        cluster.ask(cluster.root, "DELETE", f"{ACCOUNTS_PATH}/{ALICE}"),
        cluster.ask(cluster.root, "DELETE", f"{CLUSTER_ROLE_BINDINGS_PATH}/clustercert-{NUMBER}-2"),
    ]
    assert [answer.status_code for answer in done] == [201, 201, 200, 200, 200]
    for attack in everything_in(USERS_NAMESPACE):
        if attack.name in {"make a Secret with a token", "start a pod", "start a workload"}:
            denied = cluster.ask(cluster.root, attack.method, attack.path, attack.body)
            assert denied.status_code == 403
            assert "must not contain workloads or Secrets" in denied.json()["message"]


def test_the_cluster_fills_and_deletes_the_namespaces(cluster: TokenCluster) -> None:
    """With the policies, the cluster's controllers work as in every namespace."""
    storage = cluster.double.storage
    namespace = f"/api/v1/namespaces/{USERS_NAMESPACE}"
    cluster.issue(GROUPS)
    assert cluster.ask(cluster.root, "DELETE", namespace).status_code == 200
    assert storage.all(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE) == []
    again: JsonObject = {"metadata": {"name": USERS_NAMESPACE, "labels": {INSTALLATION_LABEL: INSTALLATION}}}
    assert cluster.ask(cluster.root, "POST", "/api/v1/namespaces", again).status_code == 201
    [default] = storage.all(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE)
    [root_ca] = storage.all(kinds.CONFIG_MAPS, USERS_NAMESPACE)
    assert [default["metadata"]["name"], root_ca["metadata"]["name"]] == ["default", "kube-root-ca.crt"]


def test_bindings_in_other_namespaces_are_nobodys_business(cluster: TokenCluster) -> None:
    """An admin of a namespace binds there as before, and deletes the binding of a credential."""
    cluster.issue(GROUPS)
    lead = cluster.person("lead", "admin", "team")
    path = role_bindings_path("team")
    own = binding_document("own", RoleGrant("ClusterRole", "edit", "team"), [MALLORY])
    statuses = [
        cluster.ask(lead, "POST", path, own).status_code,
        cluster.ask(
            lead, "PATCH", f"{path}/own", {"metadata": {"labels": {"a": "b"}}}, None, MERGE
        ).status_code,
        cluster.ask(lead, "DELETE", f"{path}/own").status_code,
        cluster.ask(lead, "DELETE", f"{path}/clustercert-{NUMBER}-0").status_code,
    ]
    assert statuses == [201, 200, 200, 200]


CONTROLLERS = (
    *("replicaset-controller", "job-controller", "daemon-set-controller", "statefulset-controller"),
    *("deployment-controller", "service-account-controller", "namespace-controller"),
)


@pytest.mark.parametrize("namespace", [USERS_NAMESPACE, ACCESS_NAMESPACE])
def test_controllers_of_the_cluster_start_nothing_and_create_no_account(
    cluster: TokenCluster, namespace: str
) -> None:
    """The cluster's own controllers may delete, and create the account that each namespace has."""
    cluster.issue(GROUPS)
    tokens = {name: cluster.person(name, "admin", of="kube-system") for name in CONTROLLERS}
    before = cluster.snapshot()
    for attack in everything_in(namespace):
        for name, token in tokens.items():
            if attack.method != "DELETE" or name != "namespace-controller":
                answer = cluster.ask(
                    token, attack.method, attack.path, attack.body, None, attack.content_type
                )
                assert answer.status_code == 403, (attack, name, answer.text)
    assert cluster.snapshot() == before
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    assert cluster.ask(tokens["namespace-controller"], "DELETE", f"{accounts}/default").status_code == 200
    default = {"metadata": {"name": "default"}}
    assert [cluster.ask(tokens[name], "POST", accounts, default).status_code for name in CONTROLLERS] == [
        *[403] * 5,
        *[201, 403],
    ]
