import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustercert.kubernetes.setup import cel
from clustercert.kubernetes.setup.admission import CONFIG_MAP, MAX_REVOKED, NAMESPACE, admission, storage
from clustercert.kubernetes.setup.authorization import (
    authorization_configuration,
    match_conditions,
    webhook_kubeconfig,
)
from clustercert.kubernetes.setup.certificate_requests import certificate_requests
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.rbac import service_access
from clustercert.kubernetes.setup.values import Setup
from clustercert.model import CREDENTIAL_PREFIX, ClusterOptions
from clustercert.model.kubernetes import CREDENTIAL_ID, SERVICE
from clustercert.policy.templates import exemption_of, is_exempt
from support.apiserver.expressions import holds, value
from support.cluster_setup import cluster_setup

FINGERPRINT = "17ead5a1" * 8
X509 = {CREDENTIAL_ID: [f"X509SHA256={FINGERPRINT}"]}
NUMBER = "5eed" * 10
OWN_GROUP = f"{CREDENTIAL_PREFIX}{NUMBER}"
ANONYMOUS = {"user": "system:anonymous", "groups": ["system:unauthenticated"], "uid": "", "extra": {}}

names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12
)
some_names = st.one_of(
    names,
    st.sampled_from(
        [
            "system:authenticated",
            "system:unauthenticated",
            "system:nodes",
            "system:node:a",
            "system:kube-scheduler",
            "system:masters",
            "clustercert:admins",
            "clustercert:",
            OWN_GROUP,
            "dev",
            "*",
        ]
    ),
)


EXEMPTIONS = ClusterOptions(exemptions=("system:*", "builders"))


def asked(setup: Setup, spec: Mapping[str, object]) -> bool:
    """Whether an API server calls the webhook. It rejects a condition that is not a boolean."""
    return all(holds(condition, {"request": spec}) for condition in match_conditions(setup))


def review(
    user: str = "alice", groups: Sequence[str] = (), extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    # Always with all four fields. Source: staging/src/k8s.io/apiserver/pkg/authorization/cel.
    return {"user": user, "groups": [*groups, "system:authenticated"], "uid": "", "extra": extra or {}}


def test_default_mode_asks_only_about_credential_groups() -> None:
    setup = cluster_setup(EXEMPTIONS)
    assert asked(setup, review(groups=["clustercert:admins", OWN_GROUP], extra=X509))
    assert asked(setup, review(groups=[OWN_GROUP], extra=X509))
    # API servers before 1.32 send no credential id.
    assert asked(setup, review(groups=["clustercert:admins", OWN_GROUP]))
    assert asked(setup, review(groups=[CREDENTIAL_PREFIX], extra={CREDENTIAL_ID: ["JTI=1"]}))
    assert not asked(setup, review(groups=["clustercert:admins"], extra=X509))
    assert not asked(setup, review(groups=["dev"], extra=X509))
    assert not asked(setup, review("system:node:a", ["system:nodes"], X509))
    assert not asked(setup, ANONYMOUS)


def test_known_only_asks_about_every_certificate_that_is_not_exempt() -> None:
    setup = cluster_setup(EXEMPTIONS, mode="known-only")
    assert asked(setup, review(extra=X509))
    assert asked(setup, review(groups=["dev"], extra=X509))
    assert not asked(setup, review("system:kube-scheduler", extra=X509))
    assert not asked(setup, review("bob", ["builders"], X509))
    assert not asked(setup, review("system:node:a", ["builders", "system:nodes"], X509))
    assert asked(setup, review("bob", ["builders-not"], X509))
    # All groups must be exempt; only a user name of Kubernetes matters.
    assert asked(setup, review("bob", ["builders", "dev"], X509))
    assert asked(setup, review("system:kube-scheduler", ["dev"], X509))
    # Exemptions do not apply to certificates that we issued.
    assert asked(setup, review("system:x", ["clustercert:admins"], X509))
    assert asked(setup, review("system:x", ["system:nodes", OWN_GROUP]))
    assert not asked(setup, review("system:serviceaccount:a:b", ["clustercert:admins"]))
    nobody = cluster_setup(ClusterOptions(exemptions=()), mode="known-only")
    assert asked(nobody, review("system:kube-scheduler", extra=X509))


NODES_ONLY = ClusterOptions().exemptions


@pytest.mark.parametrize(
    ("user", "groups", "exemptions", "pinned", "expected"),
    [
        ("system:node:a", ["system:nodes"], NODES_ONLY, False, False),
        ("system:node:a", ["system:nodes"], NODES_ONLY, True, False),
        ("system:kube-controller-manager", [], NODES_ONLY, False, True),
        # A user name to which Kubernetes binds rights, behind an exempt group.
        ("system:kube-controller-manager", ["system:nodes"], NODES_ONLY, False, True),
        ("root", ["system:nodes"], ("*",), False, True),
        ("system:kube-controller-manager", ["builders"], ("builders",), False, True),
        ("system:kube-controller-manager", ["builders"], ("builders",), True, True),
        ("system:kube-scheduler", [], ("system:kube-scheduler",), False, False),
        ("system:kube-scheduler", [], ("system:kube-scheduler",), True, True),
        ("bob", ["builders"], ("builders",), True, True),
        ("system:node:a", ["system:nodes", "builders"], ("system:nodes", "builders"), True, True),
        ("system:node:a", ["system:nodes"], (), False, True),
        ("system:node:a", ["system:nodes"], (), True, True),
    ],
)
def test_known_only_exempts_kubelets_and_confirmed_names(
    user: str, groups: list[str], exemptions: tuple[str, ...], pinned: bool, expected: bool
) -> None:
    options = ClusterOptions(exemptions=exemptions, pin_components=pinned)
    setup = cluster_setup(options, mode="known-only")
    assert asked(setup, review(user, groups, X509)) is expected


def test_known_only_asks_about_groups_with_the_prefix_of_a_template() -> None:
    setup = cluster_setup(
        ClusterOptions(exemptions=("*",)), mode="known-only", templates=("team:{group}", "{group.id}")
    )
    assert asked(setup, review("bob", ["team:a"], X509))
    assert not asked(setup, review("bob", ["teams"], X509))


patterns_of_names = st.lists(st.one_of(some_names, some_names.map(lambda name: f"{name}*"), st.just("*")))


@given(
    user=some_names,
    groups=st.lists(some_names, max_size=4),
    patterns=patterns_of_names,
    policy_groups=st.lists(some_names, max_size=3),
    pinned=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_match_conditions_and_webhook_exempt_the_same_certificates(
    user: str, groups: list[str], patterns: list[str], policy_groups: list[str], pinned: bool
) -> None:
    options = ClusterOptions(mode="known-only", exemptions=tuple(patterns), pin_components=pinned)
    setup = cluster_setup(options, mode="known-only", groups=tuple(policy_groups))
    # No certificate is pinned here.
    assert asked(setup, review(user, groups, X509)) != is_exempt(
        user, (*groups, "system:authenticated"), (FINGERPRINT,), options, policy_groups
    )
    # Without a client certificate it asks only about credential groups.
    assert asked(setup, review(user, groups)) == any(group.startswith(CREDENTIAL_PREFIX) for group in groups)


@given(
    user=st.one_of(some_names, st.just("")),
    groups=st.lists(some_names, max_size=4),
    patterns=patterns_of_names,
    policy_groups=st.lists(some_names, max_size=3),
)
@example(user="{", groups=[], patterns=["*"], policy_groups=["{"])
@settings(max_examples=300, deadline=None)
def test_the_cel_exemption_equals_the_webhook_rule(
    user: str, groups: list[str], patterns: list[str], policy_groups: list[str]
) -> None:
    """Includes identities without groups."""
    options = ClusterOptions(exemptions=tuple(patterns))
    expected = exemption_of(user, groups, options, policy_groups) is not None
    condition = cel.is_exempt(patterns, policy_groups)
    assert holds(condition, {"request": {"user": user, "groups": groups}}) is expected


@given(st.text(st.characters(codec="utf-8")))
def test_cel_strings_round_trip_any_text(text: str) -> None:
    assert value(cel.string(text), {}) == text


def test_the_authorization_configuration_lists_the_webhook_first() -> None:
    setup = cluster_setup(failure_policy="Deny")
    document = authorization_configuration(setup)
    assert (document["apiVersion"], document["kind"]) == (
        "apiserver.config.k8s.io/v1",
        "AuthorizationConfiguration",
    )
    webhook, node, rbac = yaml.safe_load(to_yaml([document]))["authorizers"]
    # An API server rejects other names for these two, and a list without RBAC.
    assert (node, rbac) == ({"type": "Node", "name": "node"}, {"type": "RBAC", "name": "rbac"})
    assert webhook["webhook"] == {
        "authorizedTTL": "5s",
        "unauthorizedTTL": "2s",
        "timeout": "3s",
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "Deny",
        "connectionInfo": {
            "type": "KubeConfigFile",
            "kubeConfigFile": "/etc/kubernetes/clustercert/webhook.kubeconfig",
        },
        "matchConditions": [{"expression": condition} for condition in match_conditions(setup)],
    }


def test_the_webhook_kubeconfig_has_address_ca_and_token() -> None:
    document = yaml.safe_load(webhook_kubeconfig("https://c.example/x", "PEM", "ccw_secret"))
    (cluster,), (user,) = document["clusters"], document["users"]
    assert cluster["cluster"]["server"] == "https://c.example/x"
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == b"PEM"
    assert user["user"] == {"token": "ccw_secret"}
    assert document["current-context"] == document["contexts"][0]["name"]
    without = yaml.safe_load(webhook_kubeconfig("https://c.example/x", None, "t"))
    assert without["clusters"][0]["cluster"] == {"server": "https://c.example/x"}


# Without the API server's flags


def policy_of(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    (policy,) = (each for each in documents if each["kind"] == "ValidatingAdmissionPolicy")
    (binding,) = (each for each in documents if each["kind"] == "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    assert policy["spec"]["failurePolicy"] == "Fail"
    return policy


def admits(documents: Sequence[Mapping[str, Any]], variables: Mapping[str, object]) -> bool:
    spec = policy_of(documents)["spec"]
    if not all(holds(each["expression"], variables) for each in spec["matchConditions"]):
        return True
    return all(holds(each["expression"], variables) for each in spec["validations"])


def by(
    extra: Mapping[str, object] | None = None, groups: Sequence[str] = (), **more: object
) -> dict[str, object]:
    """An admission request's `request`."""
    user: dict[str, object] = {"username": "alice", "groups": [*groups, "system:authenticated"]}
    if extra is not None:
        user["extra"] = extra
    return {"userInfo": user, **more}


@pytest.mark.parametrize(
    ("groups", "data", "expected"),
    [
        ([OWN_GROUP], {NUMBER: "2026-01-01T00:00:00Z"}, False),
        (["clustercert:admins", OWN_GROUP, "x"], {NUMBER: ""}, False),
        ([OWN_GROUP], {"0" * 40: ""}, True),
        ([OWN_GROUP], {}, True),
        ([OWN_GROUP], None, True),
        (["clustercert:admins"], {NUMBER: ""}, True),
        ([NUMBER], {NUMBER: ""}, True),
        ([], {NUMBER: ""}, True),
        (None, {NUMBER: ""}, True),
        ([CREDENTIAL_PREFIX], {NUMBER: ""}, True),
        # Two numbers: forged. One of them is revoked.
        ([f"{CREDENTIAL_PREFIX}{'0' * 40}", OWN_GROUP], {NUMBER: ""}, False),
    ],
)
@pytest.mark.parametrize("extra", [X509, {CREDENTIAL_ID: [f"X509SHA256={'0' * 64}"]}, {}, None])
def test_the_admission_policy_denies_revoked_credential_numbers(
    extra: Mapping[str, object] | None,
    groups: Sequence[str] | None,
    data: Mapping[str, str] | None,
    expected: bool,
) -> None:
    params = {"metadata": {"name": CONFIG_MAP}} | ({} if data is None else {"data": data})
    request: dict[str, Any] = by(extra, groups or ())
    if groups is None:
        del request["userInfo"]["groups"]
    assert admits(admission(), {"request": request, "params": params}) is expected


def test_the_admission_policy_recognises_no_hashes() -> None:
    """The holder of a certificate can change its hash."""
    variables = {"request": by(X509, ["clustercert:admins"]), "params": {"data": {FINGERPRINT: ""}}}
    assert admits(admission(), variables)


SIGNER = "kubernetes.io/kube-apiserver-client"
APPROVED, DENIED = {"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}


@pytest.mark.parametrize(
    ("groups", "signer", "operation", "status", "expected"),
    [
        ([OWN_GROUP], SIGNER, "CREATE", {}, False),
        ([OWN_GROUP], SIGNER, "CREATE", None, False),
        (["clustercert:admins", OWN_GROUP], f"{SIGNER}-kubelet", "CREATE", {}, False),
        ([OWN_GROUP], SIGNER, "UPDATE", {"conditions": [APPROVED]}, False),
        ([OWN_GROUP], SIGNER, "UPDATE", {"conditions": [DENIED, APPROVED]}, False),
        ([OWN_GROUP], SIGNER, "UPDATE", {"conditions": [DENIED]}, True),
        ([OWN_GROUP], SIGNER, "UPDATE", {}, True),
        ([OWN_GROUP], "kubernetes.io/kubelet-serving", "CREATE", {}, True),
        ([OWN_GROUP], "example.com/x", "UPDATE", {"conditions": [APPROVED]}, True),
        ([SERVICE, OWN_GROUP], SIGNER, "CREATE", {}, True),
        ([SERVICE, OWN_GROUP], SIGNER, "UPDATE", {"conditions": [APPROVED]}, True),
        (["clustercert:admins"], SIGNER, "CREATE", {}, True),
        (["system:masters"], SIGNER, "UPDATE", {"conditions": [APPROVED]}, True),
        (None, SIGNER, "CREATE", {}, True),
    ],
)
def test_holders_may_not_create_or_approve_requests_for_client_certificates(
    groups: Sequence[str] | None,
    signer: str,
    operation: str,
    status: Mapping[str, object] | None,
    expected: bool,
) -> None:
    request: dict[str, Any] = by(X509, groups or (), operation=operation)
    if groups is None:
        del request["userInfo"]["groups"]
    asked_for = {"spec": {"signerName": signer}} | ({} if status is None else {"status": status})
    assert admits(certificate_requests(), {"request": request, "object": asked_for}) is expected


def test_the_admission_policy_matches_all_writes() -> None:
    documents = admission()
    policy = policy_of(documents)
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["*/*"]
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE", "CONNECT"}
    assert policy["spec"]["paramKind"] == {"apiVersion": "v1", "kind": "ConfigMap"}
    specs: list[Any] = [document.get("spec", {}) for document in documents]
    (reference,) = (spec["paramRef"] for spec in specs if "paramRef" in spec)
    assert reference == {"name": CONFIG_MAP, "namespace": NAMESPACE, "parameterNotFoundAction": "Allow"}
    # Applying it again must not delete the ids.
    assert not any("data" in document for document in storage())


def test_the_maximum_number_of_revoked_ids_fits_into_etcd() -> None:
    data = {f"{number:064x}": "2026-01-01T00:00:00Z" for number in range(MAX_REVOKED)}
    fields = {f"f:{fingerprint}": dict[str, str]() for fingerprint in data}
    size = len(yaml.dump(data, default_style='"')) + len(repr(fields).replace("'", '"').replace(" ", ""))
    assert size < 1.5 * 1024 * 1024 * 0.95


def guarded(roles: Sequence[str], groups: Sequence[str], **more: Any) -> bool:
    name = f"{CREDENTIAL_PREFIX}01ff"
    request = (
        by(None, groups, resource={"resource": "clusterrolebindings"}, operation="CREATE", name=name) | more
    )
    made = {
        "metadata": {"name": request["name"]},
        "roleRef": {"kind": "ClusterRole", "name": more.get("role", "edit")},
        "subjects": [{"kind": "Group", "name": more.get("subject", request["name"])}],
    }
    return admits(
        service_access(roles),
        {"request": request, "object": None if request["operation"] == "DELETE" else made},
    )


def test_the_service_may_bind_only_its_credential_groups() -> None:
    roles = ("edit", "view")
    assert guarded(roles, [SERVICE])
    assert guarded(roles, [SERVICE], operation="DELETE")
    assert not guarded(roles, [SERVICE], role="cluster-admin")
    assert not guarded(roles, [SERVICE], subject="system:authenticated")
    assert not guarded(roles, [SERVICE], name="mine")
    assert not guarded(roles, [SERVICE], name="mine", operation="DELETE")
    assert not guarded(roles, [SERVICE], resource={"resource": "rolebindings"}, operation="DELETE")
    assert guarded(roles, ["others"], role="cluster-admin", name="mine")


@pytest.mark.parametrize("name", ["1e3", "123456e7", "0o17", ".5", "true", "2026-11-29"])
def test_a_name_that_looks_like_another_type_is_quoted(name: str) -> None:
    """kubectl reads 1e3 without quotes as a number, though PyYAML does not."""
    assert to_yaml([{"name": name}]) == f"name: '{name}'\n"
