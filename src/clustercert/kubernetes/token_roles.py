"""Rights that let the holder of a role keep access after a revocation, or get more rights.

Source: Kubernetes, "Role Based Access Control Good Practices", and the matching of rules in kubernetes,
pkg/apis/rbac/v1/evaluation_helpers.go. The list knows resources of Kubernetes and OpenShift: a custom resource whose
controller starts workloads is not recognized.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustercert.model.token_objects import RBAC

_WRITE = ("create", "update", "patch")
_ANY = "*"


@dataclass(frozen=True, slots=True)
class _Right:
    """A dangerous right.

    A role has the right if a rule allows one of the verbs on one of the resources in one of the groups.

    Attributes:
        verbs: empty for all verbs.
        resources: with subresources, such as `pods/exec`.
    """

    name: str
    groups: Sequence[str]
    resources: Sequence[str]
    verbs: Sequence[str]


_IMPERSONATE = "impersonate"
_DANGEROUS = (
    _Right(
        "start workloads",
        ("",),
        ("pods", "replicationcontrollers", "podtemplates"),
        _WRITE,
    ),
    _Right(
        "start workloads",
        ("apps", "extensions"),
        ("daemonsets", "deployments", "replicasets", "statefulsets"),
        _WRITE,
    ),
    _Right("start workloads", ("batch",), ("jobs", "cronjobs"), _WRITE),
    _Right(
        "start workloads",
        ("apps.openshift.io", "build.openshift.io"),
        ("deploymentconfigs", "builds", "buildconfigs", "buildconfigs/instantiate"),
        _WRITE,
    ),
    _Right("create service accounts", ("",), ("serviceaccounts",), ("create",)),
    _Right("create tokens of service accounts", ("",), ("serviceaccounts/token",), ("create",)),
    _Right(
        "run commands in pods, or connect to them",
        ("",),
        ("pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/proxy"),
        (),
    ),
    _Right("read or write Secrets", ("",), ("secrets",), ("get", "list", "watch", *_WRITE)),
    # In kube-system, ConfigMaps say who may log in: `aws-auth` of Amazon EKS.
    _Right("write ConfigMaps", ("",), ("configmaps",), _WRITE),
    _Right(
        "write users or groups",
        ("user.openshift.io",),
        ("users", "groups", "identities", "useridentitymappings"),
        _WRITE,
    ),
    _Right(
        "write roles or role bindings",
        (RBAC, "authorization.openshift.io"),
        ("roles", "clusterroles", "rolebindings", "clusterrolebindings"),
        _WRITE,
    ),
    _Right("bind or escalate roles", (RBAC,), ("roles", "clusterroles"), ("bind", "escalate")),
    _Right(
        "approve or sign certificate requests",
        ("certificates.k8s.io",),
        ("certificatesigningrequests/approval", "certificatesigningrequests/status"),
        ("update", "patch"),
    ),
    _Right(
        "approve or sign certificate requests", ("certificates.k8s.io",), ("signers",), ("approve", "sign")
    ),
    _Right("connect to nodes or services", ("",), ("nodes/proxy", "services/proxy"), ()),
    _Right(
        "change admission policies, webhooks or API services",
        ("admissionregistration.k8s.io",),
        (
            *("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
            *("mutatingwebhookconfigurations", "validatingadmissionpolicies"),
            *("validatingadmissionpolicybindings", "validatingwebhookconfigurations"),
        ),
        (*_WRITE, "delete", "deletecollection"),
    ),
    _Right(
        "change admission policies, webhooks or API services",
        ("apiregistration.k8s.io",),
        ("apiservices",),
        (*_WRITE, "delete", "deletecollection"),
    ),
    _Right("everything", (_ANY,), (_ANY,), (_ANY,)),
)
# Beside `impersonate`, Kubernetes 1.35 has verbs for one kind of user each, such as `impersonate:serviceaccount`.
_IMPERSONATED = ("users", "groups", "serviceaccounts", "uids", "userextras")
_IMPERSONATED_GROUPS = ("", "authentication.k8s.io")
_IMPERSONATION = "impersonate users or service accounts"


def dangers(rules: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """Return which dangerous rights the rules of a role contain: short phrases, such as `start workloads`.

    A rule for single objects (`resourceNames`) counts as one for all objects. Malformed fields of a rule count as
    everything, because an API server does not have such rules.
    """
    found: dict[str, None] = {}
    for rule in rules:
        groups, resources, verbs = (_texts(rule, name) for name in ("apiGroups", "resources", "verbs"))
        for right in _DANGEROUS:
            if (
                _has_any(groups, right.groups)
                and any(_covers_resource(resources, resource) for resource in right.resources)
                and (_has_any(verbs, right.verbs) if right.verbs else bool(verbs))
            ):
                found[right.name] = None
        if _has_any(groups, _IMPERSONATED_GROUPS) and _impersonates(resources, verbs):
            found[_IMPERSONATION] = None
    return tuple(found)


def _texts(rule: Mapping[str, object], name: str) -> Sequence[str]:
    value = rule.get(name) or []
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else [_ANY]


def _has_any(given: Sequence[str], wanted: Sequence[str]) -> bool:
    return _ANY in given or not set(wanted).isdisjoint(given)


def _covers_resource(given: Sequence[str], resource: str) -> bool:
    """Whether a rule's resources contain a resource, by name, `*` or `*/SUBRESOURCE`."""
    _, slash, subresource = resource.partition("/")
    return _ANY in given or resource in given or (bool(slash) and f"*/{subresource}" in given)


def _impersonates(resources: Sequence[str], verbs: Sequence[str]) -> bool:
    has_verb = any(verb == _ANY or verb.startswith(_IMPERSONATE) for verb in verbs)
    return has_verb and any(
        resource == _ANY or resource.partition("/")[0] in (*_IMPERSONATED, _ANY) for resource in resources
    )
