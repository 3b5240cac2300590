"""RBAC: what the groups of the policy may do, and what this service itself may do in a cluster."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from clustercert.manifests import MANAGED_BY
from clustercert.manifests.admission import CONFIG_MAP, NAMESPACE
from clustercert.manifests.cel import string, strings
from clustercert.model import CREDENTIAL_PREFIX, JsonObject

SERVICE = "clustercert:service"
"""The user, and the group, that this service is in the clusters that it keeps something in."""

# What the default policy's groups are for.
DEFAULT_BINDINGS = {
    "clustercert:admins": "cluster-admin",
    "clustercert:editors": "edit",
    "clustercert:viewers": "view",
}

_RBAC = "rbac.authorization.k8s.io"
# Kubernetes lets a binding's name be any path segment.
_NOT_IN_A_NAME = re.compile("[/%]")


def bindings(roles: Mapping[str, str]) -> list[JsonObject]:
    """ClusterRoleBindings that give each group its ClusterRole."""
    return [_cluster_role_binding(_binding_name(group, role), group, role) for group, role in roles.items()]


def service_access(cluster_roles: Iterable[str]) -> list[JsonObject]:
    """What lets the service bind credentials to these ClusterRoles and keep the revoked ids, and nothing more.

    Without ClusterRoles it may keep the revoked ids alone. Needs the namespace of `admission.storage`.
    """
    roles = sorted(set(cluster_roles))
    return [*_state_access(), *([*_binding_access(roles), *_guard(roles)] if roles else [])]


def _state_access() -> list[JsonObject]:
    name = "clustercert-service"
    metadata = {"name": name, "namespace": NAMESPACE, "labels": MANAGED_BY}
    return [
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [
                _rule("", "configmaps", ["get", "update", "patch"], [CONFIG_MAP]),
                # RBAC knows no name at a creation.
                _rule("", "configmaps", ["create"]),
            ],
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [_group(SERVICE)],
        },
    ]


def _binding_access(roles: list[str]) -> list[JsonObject]:
    name = "clustercert-service"
    return [
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name, "labels": MANAGED_BY},
            "rules": [
                _rule(_RBAC, "clusterrolebindings", ["get", "list", "create", "delete"]),
                # Without this verb Kubernetes lets nobody bind a role that has more rights than they do.
                _rule(_RBAC, "clusterroles", ["bind"], roles),
            ],
        },
        _cluster_role_binding(name, SERVICE, name),
    ]


def _guard(roles: list[str]) -> list[JsonObject]:
    """RBAC can't limit a right to names that begin alike, so an admission policy does."""
    name = "clustercert-service"
    prefix = string(CREDENTIAL_PREFIX)
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name, "labels": MANAGED_BY},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [_RBAC],
                            "apiVersions": ["*"],
                            "operations": ["CREATE", "UPDATE", "DELETE"],
                            "resources": ["*"],
                        }
                    ]
                },
                "matchConditions": [
                    {
                        "name": "by-the-service",
                        "expression": f"has(request.userInfo.groups) && {string(SERVICE)} in request.userInfo.groups",
                    }
                ],
                "validations": [
                    {
                        "expression": (
                            "request.resource.resource == 'clusterrolebindings'"
                            f" && request.name.startsWith({prefix})"
                        ),
                        "message": "clustercert writes the bindings of its own credentials and no others.",
                    },
                    {
                        "expression": (
                            "request.operation == 'DELETE'"
                            f" || (object.roleRef.name in {strings(roles)} && object.roleRef.kind == 'ClusterRole'"
                            " && object.subjects.all(s, s.kind == 'Group' && s.name == object.metadata.name))"
                        ),
                        "message": "clustercert binds a credential's own group to the roles of its cluster only.",
                    },
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name, "labels": MANAGED_BY},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


def _rule(api_group: str, resource: str, verbs: list[str], names: list[str] | None = None) -> JsonObject:
    named = {"resourceNames": names} if names else {}
    return {"apiGroups": [api_group], "resources": [resource], **named, "verbs": verbs}


def _binding_name(group: str, role: str) -> str:
    """A name of its own for each group and role."""
    name = _NOT_IN_A_NAME.sub("-", group)
    if name != group:
        name += f"-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    # The role is in it, because Kubernetes refuses to change the role of a binding that exists.
    return f"{name}:{role}"


def _cluster_role_binding(name: str, group: str, role: str) -> JsonObject:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": MANAGED_BY},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [_group(group)],
    }


def _group(name: str) -> JsonObject:
    return {"apiGroup": _RBAC, "kind": "Group", "name": name}
