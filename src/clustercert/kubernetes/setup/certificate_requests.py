"""The admission policy against requests for client certificates by holders of certificates from this service.

Such holders may neither create nor approve requests to the cluster's own signers, because this service does not know
the certificates that these signers issue, and can't revoke them.
"""

from clustercert.kubernetes.setup.cel import has_credential_group, string, strings
from clustercert.model import JsonObject
from clustercert.model.kubernetes import MANAGED_BY, SERVICE

POLICY = "clustercert-certificate-requests"

# The signers whose certificates the API server accepts as client certificates.
SIGNERS = ("kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet")

_GROUPS = "request.userInfo.groups"
_MESSAGE = (
    "Holders of a certificate of clustercert may not create or approve requests for client certificates, because"
    " clustercert could not revoke the issued certificates. Use kubeadm's admin.conf, or a different identity."
)


def certificate_requests() -> list[JsonObject]:
    """Return the ValidatingAdmissionPolicy and its binding, which need Kubernetes 1.30 or newer."""
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": POLICY, "labels": MANAGED_BY},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [_rule("CREATE"), _rule("UPDATE", "/approval")]},
                "matchConditions": [
                    {
                        "name": "with-a-certificate-of-clustercert",
                        "expression": f"has({_GROUPS}) && {has_credential_group(_GROUPS)}"
                        f" && !({string(SERVICE)} in {_GROUPS})",
                    },
                    {
                        "name": "for-a-client-certificate",
                        "expression": f"object.spec.signerName in {strings(SIGNERS)}",
                    },
                ],
                # Allow a holder to deny a CertificateSigningRequest, which also updates the subresource `approval`.
                "validations": [
                    {
                        "expression": "request.operation == 'UPDATE' && !(has(object.status) &&"
                        " has(object.status.conditions) &&"
                        " object.status.conditions.exists(c, c.type == 'Approved'))",
                        "reason": "Forbidden",
                        "message": _MESSAGE,
                    }
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": POLICY, "labels": MANAGED_BY},
            "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
        },
    ]


def _rule(operation: str, subresource: str = "") -> JsonObject:
    """Return a rule that matches an operation on CertificateSigningRequests, or on a subresource of them.

    Only an update of the subresource `approval` can approve a request.

    Source: kubernetes/pkg/registry/certificates/certificates/strategy.go.
    """
    return {
        "apiGroups": ["certificates.k8s.io"],
        "apiVersions": ["*"],
        "operations": [operation],
        "resources": [f"certificatesigningrequests{subresource}"],
    }
