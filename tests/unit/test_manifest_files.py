"""Files of kubernetes setup: flags, RBAC, audit policy, kubeconfigs."""

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from clustercert.kubernetes.setup.admission import CONFIG_MAP
from clustercert.kubernetes.setup.audit_policy import audit_policy
from clustercert.kubernetes.setup.authorization import api_server_flags
from clustercert.kubernetes.setup.documents import commented
from clustercert.kubernetes.setup.files import files
from clustercert.kubernetes.setup.rbac import bindings, service_access
from clustercert.kubernetes.setup.values import NAMES
from clustercert.model import ClusterOptions
from support.cluster_setup import cluster_setup

# Flags of kube-apiserver 1.32 and 1.36 that these tests use.
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


def test_the_service_has_only_the_rights_it_needs() -> None:
    rules = [
        (document["kind"], rule["resources"], rule.get("resourceNames"), rule["verbs"])
        for document in service_access(["view", "edit", "view"])
        for rule in document.get("rules", ())  # type: ignore[attr-defined] # a list
    ]
    assert rules == [
        ("Role", ["configmaps"], [CONFIG_MAP], ["get", "update", "patch"]),
        ("Role", ["configmaps"], None, ["create"]),
        ("Role", ["endpointslices"], None, ["get", "list"]),
        ("ClusterRole", ["clusterrolebindings"], None, ["get", "list", "create", "delete"]),
        ("ClusterRole", ["clusterroles"], ["edit", "view"], ["bind"]),
    ]
    assert {document["kind"] for document in service_access([])} == {"Role", "RoleBinding"}


def test_the_readme_says_how_to_replace_the_client_ca() -> None:
    one = cluster_setup()
    two = replace(one, client_cas_pem=one.client_cas_pem * 2)
    notice = "**A rotation is running: `client-ca.pem` has the old and the new client CA.**"
    for distribution, steps in (
        ("kubeadm", "The API server reloads the bundle. Step 3 is\n   not needed."),
        ("talos", "Do the steps 2 and 3 for all control-plane nodes, one at a time."),
    ):
        text = files(cluster_setup(distribution=distribution))["README.md"]
        _, _, section = text.partition("## Replace the client CA\n")
        assert steps in section.partition("\n## ")[0]
        assert notice not in text
    assert notice in files(two)["README.md"]
    assert files(two)["client-ca.pem"].count("BEGIN CERTIFICATE") == 2


# Control plane


def test_the_audit_policy_logs_masters_and_our_groups_first() -> None:
    rules: Any = audit_policy(("clustercert:admins",))["rules"]
    approvals, first, quiet, rest = rules
    resources = [{"group": "certificates.k8s.io", "resources": ["certificatesigningrequests/approval"]}]
    assert approvals == {"level": "RequestResponse", "verbs": ["update", "patch"], "resources": resources}
    assert first == {"level": "Metadata", "userGroups": ["system:masters", "clustercert:admins"]}
    assert quiet["level"] == "None"
    assert rest == {"level": "Metadata"}


def test_the_kubeadm_patch_has_flags_and_volume() -> None:
    api_server: Any = yaml.safe_load(files(cluster_setup(control_plane_dir="/etc/k"))["kubeadm.yaml"])[
        "apiServer"
    ]
    flags = {each["name"]: each["value"] for each in api_server["extraArgs"]}
    assert flags == {
        "client-ca-file": "/etc/k/client-ca-bundle.pem",
        "authorization-config": "/etc/k/authorization-config.yaml",
        "audit-policy-file": "/etc/k/audit-policy.yaml",
        "audit-webhook-config-file": "/etc/k/audit-webhook.kubeconfig",
    }
    assert {f"--{flag}" for flag in flags} <= FLAGS_OF_KUBE_APISERVER
    (volume,) = api_server["extraVolumes"]
    assert (volume["hostPath"], volume["mountPath"], volume["readOnly"]) == ("/etc/k", "/etc/k", True)


def test_no_flag_makes_an_api_server_discard_audit_events() -> None:
    # Truncation discards events over 100 KB; a mode other than batch keeps requests waiting.
    assert [flag for flag in api_server_flags(cluster_setup()) if flag.startswith("audit-")] == [
        "audit-policy-file",
        "audit-webhook-config-file",
    ]
    written = files(cluster_setup())["README.md"]
    assert "--audit-webhook-truncate-enabled" in written
    assert "--audit-webhook-truncate-enabled" not in [line.strip() for line in written.splitlines()]


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
def test_all_files_parse_and_only_kubeconfigs_contain_the_token(
    failure_policy: Any, mode: Any, options: ClusterOptions
) -> None:
    written = files(cluster_setup(options, failure_policy=failure_policy, mode=mode))
    assert written.keys() <= set(NAMES)
    for name, content in written.items():
        assert ("ccw_secret" in content) == name.endswith(".kubeconfig")
        assert all(line == line.rstrip() for line in content.splitlines())
        if name.endswith((".yaml", ".kubeconfig")):
            assert all(isinstance(document, dict) for document in yaml.safe_load_all(content))
    text = written["README.md"]
    assert all(name in text for name in written if name != "README.md")
    assert ("deadlock" in text) == (failure_policy == "Deny")
    assert ("kubectl --as" in text) == options.admission
    assert ("--exempt kubeadm:cluster-admins" in text) == (mode == "known-only")
    assert ("`credential.exempt`" in text) == (mode == "known-only")
    assert ("Attention" in text) == (mode == "default" and options.mode == "known-only")
    flags = set(re.findall(r"--[a-z][a-z-]+", text))
    assert flags - FLAGS_OF_KUBE_APISERVER <= OPTIONS_OF_OTHERS


# Options of clustercert, kubectl, kubeadm and crictl.
OPTIONS_OF_OTHERS = {
    "--allow-certificate-requests",
    "--as",
    "--config",
    "--webhook-mode",
    "--no-admission",
    "--no-credential-roles",
    "--exempt",
    "--cluster",
    "--force",
    "--ignore-not-found",
    "--local",
    "--out",
    "--pin",
    "--pin-components",
    "--mode",
    "--name",
    "--kubernetes-version",
    "--no-audit",
}


def test_readme_omits_kubeadm_administrators_that_are_exempt() -> None:
    names = ("system:kube-controller-manager", "system:kube-scheduler", "kubeadm:cluster-admins")
    exempt = ClusterOptions(exemptions=names)
    assert "--exempt kubeadm" not in files(cluster_setup(exempt, mode="known-only"))["README.md"]
    pinned = files(cluster_setup(replace(exempt, pin_components=True), mode="known-only"))["README.md"]
    assert "Before each renewal, pin the new certificates" in " ".join(pinned.split())


def test_files_that_are_not_needed_are_not_written() -> None:
    plain = files(cluster_setup(audit=False))
    assert (
        not {
            *("audit-policy.yaml", "audit-webhook.kubeconfig", "admission.yaml"),
            *("service-access.yaml", "service-accounts.yaml"),
        }
        & plain.keys()
    )
    assert "--audit-policy-file" not in plain["README.md"]
    assert "audit" not in plain["kubeadm.yaml"]
    assert {"admission.yaml", "service-access.yaml"} <= files(
        cluster_setup(ClusterOptions(admission=True))
    ).keys()
    bound = files(cluster_setup(ClusterOptions(credential_roles={"admin": "edit"})))
    assert "admission.yaml" not in bound
    kinds = [document["kind"] for document in yaml.safe_load_all(bound["service-access.yaml"])]
    # The namespace of a Role must exist first.
    assert kinds[0] == "Namespace"


def test_the_right_to_ask_about_tokens_is_written_only_if_asked_for() -> None:
    written = files(cluster_setup(service_accounts="review"))
    role, binding = yaml.safe_load_all(written["service-accounts.yaml"])
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == ["clustercert:service"]
    assert "kubectl apply -f service-accounts.yaml" in written["README.md"]
    [keys] = yaml.safe_load_all(files(cluster_setup(service_accounts="keys"))["service-accounts.yaml"])
    assert keys["roleRef"]["name"] == "system:service-account-issuer-discovery"


BIND = "kubectl create clusterrolebinding NAME --clusterrole edit --group GROUP\n"


def test_rbac_file_names_unbound_groups() -> None:
    written = files(cluster_setup())
    assert "auditors" in written["rbac.yaml"]
    assert BIND not in written["README.md"]


def test_without_bindings_the_readme_says_how_to_bind() -> None:
    templates = files(cluster_setup(groups=(), templates=("team:{group}",), bind={}))
    unbound = files(cluster_setup(bind={}))
    for written, reason in (
        (templates, "The policy's groups come from templates (`team:{group}`)"),
        (unbound, "These files bind none of the policy's groups"),
    ):
        assert "rbac.yaml" not in written
        assert "kubectl apply -f rbac.yaml" not in written["README.md"]
        assert reason in written["README.md"]
        assert BIND in written["README.md"]
    assert (
        "`kubectl create clusterrolebinding team-blue --clusterrole edit --group team:team-blue`"
        in " ".join(templates["README.md"].split())
    )
    # The certificates have none of the policy's groups.
    options = ClusterOptions(credential_roles={"admin": "edit"})
    assert BIND not in files(cluster_setup(options, bind={}))["README.md"]


def test_without_objects_the_readme_has_no_empty_command() -> None:
    written = files(cluster_setup(groups=(), bind={}, certificate_requests=False))
    assert "```console\n\n```" not in written["README.md"]
    assert "There is nothing to apply." in written["README.md"]
    assert BIND not in written["README.md"]


def test_every_comment_line_begins_with_a_hash() -> None:
    assert commented("a\n\nb: c", "d: e\n") == "# a\n#\n# b: c\nd: e\n"


def test_bindings_of_similar_groups_have_different_names() -> None:
    made = bindings({"a/b": "view", "a-b": "view", "a%b": "view"})
    found = [document["metadata"]["name"] for document in made]  # type: ignore[index] # an object
    assert len(set(found)) == len(found)
    assert not any(set(name) & set("/%") for name in found)
