"""The audit policy of an API server that reports uses of certificates."""

from collections.abc import Iterable

from clustercert.model import JsonObject
from clustercert.model.kubernetes import MASTERS


def audit_policy(groups: Iterable[str]) -> JsonObject:
    """Return a minimal audit policy that logs all use of client certificates except the cluster's own traffic.

    The first matching rule applies. So requests from members of system:masters and of `groups` are logged, even if the
    members are in other groups too.
    """
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {
                # Log responses about CertificateSigningRequests, because only a response contains the signer, and shows
                # whether the request was approved or denied.
                "level": "RequestResponse",
                "verbs": ["update", "patch"],
                "resources": [
                    {"group": "certificates.k8s.io", "resources": ["certificatesigningrequests/approval"]}
                ],
            },
            {"level": "Metadata", "userGroups": list(dict.fromkeys([MASTERS, *groups]))},
            {
                "level": "None",
                "userGroups": ["system:nodes", "system:serviceaccounts", "system:unauthenticated"],
            },
            {"level": "Metadata"},
        ],
    }
