"""Which subjects of bindings are named as others that could act as the accounts of this service."""

import pytest

from clustercert.kubernetes.verify.token_verification import _other_subject
from clustercert.model import JsonObject
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, USERS_NAMESPACE


def account(namespace: str, name: str) -> JsonObject:
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        ({"kind": "User", "name": "system:admin"}, "User system:admin"),
        ({"kind": "User", "name": "system:anonymous"}, "User system:anonymous"),
        (
            {"kind": "User", "name": "system:serviceaccount:team:builder"},
            "User system:serviceaccount:team:builder",
        ),
        ({"kind": "User", "name": "system:kube-scheduler-2"}, "User system:kube-scheduler-2"),
        ({"kind": "User", "name": "system:nodes"}, "User system:nodes"),
        ({"kind": "Group", "name": "system:node:a"}, "Group system:node:a"),
        ({"kind": "Group", "name": "system:kube-scheduler"}, "Group system:kube-scheduler"),
        ({"kind": "Group", "name": "system:masters"}, "Group system:masters"),
        ({"kind": "Group", "name": "system:authenticated"}, "Group system:authenticated"),
        ({"kind": "Group", "name": "system:bootstrappers"}, "Group system:bootstrappers"),
        (account("team", "builder"), "ServiceAccount team/builder"),
        ({"kind": "User", "name": "system:kube-controller-manager"}, ""),
        ({"kind": "User", "name": "system:kube-scheduler"}, ""),
        ({"kind": "User", "name": "system:apiserver"}, ""),
        ({"kind": "User", "name": "system:node:a"}, ""),
        ({"kind": "User", "name": "system:serviceaccount:kube-system:job-controller"}, ""),
        ({"kind": "Group", "name": "system:nodes"}, ""),
        (account("kube-system", "job-controller"), ""),
        (account(USERS_NAMESPACE, "anna"), ""),
        (account(ACCESS_NAMESPACE, ISSUER_ACCOUNT), ""),
        ("no subject", ""),
    ],
)
def test_everybody_but_kubernetes_own_components_is_named(subject: object, named: str) -> None:
    assert _other_subject(subject) == named
