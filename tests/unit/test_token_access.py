"""The objects that a cluster gets whose credentials are tokens: their order, the rights, valid expressions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from cel_expr_python import cel as google

from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAME, NAMESPACES_POLICY, token_access
from support.token_cluster import GROUP_ROLES, INSTALLATION

DOCUMENTS: Sequence[Any] = token_access(INSTALLATION, GROUP_ROLES, allow_cluster_admin=False)
STRING, INT, BOOL, DYN = google.Type.STRING, google.Type.INT, google.Type.BOOL, google.Type.DYN
OBJECT = google.Type.Map(STRING, DYN)
# What Kubernetes has beside the language. Source: Kubernetes, "Common Expression Language".
LIBRARY: Mapping[str, Sequence[tuple[Sequence[google.Type], google.Type]]] = {
    "substring": [([STRING, INT], STRING), ([STRING, INT, INT], STRING)],
    "group": [([OBJECT, STRING], OBJECT)],
    "resource": [([OBJECT, STRING], OBJECT)],
    "check": [([OBJECT, STRING], OBJECT)],
    "allowed": [([OBJECT], BOOL)],
}
ENVIRONMENT = google.NewEnv(
    variables={
        **dict.fromkeys(("request", "object", "oldObject", "variables", "authorizer"), OBJECT),
        "extra": google.Type.Map(STRING, google.Type.List(STRING)),
    },
    functions=[
        google.FunctionDecl(
            name,
            [
                google.Overload(
                    f"{name}_{len(parameters)}",
                    return_type=result,
                    parameters=list(parameters),
                    is_member=True,
                )
                for parameters, result in overloads
            ],
        )
        for name, overloads in LIBRARY.items()
    ],
)


def rules(kind: str, namespace: str = "") -> list[Mapping[str, Any]]:
    """The rules of the service's role of a kind."""
    [found] = (
        each["rules"]
        for each in DOCUMENTS
        if each["kind"] == kind and each["metadata"].get("namespace", "") == namespace
    )
    return list(found)


def test_policies_come_before_the_rights_that_they_limit() -> None:
    kinds = [each["kind"] for each in DOCUMENTS]
    assert kinds[:8] == [
        *["Namespace"] * 2,
        *["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] * 2,
        *["ServiceAccount", "ClusterRole"],
    ]
    assert {each["metadata"]["labels"]["app.kubernetes.io/managed-by"] for each in DOCUMENTS} == {
        "clustercert"
    }
    assert [each["metadata"]["name"] for each in DOCUMENTS[2:6]] == [
        *[NAMESPACES_POLICY] * 2,
        *[BINDINGS_POLICY] * 2,
    ]


def test_the_service_may_bind_a_role_only_where_it_is_mapped() -> None:
    assert rules("ClusterRole") == [
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterrolebindings"],
            "verbs": ["create", "get", "list", "delete"],
        },
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "resourceNames": ["clustercert-users", "clustercert-access"],
            "verbs": ["get"],
        },
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": ["view"],
            "verbs": ["bind"],
        },
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": ["admin", "edit", "view"],
            "verbs": ["get"],
        },
    ]
    bound = {
        namespace: [
            (name, rule["verbs"])
            for rule in rules("Role", namespace)
            for name in rule.get("resourceNames", ["any"])
        ]
        for namespace in ("shop", "team")
    }
    assert bound == {
        "shop": [("any", ["create", "get", "list", "delete"]), ("edit", ["bind"])],
        "team": [
            ("any", ["create", "get", "list", "delete"]),
            ("admin", ["bind"]),
            ("deployer", ["bind", "get"]),
        ],
    }


def test_without_a_role_for_the_whole_cluster_the_service_creates_no_cluster_role_bindings() -> None:
    documents: Sequence[Any] = token_access(
        INSTALLATION, {"devs": ("clusterrole/edit@shop",)}, allow_cluster_admin=False
    )
    [role] = (each for each in documents if each["kind"] == "ClusterRole")
    assert role["metadata"]["name"] == NAME
    assert [rule["verbs"] for rule in role["rules"]] == [["get", "list", "delete"], ["get"], ["get"]]


def test_a_map_with_a_forbidden_role_is_refused() -> None:
    with pytest.raises(ValueError, match="allow_cluster_admin"):
        token_access(INSTALLATION, {"ops": ("clusterrole/cluster-admin",)}, allow_cluster_admin=False)


def expressions() -> Iterator[str]:
    for document in DOCUMENTS:
        if document["kind"] == "ValidatingAdmissionPolicy":
            for part in ("matchConditions", "variables", "validations"):
                yield from (each["expression"] for each in document["spec"].get(part, ()))


@pytest.mark.parametrize("expression", list(expressions()))
def test_the_reference_implementation_of_cel_compiles_each_expression(expression: str) -> None:
    # Kubernetes declares this type. A field of an object without a declaration can't be the range of `exists` here.
    ENVIRONMENT.compile(expression.replace("request.userInfo.extra[", "extra["))
