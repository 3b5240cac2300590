"""Revocation scenarios, for the double and for a real kube-apiserver.

Each scenario takes an `Installation`, and leaves it unchanged.
"""

import base64
import json
import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.certificate_authority import Authority
from support.installation import FORBIDDEN, LIST_NAMESPACES, Holder, Installation
from support.installed_demo import operator, restarted, stop
from support.wait import eventually


def an_issued_certificate_works(installation: Installation) -> None:
    holder = installation.issue()

    status, said = holder.kubectl("auth", "whoami", "-o", "json")

    assert status == 0, said
    assert json.loads(said)["status"]["userInfo"] == {
        "username": installation.demo.own.user_id,
        "groups": ["clustercert:admins", holder.credential_group, "system:authenticated"],
        "extra": {"authentication.kubernetes.io/credential-id": [f"X509SHA256={holder.fingerprint}"]},
    }
    assert holder.lists_namespaces()


def one_revoked_certificate_is_refused_within_the_ttl(installation: Installation) -> None:
    """Other certificates of the same user, older or newer, still work."""
    lost, kept = installation.issue(), installation.issue()
    assert lost.lists_namespaces()
    assert kept.lists_namespaces()

    installation.revoke(lost)

    eventually(lambda: not lost.lists_namespaces())
    status, said = lost.kubectl(*LIST_NAMESPACES)
    assert status == 1
    assert "revoked" in said
    _, said = lost.kubectl(*LIST_NAMESPACES, "--as", "somebody", "--as-group", "system:masters")
    assert FORBIDDEN in said, "nor does impersonation help"
    assert kept.lists_namespaces()
    assert installation.issue().lists_namespaces()


def everything_of_a_user_is_revoked_by_the_call_of_cce(installation: Installation) -> None:
    """Certificates issued after it are valid."""
    lost = [installation.issue(), installation.issue()]
    assert all(holder.lists_namespaces() for holder in lost)

    answer = installation.registered.post(
        f"{installation.registered.tenant.clustercert_path}revoke", {"userId": installation.demo.own.user_id}
    )

    assert (answer.status_code, answer.content) == (200, b"")
    fresh = installation.issue()
    eventually(lambda: not any(holder.lists_namespaces() for holder in lost))
    assert fresh.lists_namespaces()


def known_only_refuses_a_certificate_that_nobody_issued_here(installation: Installation) -> None:
    """Exempt users and members of system:masters are not refused."""
    for group in ("team", "system:nodes"):
        installation.as_admin(
            "apply", "-f", "-", stdin=json.dumps(_binding(group, "system:aggregate-to-view"))
        )
    stranger, named = installation.foreign("eve", ["team"]), installation.foreign("system:eve", ["team"])
    kubelet = installation.foreign("system:node:n1", ["system:nodes"])
    master = installation.foreign("root", ["system:masters"])
    assert stranger.lists_namespaces(), "in the default mode RBAC alone decides about others' certificates"

    installation.guard("known-only")
    try:
        eventually(lambda: not stranger.lists_namespaces())
        eventually(lambda: not named.lists_namespaces())
        assert kubelet.lists_namespaces(), "each of its groups is exempt"
        assert master.lists_namespaces()
        assert installation.issue().lists_namespaces()
    finally:
        installation.guard("default")

    eventually(lambda: _told_of(installation, "credential.unknown", stranger))


def known_only_tells_of_a_new_certificate_of_a_component(installation: Installation) -> None:
    """It is allowed unless components are pinned."""
    name = "system:kube-scheduler"
    first, second = installation.foreign(name, []), installation.foreign(name, [])
    # Another name of Kubernetes, behind the group that is exempt by default.
    hidden = installation.foreign("system:kube-controller-manager", ["system:nodes"])

    def update(*options: str) -> None:
        operator(installation.demo, "cluster", "update", installation.id, *options)

    update("--exempt", name)
    installation.guard("known-only")
    try:
        eventually(lambda: not _reads_the_version(hidden))
        assert _reads_the_version(first)
        eventually(lambda: _told_of(installation, "credential.exempt", first))
        update("--pin", first.fingerprint, "--pin-components")
        installation.guard("known-only")
        eventually(lambda: not _reads_the_version(second))
        assert _reads_the_version(first)
    finally:
        update("--no-pin-components", "--remove-pin", first.fingerprint, "--remove-exempt", name)
        installation.guard("default")


def _reads_the_version(holder: Holder) -> bool:
    """Every authenticated user may do that."""
    status, said = holder.kubectl("get", "--raw", "/version")
    assert status == 0 or FORBIDDEN in said, said
    return status == 0


def a_member_of_system_masters_raises_an_alert(installation: Installation) -> None:
    """They bypass all authorizers; audit events report them afterwards."""
    # Another name than elsewhere: of one identity there is an event an hour.
    master = installation.foreign("intruder", ["system:masters"])

    assert master.lists_namespaces()

    eventually(lambda: _told_of(installation, "credential.masters", master))


def a_ca_that_is_dropped_from_the_bundle_lets_nobody_in(installation: Installation) -> None:
    holder = installation.issue()
    assert holder.lists_namespaces()

    installation.cluster.trust(Authority("another").certificate_pem)
    try:
        eventually(lambda: "You must be logged in" in holder.kubectl(*LIST_NAMESPACES)[1])
    finally:
        installation.trust()

    eventually(holder.lists_namespaces)


def the_use_of_a_credential_is_seen(installation: Installation) -> None:
    holder = installation.issue()
    tenant = installation.registered.tenant
    path = f"/clustercert/v1/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/certificates/"
    assert installation.registered.get(path + holder.fingerprint).get("last_seen_at") is None

    assert holder.lists_namespaces()

    eventually(
        lambda: installation.registered.get(path + holder.fingerprint).get("last_seen_at") is not None,
    )


def verify_proves_it_and_measures_the_seconds(installation: Installation) -> None:
    said = operator(installation.demo, "kubernetes", "verify", installation.id, "--output", "json")

    checks = {check["check"]: check for check in json.loads(said)}
    assert {check["result"] for check in checks.values()} == {"ok"}
    assert checks["revoke"]["seconds"] > 0


def holders_get_no_certificates_of_the_clusters_own_signers(installation: Installation) -> None:
    """They may deny requests, and may do everything with those for other signers."""
    holder, signer = installation.issue(), "kubernetes.io/kube-apiserver-client"
    policy = "ValidatingAdmissionPolicy 'clustercert-certificate-requests'"

    for each in (signer, f"{signer}-kubelet"):
        status, said = holder.kubectl("create", "-f", _request(installation, "ghost", each))
        assert (status, policy in said) == (1, True), said
    installation.as_admin("create", "-f", _request(installation, "of-an-admin", signer))
    status, said = holder.kubectl("certificate", "approve", "of-an-admin")
    assert (status, policy in said) == (1, True), said
    status, said = holder.kubectl("certificate", "deny", "of-an-admin")
    assert status == 0, said
    status, said = holder.kubectl("create", "-f", _request(installation, "other", "example.com/signer"))
    assert status == 0, said
    status, said = holder.kubectl("certificate", "approve", "other")
    assert status == 0, said
    status, said = holder.kubectl("delete", "certificatesigningrequests", "of-an-admin", "other")
    assert status == 0, said


def _request(installation: Installation, name: str, signer: str) -> str:
    """The path of a CertificateSigningRequest for a user in the policy's group of admins."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "clustercert:admins"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    document = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(csr.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": signer,
            "usages": ["client auth"],
        },
    }
    path = installation.setup_folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return str(path)


WITH_A_WEBHOOK = (
    an_issued_certificate_works,
    one_revoked_certificate_is_refused_within_the_ttl,
    everything_of_a_user_is_revoked_by_the_call_of_cce,
    known_only_refuses_a_certificate_that_nobody_issued_here,
    known_only_tells_of_a_new_certificate_of_a_component,
    a_member_of_system_masters_raises_an_alert,
    a_ca_that_is_dropped_from_the_bundle_lets_nobody_in,
    the_use_of_a_credential_is_seen,
    holders_get_no_certificates_of_the_clusters_own_signers,
    verify_proves_it_and_measures_the_seconds,
)


def the_admission_policy_stops_writes_and_no_reads(installation: Installation) -> None:
    """For a managed cluster with `--admission`."""
    lost, kept = installation.issue(), installation.issue()
    for number, holder in enumerate((lost, kept)):
        status, said = holder.kubectl("create", "configmap", f"before-{number}", "--from-literal=a=b")
        assert status == 0, said

    installation.revoke(lost)

    eventually(
        lambda: "revoked" in lost.kubectl("create", "configmap", "probe", "--dry-run=server")[1],
    )
    status, said = lost.kubectl("delete", "configmap", "before-0")
    assert status == 1
    assert re.search(r"ValidatingAdmissionPolicy 'clustercert-revoked' .* revoked", said), said
    assert lost.lists_namespaces(), "admission sees no reads"
    status, said = kept.kubectl("delete", "configmap", "before-0", "before-1")
    assert status == 0, said


def a_credentials_own_binding_ends_with_it(installation: Installation) -> None:
    """For a cluster with `--credential-role`."""
    lost, kept = installation.issue(), installation.issue()
    status, said = lost.kubectl("auth", "whoami", "-o", "json")
    assert status == 0, said
    groups = json.loads(said)["status"]["userInfo"]["groups"]
    assert re.fullmatch(r"clustercert:credential:[0-9a-f]+", groups[0]), groups
    assert groups[1:] == ["system:authenticated"], "no other group, or there were nothing to take away"
    assert lost.lists_namespaces()

    installation.revoke(lost)

    eventually(lambda: not lost.lists_namespaces())
    assert kept.lists_namespaces()
    bindings = installation.as_admin("get", "clusterrolebindings", "-o", "name")
    assert groups[0] not in bindings


def without_the_service_the_failure_policy_decides(installation: Installation) -> None:
    """Stops the service, and starts it at the same address with the same data."""
    lost, kept = installation.issue(), installation.issue()
    master = installation.foreign("root", ["system:masters"])
    installation.as_admin("apply", "-f", "-", stdin=json.dumps(_binding("team", "system:aggregate-to-view")))
    stranger = installation.foreign("eve", ["team"])
    installation.revoke(lost)
    eventually(lambda: not lost.lists_namespaces())

    stop(installation.demo)
    # NoOpinion is the default: RBAC alone decides, for the revoked too.
    eventually(lost.lists_namespaces)
    assert kept.lists_namespaces()

    installation.set_up("--failure-policy", "Deny")
    installation.cluster.authorize_with(installation.setup_folder / "authorization-config.yaml")
    eventually(lambda: _fails_inside(lost))
    assert _fails_inside(kept)
    assert stranger.lists_namespaces(), "whom no match condition selects is not asked about"
    assert master.lists_namespaces()

    installation.demo = restarted(installation.demo)
    eventually(lambda: not _fails_inside(kept))
    assert kept.lists_namespaces()
    assert not lost.lists_namespaces()


def _fails_inside(holder: Holder) -> bool:
    """Whether the API server answers HTTP 500."""
    return "(InternalError)" in holder.kubectl(*LIST_NAMESPACES)[1]


def _told_of(installation: Installation, kind: str, holder: Holder) -> bool:
    return any(holder.fingerprint in body for body in installation.events(kind))


def _binding(group: str, role: str) -> object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{group}:{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    }
