"""What the double keeps, whom RBAC lets at it, what admission policies refuse and what its audit events say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from support.apiserver import ApiServer
from support.apiserver_clients import client_of
from support.certificate_authority import Authority
from support.kubectl import kubectl
from support.scripted_webhook import TOKEN, ScriptedWebhook

RBAC = "/apis/rbac.authorization.k8s.io/v1"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"

OBJECTS = """\
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: team, labels: {app: web}}
data: {colour: red}
"""


@pytest.fixture
def authority(apiserver: ApiServer) -> Authority:
    one = Authority("clients-of-the-double")
    apiserver.trust(one.certificate_pem)
    return one


@pytest.fixture
def admin(apiserver: ApiServer, authority: Authority, tmp_path: Path) -> Iterator[httpx2.Client]:
    with client_of(apiserver, tmp_path, authority.client_identity_pem("root", ["system:masters"])) as client:
        yield client


def config_map(name: str, data: dict[str, str]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def binding(name: str, group: str, role: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    }


@pytest.mark.parametrize("how", [("apply",), ("apply", "--server-side")], ids=["client side", "server side"])
def test_kubectl_applies_changes_selects_and_deletes(apiserver: ApiServer, how: tuple[str, ...]) -> None:
    path = apiserver.admin_kubeconfig()

    created = kubectl(path, *how, "-f", "-", stdin=OBJECTS)
    changed = kubectl(path, *how, "-f", "-", stdin=OBJECTS.replace("red", "blue"))
    colour = kubectl(path, "get", "cm", "settings", "-n", "team", "-o", "jsonpath={.data.colour}")
    selected = kubectl(path, "get", "cm", "-A", "-l", "app=web", "-o", "name")
    others = kubectl(path, "get", "cm", "-A", "-l", "app!=web", "-o", "name")
    deleted = kubectl(path, "delete", "namespace", "team")
    left = kubectl(path, "get", "cm", "-A", "-o", "name")

    assert (created.returncode, changed.returncode, deleted.returncode) == (0, 0, 0), created.stderr
    assert (colour.stdout, selected.stdout.strip()) == ("blue", "configmap/settings")
    # Each API server has the first one, and each new namespace the second one.
    assert others.stdout.split() == [
        "configmap/extension-apiserver-authentication",
        "configmap/kube-root-ca.crt",
    ]
    assert left.stdout.split() == ["configmap/extension-apiserver-authentication"]


def test_kubectls_typed_commands_are_understood(apiserver: ApiServer) -> None:
    """They send protobuf."""
    path = apiserver.admin_kubeconfig()

    made = [
        kubectl(path, "create", "configmap", "one", "--from-literal=colour=grün"),
        kubectl(path, "create", "clusterrolebinding", "two", "--clusterrole=view", "--group=team"),
        kubectl(path, "create", "namespace", "three"),
    ]
    may = kubectl(path, "auth", "can-i", "delete", "pods", "-n", "three")
    may_not = kubectl(path, "auth", "can-i", "delete", "pods", "--as", "eve", "--as-group", "team")
    may_see = kubectl(path, "auth", "can-i", "list", "pods", "--as", "eve", "--as-group", "team")

    assert [done.returncode for done in made] == [0, 0, 0], [done.stderr for done in made]
    colour = kubectl(path, "get", "configmap", "one", "-o", "jsonpath={.data.colour}")
    assert colour.stdout == "grün"
    assert [done.stdout.strip() for done in (may, may_not, may_see)] == ["yes", "no", "yes"]


def test_an_old_resource_version_and_a_second_creation_are_conflicts(admin: httpx2.Client) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    first = admin.post(path, json=config_map("c", {"a": "1"})).json()
    changed = admin.put(f"{path}/c", json={**first, "data": {"a": "2"}})
    stale = admin.put(f"{path}/c", json={**first, "data": {"a": "3"}})
    again = admin.post(path, json=config_map("c", {}))

    assert changed.status_code == 200
    assert (stale.status_code, stale.json()["reason"]) == (409, "Conflict")
    assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")
    assert admin.get(f"{path}/c").json()["data"] == {"a": "2"}


def test_a_dry_run_changes_nothing(admin: httpx2.Client) -> None:
    path = "/api/v1/namespaces/default/configmaps"

    answer = admin.post(path, params={"dryRun": "All"}, json=config_map("c", {}))

    assert answer.status_code == 201
    assert admin.get(f"{path}/c").status_code == 404


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/api/v1/namespaces/default/configmaps", config_map("Upper", {})),
        ("/api/v1/namespaces/default/configmaps", config_map("c", {"X509SHA256=a": ""})),
        ("/api/v1/namespaces/default/configmaps", config_map("c", {"a": "x" * (1024 * 1024)})),
        (f"{RBAC}/clusterrolebindings", binding("a/b", "g", "view")),
    ],
    ids=["name", "key", "size", "path in a name"],
)
def test_what_kubernetes_finds_invalid_is_refused(
    admin: httpx2.Client, path: str, document: dict[str, object]
) -> None:
    assert admin.post(path, json=document).status_code == 422


def test_a_list_comes_in_pages(admin: httpx2.Client) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    for number in range(5):
        admin.post(path, json=config_map(f"c{number}", {}))

    names, token, pages = [], "", 0
    while pages == 0 or token:
        page = admin.get(path, params={"limit": "2", "continue": token}).json()
        names += [item["metadata"]["name"] for item in page["items"]]
        token, pages = page["metadata"].get("continue", ""), pages + 1

    assert (names, pages) == ([f"c{number}" for number in range(5)], 3)


def test_nobody_binds_what_they_lack_without_the_verb_bind(
    apiserver: ApiServer, admin: httpx2.Client, authority: Authority, tmp_path: Path
) -> None:
    rules = [
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterrolebindings"],
            "verbs": ["create"],
        },
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": ["edit"],
            "verbs": ["bind"],
        },
    ]
    admin.post(f"{RBAC}/clusterroles", json={"metadata": {"name": "binder"}, "rules": rules})
    admin.post(f"{RBAC}/clusterrolebindings", json=binding("binders", "binders", "binder"))

    with client_of(apiserver, tmp_path, authority.client_identity_pem("bo", ["binders"])) as client:
        statuses = {
            role: client.post(f"{RBAC}/clusterrolebindings", json=binding(f"x:{role}", "x", role)).status_code
            for role in ("edit", "cluster-admin", "binder")
        }
        escalation = client.post(
            f"{RBAC}/clusterroles", json={"metadata": {"name": "more"}, "rules": rules}
        ).status_code

    assert statuses == {"edit": 201, "cluster-admin": 403, "binder": 201}
    assert escalation == 403, "who may not create roles may not"


def test_a_binding_counts_from_its_creation_to_its_deletion(
    apiserver: ApiServer, admin: httpx2.Client, authority: Authority, tmp_path: Path
) -> None:
    statuses = []
    with client_of(apiserver, tmp_path, authority.client_identity_pem("al", ["team"])) as client:
        statuses.append(client.get("/api/v1/namespaces").status_code)
        admin.post(f"{RBAC}/clusterrolebindings", json=binding("team:view", "team", "view"))
        statuses.append(client.get("/api/v1/namespaces").status_code)
        admin.delete(f"{RBAC}/clusterrolebindings/team:view")
        statuses.append(client.get("/api/v1/namespaces").status_code)

    assert statuses == [403, 200, 403]


POLICY = """\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: colours}
spec:
  failurePolicy: Fail
  paramKind: {apiVersion: v1, kind: ConfigMap}
  matchConstraints:
    resourceRules:
    - {apiGroups: ["*"], apiVersions: ["*"], operations: [CREATE, UPDATE, DELETE], resources: ["*/*"]}
  matchConditions:
  - {name: configmaps, expression: request.resource.resource == 'configmaps' && request.operation == 'CREATE'}
  variables:
  - {name: colour, expression: object.data.colour}
  validations:
  - expression: "!(variables.colour in params.data)"
    messageExpression: "'no ' + variables.colour + ' for ' + request.userInfo.username"
    reason: Forbidden
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: colours}
spec:
  policyName: colours
  paramRef: {name: refused, namespace: default, parameterNotFoundAction: Allow}
  validationActions: [Deny]
"""


def test_an_admission_policy_judges_writes_by_its_parameters(
    apiserver: ApiServer, admin: httpx2.Client, authority: Authority
) -> None:
    applied = kubectl(apiserver.admin_kubeconfig(), "apply", "-f", "-", stdin=POLICY)
    assert applied.returncode == 0, applied.stderr
    path = "/api/v1/namespaces/default/configmaps"

    without_parameters = admin.post(path, json=config_map("a", {"colour": "red"}))
    admin.post(path, json=config_map("refused", {"colour": "none", "red": ""}))
    denied = admin.post(path, json=config_map("b", {"colour": "red"}))
    allowed = admin.post(path, json=config_map("c", {"colour": "blue"}))
    unreadable = admin.post(path, json=config_map("d", {}))
    deleted = admin.delete(f"{path}/a")

    assert (without_parameters.status_code, allowed.status_code, deleted.status_code) == (201, 201, 200)
    assert (denied.status_code, denied.json()["message"]) == (
        403,
        "ValidatingAdmissionPolicy 'colours' with binding 'colours' denied request: no red for root",
    )
    assert (unreadable.status_code, unreadable.json()["reason"]) == (422, "Invalid"), "failurePolicy Fail"


def test_audit_events_reach_the_file_and_the_webhook(
    apiserver: ApiServer, admin: httpx2.Client, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    with ScriptedWebhook() as webhook:
        webhook.answer = lambda _events: (200, b"")
        apiserver.audit_to_file(log)
        sink = apiserver.audit_to_webhook(webhook.kubeconfig(tmp_path))
        admin.get("/api/v1/namespaces/default", headers={"User-Agent": "a-test"})
        sink.close()
        batches = [json.loads(asked.body) for asked in webhook.asked]
        headers = webhook.asked[0].headers

    (event,) = [event for batch in batches for event in batch["items"]]
    assert [(batch["kind"], batch["apiVersion"]) for batch in batches] == [("EventList", "audit.k8s.io/v1")]
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert (event["verb"], event["requestURI"], event["userAgent"], event["responseStatus"]["code"]) == (
        "get",
        "/api/v1/namespaces/default",
        "a-test",
        200,
    )
    assert event["objectRef"] == {
        "resource": "namespaces",
        "namespace": "default",
        "name": "default",
        "apiVersion": "v1",
    }
    assert event["user"]["groups"] == ["system:masters", "system:authenticated"]
    assert event["user"]["extra"][CREDENTIAL_ID][0].startswith("X509SHA256=")
    assert yaml.safe_load(log.read_text()) == event
