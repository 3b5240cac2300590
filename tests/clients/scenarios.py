"""What a revocation is to do to a cluster, told once for the double and for a real kube-apiserver.

Each scenario is a function that takes a `Story`, and leaves it as it was.
"""

import json
import re

from authority import Authority
from service import operator, restarted, stop
from story import FORBIDDEN, Holder, Story
from waiting import eventually

# What `kubernetes setup` writes and what the service promises; then for a busy machine.
REFUSED_WITHIN_S = 60.0
SEEN_WITHIN_S = 60


def an_issued_certificate_works(story: Story) -> None:
    holder = story.issue()

    status, said = holder.kubectl("auth", "whoami", "-o", "json")

    assert status == 0, said
    assert json.loads(said)["status"]["userInfo"] == {
        "username": story.demo.own.user_id,
        "groups": ["clustercert:admins", holder.credential_group, "system:authenticated"],
        "extra": {"authentication.kubernetes.io/credential-id": [f"X509SHA256={holder.fingerprint}"]},
    }
    assert holder.lists_namespaces()


def one_revoked_certificate_is_refused_within_the_ttl(story: Story) -> None:
    """And no other of the same user, before or after."""
    lost, kept = story.issue(), story.issue()
    assert lost.lists_namespaces()
    assert kept.lists_namespaces()

    story.revoke(lost)

    eventually(lambda: not lost.lists_namespaces(), REFUSED_WITHIN_S)
    status, said = lost.kubectl("get", "namespaces")
    assert status == 1
    assert "revoked" in said
    _, said = lost.kubectl("get", "namespaces", "--as", "somebody", "--as-group", "system:masters")
    assert FORBIDDEN in said, "nor does impersonation help"
    assert kept.lists_namespaces()
    assert story.issue().lists_namespaces()


def everything_of_a_user_is_revoked_by_the_call_of_cce(story: Story) -> None:
    """And what the user asks for afterwards is good."""
    lost = [story.issue(), story.issue()]
    assert all(holder.lists_namespaces() for holder in lost)

    answer = story.registered.post(
        f"{story.registered.tenant.clustercert_path}revoke", {"userId": story.demo.own.user_id}
    )

    assert (answer.status_code, answer.content) == (200, b"")
    fresh = story.issue()
    eventually(lambda: not any(holder.lists_namespaces() for holder in lost), REFUSED_WITHIN_S)
    assert fresh.lists_namespaces()


def known_only_refuses_a_certificate_that_nobody_issued_here(story: Story) -> None:
    """But spares the exempt, and can't reach a member of system:masters."""
    for group in ("team", "system:nodes"):
        story.as_admin("apply", "-f", "-", stdin=json.dumps(_binding(group, "system:aggregate-to-view")))
    stranger, named = story.foreign("eve", ["team"]), story.foreign("system:eve", ["team"])
    kubelet = story.foreign("system:node:n1", ["system:nodes"])
    master = story.foreign("root", ["system:masters"])
    assert stranger.lists_namespaces(), "in the default mode RBAC alone decides about others' certificates"

    story.guard("known-only")
    try:
        eventually(lambda: not stranger.lists_namespaces(), REFUSED_WITHIN_S)
        eventually(lambda: not named.lists_namespaces(), REFUSED_WITHIN_S)
        assert kubelet.lists_namespaces(), "each of its groups is exempt"
        assert master.lists_namespaces()
        assert story.issue().lists_namespaces()
    finally:
        story.guard("default")

    eventually(lambda: _told_of(story, "credential.unknown", stranger), SEEN_WITHIN_S)


def a_member_of_system_masters_raises_an_alert(story: Story) -> None:
    """No authorizer is asked about them; the audit events tell of them afterwards."""
    # Another name than elsewhere: of one identity there is an event an hour.
    master = story.foreign("intruder", ["system:masters"])

    assert master.lists_namespaces()

    eventually(lambda: _told_of(story, "credential.masters", master), SEEN_WITHIN_S)


def a_ca_that_is_dropped_from_the_bundle_lets_nobody_in(story: Story) -> None:
    holder = story.issue()
    assert holder.lists_namespaces()

    story.cluster.trust(Authority("another").certificate_pem)
    try:
        eventually(lambda: "You must be logged in" in holder.kubectl("get", "namespaces")[1], 10)
    finally:
        story.trust()

    eventually(holder.lists_namespaces, 10)


def the_use_of_a_credential_is_seen(story: Story) -> None:
    holder = story.issue()
    tenant = story.registered.tenant
    path = f"/clustercert/v1/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/certificates/"
    assert story.registered.get(path + holder.fingerprint).get("last_seen_at") is None

    assert holder.lists_namespaces()

    eventually(
        lambda: story.registered.get(path + holder.fingerprint).get("last_seen_at") is not None, SEEN_WITHIN_S
    )


def verify_proves_it_and_measures_the_seconds(story: Story) -> None:
    said = operator(story.demo, "kubernetes", "verify", story.id, "--output", "json")

    checks = {check["check"]: check for check in json.loads(said)}
    assert {check["result"] for check in checks.values()} == {"ok"}
    assert checks["revoke"]["seconds"] > 0


WITH_A_WEBHOOK = (
    an_issued_certificate_works,
    one_revoked_certificate_is_refused_within_the_ttl,
    everything_of_a_user_is_revoked_by_the_call_of_cce,
    known_only_refuses_a_certificate_that_nobody_issued_here,
    a_member_of_system_masters_raises_an_alert,
    a_ca_that_is_dropped_from_the_bundle_lets_nobody_in,
    the_use_of_a_credential_is_seen,
    verify_proves_it_and_measures_the_seconds,
)


def the_admission_policy_stops_writes_and_no_reads(story: Story) -> None:
    """Where the API server's flags can't be touched; for a cluster with `--admission`."""
    lost, kept = story.issue(), story.issue()
    for number, holder in enumerate((lost, kept)):
        status, said = holder.kubectl("create", "configmap", f"before-{number}", "--from-literal=a=b")
        assert status == 0, said

    story.revoke(lost)

    eventually(
        lambda: "revoked" in lost.kubectl("create", "configmap", "probe", "--dry-run=server")[1],
        SEEN_WITHIN_S,
    )
    status, said = lost.kubectl("delete", "configmap", "before-0")
    assert status == 1
    assert re.search(r"ValidatingAdmissionPolicy 'clustercert-revoked' .* revoked", said), said
    assert lost.lists_namespaces(), "admission sees no reads"
    status, said = kept.kubectl("delete", "configmap", "before-0", "before-1")
    assert status == 0, said


def a_credentials_own_binding_ends_with_it(story: Story) -> None:
    """For a cluster with `--credential-role`."""
    lost, kept = story.issue(), story.issue()
    status, said = lost.kubectl("auth", "whoami", "-o", "json")
    assert status == 0, said
    groups = json.loads(said)["status"]["userInfo"]["groups"]
    assert re.fullmatch(r"clustercert:credential:[0-9a-f]+", groups[0]), groups
    assert groups[1:] == ["system:authenticated"], "no other group, or there were nothing to take away"
    assert lost.lists_namespaces()

    story.revoke(lost)

    eventually(lambda: not lost.lists_namespaces(), SEEN_WITHIN_S)
    assert kept.lists_namespaces()
    bindings = story.as_admin("get", "clusterrolebindings", "-o", "name")
    assert groups[0] not in bindings


def without_the_service_the_failure_policy_decides(story: Story) -> None:
    """The service is stopped, and comes back at the same address with the same data."""
    lost, kept = story.issue(), story.issue()
    master = story.foreign("root", ["system:masters"])
    story.as_admin("apply", "-f", "-", stdin=json.dumps(_binding("team", "system:aggregate-to-view")))
    stranger = story.foreign("eve", ["team"])
    story.revoke(lost)
    eventually(lambda: not lost.lists_namespaces(), REFUSED_WITHIN_S)

    stop(story.demo)
    # NoOpinion is the default: RBAC alone decides, for the revoked too.
    eventually(lost.lists_namespaces, REFUSED_WITHIN_S)
    assert kept.lists_namespaces()

    story.set_up("--failure-policy", "Deny")
    story.cluster.authorize_with(story.setup_folder / "authorization-config.yaml")
    eventually(lambda: _fails_inside(lost), REFUSED_WITHIN_S)
    assert _fails_inside(kept)
    assert stranger.lists_namespaces(), "whom no match condition selects is not asked about"
    assert master.lists_namespaces()

    story.demo = restarted(story.demo)
    eventually(lambda: not _fails_inside(kept), SEEN_WITHIN_S)
    assert kept.lists_namespaces()
    assert not lost.lists_namespaces()


def _fails_inside(holder: Holder) -> bool:
    """Whether the API server answers neither yes nor no, but HTTP 500."""
    return "(InternalError)" in holder.kubectl("get", "namespaces", "-o", "name")[1]


def _told_of(story: Story, kind: str, holder: Holder) -> bool:
    return any(holder.fingerprint in body for body in story.events(kind))


def _binding(group: str, role: str) -> object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{group}:{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    }
