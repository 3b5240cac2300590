"""RBAC for the groups of the policy and for this service."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from clustercert.kubernetes.setup.admission import CONFIG_MAP, NAMESPACE
from clustercert.kubernetes.setup.cel import string, strings
from clustercert.model import CREDENTIAL_PREFIX, JsonObject
from clustercert.model.kubernetes import MANAGED_BY, SERVICE

# ClusterRoles for the groups in the default policy.
DEFAULT_BINDINGS = {
    "clustercert:admins": "cluster-admin",
    "clustercert:editors": "edit",
    "clustercert:viewers": "view",
}

_RBAC = "rbac.authorization.k8s.io"
# Characters to replace, because the name of a binding must be a valid path segment.
_NOT_IN_A_NAME = re.compile("[/%]")


def bindings(roles: Mapping[str, str]) -> list[JsonObject]:
    """Return ClusterRoleBindings that give each group its ClusterRole."""
    return [cluster_role_binding(_binding_name(group, role), group, role) for group, role in roles.items()]


def service_access(cluster_roles: Iterable[str]) -> list[JsonObject]:
    """Return the rights with which the service writes the ConfigMap for revoked certificates and binds credentials.

    The service may also read the addresses of the API servers, where it proves client CAs. The service may bind
    credentials only to `cluster_roles`. An operator must apply `admission.storage` first, which creates the namespace
    of the ConfigMap.
    """
    roles = sorted(set(cluster_roles))
    return [
        *_revoked_ids_access(),
        *_addresses_access(),
        *([*_binding_access(roles), *_binding_limits(roles)] if roles else []),
    ]


def token_review_access() -> list[JsonObject]:
    """Return the right that the service needs to ask the API server about tokens of service accounts."""
    name = "clustercert-token-reviews"
    return [
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name, "labels": MANAGED_BY},
            "rules": [role_rule("authentication.k8s.io", "tokenreviews", ["create"])],
        },
        cluster_role_binding(name, SERVICE, name),
    ]


def issuer_keys_access() -> list[JsonObject]:
    """Return a binding to a built-in ClusterRole, so that the service may read the public keys of service accounts."""
    role = "system:service-account-issuer-discovery"
    return [cluster_role_binding("clustercert-issuer-keys", SERVICE, role)]


def _revoked_ids_access() -> list[JsonObject]:
    return _access_in(
        NAMESPACE,
        role_rule("", "configmaps", ["get", "update", "patch"], [CONFIG_MAP]),
        # Use a separate rule, because RBAC can't restrict the verb `create` to one name.
        role_rule("", "configmaps", ["create"]),
    )


def _addresses_access() -> list[JsonObject]:
    return _access_in("default", role_rule("discovery.k8s.io", "endpointslices", ["get", "list"]))


def _access_in(namespace: str, *rules: JsonObject) -> list[JsonObject]:
    """Return a Role of the service in a namespace, and its binding."""
    name = "clustercert-service"
    metadata = {"name": name, "namespace": namespace, "labels": MANAGED_BY}
    return [
        {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)},
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
                role_rule(_RBAC, "clusterrolebindings", ["get", "list", "create", "delete"]),
                # Kubernetes requires the verb `bind` for binding a role with rights that the caller does not have.
                role_rule(_RBAC, "clusterroles", ["bind"], roles),
            ],
        },
        cluster_role_binding(name, SERVICE, name),
    ]


def _binding_limits(roles: list[str]) -> list[JsonObject]:
    """Return an admission policy that limits the service to credential bindings. RBAC can't match a prefix of names."""
    is_service = f"has(request.userInfo.groups) && {string(SERVICE)} in request.userInfo.groups"
    is_credential_binding = (
        "request.resource.resource == 'clusterrolebindings'"
        f" && request.name.startsWith({string(CREDENTIAL_PREFIX)})"
    )
    binds_own_group = (
        "request.operation == 'DELETE'"
        f" || (object.roleRef.name in {strings(roles)} && object.roleRef.kind == 'ClusterRole'"
        " && object.subjects.all(s, s.kind == 'Group' && s.name == object.metadata.name))"
    )
    return _service_policy(
        is_service,
        {
            is_credential_binding: "clustercert may write only the bindings of its own credentials.",
            binds_own_group: "clustercert may bind only a credential's own group to the configured roles.",
        },
    )


def _service_policy(condition: str, messages: Mapping[str, str]) -> list[JsonObject]:
    """Return an admission policy for RBAC writes that meet the condition. `messages` maps CEL rules to messages."""
    name = "clustercert-service"
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
                "matchConditions": [{"name": "by-the-service", "expression": condition}],
                "validations": [{"expression": rule, "message": text} for rule, text in messages.items()],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name, "labels": MANAGED_BY},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


def role_rule(api_group: str, resource: str, verbs: list[str], names: list[str] | None = None) -> JsonObject:
    named = {"resourceNames": names} if names else {}
    return {"apiGroups": [api_group], "resources": [resource], **named, "verbs": verbs}


def _binding_name(group: str, role: str) -> str:
    """Return a name for the binding, which is unique for the group and role."""
    name = _NOT_IN_A_NAME.sub("-", group)
    if name != group:
        name += f"-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    # The name contains the role, because Kubernetes does not allow changing the role of an existing binding.
    return f"{name}:{role}"


def cluster_role_binding(
    name: str, group: str, role: str, annotations: Mapping[str, str] | None = None
) -> JsonObject:
    """Return the ClusterRoleBinding that gives a group a ClusterRole."""
    annotated = {"annotations": annotations} if annotations else {}
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": MANAGED_BY, **annotated},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [_group(group)],
    }


def _group(name: str) -> JsonObject:
    return {"apiGroup": _RBAC, "kind": "Group", "name": name}
