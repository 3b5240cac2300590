"""Dangerous rights in the rules of roles."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.kubernetes.token_roles import dangers
from support.apiserver import kinds
from support.apiserver.rbac import Rbac
from support.apiserver.storage import Storage

RBAC = "rbac.authorization.k8s.io"


def rule(group: str, resource: str, *verbs: str) -> Mapping[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": [*verbs]}


@pytest.mark.parametrize(
    ("group", "resource", "verb", "danger"),
    [
        ("", "pods", "create", "start workloads"),
        ("", "pods", "patch", "start workloads"),
        ("apps", "deployments", "update", "start workloads"),
        ("batch", "*", "create", "start workloads"),
        ("", "serviceaccounts", "create", "create service accounts"),
        ("", "serviceaccounts/token", "create", "create tokens of service accounts"),
        ("", "*/token", "create", "create tokens of service accounts"),
        ("", "pods/exec", "get", "run commands in pods, or connect to them"),
        ("*", "*/exec", "create", "run commands in pods, or connect to them"),
        ("", "pods/ephemeralcontainers", "patch", "run commands in pods, or connect to them"),
        ("", "secrets", "list", "read or write Secrets"),
        ("", "*", "watch", "read or write Secrets"),
        ("", "configmaps", "update", "write ConfigMaps"),
        ("build.openshift.io", "buildconfigs", "create", "start workloads"),
        ("user.openshift.io", "groups", "update", "write users or groups"),
        (RBAC, "rolebindings", "create", "write roles or role bindings"),
        ("authorization.openshift.io", "rolebindings", "create", "write roles or role bindings"),
        (RBAC, "clusterroles", "bind", "bind or escalate roles"),
        (RBAC, "roles", "*", "bind or escalate roles"),
        ("certificates.k8s.io", "signers", "approve", "approve or sign certificate requests"),
        (
            *("certificates.k8s.io", "certificatesigningrequests/approval"),
            *("update", "approve or sign certificate requests"),
        ),
        ("", "nodes/proxy", "get", "connect to nodes or services"),
        (
            *("admissionregistration.k8s.io", "validatingadmissionpolicies", "delete"),
            "change admission policies, webhooks or API services",
        ),
        (
            *("apiregistration.k8s.io", "apiservices", "update"),
            "change admission policies, webhooks or API services",
        ),
        ("", "serviceaccounts", "impersonate", "impersonate users or service accounts"),
        ("", "groups", "*", "impersonate users or service accounts"),
        (
            *("authentication.k8s.io", "serviceaccounts", "impersonate:serviceaccount"),
            "impersonate users or service accounts",
        ),
    ],
)
def test_each_dangerous_right_is_named(group: str, resource: str, verb: str, danger: str) -> None:
    assert danger in dangers([rule(group, resource, verb)])


@pytest.mark.parametrize(
    ("group", "resource", "verb"),
    [
        ("", "pods", "get"),
        ("", "pods", "delete"),
        ("", "serviceaccounts", "get"),
        ("apps", "deployments", "list"),
        ("apps", "deployments/scale", "update"),
        ("example.com", "*", "*"),
        ("", "configmaps", "get"),
        ("user.openshift.io", "users", "get"),
        (RBAC, "rolebindings", "list"),
        ("certificates.k8s.io", "certificatesigningrequests", "create"),
    ],
)
def test_other_rights_are_not_dangerous(group: str, resource: str, verb: str) -> None:
    assert dangers([rule(group, resource, verb)]) == ()


def test_the_roles_of_every_cluster() -> None:
    storage = Storage()
    storage.create(kinds.NAMESPACES, "", {"metadata": {"name": "kube-system"}})
    Rbac(storage)
    found = {
        name: dangers(storage.get(kinds.CLUSTER_ROLES, "", name)["rules"])
        for name in ("view", "edit", "admin", "cluster-admin", "system:discovery")
    }
    assert found["view"] == found["system:discovery"] == ()
    edit = {
        "start workloads",
        "create service accounts",
        "create tokens of service accounts",
        "run commands in pods, or connect to them",
        "read or write Secrets",
        "write ConfigMaps",
        "connect to nodes or services",
        "impersonate users or service accounts",
    }
    assert set(found["edit"]) == edit
    assert set(found["admin"]) == edit | {"write roles or role bindings"}
    assert "everything" in found["cluster-admin"]
    assert len(found["cluster-admin"]) == 14


ANYTHING = st.one_of(st.none(), st.booleans(), st.text(max_size=5), st.lists(st.one_of(st.none(), st.text())))


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["apiGroups", "resources", "verbs", "nonResourceURLs"]), ANYTHING)
    )
)
def test_malformed_rules_raise_nothing(rules: list[dict[str, object]]) -> None:
    assert isinstance(dangers(rules), tuple)


def test_malformed_fields_count_as_everything() -> None:
    assert "everything" in dangers([{"apiGroups": "a", "resources": {"b": 1}, "verbs": [1]}])
