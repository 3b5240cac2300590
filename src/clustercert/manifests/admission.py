"""Revocation where the API server's flags can't be touched: an admission policy that reads what is revoked.

Admission sees writes only. A ConfigMap carries the credential numbers of what is revoked and not yet expired, and the
fingerprints of certificates without a credential group.
"""

from clustercert.manifests import CREDENTIAL_ID, MANAGED_BY, X509_ID
from clustercert.manifests.cel import has_credential_group, has_x509, string
from clustercert.model import CREDENTIAL_PREFIX, JsonObject

NAMESPACE = "clustercert"
CONFIG_MAP = "clustercert-revoked"
POLICY = "clustercert-revoked"

# etcd takes 1.5 MiB a request by default. A fingerprint is 64 characters, stands in the data and once more in the
# object's managed fields, and costs about 140 bytes with what stands round it.
MAX_REVOKED = 8000


def admission() -> list[JsonObject]:
    """The namespace, the empty ConfigMap, the policy and its binding."""
    return [*storage(), policy(), _binding()]


def storage() -> list[JsonObject]:
    """The namespace of what the service keeps in a cluster, and the ConfigMap of the revoked ids, still empty.

    Applied once more, it leaves the ids alone: it says nothing of `data`.
    """
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": MANAGED_BY}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": MANAGED_BY},
        },
    ]


def reads_numbers(found: JsonObject) -> bool:
    """Whether a policy, as a cluster has it, refuses what ours refuses, credential numbers included.

    It may have more validations than ours, and must not have other match conditions.
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


def policy() -> JsonObject:
    """The ValidatingAdmissionPolicy."""
    extra, key = "request.userInfo.extra", string(CREDENTIAL_ID)
    groups = "request.userInfo.groups"
    numbered = f"has({groups}) && {has_credential_group(groups)}"
    revoked_number = (
        f"{groups}.exists(g, g.startsWith({string(CREDENTIAL_PREFIX)})"
        f" && g.substring({len(CREDENTIAL_PREFIX)}) in params.data)"
    )
    revoked_hash = (
        f"{extra}[{key}].exists(c, c.startsWith({string(X509_ID)})"
        f" && c.substring({len(X509_ID)}) in params.data)"
    )
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
                        # With the subresources: exec, the tokens of service accounts, evictions.
                        "resources": ["*/*"],
                        "scope": "*",
                    }
                ]
            },
            "matchConditions": [
                {
                    "name": "with-a-client-certificate",
                    "expression": f"({numbered}) || ({has_x509(extra)})",
                }
            ],
            "validations": [
                {
                    "expression": f"!has(params.data) || !({condition})",
                    "reason": "Forbidden",
                    "message": "This client certificate is revoked. Get a new one from clustercert.",
                }
                for condition in (
                    f"{numbered} && {revoked_number}",
                    f"{has_x509(extra)} && {revoked_hash}",
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
                # Deny would refuse every write there is, the one that makes the ConfigMap again too.
                "parameterNotFoundAction": "Allow",
            },
            "validationActions": ["Deny"],
        },
    }
