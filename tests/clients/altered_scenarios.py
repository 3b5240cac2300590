"""What a holder may do to a certificate in vain, told once for the double and for a real kube-apiserver.

kubectl loads a certificate as Go reads it, so it presents every altered copy. The double's OpenSSL ends the handshake
of all but the twin, (r, n - s); tests of the double alone present the others in a header.
"""

import base64
import json
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import altered
from apiserver import ApiServer
from kubectl import written
from scenarios import REFUSED_WITHIN_S, SEEN_WITHIN_S
from service import operator, operators_environment, program
from story import FORBIDDEN, Holder, Story
from waiting import eventually

FORGING = Path(__file__).parents[1] / "forging.py"


def certificate(holder: Holder) -> bytes:
    """DER."""
    document = json.loads(holder.kubeconfig.read_text())
    pem = base64.b64decode(document["users"][0]["user"]["client-certificate-data"]).decode()
    # A private key may stand behind it.
    return ssl.PEM_cert_to_DER_cert(pem.partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER)


def copies(story: Story, holder: Holder) -> dict[str, Holder]:
    """Those of the altered copies that a TLS client can present to the cluster, by kind."""
    found = altered.copies(certificate(holder))
    kinds = ("twin",) if isinstance(story.cluster, ApiServer) else tuple(found)
    return {kind: _with_certificate(holder, found[kind], kind) for kind in kinds}


def _with_certificate(holder: Holder, der: bytes, name: str) -> Holder:
    document = json.loads(holder.kubeconfig.read_text())
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    document["users"][0]["user"]["client-certificate-data"] = base64.b64encode(pem).decode()
    path = written(holder.kubeconfig.parent, document, f"{holder.kubeconfig.stem}-{name}.json")
    return replace(holder, kubeconfig=path)


def reason(holder: Holder) -> str:
    """Why a holder may not list namespaces, in the API server's words; empty where they may."""
    # Whoever is denied discovery too is told no more than "unknown" by any other form of it.
    status, said = holder.kubectl("get", "--raw", "/api/v1/namespaces")
    assert status == 0 or FORBIDDEN in said, said
    return "" if status == 0 else said


def copies_of_a_good_certificate_are_refused_and_told(story: Story) -> None:
    held = story.issue()
    for kind, copy in copies(story, held).items():
        assert "altered copy" in reason(copy), kind
    assert held.lists_namespaces()
    eventually(
        lambda: any(held.fingerprint in body for body in story.events("credential.altered")), SEEN_WITHIN_S
    )


def copies_of_a_revoked_certificate_are_refused(story: Story) -> None:
    """By certificate, and by user with the call of CCE."""
    lost, kept = story.issue(), story.issue()
    story.revoke(lost)
    eventually(lambda: not lost.lists_namespaces(), REFUSED_WITHIN_S)
    for kind, copy in copies(story, lost).items():
        assert "revoked" in reason(copy), kind
    assert kept.lists_namespaces()

    story.registered.post(
        f"{story.registered.tenant.clustercert_path}revoke", {"userId": story.demo.own.user_id}
    )
    eventually(lambda: not kept.lists_namespaces(), REFUSED_WITHIN_S)
    for kind, copy in copies(story, kept).items():
        assert "revoked" in reason(copy), kind
    assert story.issue().lists_namespaces()


def no_exemption_spares_a_copy(story: Story) -> None:
    """In known-only, with the user's own name and every group of ours exempt."""
    lost, kept = story.issue(), story.issue()
    exempt = ("clustercert:*", f"{story.demo.own.user_id[:4]}*", "system:*")
    operator(story.demo, "cluster", "update", story.id, *(f"--exempt={pattern}" for pattern in exempt))
    story.guard("known-only")
    try:
        story.revoke(lost)
        eventually(lambda: not lost.lists_namespaces(), REFUSED_WITHIN_S)
        for kind, copy in copies(story, lost).items():
            assert "revoked" in reason(copy), kind
        assert kept.lists_namespaces()
        nameless = _forged(story, "system:mallory", ["clustercert:admins"])
        assert "only certificates that clustercert issued" in reason(nameless)
        eventually(lambda: _told(story, nameless), SEEN_WITHIN_S)
    finally:
        removed = (f"--remove-exempt={pattern}" for pattern in exempt[:2])
        operator(story.demo, "cluster", "update", story.id, *removed)
        story.guard("default")


def a_forged_certificate_is_refused_and_told(story: Story) -> None:
    """Signed with the client CA's own key: with a stranger's number, with two, with one that nobody has."""
    stranger, another = story.issue(), story.issue()
    first, second = _credential_group(stranger), _credential_group(another)
    nobody = f"clustercert:credential:{'0' * 40}"
    forged = [
        _forged(story, "mallory", ["clustercert:admins", first]),
        _forged(story, story.demo.own.user_id, ["clustercert:admins", first, second]),
        _forged(story, "mallory", ["clustercert:admins", nobody]),
    ]
    for one, words in zip(forged, ("not the one", "not the one", "not in the ledger"), strict=True):
        assert words in reason(one)
    eventually(lambda: all(_told(story, one) for one in forged), SEEN_WITHIN_S)
    assert stranger.lists_namespaces()
    assert another.lists_namespaces()


WITH_A_WEBHOOK = (
    copies_of_a_good_certificate_are_refused_and_told,
    copies_of_a_revoked_certificate_are_refused,
    no_exemption_spares_a_copy,
    a_forged_certificate_is_refused_and_told,
)


def the_admission_policy_stops_copies(story: Story) -> None:
    """For a cluster with `--admission`."""
    lost, kept = story.issue(), story.issue()
    story.revoke(lost)
    eventually(lambda: "revoked" in _write(lost), SEEN_WITHIN_S)
    for kind, copy in copies(story, lost).items():
        assert "revoked" in _write(copy), kind
    assert "revoked" not in _write(kept)


def the_end_of_a_binding_stops_copies(story: Story) -> None:
    """For a cluster with `--credential-role`."""
    lost, kept = story.issue(), story.issue()
    before = copies(story, lost)
    assert all(copy.lists_namespaces() for copy in before.values()), "RBAC sees groups alone"
    story.revoke(lost)
    eventually(lambda: not lost.lists_namespaces(), SEEN_WITHIN_S)
    for kind, copy in before.items():
        assert reason(copy) != "", kind
    assert kept.lists_namespaces()


WHERE_FLAGS_CANNOT_BE_TOUCHED = (
    (("--admission",), the_admission_policy_stops_copies),
    (("--credential-role", "admin=cluster-admin"), the_end_of_a_binding_stops_copies),
)


def _write(holder: Holder) -> str:
    return holder.kubectl("create", "configmap", "probe", "--from-literal=a=b", "--dry-run=server")[1]


def _credential_group(holder: Holder) -> str:
    status, said = holder.kubectl("auth", "whoami", "-o", "json")
    assert status == 0, said
    groups: Sequence[str] = json.loads(said)["status"]["userInfo"]["groups"]
    (group,) = (each for each in groups if each.startswith("clustercert:credential:"))
    return group


def _forged(story: Story, username: str, groups: Sequence[str]) -> Holder:
    """Somebody with a certificate by the cluster's client CA, whose key the demo's store has."""
    done = subprocess.run(
        [Path(program()).with_name("python"), FORGING, story.id, username, *groups],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=operators_environment(story.demo),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(story.issue().kubeconfig.read_text())
    user = document["users"][0]["user"]
    both = base64.b64encode(done.stdout.encode()).decode()
    user["client-certificate-data"], user["client-key-data"] = both, both
    path = written(story.setup_folder.parent, document, f"forged-{hash(done.stdout):x}.json")
    holder = Holder(path, "")
    return replace(holder, fingerprint=altered.fingerprint(certificate(holder)))


def _told(story: Story, holder: Holder) -> bool:
    return any(holder.fingerprint in body for body in story.events("credential.unknown"))
