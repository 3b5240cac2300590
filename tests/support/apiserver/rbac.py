"""Role-based access control over the stored roles and bindings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from support.apiserver import kinds
from support.apiserver.attributes import Attributes
from support.apiserver.failures import Failure
from support.apiserver.identity import ANONYMOUS, AUTHENTICATED, MASTERS, Identity
from support.apiserver.kinds import RBAC, Kind
from support.apiserver.service_accounts import DISCOVERY, JWKS
from support.apiserver.storage import Document, Storage

Rule = Mapping[str, Any]

_READ = ("get", "list", "watch")
_WRITE = ("create", "delete", "deletecollection", "patch", "update")
_EVERYTHING = ("*",)
_PUBLIC = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_DISCOVERY = (*_PUBLIC, "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")
_ISSUER = tuple(path for each in (DISCOVERY, JWKS) for path in (each, f"{each}/"))


def _rule(groups: Sequence[str], resources: Sequence[str], verbs: Sequence[str]) -> Rule:
    return {"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)}


def _paths(urls: Sequence[str], verbs: Sequence[str]) -> Rule:
    return {"nonResourceURLs": list(urls), "verbs": list(verbs)}


_READ_RULES = (
    _rule(("",), ("configmaps", "namespaces", "pods", "serviceaccounts"), _READ),
    _rule(("apps",), ("deployments",), _READ),
)
# Source: kubernetes, plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy.go, aggregate-to-edit.
_EDIT_RULES = (
    *_READ_RULES,
    _rule(("",), ("pods/attach", "pods/proxy", "secrets", "services/proxy"), ("get", "list", "watch")),
    _rule(("",), ("pods/exec", "pods/portforward"), ("get", "create")),
    _rule(("",), ("serviceaccounts",), ("impersonate",)),
    _rule(("",), ("pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"), _WRITE),
    _rule(("",), ("pods/eviction",), ("create",)),
    _rule(
        ("",),
        (
            *("configmaps", "events", "persistentvolumeclaims", "replicationcontrollers"),
            *("replicationcontrollers/scale", "secrets", "serviceaccounts", "services", "services/proxy"),
        ),
        _WRITE,
    ),
    _rule(("",), ("serviceaccounts/token",), ("create",)),
    _rule(
        ("apps",),
        (
            *("daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets"),
            *("replicasets/scale", "statefulsets", "statefulsets/scale"),
        ),
        _WRITE,
    ),
    _rule(("batch",), ("cronjobs", "jobs"), _WRITE),
)
# What every new cluster has; the roles for people are cut down to what the tests look at.
_BOOTSTRAP_ROLES: Mapping[str, Sequence[Rule]] = {
    "cluster-admin": (_rule(_EVERYTHING, _EVERYTHING, _EVERYTHING), _paths(_EVERYTHING, _EVERYTHING)),
    "view": _READ_RULES,
    # The part of `view` that needs no controller to put it together.
    "system:aggregate-to-view": _READ_RULES,
    "edit": _EDIT_RULES,
    "admin": (
        *_EDIT_RULES,
        _rule((kinds.AUTHORIZATION,), ("localsubjectaccessreviews",), ("create",)),
        _rule((RBAC,), ("roles", "rolebindings"), (*_READ, *_WRITE)),
    ),
    "system:basic-user": (
        _rule((kinds.AUTHORIZATION,), ("selfsubjectaccessreviews", "selfsubjectrulesreviews"), ("create",)),
        _rule((kinds.AUTHENTICATION,), ("selfsubjectreviews",), ("create",)),
    ),
    "system:discovery": (_paths(_DISCOVERY, ("get",)),),
    "system:public-info-viewer": (_paths(_PUBLIC, ("get",)),),
    "system:service-account-issuer-discovery": (_paths(_ISSUER, ("get",)),),
}
_BOOTSTRAP_BINDINGS = {
    "cluster-admin": (MASTERS,),
    "system:basic-user": (AUTHENTICATED,),
    "system:discovery": (AUTHENTICATED,),
    "system:public-info-viewer": (AUTHENTICATED, *ANONYMOUS.groups),
    "system:service-account-issuer-discovery": ("system:serviceaccounts",),
}


class Rbac:
    """Reads the stored bindings at each call."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        for name, rules in _BOOTSTRAP_ROLES.items():
            storage.create(kinds.CLUSTER_ROLES, "", {"metadata": {"name": name}, "rules": list(rules)})
        for role, groups in _BOOTSTRAP_BINDINGS.items():
            self.bind(role, role, groups)
        reader = {
            "metadata": {"name": "extension-apiserver-authentication-reader"},
            "rules": [
                {
                    **_rule(("",), ("configmaps",), _READ),
                    "resourceNames": ["extension-apiserver-authentication"],
                }
            ],
        }
        storage.create(kinds.ROLES, "kube-system", reader)

    def bind(self, name: str, role: str, groups: Sequence[str]) -> None:
        """Make a ClusterRoleBinding."""
        document: Document = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group} for group in groups],
        }
        self._storage.create(kinds.CLUSTER_ROLE_BINDINGS, "", document)

    def allows(self, who: Identity, wanted: Attributes) -> bool:
        return any(_covers(rule, wanted) for rule in self._rules(who, wanted.namespace))

    def rules_review(self, who: Identity, namespace: str) -> Document:
        """The status of a SelfSubjectRulesReview.

        Source: kubernetes, plugin/pkg/auth/authorizer/rbac/rbac.go, RulesFor: one rule of each kind for each rule.
        """
        rules = list(self._rules(who, namespace))
        return {
            "resourceRules": [each for each in rules if each.get("resources")],
            "nonResourceRules": [each for each in rules if each.get("nonResourceURLs")],
            "incomplete": False,
        }

    def check_escalation(self, who: Identity, kind: Kind, namespace: str, document: Document) -> None:
        """Privilege escalation check of kube-apiserver. Raises Failure (403).

        Exempt are system:masters, and holders of the verb `bind` on the role or `escalate` on roles.
        """
        if MASTERS in who.groups:
            return
        if kind in {kinds.CLUSTER_ROLE_BINDINGS, kinds.ROLE_BINDINGS}:
            reference = document["roleRef"]
            plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
            verb, name, rules = "bind", reference["name"], self._rules_of(reference, namespace)
        elif kind in {kinds.CLUSTER_ROLES, kinds.ROLES}:
            verb, plural, name = "escalate", kind.plural, document["metadata"]["name"]
            rules = document.get("rules") or ()
        else:
            return
        asked = Attributes(verb, group=RBAC, version="v1", namespace=namespace, resource=plural, name=name)
        held = list(self._rules(who, namespace))
        if not self.allows(who, asked) and not all(_held(rule, held) for rule in rules):
            raise Failure(
                403,
                "Forbidden",
                f'{kind.qualified} "{document["metadata"]["name"]}" is forbidden: user "{who.username}" '
                f"(groups={list(who.groups)}) is attempting to grant RBAC permissions not currently held",
            )

    def _rules(self, who: Identity, namespace: str) -> Iterator[Rule]:
        for binding in self._storage.all(kinds.CLUSTER_ROLE_BINDINGS):
            if _names(binding, who):
                yield from self._rules_of(binding["roleRef"], "")
        if namespace:
            for binding in self._storage.all(kinds.ROLE_BINDINGS, namespace):
                if _names(binding, who):
                    yield from self._rules_of(binding["roleRef"], namespace)

    def _rules_of(self, reference: Mapping[str, str], namespace: str) -> Sequence[Rule]:
        kind = kinds.CLUSTER_ROLES if reference["kind"] == "ClusterRole" else kinds.ROLES
        where = "" if kind is kinds.CLUSTER_ROLES else namespace
        try:
            return self._storage.get(kind, where, reference["name"]).get("rules") or ()
        except Failure:
            return ()  # a binding to a role that isn't there grants nothing


def _names(binding: Document, who: Identity) -> bool:
    subjects = binding.get("subjects") or ()
    return any(
        (subject["kind"] == "User" and subject["name"] == who.username)
        or (subject["kind"] == "Group" and subject["name"] in who.groups)
        or (
            subject["kind"] == "ServiceAccount"
            and f"system:serviceaccount:{subject['namespace']}:{subject['name']}" == who.username
        )
        for subject in subjects
    )


def _among(value: str, allowed: Sequence[str]) -> bool:
    return "*" in allowed or value in allowed


def _covers(rule: Rule, wanted: Attributes) -> bool:
    if not _among(wanted.verb, rule.get("verbs") or ()):
        return False
    if not wanted.resource:
        urls = rule.get("nonResourceURLs") or ()
        return any(
            url == wanted.path or (url.endswith("*") and wanted.path.startswith(url[:-1])) for url in urls
        )
    resource = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    resources = rule.get("resources") or ()
    names = rule.get("resourceNames") or ()
    return (
        _among(wanted.group, rule.get("apiGroups") or ())
        and (_among(resource, resources) or f"*/{wanted.subresource}" in resources)
        and (not names or wanted.name in names)
    )


def _held(rule: Rule, held: Sequence[Rule]) -> bool:
    """Whether held rules cover every access of another rule."""
    accesses = [
        Attributes(verb, group=group, resource=resource, name=name)
        for verb in rule.get("verbs") or ()
        for group in rule.get("apiGroups") or ()
        for resource in rule.get("resources") or ()
        for name in rule.get("resourceNames") or ("",)
    ] + [
        Attributes(verb, path=url)
        for verb in rule.get("verbs") or ()
        for url in rule.get("nonResourceURLs") or ()
    ]
    return all(any(_covers(mine, access) for mine in held) for access in accesses)
