"""The double's chain of authorizers, held to what was measured on kube-apiserver 1.32 and 1.36."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from support.apiserver import ApiServer
from support.apiserver.authorization import ConfigurationError
from support.apiserver.files import replace_file
from support.apiserver.webhook import Release
from support.apiserver_clients import client_of
from support.certificate_authority import Authority
from support.scripted_webhook import (
    CREDENTIAL_ID,
    OURS,
    TOKEN,
    ScriptedWebhook,
    configuration,
    namespaces,
    review,
)

IS_X509 = (
    f"has(request.extra) && '{CREDENTIAL_ID}' in request.extra && "
    f"request.extra['{CREDENTIAL_ID}'].exists(c, c.startsWith('X509SHA256='))"
)


@pytest.mark.parametrize(
    ("release", "metadata"), [("1.32", '{"creationTimestamp":null}'), ("1.36", "{}")], ids=["1.32", "1.36"]
)
def test_the_webhook_is_asked_byte_for_byte_as_recorded(
    tmp_path: Path, authority: Authority, webhook: ScriptedWebhook, release: Release, metadata: str
) -> None:
    identity_pem = authority.client_identity_pem("bob", ["issuer:cluster-admins", "issuer:devs"])
    der = x509.load_pem_x509_certificate(identity_pem).public_bytes(serialization.Encoding.DER)
    with ApiServer(tmp_path, release) as apiserver:
        apiserver.trust(authority.certificate_pem)
        apiserver.authorize_with(configuration(tmp_path, webhook, timeout="3s"))
        with client_of(apiserver, tmp_path, identity_pem) as client:
            assert namespaces(client).status_code == 403

    (asked,) = webhook.asked
    assert asked.body.decode() == (
        '{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":' + metadata + ","
        '"spec":{"resourceAttributes":{"verb":"list","version":"v1","resource":"namespaces"},"user":"bob",'
        '"groups":["issuer:cluster-admins","issuer:devs","system:authenticated"],'
        '"extra":{"authentication.kubernetes.io/credential-id":["X509SHA256='
        + hashlib.sha256(der).hexdigest()
        + '"]}},"status":{"allowed":false}}'
    )
    assert asked.target == "/authorize?timeout=3s"
    assert (asked.headers["Content-Type"], asked.headers["Authorization"]) == (
        "application/json",
        f"Bearer {TOKEN}",
    )


@pytest.mark.parametrize(
    ("method", "target", "attributes"),
    [
        ("GET", "/version", {"nonResourceAttributes": {"path": "/version", "verb": "get"}}),
        (
            "GET",
            "/apis/apps/v1/namespaces/prod/deployments/web/scale",
            {
                "resourceAttributes": {
                    "namespace": "prod",
                    "verb": "get",
                    "group": "apps",
                    "version": "v1",
                    "resource": "deployments",
                    "subresource": "scale",
                    "name": "web",
                }
            },
        ),
        (
            "GET",
            "/api/v1/namespaces/prod",
            {
                "resourceAttributes": {
                    "namespace": "prod",
                    "verb": "get",
                    "version": "v1",
                    "resource": "namespaces",
                    "name": "prod",
                }
            },
        ),
        (
            "GET",
            "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1",
            {
                "resourceAttributes": {
                    "verb": "watch",
                    "version": "v1",
                    "resource": "pods",
                    "fieldSelector": {
                        "requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]
                    },
                }
            },
        ),
        (
            "DELETE",
            "/api/v1/namespaces/prod/configmaps",
            {
                "resourceAttributes": {
                    "namespace": "prod",
                    "verb": "deletecollection",
                    "version": "v1",
                    "resource": "configmaps",
                }
            },
        ),
    ],
)
def test_the_webhook_is_told_what_is_wanted(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    tmp_path: Path,
    webhook: ScriptedWebhook,
    method: str,
    target: str,
    attributes: dict[str, object],
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook))

    as_bob.request(method, target)

    spec = json.loads(webhook.asked[0].body)["spec"]
    del spec["user"], spec["groups"], spec["extra"]
    assert spec == attributes


def test_a_denial_wins_over_rbac_and_no_opinion_leaves_it_to_rbac(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    authority: Authority,
    tmp_path: Path,
    webhook: ScriptedWebhook,
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook))
    assert namespaces(as_bob).status_code == 200

    webhook.answer = lambda _review: review(allowed=False, denied=True, reason="webhook says no")
    denied = as_bob.get("/api/v1/namespaces/default")
    discovery = as_bob.get("/version")

    assert denied.status_code == 403
    assert denied.json()["message"].endswith(": webhook says no")
    assert discovery.status_code == 403
    assert [seen.status for seen in apiserver.seen] == [200, 403, 403]


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
def test_the_token_is_sent_over_https_only(
    apiserver: ApiServer, as_bob: httpx2.Client, tmp_path: Path, *, tls: bool
) -> None:
    with ScriptedWebhook(tls=tls) as webhook:
        apiserver.authorize_with(configuration(tmp_path, webhook))
        namespaces(as_bob)
        (asked,) = webhook.asked

    assert webhook.url.startswith("https:" if tls else "http:")
    assert asked.headers.get("Authorization") == (f"Bearer {TOKEN}" if tls else None)


def test_denying_one_certificate_leaves_the_persons_other_one_alone(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    authority: Authority,
    tmp_path: Path,
    webhook: ScriptedWebhook,
) -> None:
    """The cache's key is the whole spec, and so tells them apart too."""
    apiserver.authorize_with(configuration(tmp_path, webhook))
    assert namespaces(as_bob).status_code == 200
    denied_id = json.loads(webhook.asked[0].body)["spec"]["extra"][CREDENTIAL_ID]
    apiserver.authorize_with(configuration(tmp_path, webhook))
    webhook.answer = lambda asked: review(
        allowed=False, denied=asked["spec"]["extra"][CREDENTIAL_ID] == denied_id
    )
    second_pem = authority.client_identity_pem("bob", ["issuer:cluster-admins", "issuer:devs"])

    with client_of(apiserver, tmp_path, second_pem) as second:
        assert (namespaces(as_bob).status_code, namespaces(second).status_code) == (403, 200)


def test_saying_both_is_an_internal_error(
    apiserver: ApiServer, as_bob: httpx2.Client, tmp_path: Path, webhook: ScriptedWebhook
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook))
    webhook.answer = lambda _review: review(allowed=True, denied=True)

    answer = namespaces(as_bob)

    assert answer.status_code == 500
    assert answer.text.startswith('Internal Server Error: "/api/v1/namespaces": ')


@pytest.mark.parametrize(
    ("first", "ttl"),
    [
        ({"allowed": False}, "unauthorizedTTL"),
        ({"allowed": False, "denied": True}, "unauthorizedTTL"),
        ({"allowed": True}, "authorizedTTL"),
    ],
    ids=["no opinion", "denied", "allowed"],
)
def test_an_answer_is_kept_for_its_time(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    tmp_path: Path,
    webhook: ScriptedWebhook,
    first: dict[str, bool],
    ttl: str,
) -> None:
    short = {"authorizedTTL": "1m", "unauthorizedTTL": "1m", ttl: "10s"}
    apiserver.authorize_with(configuration(tmp_path, webhook, **short))
    webhook.answer = lambda _review: review(**first)
    before = namespaces(as_bob).status_code
    webhook.answer = lambda _review: review(allowed=False, denied=not first.get("denied", False))

    kept = namespaces(as_bob).status_code
    apiserver.now = lambda: datetime.now(UTC) + timedelta(seconds=10)
    after = namespaces(as_bob).status_code

    assert (kept, {before, after}) == (before, {200, 403})
    assert len(webhook.asked) == 2


def test_system_masters_pass_unasked_whatever_the_webhook_says(
    apiserver: ApiServer, tmp_path: Path, authority: Authority, webhook: ScriptedWebhook
) -> None:
    apiserver.trust(authority.certificate_pem)
    apiserver.authorize_with(configuration(tmp_path, webhook, failurePolicy="Deny"))
    webhook.answer = lambda _review: review(allowed=False, denied=True)
    with client_of(apiserver, tmp_path, authority.client_identity_pem("root", ["system:masters"])) as client:
        while_up = namespaces(client).status_code
        webhook.stop()
        while_down = namespaces(client).status_code

    assert (while_up, while_down, webhook.asked) == (200, 200, [])


def test_match_conditions_spare_whom_they_do_not_select(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    authority: Authority,
    tmp_path: Path,
    webhook: ScriptedWebhook,
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook, IS_X509, OURS, failurePolicy="Deny"))
    webhook.answer = lambda _review: review(allowed=False, denied=True)
    with (
        client_of(apiserver, tmp_path, authority.client_identity_pem("eve", ["others"])) as other,
        client_of(apiserver, tmp_path, None) as anonymous,
    ):
        statuses = [client.get("/readyz").status_code for client in (other, anonymous, as_bob)]

    assert statuses == [200, 200, 403]
    assert len(webhook.asked) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"cacheUnauthorizedRequests": False},
        {"unauthorizedTTL": "-1s"},
        {"timeout": "0s"},
        {"timeout": "31s"},
        {"failurePolicy": "Allow"},
        {"subjectAccessReviewVersion": "v2"},
        {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "relative.kubeconfig"}},
        {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/nonexistent/kubeconfig"}},
        {"matchConditions": [{"expression": "request.user =="}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_bad_file_is_refused_and_the_good_one_stays(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    tmp_path: Path,
    webhook: ScriptedWebhook,
    changes: dict[str, object],
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook))
    webhook.answer = lambda _review: review(allowed=False, denied=True)

    path = configuration(tmp_path, webhook, **changes)

    assert namespaces(as_bob).status_code == 403
    assert len(apiserver.complaints) == 1
    with pytest.raises(ConfigurationError):
        apiserver.authorize_with(path)


def test_rbac_may_not_be_dropped_and_a_good_file_is_taken_at_once(
    apiserver: ApiServer, as_bob: httpx2.Client, tmp_path: Path, webhook: ScriptedWebhook
) -> None:
    path = configuration(tmp_path, webhook)
    apiserver.authorize_with(path)
    webhook.answer = lambda _review: review(allowed=False, denied=True)
    document = yaml.safe_load(path.read_text())

    document["authorizers"].pop()
    replace_file(path, yaml.safe_dump(document).encode())
    without_rbac = namespaces(as_bob).status_code
    document["authorizers"] = [{"type": "RBAC", "name": "rbac"}]
    replace_file(path, yaml.safe_dump(document).encode())
    without_webhook = namespaces(as_bob).status_code

    assert (without_rbac, without_webhook) == (403, 200)
    assert list(apiserver.complaints) == ["missing required types: [RBAC]"]
