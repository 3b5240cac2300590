import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import nouns
from apiserver.expressions import holds, value
from clustercert.certificate import chain_pem
from clustercert.manifests import CREDENTIAL_ID, cel, commented, to_yaml
from clustercert.manifests.access import SERVICE, bindings, service_access
from clustercert.manifests.admission import CONFIG_MAP, MAX_REVOKED, NAMESPACE, admission, storage
from clustercert.manifests.authorization import (
    Asking,
    authorization_comment,
    authorization_configuration,
    match_conditions,
    webhook_kubeconfig,
)
from clustercert.manifests.control_plane import Placed, audit_policy, kubeadm_patch
from clustercert.manifests.folder import NAMES, Setup, files
from clustercert.model import CREDENTIAL_PREFIX, Cluster, ClusterOptions
from clustercert.webhook.exemptions import exempt
from clustercert.webhook.review import Identity

FINGERPRINT = "17ead5a1" * 8
X509 = {CREDENTIAL_ID: [f"X509SHA256={FINGERPRINT}"]}
NUMBER = "5eed" * 10
OWN_GROUP = f"{CREDENTIAL_PREFIX}{NUMBER}"
ANONYMOUS = {"user": "system:anonymous", "groups": ["system:unauthenticated"], "uid": "", "extra": {}}
ASKING = Asking(
    mode="default",
    groups=("clustercert:admins", 'odd "group" \\ é'),
    unnumbered_until=None,
    exemptions=("system:*", "builders"),
    failure_policy="NoOpinion",
    authorized_ttl="5s",
    unauthorized_ttl="2s",
    timeout="3s",
    kubeconfig="/etc/kubernetes/clustercert/webhook.kubeconfig",
)
# Flags of kube-apiserver 1.32 and 1.36, as far as anything here names one.
FLAGS_OF_KUBE_APISERVER = {
    "--audit-log-path",
    "--audit-policy-file",
    "--audit-webhook-config-file",
    "--audit-webhook-truncate-enabled",
    "--authorization-config",
    "--authorization-mode",
    "--authorization-webhook-",
    "--client-ca-file",
}

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
            "system:masters",
            "clustercert:admins",
            "clustercert:",
            OWN_GROUP,
            "dev",
            "*",
        ]
    ),
)


def asked(asking: Asking, spec: Mapping[str, object]) -> bool:
    """Whether an API server calls the webhook; it refuses a condition that is neither true nor false."""
    return all(holds(condition, {"request": spec}) for condition in match_conditions(asking))


def review(
    user: str = "alice", groups: Sequence[str] = (), extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    # Source: staging/src/k8s.io/apiserver/pkg/authorization/cel: all four are there whatever was said.
    return {"user": user, "groups": [*groups, "system:authenticated"], "uid": "", "extra": extra or {}}


def test_in_the_default_mode_only_certificates_with_a_credential_group_cost_a_call() -> None:
    assert asked(ASKING, review(groups=["clustercert:admins", OWN_GROUP], extra=X509))
    assert asked(ASKING, review(groups=[OWN_GROUP], extra=X509))
    # API servers before 1.32 say no credential id.
    assert asked(ASKING, review(groups=["clustercert:admins", OWN_GROUP]))
    assert asked(ASKING, review(groups=[CREDENTIAL_PREFIX], extra={CREDENTIAL_ID: ["JTI=1"]}))
    assert not asked(ASKING, review(groups=["clustercert:admins"], extra=X509))
    assert not asked(ASKING, review(groups=["dev"], extra=X509))
    assert not asked(ASKING, review("system:node:a", ["system:nodes"], X509))
    assert not asked(ASKING, ANONYMOUS)


def test_while_certificates_without_that_group_live_client_certificates_in_our_groups_cost_a_call_too() -> (
    None
):
    asking = replace(ASKING, unnumbered_until=nouns.NOW)
    assert asked(asking, review(groups=["clustercert:admins"], extra=X509))
    assert asked(asking, review(groups=["x", 'odd "group" \\ é'], extra=X509))
    assert asked(asking, review(groups=[f"{CREDENTIAL_PREFIX}01ff"], extra=X509))
    assert asked(asking, review(groups=[OWN_GROUP]))
    assert not asked(asking, review(groups=["dev"], extra=X509))
    assert not asked(asking, review(groups=["clustercert:admins"]))
    assert not asked(asking, review(groups=["clustercert:admins"], extra={CREDENTIAL_ID: ["JTI=1"]}))
    assert not asked(asking, review("system:node:a", ["system:nodes"], X509))
    assert not asked(asking, ANONYMOUS)
    assert "alive until 2026-03-14 15:09 UTC" in authorization_comment(asking)
    assert "alive until" not in authorization_comment(ASKING)


def test_members_of_masters_are_not_named_in_the_default_mode_where_no_webhook_sees_them() -> None:
    for until in (None, nouns.NOW):
        asking = replace(ASKING, groups=("system:masters", "dev"), unnumbered_until=until)
        assert "system:masters" not in "".join(match_conditions(asking))
        assert asked(asking, review(groups=["dev"], extra=X509)) == (until is not None)


@pytest.mark.parametrize("until", [None, nouns.NOW])
def test_in_known_only_every_client_certificate_but_the_exempt_costs_a_call(until: datetime | None) -> None:
    asking = replace(ASKING, mode="known-only", unnumbered_until=until)
    assert asked(asking, review(extra=X509))
    assert asked(asking, review(groups=["dev"], extra=X509))
    assert not asked(asking, review("system:kube-scheduler", extra=X509))
    assert not asked(asking, review("bob", ["builders"], X509))
    assert not asked(asking, review("bob", ["builders", "system:nodes"], X509))
    assert asked(asking, review("bob", ["builders-not"], X509))
    # Each group has to be exempt, whatever the name is.
    assert asked(asking, review("bob", ["builders", "dev"], X509))
    assert asked(asking, review("system:kube-scheduler", ["dev"], X509))
    # What we issued can be revoked whatever exempts it.
    assert asked(asking, review("system:x", ["clustercert:admins"], X509))
    assert asked(asking, review("system:x", ["system:nodes", OWN_GROUP]))
    assert not asked(asking, review("system:serviceaccount:a:b", ["clustercert:admins"]))
    assert asked(replace(asking, exemptions=()), review("system:kube-scheduler", extra=X509))


patterns_of_names = st.lists(st.one_of(some_names, some_names.map(lambda name: f"{name}*"), st.just("*")))


@given(
    user=some_names,
    groups=st.lists(some_names, max_size=4),
    patterns=patterns_of_names,
    policy_groups=st.lists(some_names, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_an_api_server_asks_about_exactly_those_whom_the_webhook_does_not_exempt(
    user: str, groups: list[str], patterns: list[str], policy_groups: list[str]
) -> None:
    who = Identity(user, (*groups, "system:authenticated"), (bytes.fromhex(FINGERPRINT),))
    options = ClusterOptions(mode="known-only", exemptions=tuple(patterns))
    asking = replace(ASKING, mode="known-only", groups=tuple(policy_groups), exemptions=tuple(patterns))
    assert asked(asking, review(user, groups, X509)) != exempt(who, options, policy_groups)
    # Without a client certificate only a credential group costs a call.
    assert asked(asking, review(user, groups)) == any(group.startswith(CREDENTIAL_PREFIX) for group in groups)


@given(
    user=st.one_of(some_names, st.just("")),
    groups=st.lists(some_names, max_size=4),
    patterns=patterns_of_names,
    policy_groups=st.lists(some_names, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_the_condition_of_an_exemption_is_the_rule_of_the_webhook(
    user: str, groups: list[str], patterns: list[str], policy_groups: list[str]
) -> None:
    """Also of an identity that is in no group at all."""
    expected = exempt(
        Identity(user, tuple(groups), ()), ClusterOptions(exemptions=tuple(patterns)), policy_groups
    )
    condition = cel.exempt(patterns, policy_groups)
    assert holds(condition, {"request": {"user": user, "groups": groups}}) is expected


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_itself_in_a_condition(text: str) -> None:
    assert value(cel.string(text), {}) == text


def test_this_service_is_asked_before_rbac_and_the_file_says_all_that_it_must() -> None:
    document = authorization_configuration(replace(ASKING, failure_policy="Deny"))
    assert (document["apiVersion"], document["kind"]) == (
        "apiserver.config.k8s.io/v1",
        "AuthorizationConfiguration",
    )
    webhook, node, rbac = yaml.safe_load(to_yaml([document]))["authorizers"]
    # An API server refuses other names for these two, and a chain without RBAC.
    assert (node, rbac) == ({"type": "Node", "name": "node"}, {"type": "RBAC", "name": "rbac"})
    assert webhook["webhook"] == {
        "authorizedTTL": "5s",
        "unauthorizedTTL": "2s",
        "timeout": "3s",
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "Deny",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": ASKING.kubeconfig},
        "matchConditions": [{"expression": condition} for condition in match_conditions(ASKING)],
    }


def test_the_webhooks_kubeconfig_has_address_ca_and_token() -> None:
    document = yaml.safe_load(webhook_kubeconfig("https://c.example/x", b"PEM", "ccw_secret"))
    (cluster,), (user,) = document["clusters"], document["users"]
    assert cluster["cluster"]["server"] == "https://c.example/x"
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == b"PEM"
    assert user["user"] == {"token": "ccw_secret"}
    assert document["current-context"] == document["contexts"][0]["name"]
    without = yaml.safe_load(webhook_kubeconfig("https://c.example/x", None, "t"))
    assert without["clusters"][0]["cluster"] == {"server": "https://c.example/x"}


# The fallback


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
        # Two are forged; one of them is revoked.
        ([f"{CREDENTIAL_PREFIX}{'0' * 40}", OWN_GROUP], {NUMBER: ""}, False),
    ],
)
@pytest.mark.parametrize("extra", [X509, {CREDENTIAL_ID: [f"X509SHA256={'0' * 64}"]}, {}, None])
def test_the_admission_policy_reads_credential_numbers_whatever_the_hash(
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


@pytest.mark.parametrize(
    ("extra", "data", "expected"),
    [
        (X509, {FINGERPRINT: "2026-01-01T00:00:00Z"}, False),
        (X509, {FINGERPRINT: ""}, False),
        (X509, {"0" * 64: ""}, True),
        (X509, {}, True),
        (X509, None, True),
        ({}, {FINGERPRINT: ""}, True),
        (None, {FINGERPRINT: ""}, True),
        ({CREDENTIAL_ID: [f"JTI={FINGERPRINT}"]}, {FINGERPRINT: ""}, True),
        ({CREDENTIAL_ID: ["X509SHA256=ff", *X509[CREDENTIAL_ID]]}, {FINGERPRINT: ""}, False),
    ],
)
@pytest.mark.parametrize("groups", [[], ["clustercert:admins"], [OWN_GROUP]])
def test_the_admission_policy_refuses_the_revoked_and_nobody_else(
    groups: Sequence[str], extra: Mapping[str, object] | None, data: Mapping[str, str] | None, expected: bool
) -> None:
    """By hash, also of what has a number: until the policy is known to read numbers, both are kept."""
    params = {"metadata": {"name": CONFIG_MAP}} | ({} if data is None else {"data": data})
    assert admits(admission(), {"request": by(extra, groups), "params": params}) is expected


def test_the_admission_policy_sees_every_write_and_outlives_its_parameters() -> None:
    documents = admission()
    policy = policy_of(documents)
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["*/*"]
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE", "CONNECT"}
    assert policy["spec"]["paramKind"] == {"apiVersion": "v1", "kind": "ConfigMap"}
    specs: list[Any] = [document.get("spec", {}) for document in documents]
    (reference,) = (spec["paramRef"] for spec in specs if "paramRef" in spec)
    assert reference == {"name": CONFIG_MAP, "namespace": NAMESPACE, "parameterNotFoundAction": "Allow"}
    # Applied again, it must not take the ids away.
    assert not any("data" in document for document in storage())


def test_as_many_ids_as_are_promised_fit_into_what_etcd_takes() -> None:
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


def test_the_service_binds_the_groups_of_its_credentials_and_nothing_else() -> None:
    roles = ("edit", "view")
    assert guarded(roles, [SERVICE])
    assert guarded(roles, [SERVICE], operation="DELETE")
    assert not guarded(roles, [SERVICE], role="cluster-admin")
    assert not guarded(roles, [SERVICE], subject="system:authenticated")
    assert not guarded(roles, [SERVICE], name="mine")
    assert not guarded(roles, [SERVICE], name="mine", operation="DELETE")
    assert not guarded(roles, [SERVICE], resource={"resource": "rolebindings"}, operation="DELETE")
    assert guarded(roles, ["others"], role="cluster-admin", name="mine")


def test_the_service_may_do_what_it_does_and_no_more() -> None:
    rules = [
        (document["kind"], rule["resources"], rule.get("resourceNames"), rule["verbs"])
        for document in service_access(["view", "edit", "view"])
        for rule in document.get("rules", ())  # type: ignore[attr-defined] # a list
    ]
    assert rules == [
        ("Role", ["configmaps"], [CONFIG_MAP], ["get", "update", "patch"]),
        ("Role", ["configmaps"], None, ["create"]),
        ("ClusterRole", ["clusterrolebindings"], None, ["get", "list", "create", "delete"]),
        ("ClusterRole", ["clusterroles"], ["edit", "view"], ["bind"]),
    ]
    assert {document["kind"] for document in service_access([])} == {"Role", "RoleBinding"}


# Control plane


def test_the_audit_policy_shows_masters_and_our_groups_before_it_leaves_anything_out() -> None:
    rules: Any = audit_policy(("clustercert:admins",))["rules"]
    first, quiet, rest = rules
    assert first == {"level": "Metadata", "userGroups": ["system:masters", "clustercert:admins"]}
    assert quiet["level"] == "None"
    assert rest == {"level": "Metadata"}


def test_kubeadm_gets_the_flags_and_the_folder() -> None:
    placed = Placed("/etc/k", "/etc/k/cas.pem", "/etc/k/a.yaml", "/etc/k/p.yaml", "/etc/k/w")
    api_server: Any = kubeadm_patch(placed)["apiServer"]
    assert {each["name"]: each["value"] for each in api_server["extraArgs"]} == {
        "client-ca-file": "/etc/k/cas.pem",
        "authorization-config": "/etc/k/a.yaml",
        "audit-policy-file": "/etc/k/p.yaml",
        "audit-webhook-config-file": "/etc/k/w",
    }
    assert {f"--{flag}" for flag in placed.flags} <= FLAGS_OF_KUBE_APISERVER
    (volume,) = api_server["extraVolumes"]
    assert (volume["hostPath"], volume["mountPath"], volume["readOnly"]) == ("/etc/k", "/etc/k", True)


def test_no_flag_makes_an_api_server_discard_audit_events() -> None:
    placed = Placed("/etc/k", "/etc/k/cas.pem", "/etc/k/a.yaml", "/etc/k/p.yaml", "/etc/k/w")
    # Truncation discards events over 100 KB; a mode other than batch keeps requests waiting.
    assert [flag for flag in placed.flags if flag.startswith("audit-")] == [
        "audit-policy-file",
        "audit-webhook-config-file",
    ]
    written = files(setup())["README.md"]
    assert "--audit-webhook-truncate-enabled" in written
    assert "--audit-webhook-truncate-enabled" not in [line.strip() for line in written.splitlines()]


def setup(options: ClusterOptions | None = None, **changes: Any) -> Setup:
    cluster: Cluster = replace(nouns.cluster(), options=options or ClusterOptions())
    said: dict[str, Any] = {
        "cluster": cluster,
        "client_cas_pem": chain_pem((cluster.client_ca.certificate,)),
        "service_url": "https://clustercert.example.com",
        "service_ca_pem": b"PEM",
        "token": "ccw_secret",
        "folder": "/etc/kubernetes/clustercert",
        "asking": ASKING,
        "bound": {"clustercert:admins": "cluster-admin"},
        "unbound": ("auditors",),
        "audit": True,
    }
    return Setup(**(said | changes))


@pytest.mark.parametrize("failure_policy", ["NoOpinion", "Deny"])
@pytest.mark.parametrize("mode", ["default", "known-only"])
@pytest.mark.parametrize(
    "options",
    [
        ClusterOptions(),
        ClusterOptions(mode="known-only"),
        ClusterOptions(admission=True),
        ClusterOptions(credential_roles={"admin": "edit"}),
    ],
    ids=["plain", "known-only", "admission", "bindings"],
)
def test_every_file_can_be_read_and_the_token_is_in_the_kubeconfigs_alone(
    failure_policy: Any, mode: Any, options: ClusterOptions
) -> None:
    asking = replace(ASKING, failure_policy=failure_policy, mode=mode)
    written = files(setup(options, asking=asking))
    assert written.keys() <= set(NAMES)
    for name, content in written.items():
        assert ("ccw_secret" in content) == name.endswith(".kubeconfig")
        assert all(line == line.rstrip() for line in content.splitlines())
        if name.endswith((".yaml", ".kubeconfig")):
            assert all(isinstance(document, dict) for document in yaml.safe_load_all(content))
    told = written["README.md"]
    assert all(name in told for name in written if name != "README.md")
    assert ("deadlock" in told) == (failure_policy == "Deny")
    assert ("kubectl --as" in told) == options.admission
    assert ("--exempt kubeadm:cluster-admins" in told) == (mode == "known-only")
    assert ("Attention" in told) == (mode == "default" and options.mode == "known-only")
    flags = set(re.findall(r"--[a-z][a-z-]+", told))
    assert flags - FLAGS_OF_KUBE_APISERVER <= OPTIONS_OF_OTHERS


# Of clustercert itself, of kubectl and of kubeadm.
OPTIONS_OF_OTHERS = {
    "--as",
    "--config",
    "--webhook-mode",
    "--exempt",
    "--cluster",
    "--force",
    "--group",
    "--out",
    "--mode",
    "--no-audit",
}


def test_kubeadms_administrators_are_not_named_where_they_are_exempt() -> None:
    asking = replace(ASKING, mode="known-only", exemptions=("kubeadm:cluster-admins",))
    assert "--exempt" not in files(setup(asking=asking))["README.md"]


def test_what_is_not_asked_for_is_not_written() -> None:
    plain = files(setup(audit=False))
    assert (
        not {"audit-policy.yaml", "audit-webhook.kubeconfig", "admission.yaml", "service-access.yaml"}
        & plain.keys()
    )
    assert "--audit-policy-file" not in plain["README.md"]
    assert "audit" not in plain["kubeadm.yaml"]
    assert {"admission.yaml", "service-access.yaml"} <= files(setup(ClusterOptions(admission=True))).keys()
    bound = files(setup(ClusterOptions(credential_roles={"admin": "edit"})))
    assert "admission.yaml" not in bound
    kinds = [document["kind"] for document in yaml.safe_load_all(bound["service-access.yaml"])]
    # The place of a role has to be there before it.
    assert kinds[0] == "Namespace"


def test_groups_without_a_role_are_named_and_a_policy_without_any_gives_a_file_all_the_same() -> None:
    assert "auditors" in files(setup())["rbac.yaml"]
    nothing = files(setup(bound={}))["rbac.yaml"]
    assert list(yaml.safe_load_all(nothing)) in ([], [None])


def test_a_comment_stays_one() -> None:
    assert commented("a\n\nb: c", "d: e\n") == "# a\n#\n# b: c\nd: e\n"


def test_bindings_of_similar_groups_have_names_of_their_own() -> None:
    made = bindings({"a/b": "view", "a-b": "view", "a%b": "view"})
    found = [document["metadata"]["name"] for document in made]  # type: ignore[index] # an object
    assert len(set(found)) == len(found)
    assert not any(set(name) & set("/%") for name in found)
