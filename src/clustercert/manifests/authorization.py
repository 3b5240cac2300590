"""How kube-apiserver asks this service: the AuthorizationConfiguration, and the kubeconfigs of its webhooks.

The times were measured on kube-apiserver 1.32.13 and 1.36.2.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from clustercert.manifests import MASTERS, OUR_PREFIX, to_yaml
from clustercert.manifests.cel import exempt, has_credential_group, has_x509, in_groups
from clustercert.model import JsonObject

FailurePolicy = Literal["NoOpinion", "Deny"]
Mode = Literal["default", "known-only"]

AUTHORIZER = "clustercert"
"""The name of this service among a cluster's authorizers."""

# No certificate of ours has so many.
MANY_GROUPS = 128

_KEPT = """\
clustercert answers "denied" or "no opinion", and never "allowed": RBAC goes on deciding what anybody may do.

unauthorizedTTL  how long the API server keeps either answer, and so how long a revoked certificate may still work, on
                 top of the second in which a revocation reaches every worker of clustercert. Measured: with 2s, a
                 certificate in use was refused 1.2 seconds after its revocation; a longer time saves calls. Lifting a
                 denial takes as long. "0s" would mean the default of 30s.
authorizedTTL    how long it keeps "allowed", which clustercert never says. It is short here for the case that another
                 program is asked in its place.
                 From Kubernetes 1.34 on, `cacheUnauthorizedRequests: false` keeps nothing (measured on 1.36: refused
                 0.06 seconds later); 1.32 refuses a file with that field, and keeps the one that it has.
failurePolicy    what happens while clustercert doesn't answer."""

_FAILURE = {
    "NoOpinion": """\
                 NoOpinion: RBAC decides alone, so that nobody is locked out, and what is revoked works again for as
                 long as clustercert is away or is kept from answering.""",
    "Deny": """\
                 Deny: whoever the conditions below select gets HTTP 500 while clustercert is away. Where clustercert
                 runs in this very cluster, nobody who is selected can repair it: see README.md.""",
}

_WHEN = {
    "default": """\
matchConditions  who costs a call: callers with a certificate of clustercert, which has a group whose name begins with
                 clustercert:credential:. All others cost none: nodes, service accounts, anonymous health checks.""",
    "known-only": """\
matchConditions  who costs a call: callers with a client certificate (from 1.32 on the API server tells which), except
                 those whose every group, or whose name where they have none, matches the cluster's exemptions. Service
                 accounts and anonymous health checks cost none.""",
}

_OLDER = """\
                 Certificates that were issued without that group are alive until {until}. For them, callers with a
                 client certificate who are in a group of the policy cost a call too. Write the files again after that
                 time."""


@dataclass(frozen=True, slots=True)
class Asking:
    """When and how an API server asks.

    Attributes:
        mode: whether foreign certificates are asked about too.
        groups: the Kubernetes groups that the policy gives.
        unnumbered_until: when the cluster's last certificate without a credential group ends; None where all have one.
        exemptions: patterns of the users and groups that `known-only` spares.
        authorized_ttl, unauthorized_ttl, timeout: durations as Go writes them, such as 2s or 1m30s.
        kubeconfig: the path of the webhook's kubeconfig on the control plane.
    """

    mode: Mode
    groups: tuple[str, ...]
    unnumbered_until: datetime | None
    exemptions: tuple[str, ...]
    failure_policy: FailurePolicy
    authorized_ttl: str
    unauthorized_ttl: str
    timeout: str
    kubeconfig: str


def authorization_comment(asking: Asking) -> str:
    """What the file's reader should know before they change a number in it."""
    lines = [_KEPT, _FAILURE[asking.failure_policy], _WHEN[asking.mode]]
    if asking.mode == "default" and asking.unnumbered_until is not None:
        lines.append(_OLDER.format(until=f"{asking.unnumbered_until:%Y-%m-%d %H:%M} UTC"))
    return "\n".join(lines)


def authorization_configuration(asking: Asking, previous: JsonObject | None = None) -> JsonObject:
    """The file of --authorization-config: this service first, then what kubeadm has by default.

    Attributes:
        previous: the file as it was; whatever a setup doesn't write stays as it is there.
    """
    if previous is None:
        return {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthorizationConfiguration",
            "authorizers": [
                {"type": "Webhook", "name": AUTHORIZER, "webhook": _webhook(asking)},
                {"type": "Node", "name": "node"},
                {"type": "RBAC", "name": "rbac"},
            ],
        }
    authorizers = cast("list[dict[str, dict[str, object]]]", previous["authorizers"])
    merged = [
        {**each, "webhook": {**each["webhook"], **_webhook(asking)}} if is_ours(each) else each
        for each in authorizers
    ]
    return {**previous, "authorizers": merged}


def is_ours(authorizer: Mapping[str, object]) -> bool:
    """Whether an entry of an AuthorizationConfiguration asks this service."""
    return authorizer.get("type") == "Webhook" and authorizer.get("name") == AUTHORIZER


def _webhook(asking: Asking) -> JsonObject:
    return {
        "authorizedTTL": asking.authorized_ttl,
        "unauthorizedTTL": asking.unauthorized_ttl,
        "timeout": asking.timeout,
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": asking.failure_policy,
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": asking.kubeconfig},
        "matchConditions": [{"expression": each} for each in match_conditions(asking)],
    }


def match_conditions(asking: Asking) -> Sequence[str]:
    """CEL over `request`, a SubjectAccessReview's spec; a call is made where all of them hold."""
    # A member of system:masters passes before any webhook is asked.
    others = [group for group in asking.groups if group != MASTERS and not group.startswith(OUR_PREFIX)]
    # Kubernetes bounds what a condition may cost; whoever has so many groups is asked about without a look at them.
    numbered = f"size(request.groups) > {MANY_GROUPS} || {has_credential_group('request.groups')}"
    shown = has_x509("request.extra")
    if asking.mode == "known-only":
        ours = [group for group in asking.groups if not group.startswith(OUR_PREFIX)]
        return (f"{numbered} || ({shown} && !{exempt(asking.exemptions, ours)})",)
    if asking.unnumbered_until is None:
        return (numbered,)
    return (f"{numbered} || ({shown} && {in_groups(others, [OUR_PREFIX])})",)


def webhook_kubeconfig(url: str, ca_pem: bytes | None, token: str) -> str:
    """Where a webhook is and how to authenticate to it, YAML. It holds the token: for files of mode 0600.

    Attributes:
        ca_pem: of the CA that signed the service's certificate; None leaves it to the CAs of the control plane's
            operating system.
    """
    authority = {"certificate-authority-data": base64.b64encode(ca_pem).decode()} if ca_pem else {}
    document: JsonObject = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "clustercert", "cluster": {"server": url, **authority}}],
        "users": [{"name": "kube-apiserver", "user": {"token": token}}],
        "contexts": [{"name": "webhook", "context": {"cluster": "clustercert", "user": "kube-apiserver"}}],
        "current-context": "webhook",
    }
    return to_yaml([document])
