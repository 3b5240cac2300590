"""Exemptions of `known-only`. `test_manifests` compares them with the match conditions of API servers."""

import pytest

from clustercert.model import ClusterOptions
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.rules import groups_and_templates
from clustercert.policy.templates import exempted_template, exemption_of, is_exempt

POLICY_GROUPS = ("auditors", "system:auditors", "team:{group}", "{group}:x", "system:{role}", "a:b{role}")


def exempted(username: str, *groups: str, exemptions: tuple[str, ...] | None = None) -> bool:
    options = ClusterOptions() if exemptions is None else ClusterOptions(exemptions=exemptions)
    return exemption_of(username, groups, options, POLICY_GROUPS) is not None


@pytest.mark.parametrize(
    ("username", "groups", "expected"),
    [
        ("system:node:n1", ("system:nodes",), True),
        ("system:node:n1", (), False),
        # The group alone exempts no other name.
        ("kubelet", ("system:nodes",), False),
        ("system:kube-controller-manager", ("system:nodes",), False),
        ("system:kube-controller-manager", (), False),
        ("admin", ("system:masters",), False),
        ("bob", ("devs",), False),
        # Every request has one of these groups.
        ("bob", ("system:authenticated",), False),
        ("bob", ("system:unauthenticated", "system:authenticated"), False),
        ("system:node:n1", ("system:nodes", "system:authenticated"), True),
        # All groups must match.
        ("system:node:n1", ("system:nodes", "devs"), False),
        ("system:kube-scheduler", ("devs", "system:authenticated"), False),
        ("my-system:node", (), False),
        ("", (), False),
    ],
)
def test_only_kubelets_are_exempt_by_default(username: str, groups: tuple[str, ...], expected: bool) -> None:
    assert exempted(username, *groups) is expected


def test_a_name_of_kubernetes_must_be_exempt_itself() -> None:
    assert exempted("bob", "ops", exemptions=("ops",))
    assert not exempted("system:kube-scheduler", "ops", exemptions=("ops",))
    assert exempted("system:kube-scheduler", "ops", exemptions=("ops", "system:kube-scheduler"))
    assert exempted("system:node:n1", "system:nodes", "ops", exemptions=("ops", "system:nodes"))


@pytest.mark.parametrize(
    ("username", "groups"),
    [("system:kube-scheduler", ()), ("bob", ("ops",)), ("system:node:n", ("ops", "system:nodes"))],
)
def test_pins_are_for_all_exempt_certificates_but_those_of_kubelets(
    username: str, groups: tuple[str, ...]
) -> None:
    pinned, exemptions = "ab" * 32, ("system:nodes", "system:kube-scheduler", "ops")
    options = ClusterOptions(exemptions=exemptions, pins=(pinned,), pin_components=True)
    assert is_exempt(username, groups, (pinned,), options, ())
    assert not is_exempt(username, groups, ("cd" * 32,), options, ())
    assert not is_exempt(username, groups, (), options, ())
    assert is_exempt("system:node:n", ("system:nodes",), (), options, ())
    assert not is_exempt("eve", (), (pinned,), options, ())


def test_an_asterisk_is_a_wildcard_only_at_the_end() -> None:
    exemptions = ("ci-*", "*bot", "exact", "system:authenticated")
    assert exempted("ci-1", exemptions=exemptions)
    assert exempted("ci-", exemptions=exemptions)
    assert exempted("bob", "exact", exemptions=exemptions)
    assert exempted("*bot", exemptions=exemptions)
    assert not exempted("robot", exemptions=exemptions)
    assert not exempted("exactly", exemptions=exemptions)
    assert not exempted("ci", exemptions=exemptions)
    assert not exempted("system:node:n", exemptions=exemptions)
    assert not exempted("bob", "system:authenticated", exemptions=exemptions)
    assert exempted("anybody", exemptions=("*",))
    assert not exempted("system:node", exemptions=())


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
        ("bob", ("team:a",)),
        ("bob", ("system:nodes", "team:")),
        ("bob", ("a:b",)),
        ("team:x", ()),
    ],
)
@pytest.mark.parametrize("exemptions", [("*",), ("clustercert:*", "auditors", "*"), ("system:*",)])
def test_our_names_and_groups_are_never_exempt(
    username: str, groups: tuple[str, ...], exemptions: tuple[str, ...]
) -> None:
    assert not exempted(username, *groups, exemptions=exemptions)


def test_the_templates_of_a_policy_are_among_its_groups() -> None:
    rules = [
        {"grant": {"groups": ["a", "team:{group}"]}},
        {"name": "r", "when": {"roles": ["r"]}, "grant": {"groups": ["{role}"]}},
    ]
    policy = PolicySettings.model_validate({"rules": rules}).policy()
    assert groups_and_templates(policy.rules) == {"a", "team:{group}", "{role}"}


@pytest.mark.parametrize(
    ("pattern", "template"),
    [
        ("ops", "{group}"),
        ("ops*", "{group}"),
        ("*", "{group}"),
        ("ops:x", "{role}:x"),
        ("ops:*", "{role}:x"),
        ("system:*", None),
        ("kubeadm:cluster:admins", None),
        ("kubeadm:cluster:*", None),
    ],
)
def test_a_pattern_for_names_of_a_template_without_a_prefix_is_found(
    pattern: str, template: str | None
) -> None:
    assert exempted_template(pattern, ["team:{group}", "{group}", "{role}:x", "plain"]) == template
    assert exempted_template(pattern, ["team:{group}", "plain"]) is None
