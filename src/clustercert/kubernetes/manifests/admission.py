"""The admission policy, which denies writes with a revoked certificate. The API server needs no flags for it.

A ConfigMap lists the revoked certificates that have not expired: by credential number, or by fingerprint if they have
no credential group.
"""

from clustercert.kubernetes.manifests import MANAGED_BY
from clustercert.kubernetes.manifests.cel import has_credential_group, has_x509, string
from clustercert.model import CREDENTIAL_PREFIX, JsonObject
from clustercert.model.kubernetes import CREDENTIAL_ID, X509_ID

NAMESPACE = "clustercert"
CONFIG_MAP = "clustercert-revoked"
POLICY = "clustercert-revoked"

# etcd's default limit is 1.5 MiB per request. A fingerprint takes about 160 bytes, because the object's managed fields
# repeat it.
MAX_REVOKED = 8000


def admission() -> list[JsonObject]:
    """The namespace, the empty ConfigMap, the policy and its binding."""
    return [*storage(), policy(), _binding()]


def storage() -> list[JsonObject]:
    """The service's namespace, and the ConfigMap for revoked ids."""
    namespace = {"name": NAMESPACE, "labels": MANAGED_BY}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}, config_map()]


def config_map() -> JsonObject:
    """The ConfigMap for revoked ids. It has no `data`, so that applying it again does not remove the ids."""
    metadata = {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": MANAGED_BY}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def reads_numbers(found: JsonObject) -> bool:
    """Whether the cluster's policy denies everything that `policy()` denies, including credential numbers.

    The cluster's policy may have further validations, but no further match conditions: these would exempt requests.
    """
    ours, theirs = policy()["spec"], found.get("spec")
    return _expressions(theirs, "validations") >= _expressions(ours, "validations") and _expressions(
        theirs, "matchConditions"
    ) <= _expressions(ours, "matchConditions")


def _expressions(spec: object, field: str) -> frozenset[str]:
    listed = spec.get(field) if isinstance(spec, dict) else None
    items = listed if isinstance(listed, list) else []
    return frozenset(
        str(item["expression"]) for item in items if isinstance(item, dict) and "expression" in item
    )


_EXTRA, _GROUPS = "request.userInfo.extra", "request.userInfo.groups"
_HAS_NUMBER = f"has({_GROUPS}) && {has_credential_group(_GROUPS)}"
_HAS_HASH = has_x509(_EXTRA)
_NUMBER_IS_REVOKED = (
    f"{_GROUPS}.exists(g, g.startsWith({string(CREDENTIAL_PREFIX)})"
    f" && g.substring({len(CREDENTIAL_PREFIX)}) in params.data)"
)
_HASH_IS_REVOKED = (
    f"{_EXTRA}[{string(CREDENTIAL_ID)}].exists(c, c.startsWith({string(X509_ID)})"
    f" && c.substring({len(X509_ID)}) in params.data)"
)


def policy() -> JsonObject:
    """The ValidatingAdmissionPolicy."""
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
                        # Includes subresources such as exec, service account tokens and evictions.
                        "resources": ["*/*"],
                        "scope": "*",
                    }
                ]
            },
            "matchConditions": [
                {"name": "with-a-client-certificate", "expression": f"({_HAS_NUMBER}) || ({_HAS_HASH})"}
            ],
            "validations": [
                {
                    "expression": f"!has(params.data) || !({condition})",
                    "reason": "Forbidden",
                    "message": "This client certificate is revoked. Get a new one from clustercert.",
                }
                for condition in (
                    f"{_HAS_NUMBER} && {_NUMBER_IS_REVOKED}",
                    f"{_HAS_HASH} && {_HASH_IS_REVOKED}",
                )
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
                # Deny would reject all writes, even the one that creates a missing ConfigMap.
                "parameterNotFoundAction": "Allow",
            },
            "validationActions": ["Deny"],
        },
    }
