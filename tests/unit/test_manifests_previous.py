"""Reading the files of an earlier setup."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from clustercert.kubernetes.setup import to_yaml
from clustercert.kubernetes.setup.authorization import (
    WebhookConfig,
    authorization_configuration,
    match_conditions,
    webhook_kubeconfig,
)
from clustercert.kubernetes.setup.previous import PreviousSetup, UnreadableFile, read_back
from clustercert.kubernetes.setup.rbac import bindings, issuer_keys_access, token_review_access
from clustercert.model.choices import WebhookMode
from clustercert.pki.certificates import chain_pem
from support import samples

if TYPE_CHECKING:
    from clustercert.model import JsonObject

# A group name that looks like a condition.
ODD = '" || !(g in ["x"] || g.startsWith("clustercert:"))'
WEBHOOK_CONFIG = WebhookConfig(
    mode="default",
    groups=("clustercert:admins", "ops", ODD),
    exemptions=("system:*", "builders"),
    failure_policy="Deny",
    authorized_ttl="1s",
    unauthorized_ttl="1m30s",
    timeout="500ms",
    kubeconfig="/opt/k/webhook.kubeconfig",
)
URL = "https://c.example.com:8443/clustercert/v1/kubernetes/clusters/0f-1e/authorize"
X509 = (
    'has(request.extra) && "authentication.kubernetes.io/credential-id" in request.extra && request.extra'
    '["authentication.kubernetes.io/credential-id"].exists(c, c.startsWith("X509SHA256="))'
)
OURS = 'request.groups.exists(g, g in ["ops", "former"] || g.startsWith("clustercert:"))'
EXEMPT = (
    '(request.user in ["builders"] || request.user.startsWith("system:") || request.groups.exists(g, '
    '!(g in ["system:authenticated", "system:unauthenticated"]) && (g in ["builders"] || g.startsWith("system:"))))'
)


def read(**files: str) -> PreviousSetup:
    """Read files that are given under short names."""
    names = {
        "authorization": "authorization-config.yaml",
        "webhook": "webhook.kubeconfig",
        "other": "webhook-2.kubeconfig",
        "audit": "audit-webhook.kubeconfig",
        "rbac": "rbac.yaml",
        "accounts": "service-accounts.yaml",
    }
    by_name = {names[name]: text for name, text in files.items()}
    return read_back(by_name.get)


def configured(document: Mapping[str, object]) -> str:
    return to_yaml([dict(document)])


def with_conditions(*conditions: str) -> str:
    document: Any = authorization_configuration(WEBHOOK_CONFIG)
    document["authorizers"][0]["webhook"]["matchConditions"] = [{"expression": each} for each in conditions]
    return configured(document)


@pytest.mark.parametrize(
    ("mode", "exemptions", "groups"),
    list(
        itertools.product(
            ("default", "known-only"),
            ((), ("system:*",), ("builders",), ("a", "b", "c*", "d*")),
            ((), ("clustercert:admins",), ("ops", ODD, "system:masters")),
        )
    ),
)
def test_all_written_match_conditions_are_recognised(
    mode: WebhookMode, exemptions: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    webhook = replace(WEBHOOK_CONFIG, mode=mode, exemptions=exemptions, groups=groups)
    found = read(authorization=configured(authorization_configuration(webhook))).authorization
    assert found is not None
    assert found.mode == mode


@pytest.mark.parametrize(
    "conditions",
    [(), (*match_conditions(WEBHOOK_CONFIG), "request.user != 'breakglass'")],
    ids=["none", "an operator's own"],
)
def test_other_match_conditions_have_no_mode(conditions: tuple[str, ...]) -> None:
    found = read(authorization=with_conditions(*conditions)).authorization
    assert found is not None
    assert found.mode is None


def test_durations_and_failure_policy_are_read_back() -> None:
    found = read(authorization=configured(authorization_configuration(WEBHOOK_CONFIG))).authorization
    assert found is not None
    assert (found.authorized_ttl, found.unauthorized_ttl, found.timeout) == ("1s", "1m30s", "500ms")
    assert (found.failure_policy, str(found.kubeconfig)) == ("Deny", "/opt/k/webhook.kubeconfig")


def test_additions_to_the_configuration_are_kept() -> None:
    document: Any = authorization_configuration(WEBHOOK_CONFIG)
    document["apiVersion"] = "apiserver.config.k8s.io/v1beta1"
    document["authorizers"][0]["webhook"]["cacheUnauthorizedRequests"] = False
    document["authorizers"].insert(0, {"type": "Webhook", "name": "other", "webhook": {"timeout": "9s"}})
    found = read(authorization=configured(document)).authorization
    assert found is not None

    again: Any = authorization_configuration(replace(WEBHOOK_CONFIG, unauthorized_ttl="9s"), found.document)

    document["authorizers"][1]["webhook"]["unauthorizedTTL"] = "9s"
    assert again == document


def test_the_kubeconfig_named_in_the_configuration_is_read() -> None:
    ca_pem = chain_pem((samples.cluster().client_ca.certificate,))
    webhook = replace(WEBHOOK_CONFIG, kubeconfig="/opt/k/webhook-2.kubeconfig")
    files = {
        "authorization": configured(authorization_configuration(webhook)),
        "webhook": webhook_kubeconfig(URL, None, "ccw_old"),
    }
    before = read(**files).webhook
    found = read(**files, other=webhook_kubeconfig(URL, ca_pem, "ccw_new")).webhook
    assert before is not None
    assert found is not None
    assert (before.token, before.ca_pem) == ("ccw_old", None)
    assert (found.token, found.ca_pem) == ("ccw_new", ca_pem)
    assert (found.service_url, found.cluster_id) == ("https://c.example.com:8443", "0f-1e")


def test_audit_is_on_if_its_kubeconfig_exists() -> None:
    webhook = webhook_kubeconfig(URL, None, "ccw_t")
    assert read(webhook=webhook, audit=webhook).audit is True
    assert read(webhook=webhook).audit is False
    assert read() == PreviousSetup()


def test_the_access_to_service_accounts_is_read_back() -> None:
    assert read(accounts=to_yaml(token_review_access())).service_accounts == "review"
    assert read(accounts=to_yaml(issuer_keys_access())).service_accounts == "keys"


def test_bindings_are_read_and_other_documents_kept() -> None:
    ours: list[Any] = bindings({"clustercert:admins": "cluster-admin", "ops": "edit"})
    ours[1]["roleRef"]["name"] = "view"
    own: JsonObject = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ops"}}
    labelled: list[JsonObject] = bindings({"ops": "admin"})
    found = read(rbac=to_yaml([*ours, own, *labelled]))
    assert found.bound == {"clustercert:admins": "cluster-admin", "ops": "view"}
    assert found.other_rbac == (own, *labelled)
    nothing = read(rbac="# Not bound here: ops.\n")
    assert (nothing.bound, nothing.other_rbac) == ({}, ())


def changed(**fields: object) -> str:
    document: Any = yaml.safe_load(configured(authorization_configuration(WEBHOOK_CONFIG)))
    document["authorizers"][0]["webhook"].update(fields)
    return configured(document)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("authorization", "a: [", "not YAML"),
        ("authorization", "", "the document is not a mapping"),
        ("authorization", "authorizers: []", "0 webhook authorizers"),
        ("authorization", changed(failurePolicy="Allow"), "failurePolicy is Allow"),
        ("authorization", changed(unauthorizedTTL=5), "unauthorizedTTL is not a non-empty string"),
        ("authorization", changed(matchConditions="x"), "matchConditions is not a list"),
        (
            "authorization",
            changed(connectionInfo={"kubeConfigFile": "relative"}),
            "kubeConfigFile is relative",
        ),
        (
            "authorization",
            changed(connectionInfo={"type": "InClusterConfig"}),
            "kubeConfigFile is not a non-empty string",
        ),
        ("webhook", "- a", "clusters.0.cluster is not a mapping"),
        ("webhook", "clusters: []", "clusters.0.cluster is not a mapping"),
        ("webhook", webhook_kubeconfig("https://c.example.com/authorize", None, "t"), "not the address"),
        ("webhook", webhook_kubeconfig(URL, b"nothing", "t"), "not a PEM file"),
        (
            "webhook",
            webhook_kubeconfig(URL, b"x", "t").replace("authority-data", "authority"),
            "certificate-authority names a file",
        ),
        ("rbac", "[1]", "the document is not a mapping"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_named_with_the_reason(name: str, text: str, reason: str) -> None:
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read(**{name: text})
    assert name in caught.value.name
