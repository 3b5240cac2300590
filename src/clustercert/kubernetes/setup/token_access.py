"""The objects for a cluster whose credentials are service account tokens: namespaces, admission policies, rights.

RBAC gives the service's account only the rights to create and end credentials. Two admission policies limit what the
account does with these rights, and what others may do in the two namespaces. Admission sees neither reads nor who
impersonates an account. The policies see only that the id of a token is missing from such a request.

Source: Kubernetes, "Validating Admission Policy"; the order of checks: kubernetes, pkg/registry/rbac.
"""

from collections.abc import Iterable, Mapping, Sequence

from clustercert.kubernetes.setup.cel import string, strings
from clustercert.kubernetes.setup.rbac import role_rule
from clustercert.model import JsonObject
from clustercert.model.credentials import NUMBER_DIGITS
from clustercert.model.group_roles import RoleGrant, parse_group_roles
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    CREDENTIAL_ID,
    CREDENTIAL_LABEL,
    INSTALLATION_LABEL,
    ISSUER_ACCOUNT,
    ISSUER_USER,
    MANAGED_BY,
    TOKEN_ID,
    USERS_NAMESPACE,
)
from clustercert.model.token_objects import ACCOUNT_PATTERN, BINDING_PATTERN, BINDING_PREFIX, RBAC

NAME = "clustercert-issuer"
"""The name of the Roles, the ClusterRole and their bindings, which give the service's account its rights."""

NAMESPACES_POLICY = "clustercert-token-namespaces"
"""The admission policy for writes in the two namespaces."""

BINDINGS_POLICY = "clustercert-token-bindings"
"""The admission policy for bindings of credentials, and for all bindings that the service's account writes."""

_ADMISSION = "admissionregistration.k8s.io/v1"
_ACCOUNTS, _TOKENS = "serviceaccounts", "serviceaccounts/token"
_KUBE_SYSTEM = "system:serviceaccount:kube-system:"
# With and without --use-service-account-credentials of kube-controller-manager.
_MANAGER = "system:kube-controller-manager"
_CREATES_DEFAULT_ACCOUNT = f"{_KUBE_SYSTEM}service-account-controller"
_DELETES_OBJECTS = (f"{_KUBE_SYSTEM}namespace-controller", f"{_KUBE_SYSTEM}generic-garbage-collector")


def token_access(
    installation: str, group_roles: Mapping[str, Sequence[str]], *, allow_cluster_admin: bool
) -> list[JsonObject]:
    """Return all objects, in the order in which to apply them: the policies come before the rights.

    Args:
        installation: the id of this installation, see `model.kubernetes.installation_id`.
        group_roles: the roles of each group, as `ClusterOptions.group_roles`.

    Raises:
        ValueError: a group or role may not be in the map.
    """
    parsed = parse_group_roles(group_roles, allow_cluster_admin=allow_cluster_admin)
    roles = sorted({role for of_group in parsed.values() for role in of_group})
    return [
        _namespace(USERS_NAMESPACE, installation),
        _namespace(ACCESS_NAMESPACE, installation),
        *_namespaces_policy(installation),
        *_bindings_policy(installation, roles),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": _metadata(ISSUER_ACCOUNT, ACCESS_NAMESPACE),
            "automountServiceAccountToken": False,
        },
        *_cluster_rights(roles),
        *_rights_in(
            USERS_NAMESPACE,
            role_rule("", _ACCOUNTS, ["create", "get", "list", "delete"]),
            role_rule("", _TOKENS, ["create"]),
        ),
        *_rights_in(
            ACCESS_NAMESPACE,
            # With this right, the service renews its own token.
            role_rule("", _TOKENS, ["create"], [ISSUER_ACCOUNT]),
            role_rule("", _ACCOUNTS, ["get"], [ISSUER_ACCOUNT]),
        ),
        *(each for namespace in _namespaces(roles) for each in _binding_rights(namespace, roles)),
    ]


def _namespace(name: str, installation: str) -> JsonObject:
    labels = {**MANAGED_BY, INSTALLATION_LABEL: installation}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _metadata(name: str, namespace: str = "") -> JsonObject:
    placed = {"namespace": namespace} if namespace else {}
    return {"name": name, **placed, "labels": MANAGED_BY}


def _namespaces(roles: Iterable[RoleGrant]) -> list[str]:
    return sorted({role.namespace for role in roles if role.namespace})


def _names(roles: Iterable[RoleGrant], kind: str) -> list[str]:
    return sorted({role.name for role in roles if role.kind == kind})


def _cluster_rights(roles: Sequence[RoleGrant]) -> list[JsonObject]:
    """Return the ClusterRole of the service's account, and its binding.

    The account may bind a ClusterRole in the whole cluster only if the map has this role for the whole cluster.
    """
    for_cluster = _names((role for role in roles if not role.namespace), "ClusterRole")
    all_names = _names(roles, "ClusterRole")
    # Without such a role, existing bindings of credentials must still be found and deleted.
    verbs = [*(["create"] if for_cluster else []), "get", "list", "delete"]
    rules = [
        role_rule(RBAC, "clusterrolebindings", verbs),
        role_rule("", "namespaces", ["get"], [USERS_NAMESPACE, ACCESS_NAMESPACE]),
    ]
    if for_cluster:
        rules.append(role_rule(RBAC, "clusterroles", ["bind"], for_cluster))
    if all_names:
        # ClusterRoles are outside of all namespaces, so only a ClusterRole can allow reading ClusterRoles.
        rules.append(role_rule(RBAC, "clusterroles", ["get"], all_names))
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": _metadata(NAME), "rules": rules},
        _binding("ClusterRoleBinding", "ClusterRole"),
    ]


def _binding_rights(namespace: str, roles: Sequence[RoleGrant]) -> list[JsonObject]:
    """Return the rights to bind the roles that are mapped in a namespace, in this namespace only.

    Kubernetes checks the verb `bind` in the namespace of the binding, also for a ClusterRole. Source: kubernetes,
    pkg/registry/rbac/escalation_check.go, BindingAuthorized.
    """
    here = [role for role in roles if role.namespace == namespace]
    rules = [role_rule(RBAC, "rolebindings", ["create", "get", "list", "delete"])]
    if cluster_roles := _names(here, "ClusterRole"):
        rules.append(role_rule(RBAC, "clusterroles", ["bind"], cluster_roles))
    if names := _names(here, "Role"):
        rules.append(role_rule(RBAC, "roles", ["bind", "get"], names))
    return _rights_in(namespace, *rules)


def _rights_in(namespace: str, *rules: JsonObject) -> list[JsonObject]:
    metadata = _metadata(NAME, namespace)
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)},
        _binding("RoleBinding", "Role", namespace),
    ]


def _binding(kind: str, role_kind: str, namespace: str = "") -> JsonObject:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": kind,
        "metadata": _metadata(NAME, namespace),
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": ISSUER_ACCOUNT, "namespace": ACCESS_NAMESPACE}],
    }


_USER, _EXTRA = "request.userInfo.username", "request.userInfo.extra"
# A request of somebody who impersonates an account has no credential id. A client certificate with the name of the
# account, which a person with the right to approve certificate requests could get, has the id of a certificate.
_HAS_TOKEN = (
    f"has({_EXTRA}) && {string(CREDENTIAL_ID)} in {_EXTRA}"
    f" && {_EXTRA}[{string(CREDENTIAL_ID)}].exists(c, c.startsWith({string(TOKEN_ID)}))"
)
_IS_ADMINISTRATOR = "authorizer.group('*').resource('*').check('*').allowed()"
_IS_SERVICE = f"{_USER} == {string(ISSUER_USER)}"
_VARIABLES = {
    "has_token": _HAS_TOKEN,
    "is_administrator": _IS_ADMINISTRATOR,
    "is_service": f"{_IS_SERVICE} && variables.has_token",
    # A request has no name if it deletes a collection, or lets Kubernetes generate the name.
    "metadata": "request.operation == 'DELETE' ? oldObject.metadata : object.metadata",
}


def _has_labels(installation: str, number: str) -> str:
    """Return a condition: an object has the labels of a credential; `number` is an expression for its number."""
    labels = {key: string(value) for key, value in MANAGED_BY.items()}
    labels |= {INSTALLATION_LABEL: string(installation), CREDENTIAL_LABEL: number}
    each = (
        f"{string(key)} in variables.metadata.labels && variables.metadata.labels[{string(key)}] == {value}"
        for key, value in labels.items()
    )
    return f"has(variables.metadata.labels) && {' && '.join(each)}"


def _namespaces_policy(installation: str) -> list[JsonObject]:
    """Return the policy: in the two namespaces, only the service, administrators and the cluster itself write."""
    account = string(f"^{ACCOUNT_PATTERN}$")
    variables = {
        **_VARIABLES,
        "resource": "request.resource.resource",
        "subresource": "has(request.subResource) ? request.subResource : ''",
        "is_core": "request.resource.group == ''",
        "is_account": (
            f"variables.is_core && variables.resource == {string(_ACCOUNTS)} && variables.subresource == ''"
        ),
        "is_token": (
            f"variables.is_core && variables.resource == {string(_ACCOUNTS)} && variables.subresource == 'token'"
            " && request.operation == 'CREATE'"
        ),
        "is_users": f"request.namespace == {string(USERS_NAMESPACE)}",
        "is_credential": (
            f"variables.is_account && variables.is_users && variables.metadata.name.matches({account})"
            f" && {_has_labels(installation, _last_digits('variables.metadata.name'))}"
        ),
        "by_service": (
            "variables.is_service && ("
            "request.operation in ['CREATE', 'DELETE'] && variables.is_credential"
            f" || variables.is_token && variables.is_users && request.name.matches({account})"
            f" || variables.is_token && !variables.is_users && request.name == {string(ISSUER_ACCOUNT)})"
        ),
        "by_cluster": (
            f"request.operation == 'DELETE' && ({_USER} == {string(_MANAGER)}"
            f" || variables.has_token && {_USER} in {strings(_DELETES_OBJECTS)})"
            " || request.operation == 'CREATE' && variables.is_account && variables.metadata.name == 'default'"
            f" && ({_USER} == {string(_MANAGER)}"
            f" || variables.has_token && {_USER} == {string(_CREATES_DEFAULT_ACCOUNT)})"
        ),
    }
    starts_workloads = (
        "request.resource.group in ['apps', 'batch'] || variables.is_core"
        " && variables.resource in ['pods', 'replicationcontrollers', 'secrets']"
    )
    validations = {
        f"request.operation == 'DELETE' || !({starts_workloads})": (
            "This namespace of clustercert must not contain workloads or Secrets. Use another namespace."
        ),
        "variables.by_service || variables.by_cluster || variables.is_administrator": (
            "Only clustercert and administrators of the whole cluster may write in this namespace. Use "
            "another namespace."
        ),
    }
    constraints: JsonObject = {
        "namespaceSelector": {
            "matchExpressions": [
                {
                    "key": "kubernetes.io/metadata.name",
                    "operator": "In",
                    "values": [USERS_NAMESPACE, ACCESS_NAMESPACE],
                }
            ]
        },
        "resourceRules": [
            _resources("*", ["*/*"], ["CREATE", "UPDATE", "DELETE", "CONNECT"], scope="Namespaced")
        ],
        # Each namespace gets ConfigMaps and events from the cluster. They give no rights.
        "excludeResourceRules": [
            _resources("", ["configmaps", "events"], ["*"]),
            _resources("events.k8s.io", ["events"], ["*"]),
        ],
    }
    return _policy(NAMESPACES_POLICY, constraints, {}, variables, validations)


def _bindings_policy(installation: str, roles: Sequence[RoleGrant]) -> list[JsonObject]:
    """Return the policy: only the service binds accounts of credentials, and the service binds nothing else.

    Deletions by others are allowed: a binding that is missing gives no rights, and namespaces must be deletable.
    """
    name = string(f"^{BINDING_PATTERN}$")
    start = len(BINDING_PREFIX)
    number = f"variables.metadata.name.substring({start}, {start + NUMBER_DIGITS})"
    role_ref = "object.roleRef"
    namespace = "(request.resource.resource == 'rolebindings' ? request.namespace : '')"
    subject = "object.subjects[0]"
    variables = {
        **_VARIABLES,
        "number": number,
        # Names of roles and namespaces have no slash.
        "grant": f"{role_ref}.kind + '/' + {namespace} + '/' + {role_ref}.name",
    }
    mapped = strings(f"{role.kind}/{role.namespace}/{role.name}" for role in roles)
    is_deleted = "request.operation == 'DELETE'"
    not_ours = f"{_USER} != {string(ISSUER_USER)}"
    validations = {
        "variables.is_service || variables.is_administrator": (
            "Only clustercert and administrators of the whole cluster write bindings with such a name. Requests that"
            " impersonate clustercert are denied. Choose another name."
        ),
        f"{not_ours} || request.operation in ['CREATE', 'DELETE']": "clustercert may not change a binding.",
        f"{not_ours} || variables.metadata.name.matches({name})"
        f" && {_has_labels(installation, 'variables.number')}": (
            "clustercert may write only bindings of its own credentials."
        ),
        f"{not_ours} || {is_deleted} || has(object.subjects) && size(object.subjects) == 1"
        f" && {subject}.kind == 'ServiceAccount' && {subject}.namespace == {string(USERS_NAMESPACE)}"
        f" && {subject}.name.matches({string(f'^{ACCOUNT_PATTERN}$')})"
        f" && {subject}.name.endsWith('-' + variables.number)": (
            "clustercert may bind only the account of the credential whose number is in the binding's name."
        ),
        f"{not_ours} || {is_deleted} || variables.grant in {mapped}": (
            "clustercert may bind only the roles that an administrator mapped."
        ),
    }
    constraints: JsonObject = {
        "resourceRules": [
            _resources(RBAC, ["clusterrolebindings", "rolebindings"], ["CREATE", "UPDATE", "DELETE"])
        ]
    }
    concerns_us = f"{_IS_SERVICE} || request.operation != 'DELETE' && object.metadata.name.matches({name})"
    return _policy(
        BINDINGS_POLICY, constraints, {"concerns-credentials": concerns_us}, variables, validations
    )


def _last_digits(name: str) -> str:
    """Return an expression for the credential number in the name of an account, which the caller has matched."""
    return f"{name}.substring(size({name}) - {NUMBER_DIGITS})"


def _resources(
    api_group: str, resources: list[str], operations: list[str], *, scope: str = "*"
) -> JsonObject:
    return {
        "apiGroups": [api_group],
        "apiVersions": ["*"],
        "operations": operations,
        "resources": resources,
        "scope": scope,
    }


def _policy(
    name: str,
    constraints: JsonObject,
    conditions: Mapping[str, str],
    variables: Mapping[str, str],
    validations: Mapping[str, str],
) -> list[JsonObject]:
    """Return a policy and its binding. `validations` maps expressions to messages."""
    named = [{"name": key, "expression": expression} for key, expression in conditions.items()]
    spec: JsonObject = {"failurePolicy": "Fail", "matchConstraints": constraints}
    if named:
        spec["matchConditions"] = named
    spec["variables"] = [{"name": key, "expression": expression} for key, expression in variables.items()]
    spec["validations"] = [
        {"expression": expression, "reason": "Forbidden", "message": message}
        for expression, message in validations.items()
    ]
    return [
        {
            "apiVersion": _ADMISSION,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": _metadata(name),
            "spec": spec,
        },
        {
            "apiVersion": _ADMISSION,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": _metadata(name),
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]
