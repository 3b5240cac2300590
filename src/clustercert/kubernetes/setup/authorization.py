"""kube-apiserver's AuthorizationConfiguration for this service, and the kubeconfigs of its webhooks.

The times in the comments were measured on kube-apiserver 1.32.13 and 1.36.2.
"""

import base64
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import cast

from clustercert.kubernetes.setup.cel import (
    has_credential_group,
    has_x509,
    is_exempt,
    is_kubelet,
)
from clustercert.kubernetes.setup.choices import FIRST_WITH_V1
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.values import (
    AUDIT_POLICY,
    AUDIT_WEBHOOK,
    AUTHORIZATION,
    Setup,
    WebhookClient,
)
from clustercert.model import JsonObject
from clustercert.model.kubernetes import OUR_PREFIX
from clustercert.yaml_text import MalformedYaml, parse

AUTHORIZER = "clustercert"
"""The name of this service in an AuthorizationConfiguration."""

# The maximum number of groups of a certificate of this service.
MANY_GROUPS = 128

_TTL_COMMENT = """\
clustercert answers "denied" or "no opinion", never "allowed". RBAC still decides what a user may do.

unauthorizedTTL  How long the API server caches both answers. A revoked certificate may work for this time, plus one
                 second until all workers of clustercert know the revocation. Measured with 2s: a certificate in use
                 was denied 1.2 seconds after its revocation. A longer time saves calls. When a revocation is undone,
                 the certificate works again after the same time. "0s" means the default of 30s.
                 From Kubernetes 1.34 on, `cacheUnauthorizedRequests: false` turns this cache off. Measured on 1.36: a
                 certificate was denied after 0.06 seconds. Kubernetes 1.32 rejects a file with that field and keeps
                 the old configuration.
authorizedTTL    How long the API server caches "allowed". clustercert never answers "allowed". The time is short in
                 case another program answers at the same address.
failurePolicy    What happens while clustercert does not answer."""

_FAILURE = {
    "NoOpinion": """\
                 NoOpinion: RBAC decides alone. Nobody is locked out, but revoked certificates work while clustercert
                 is down or blocked.""",
    "Deny": """\
                 Deny: callers that match the conditions below get HTTP 500 while clustercert is down. If clustercert
                 runs in this cluster, these callers can't repair it: see README.md.""",
}

_MATCH_CONDITIONS = {
    "default": """\
matchConditions  Which callers the API server asks about: those with a certificate of clustercert. Such a certificate
                 has a group with the prefix clustercert:credential:. There are no calls for nodes, service accounts
                 and anonymous health checks.""",
    "known-only": """\
matchConditions  Which callers the API server asks about: those with a client certificate (needs Kubernetes 1.32),
                 unless all their groups match the cluster's exemptions. If a caller has no groups, the user
                 name has to match.
                 There are no calls for service accounts and anonymous health checks.""",
}

_PINNED = """\
                 The API server also asks about exempt certificates, except those of kubelets, because the cluster pins
                 them. With failurePolicy Deny, control-plane components fail while clustercert is down."""


def authorization_comment(setup: Setup) -> str:
    """Return the comment that explains the settings at the top of the AuthorizationConfiguration."""
    choices = setup.choices
    lines = [_TTL_COMMENT, _FAILURE[choices.failure_policy], _MATCH_CONDITIONS[choices.mode]]
    if choices.mode == "known-only" and setup.cluster.options.pin_components:
        lines.append(_PINNED)
    return "\n".join(lines)


def authorization_configuration(setup: Setup) -> JsonObject:
    """Return the content of the file for --authorization-config: this service first, then Node and RBAC as in kubeadm.

    Keeps the other fields and authorizers of a previous file.
    """
    base = _DEFAULT if setup.previous_authorization is None else setup.previous_authorization
    authorizers = cast("list[dict[str, dict[str, object]]]", base["authorizers"])
    merged = [
        {**each, "webhook": {**each["webhook"], **_webhook(setup)}} if _is_ours(each) else each
        for each in authorizers
    ]
    minor = setup.choices.minor
    version = "v1beta1" if minor is not None and minor < FIRST_WITH_V1 else "v1"
    return {**base, "apiVersion": f"apiserver.config.k8s.io/{version}", "authorizers": merged}


def parsed_configuration(content: bytes) -> JsonObject | None:
    """Parse an AuthorizationConfiguration.

    Returns `None` unless the configuration has exactly one authorizer for this service.
    """
    try:
        documents = parse(content, "the configuration", aliases=True)
    except MalformedYaml:
        return None
    document = documents[0] if len(documents) == 1 else None
    authorizers = document.get("authorizers") if isinstance(document, dict) else None
    if not isinstance(authorizers, list) or sum(map(_is_ours, authorizers)) != 1:
        return None
    return cast("JsonObject", document)


def own_values(document: JsonObject) -> JsonObject:
    """Return the values that this service sets in a parsed AuthorizationConfiguration.

    Omits the values that the operator sets.
    """
    webhook = _own_webhook(document)
    values: JsonObject = {name: webhook.get(name) for name in _OWN_FIELDS}
    return {
        "apiVersion": document.get("apiVersion"),
        **values,
        "folder": str(kubeconfig_path(document).parent),
    }


def kubeconfig_path(document: JsonObject) -> PurePosixPath:
    """Return the path of the webhook's kubeconfig in a parsed AuthorizationConfiguration."""
    connection = _own_webhook(document).get("connectionInfo")
    return (
        PurePosixPath(str(connection.get("kubeConfigFile")))
        if isinstance(connection, dict)
        else PurePosixPath()
    )


def _own_webhook(document: JsonObject) -> JsonObject:
    authorizers = cast("list[dict[str, JsonObject]]", document["authorizers"])
    return next(each["webhook"] for each in authorizers if _is_ours(each))


_OWN_FIELDS = (
    "authorizedTTL",
    "unauthorizedTTL",
    "timeout",
    "subjectAccessReviewVersion",
    "matchConditionSubjectAccessReviewVersion",
    "failurePolicy",
    "matchConditions",
)
_DEFAULT: JsonObject = {
    "apiVersion": "apiserver.config.k8s.io/v1",
    "kind": "AuthorizationConfiguration",
    "authorizers": [
        {"type": "Webhook", "name": AUTHORIZER, "webhook": {}},
        {"type": "Node", "name": "node"},
        {"type": "RBAC", "name": "rbac"},
    ],
}


def _is_ours(authorizer: object) -> bool:
    """Whether an entry of an AuthorizationConfiguration is for this service."""
    return (
        isinstance(authorizer, dict)
        and (authorizer.get("type"), authorizer.get("name")) == ("Webhook", AUTHORIZER)
        and isinstance(authorizer.get("webhook"), dict)
    )


def _webhook(setup: Setup) -> JsonObject:
    choices = setup.choices
    return {
        "authorizedTTL": choices.authorized_ttl,
        "unauthorizedTTL": choices.unauthorized_ttl,
        "timeout": choices.timeout,
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": choices.failure_policy,
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": setup.kubeconfig},
        "matchConditions": [{"expression": each} for each in match_conditions(setup)],
    }


def match_conditions(setup: Setup) -> Sequence[str]:
    """Return CEL conditions on `request`, the spec of a SubjectAccessReview.

    The API server calls the webhook if all conditions are true.
    """
    # Kubernetes limits the cost of a CEL condition. So the condition is true for every caller with very many groups.
    numbered = f"size(request.groups) > {MANY_GROUPS} || {has_credential_group('request.groups')}"
    if setup.choices.mode == "default":
        return (numbered,)
    ours = [group for group in setup.groups if not group.startswith(OUR_PREFIX)]
    exempt = is_exempt(setup.cluster.options.exemptions, (*ours, *setup.templates))
    if setup.cluster.options.pin_components:
        exempt = f"({exempt} && {is_kubelet()})"
    return (f"{numbered} || ({has_x509('request.extra')} && !{exempt})",)


def webhook_kubeconfig(url: str, ca_pem: str | None, token: str, client: WebhookClient | None = None) -> str:
    """Return a webhook's kubeconfig in YAML. Write the kubeconfig with mode 0600, because it contains secrets.

    Args:
        ca_pem: the CA of the service's TLS certificate; `None` for the CAs of the control plane's operating system.
        client: the API server's client certificate; `None` if the service requires no client certificate.
    """
    authority = {"certificate-authority-data": _base64(ca_pem.encode())} if ca_pem else {}
    identity = {}
    if client is not None:
        identity = {
            "client-certificate-data": _base64(client.certificate_pem),
            "client-key-data": _base64(client.key_pem),
        }
    document: JsonObject = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "clustercert", "cluster": {"server": url, **authority}}],
        "users": [{"name": "kube-apiserver", "user": {"token": token, **identity}}],
        "contexts": [{"name": "webhook", "context": {"cluster": "clustercert", "user": "kube-apiserver"}}],
        "current-context": "webhook",
    }
    return to_yaml([document])


def _base64(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


# The mode Node is first, so that requests of kubelets cause no webhook calls, and succeed while the webhook hangs.
MODES = "Node,Webhook,RBAC"

LIMITS = """\
Before Kubernetes 1.30 an API server has flags instead of an authorization configuration. They don't support failing \
closed, the mode known-only, or a second webhook. The API server asks about every request except those of kubelets \
and of system:masters, and waits up to 30 seconds for an answer."""


def api_server_flags(setup: Setup) -> Mapping[str, str]:
    """Return the flags for kube-apiserver, without the leading dashes."""
    folder, choices = setup.choices.folder, setup.choices
    paths = {"client-ca-file": setup.client_ca_bundle} if setup.adds_ca else {}
    if not choices.uses_flags:
        paths["authorization-config"] = posixpath.join(folder, AUTHORIZATION)
    if choices.audit:
        paths["audit-policy-file"] = posixpath.join(folder, AUDIT_POLICY)
        paths["audit-webhook-config-file"] = posixpath.join(folder, AUDIT_WEBHOOK)
    if not choices.uses_flags:
        return paths
    return {
        **paths,
        "authorization-mode": MODES,
        "authorization-webhook-config-file": setup.kubeconfig,
        # By default, kube-apiserver sends SubjectAccessReviews of version v1beta1.
        "authorization-webhook-version": "v1",
        "authorization-webhook-cache-authorized-ttl": choices.authorized_ttl,
        "authorization-webhook-cache-unauthorized-ttl": choices.unauthorized_ttl,
    }
