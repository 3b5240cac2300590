"""The kinds of objects of the double, and their discovery documents."""

from collections.abc import Mapping
from dataclasses import dataclass

from support.apiserver.failures import JsonObject

RBAC = "rbac.authorization.k8s.io"
ADMISSION = "admissionregistration.k8s.io"
AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
CERTIFICATES = "certificates.k8s.io"

_STORED_VERBS = ("create", "delete", "get", "list", "patch", "update")


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource; every group has the version v1."""

    group: str
    plural: str
    name: str
    namespaced: bool = False
    stored: bool = True
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """The resource as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def in_discovery(self) -> JsonObject:
        return {
            "name": self.plural,
            "singularName": self.name.lower(),
            "namespaced": self.namespaced,
            "kind": self.name,
            "verbs": list(_STORED_VERBS) if self.stored else ["create"],
            "shortNames": list(self.short),
        }


NAMESPACES = Kind("", "namespaces", "Namespace", short=("ns",))
CONFIG_MAPS = Kind("", "configmaps", "ConfigMap", namespaced=True, short=("cm",))
SECRETS = Kind("", "secrets", "Secret", namespaced=True)
PODS = Kind("", "pods", "Pod", namespaced=True, short=("po",))
DEPLOYMENTS = Kind("apps", "deployments", "Deployment", namespaced=True, short=("deploy",))
SERVICE_ACCOUNTS = Kind("", "serviceaccounts", "ServiceAccount", namespaced=True, short=("sa",))
CLUSTER_ROLES = Kind(RBAC, "clusterroles", "ClusterRole")
CLUSTER_ROLE_BINDINGS = Kind(RBAC, "clusterrolebindings", "ClusterRoleBinding")
ROLES = Kind(RBAC, "roles", "Role", namespaced=True)
ROLE_BINDINGS = Kind(RBAC, "rolebindings", "RoleBinding", namespaced=True)
POLICIES = Kind(ADMISSION, "validatingadmissionpolicies", "ValidatingAdmissionPolicy")
POLICY_BINDINGS = Kind(ADMISSION, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")
CERTIFICATE_REQUESTS = Kind(
    CERTIFICATES, "certificatesigningrequests", "CertificateSigningRequest", short=("csr",)
)
SELF_SUBJECT_REVIEWS = Kind(AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview", stored=False)
SELF_ACCESS_REVIEWS = Kind(AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", stored=False)
SELF_RULES_REVIEWS = Kind(AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview", stored=False)
TOKEN_REVIEWS = Kind(AUTHENTICATION, "tokenreviews", "TokenReview", stored=False)
# Created at the subresource `serviceaccounts/token` alone.
TOKEN_REQUESTS = Kind(AUTHENTICATION, "tokenrequests", "TokenRequest", namespaced=True, stored=False)

KINDS = (
    *(
        NAMESPACES,
        CONFIG_MAPS,
        SECRETS,
        PODS,
        DEPLOYMENTS,
        SERVICE_ACCOUNTS,
        CLUSTER_ROLES,
        CLUSTER_ROLE_BINDINGS,
        ROLES,
        ROLE_BINDINGS,
    ),
    *(
        POLICIES,
        POLICY_BINDINGS,
        CERTIFICATE_REQUESTS,
        SELF_SUBJECT_REVIEWS,
        SELF_ACCESS_REVIEWS,
        SELF_RULES_REVIEWS,
        TOKEN_REVIEWS,
    ),
)
BY_RESOURCE: Mapping[tuple[str, str], Kind] = {(kind.group, kind.plural): kind for kind in KINDS}
_GROUPS = tuple(dict.fromkeys(kind.group for kind in KINDS if kind.group))


def discovery(path: str) -> JsonObject | None:
    """The discovery document at a path, or None."""
    return _DISCOVERY.get(path.rstrip("/"))


def _group(name: str) -> JsonObject:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resources(group: str) -> JsonObject:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/v1" if group else "v1",
        "resources": [kind.in_discovery for kind in KINDS if kind.group == group],
    }


def _root(group: str) -> str:
    return f"apis/{group}/v1" if group else "api/v1"


def _openapi(group: str) -> JsonObject:
    """As much as kubectl looks up: that a PATCH of the kind takes `fieldValidation`, so the server validates."""
    paths = {}
    for kind in KINDS:
        if kind.group == group and kind.stored:
            namespace = "/namespaces/{namespace}" if kind.namespaced else ""
            operation = {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": "v1", "kind": kind.name},
            }
            paths[f"/{_root(group)}{namespace}/{kind.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": paths}


VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2024-12-11T17:59:15Z",
    "goVersion": "go1.23.3",
    "compiler": "gc",
    "platform": "linux/amd64",
}

_DISCOVERY: Mapping[str, JsonObject] = {
    "/version": VERSION,
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in _GROUPS]},
    "/openapi/v3": {
        "paths": {
            _root(group): {"serverRelativeURL": f"/openapi/v3/{_root(group)}"} for group in ("", *_GROUPS)
        }
    },
    **{f"/{_root(group)}": _resources(group) for group in ("", *_GROUPS)},
    **{f"/apis/{name}": {"kind": "APIGroup", "apiVersion": "v1", **_group(name)} for name in _GROUPS},
    **{f"/openapi/v3/{_root(group)}": _openapi(group) for group in ("", *_GROUPS)},
}
