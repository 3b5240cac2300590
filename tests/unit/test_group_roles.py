"""Roles of groups in a cluster whose credentials are tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model.group_roles import (
    MAX_BINDINGS,
    MAX_GROUPS,
    RoleGrant,
    parse_group_roles,
    roles_of_groups,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,30}", fullmatch=True)
NAMESPACES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
GRANTS = st.one_of(
    st.builds(RoleGrant, st.just("ClusterRole"), NAMES, st.one_of(st.just(""), NAMESPACES)),
    st.builds(RoleGrant, st.just("Role"), NAMES, NAMESPACES),
)


@given(GRANTS)
def test_a_role_that_is_written_and_parsed_is_the_same(role: RoleGrant) -> None:
    assert RoleGrant.parse(str(role)) == role


def test_the_written_forms() -> None:
    assert RoleGrant.parse("clusterrole/view") == RoleGrant("ClusterRole", "view")
    assert RoleGrant.parse("clusterrole/edit@shop") == RoleGrant("ClusterRole", "edit", "shop")
    assert RoleGrant.parse("role/deployer@shop") == RoleGrant("Role", "deployer", "shop")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "view",
            "clusterrole/",
            "clusterrole/a/b",
            "clusterrole/a%2fb",
            "clusterrole/.",
            "clusterrole/a@",
        ),
        *(
            "clusterrole/a@B",
            "clusterrole/a@b@c",
            "ClusterRole/view",
            "role/a",
            "role/@shop",
            "clusterrole/a b",
        ),
        *(
            "clusterrole/a\n",
            "clusterrole/a@b\n",
            "clusterrole/" + "a" * 254,
            "role/a@" + "n" * 64,
            'role/"@a',
        ),
    ],
)
def test_other_forms_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="Write "):
        RoleGrant.parse(text)


@pytest.mark.parametrize(
    ("group", "role", "part"),
    [
        ("system:nodes", "clusterrole/view", "does not begin with system:"),
        ("", "clusterrole/view", "Name a group"),
        ("dev", "clusterrole/system:node", "Name a role of your own"),
        ("dev", "role/system:controller:x@shop", "Name a role of your own"),
        ("dev", "clusterrole/view@kube-system", "Name another namespace"),
        ("dev", "role/x@openshift-config", "Name another namespace"),
        ("dev", "clusterrole/view@clustercert-users", "Name another namespace"),
        ("dev", "clusterrole/view@clustercert-access", "Name another namespace"),
        ("dev", "clusterrole/edit", "clusterrole/edit@NAMESPACE"),
        ("dev", "clusterrole/admin", "clusterrole/admin@NAMESPACE"),
        ("dev", "clusterrole/cluster-admin", "allow_cluster_admin"),
        ("dev", "clusterrole/cluster-admin@shop", "allow_cluster_admin"),
    ],
)
def test_what_may_not_be_mapped(group: str, role: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse_group_roles({group: (role,)}, allow_cluster_admin=False)


def test_cluster_admin_may_be_mapped_by_its_name_with_the_flag() -> None:
    parsed = parse_group_roles({"ops": ("clusterrole/cluster-admin",)}, allow_cluster_admin=True)
    assert parsed == {"ops": (RoleGrant("ClusterRole", "cluster-admin"),)}
    with pytest.raises(ValueError, match="admin@NAMESPACE"):
        parse_group_roles({"ops": ("clusterrole/admin",)}, allow_cluster_admin=True)


def test_numbers_of_groups_and_roles_are_limited() -> None:
    groups = {f"g{n}": ("clusterrole/view",) for n in range(MAX_GROUPS + 1)}
    with pytest.raises(ValueError, match="at most 64 groups"):
        parse_group_roles(groups, allow_cluster_admin=False)
    many = tuple(f"clusterrole/view@n{n}" for n in range(MAX_BINDINGS + 1))
    with pytest.raises(ValueError, match="fewer roles"):
        parse_group_roles({"dev": many}, allow_cluster_admin=False)
    with pytest.raises(ValueError, match="different roles"):
        parse_group_roles(
            {f"g{g}": tuple(f"clusterrole/view@n{g}-{n}" for n in range(20)) for g in range(13)},
            allow_cluster_admin=False,
        )
    with pytest.raises(ValueError, match="has no role"):
        parse_group_roles({"dev": ()}, allow_cluster_admin=False)


def test_roles_of_several_groups_are_sorted_and_without_duplicates() -> None:
    group_roles = {
        "dev": ("role/deploy@shop", "clusterrole/view"),
        "ops": ("clusterrole/view", "clusterrole/edit@shop"),
    }
    assert list(map(str, roles_of_groups(["ops", "unknown", "dev"], group_roles))) == [
        "clusterrole/edit@shop",
        "clusterrole/view",
        "role/deploy@shop",
    ]
    assert roles_of_groups(["unknown"], group_roles) == ()
