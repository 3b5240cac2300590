"""Names and documents of a token's account and bindings."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model.group_roles import RoleGrant
from clustercert.model.kubernetes import installation_id
from clustercert.model.token_objects import (
    ACCOUNT_PATTERN,
    BINDING_PATTERN,
    TokenObjects,
    account_name,
    account_number,
    binding_name,
    binding_number,
    bindings_path,
    selector,
    user_slug,
)

NUMBER = "0123456789abcdef" * 2 + "01234567"
INSTALLATION = "a" * 32
OBJECTS = TokenObjects(INSTALLATION, NUMBER, "u" * 32, "Zoë O'Hara", datetime(2026, 12, 3, 8, tzinfo=UTC))
NUMBERS = st.integers(0, 2**160 - 1).map(lambda n: f"{n:040x}")
# Source: k8s.io/apimachinery/pkg/util/validation/validation.go, IsDNS1123Subdomain.
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@given(st.text(max_size=200), NUMBERS)
def test_an_account_of_any_user_has_a_legal_name_that_contains_its_number(user: str, number: str) -> None:
    name = account_name(user, number)
    assert DNS_SUBDOMAIN.fullmatch(name)
    assert len(name) <= 81
    assert account_number(name) == number


@given(NUMBERS, st.integers(0, 19))
def test_a_binding_has_a_name_that_contains_its_number(number: str, index: int) -> None:
    assert binding_number(binding_name(number, index)) == number


@pytest.mark.parametrize(
    ("user", "slug"),
    [
        ("alice", "alice"),
        ("Zoë O'Hara", "zoe-o-hara"),
        ("--a..b--", "a-b"),
        ("王", "user"),
        ("", "user"),
        ("a" * 39 + "-b", "a" * 39),
        ("x" * 100, "x" * 40),
    ],
)
def test_readable_parts_of_account_names(user: str, slug: str) -> None:
    assert user_slug(user) == slug


@pytest.mark.parametrize(
    "name",
    [
        *(
            "default",
            NUMBER,
            f"-{NUMBER}",
            f"a-{NUMBER[1:]}",
            f"a-{NUMBER.upper()}",
            f"A-{NUMBER}",
            f"a.b-{NUMBER}",
        ),
        *(f"a--{NUMBER}x", f"a-{NUMBER}\n", f"{'a' * 41}-{NUMBER}", f"-a-{NUMBER}", f"a--{NUMBER}"),
    ],
)
def test_other_names_are_not_names_of_accounts(name: str) -> None:
    assert account_number(name) is None
    assert not re.search(f"^{ACCOUNT_PATTERN}$", name.replace("\n", "\0"))


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"clustercert-{NUMBER}",
            f"clustercert-{NUMBER}-20",
            f"clustercert-{NUMBER}-01",
            f"clustercert-{NUMBER}--1",
        ),
        *(
            f"clustercert-{NUMBER}-1\n",
            f"x-clustercert-{NUMBER}-1",
            f"clustercert-{NUMBER[1:]}-1",
            "clustercert-1",
        ),
    ],
)
def test_other_names_are_not_names_of_bindings(name: str) -> None:
    assert binding_number(name) is None
    assert not re.search(f"^{BINDING_PATTERN}$", name.replace("\n", "\0"))


def test_the_account_says_whose_it_is_and_mounts_no_token() -> None:
    assert OBJECTS.account_document() == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": f"zoe-o-hara-{NUMBER}",
            "namespace": "clustercert-users",
            "labels": {
                "app.kubernetes.io/managed-by": "clustercert",
                "clustercert/installation": INSTALLATION,
                "clustercert/credential": NUMBER,
            },
            "annotations": {
                "clustercert/user-id": "u" * 32,
                "clustercert/user-name": "Zoë O'Hara",
                "clustercert/not-after": "2026-12-03T08:00:00Z",
            },
        },
        "automountServiceAccountToken": False,
    }


def test_bindings_are_counted_over_both_kinds() -> None:
    roles = tuple(map(RoleGrant.parse, ("clusterrole/view", "clusterrole/edit@shop", "role/x@shop")))
    documents = OBJECTS.binding_documents(roles)
    assert [document["kind"] for document in documents] == [
        "ClusterRoleBinding",
        "RoleBinding",
        "RoleBinding",
    ]
    assert [document["metadata"]["name"] for document in documents] == [  # type: ignore[index] # a document
        f"clustercert-{NUMBER}-{index}" for index in range(3)
    ]
    assert documents[2]["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"}
    subject = {"kind": "ServiceAccount", "name": f"zoe-o-hara-{NUMBER}", "namespace": "clustercert-users"}
    assert all(document["subjects"] == [subject] for document in documents)
    assert [bindings_path(role) for role in roles] == [
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        *["/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings"] * 2,
    ]
    with pytest.raises(ValueError, match="at most 20"):
        OBJECTS.binding_documents([RoleGrant("ClusterRole", "view")] * 21)


def test_selectors_and_the_id_of_an_installation() -> None:
    ours = f"app.kubernetes.io/managed-by=clustercert,clustercert/installation={INSTALLATION}"
    assert selector(INSTALLATION) == ours
    assert selector(INSTALLATION, NUMBER) == f"{ours},clustercert/credential={NUMBER}"
    assert installation_id(bytes(32)) == "66687aadf862bd776c8fc18b8e9f8e20"
