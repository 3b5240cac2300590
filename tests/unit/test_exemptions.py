"""Whom `known-only` spares; that an API server's match conditions say the same is in `test_manifests`."""

import pytest

from clustercert.model import ClusterOptions
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.review import Identity

POLICY_GROUPS = ("auditors", "system:auditors")


def spared(username: str, *groups: str, exemptions: tuple[str, ...] | None = None) -> bool:
    options = ClusterOptions() if exemptions is None else ClusterOptions(exemptions=exemptions)
    return exempt(Identity(username, groups, ()), options, POLICY_GROUPS)


@pytest.mark.parametrize(
    ("username", "groups", "expected"),
    [
        ("system:node:n1", ("system:nodes",), True),
        ("system:node:n1", (), True),
        ("kubelet", ("system:nodes",), True),
        ("admin", ("system:masters",), True),
        ("bob", ("devs",), False),
        # On every request there is: sparing them would spare everybody.
        ("bob", ("system:authenticated",), False),
        ("bob", ("system:unauthenticated", "system:authenticated"), False),
        ("system:node:n1", ("system:authenticated",), True),
        # Each group has to match, whatever the name is.
        ("system:node:n1", ("system:nodes", "devs"), False),
        ("system:kube-scheduler", ("devs", "system:authenticated"), False),
        ("my-system:node", (), False),
        ("", (), False),
    ],
)
def test_by_default_what_is_kubernetes_own_is_spared(
    username: str, groups: tuple[str, ...], expected: bool
) -> None:
    assert spared(username, *groups) is expected


def test_an_asterisk_stands_for_anything_only_at_the_end() -> None:
    exemptions = ("ci-*", "*bot", "exact", "system:authenticated")
    assert spared("ci-1", exemptions=exemptions)
    assert spared("ci-", exemptions=exemptions)
    assert spared("bob", "exact", exemptions=exemptions)
    assert spared("*bot", exemptions=exemptions)
    assert not spared("robot", exemptions=exemptions)
    assert not spared("exactly", exemptions=exemptions)
    assert not spared("ci", exemptions=exemptions)
    assert not spared("system:node:n", exemptions=exemptions)
    assert not spared("bob", "system:authenticated", exemptions=exemptions)
    assert spared("anybody", exemptions=("*",))
    assert not spared("system:node", exemptions=())


@pytest.mark.parametrize(
    ("username", "groups"),
    [
        ("bob", ("clustercert:admins",)),
        ("bob", ("system:nodes", "clustercert:admins")),
        ("bob", ("clustercert:credential:" + "0" * 40,)),
        ("bob", ("clustercert:service",)),
        ("clustercert:service", ()),
        ("clustercert:anything", ("system:nodes",)),
        ("bob", ("auditors",)),
        ("system:node:n1", ("system:nodes", "system:auditors")),
        ("auditors", ()),
    ],
)
@pytest.mark.parametrize("exemptions", [("*",), ("clustercert:*", "auditors", "*"), ("system:*",)])
def test_a_name_or_group_of_ours_is_never_spared(
    username: str, groups: tuple[str, ...], exemptions: tuple[str, ...]
) -> None:
    assert not spared(username, *groups, exemptions=exemptions)
