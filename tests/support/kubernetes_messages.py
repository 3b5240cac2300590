"""Bodies of real kube-apiservers, byte for byte except names and fingerprints."""

import json
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

# kube-apiserver 1.32.13; 1.36.2 writes an empty metadata.
METADATA = {"1.32": {"creationTimestamp": None}, "1.36": {}}


def credential_id(fingerprint: bytes | str) -> str:
    hexadecimal = fingerprint.hex() if isinstance(fingerprint, bytes) else fingerprint
    return f"X509SHA256={hexadecimal}"


def review(
    *credential_ids: str,
    user: str = "bob",
    groups: Sequence[str] = ("clustercert:admins",),
    release: str = "1.32",
    **more: object,
) -> bytes:
    """A SubjectAccessReview for listing namespaces; `more` goes into its spec."""
    spec: dict[str, object] = {
        "resourceAttributes": {"verb": "list", "version": "v1", "resource": "namespaces"},
        "user": user,
        "groups": [*groups, "system:authenticated"],
    }
    if credential_ids:
        spec["extra"] = {"authentication.kubernetes.io/credential-id": list(credential_ids)}
    document = {
        "kind": "SubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": METADATA[release],
        "spec": spec | more,
        "status": {"allowed": False},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def review_of(leaf: x509.Certificate, fingerprint: str) -> bytes:
    """A review for the holder of a certificate."""
    user, *_ = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return review(credential_id(fingerprint), user=str(user.value), groups=groups)


def audit_event(
    *credential_ids: str,
    at: str = "2026-03-14T15:09:26.535897Z",
    user: str = "bob",
    groups: Sequence[str] = ("clustercert:admins",),
) -> dict[str, object]:
    """An Event of level Metadata."""
    who: dict[str, object] = {"username": user, "groups": [*groups, "system:authenticated"]}
    if credential_ids:
        who["extra"] = {"authentication.kubernetes.io/credential-id": list(credential_ids)}
    return {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": "7f3d1a52-6e0c-4b1a-9d0c-1f3f6f0a3c55",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces?limit=500",
        "verb": "list",
        "user": who,
        "sourceIPs": ["192.0.2.9"],
        "userAgent": "kubectl/v1.32.3 (linux/amd64) kubernetes/32cc146",
        "objectRef": {"resource": "namespaces", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 200},
        "requestReceivedTimestamp": at,
        "stageTimestamp": at,
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
    }


def event_list(*events: dict[str, object]) -> bytes:
    document = {"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": events}
    return json.dumps(document).encode()
