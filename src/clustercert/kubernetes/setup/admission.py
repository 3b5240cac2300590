"""The admission policy that denies writes with a revoked certificate. The API server needs no flags for the policy.

A ConfigMap lists the credential numbers of the revoked certificates that have not expired.
"""

from clustercert.kubernetes.setup.cel import has_credential_group, string
from clustercert.model import CREDENTIAL_PREFIX, JsonObject
from clustercert.model.kubernetes import MANAGED_BY

NAMESPACE = "clustercert"
CONFIG_MAP = "clustercert-revoked"
POLICY = "clustercert-revoked"

# etcd's default limit is 1.5 MiB per request. A credential number takes more than 100 bytes, because the ConfigMap's
# managed fields repeat the number.
MAX_REVOKED = 8000


def admission() -> list[JsonObject]:
    """Return the namespace, the empty ConfigMap, the policy and the policy's binding."""
    return [*storage(), policy(), _binding()]


def storage() -> list[JsonObject]:
    """Return the service's namespace, and the ConfigMap for revoked certificates."""
    namespace = {"name": NAMESPACE, "labels": MANAGED_BY}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}, config_map()]


def config_map() -> JsonObject:
    """Return the ConfigMap for revoked certificates.

    The ConfigMap has no `data`, so the credential numbers are kept when an operator applies the ConfigMap again.
    """
    metadata = {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": MANAGED_BY}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


_GROUPS = "request.userInfo.groups"
_HAS_NUMBER = f"has({_GROUPS}) && {has_credential_group(_GROUPS)}"
_NUMBER_IS_REVOKED = (
    f"{_GROUPS}.exists(g, g.startsWith({string(CREDENTIAL_PREFIX)})"
    f" && g.substring({len(CREDENTIAL_PREFIX)}) in params.data)"
)


def policy() -> JsonObject:
    """Return the ValidatingAdmissionPolicy."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": POLICY, "labels": MANAGED_BY},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["*"],
                        "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE", "DELETE", "CONNECT"],
                        # The pattern */* includes subresources such as exec, service account tokens and evictions.
                        "resources": ["*/*"],
                        "scope": "*",
                    }
                ]
            },
            "matchConditions": [{"name": "with-a-credential-number", "expression": _HAS_NUMBER}],
            "validations": [
                {
                    "expression": f"!has(params.data) || !({_NUMBER_IS_REVOKED})",
                    "reason": "Forbidden",
                    "message": "This client certificate is revoked. Get a new certificate from clustercert.",
                }
            ],
        },
    }


def _binding() -> JsonObject:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": POLICY, "labels": MANAGED_BY},
        "spec": {
            "policyName": POLICY,
            "paramRef": {
                "name": CONFIG_MAP,
                "namespace": NAMESPACE,
                # The action Deny would reject all writes while the ConfigMap is missing, even the write that creates
                # the ConfigMap.
                "parameterNotFoundAction": "Allow",
            },
            "validationActions": ["Deny"],
        },
    }
