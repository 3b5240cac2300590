"""Scenarios with altered copies and forged certificates, for the double and for a real kube-apiserver.

kubectl parses certificates like Go, so it can present every altered copy. The double's OpenSSL accepts only the twin,
(r, n - s), in a handshake; tests of the double present the other copies in a header.
"""

import base64
import json
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from support import altered_certificates
from support.apiserver import ApiServer
from support.installation import FORBIDDEN, LIST_NAMESPACES, Holder, Installation
from support.installed_demo import operator, operators_environment, program
from support.kubectl import written
from support.wait import SECONDS, eventually

FORGER = Path(__file__).parent / "programs" / "certificate_forger.py"


def certificate(holder: Holder) -> bytes:
    """DER."""
    document = json.loads(holder.kubeconfig.read_text())
    pem = base64.b64decode(document["users"][0]["user"]["client-certificate-data"]).decode()
    # A private key may stand behind it.
    return ssl.PEM_cert_to_DER_cert(pem.partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER)


def copies(installation: Installation, holder: Holder) -> dict[str, Holder]:
    """The altered copies that a TLS client can present to the cluster, by kind."""
    found = altered_certificates.copies(certificate(holder))
    kinds = ("twin",) if isinstance(installation.cluster, ApiServer) else tuple(found)
    return {kind: _with_certificate(holder, found[kind], kind) for kind in kinds}


def _with_certificate(holder: Holder, der: bytes, name: str) -> Holder:
    document = json.loads(holder.kubeconfig.read_text())
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    document["users"][0]["user"]["client-certificate-data"] = base64.b64encode(pem).decode()
    path = written(holder.kubeconfig.parent, document, f"{holder.kubeconfig.stem}-{name}.json")
    return replace(holder, kubeconfig=path)


def reason(holder: Holder) -> str:
    """The API server's reason why a holder cannot list namespaces; empty if they can."""
    status, said = holder.kubectl(*LIST_NAMESPACES)
    assert status == 0 or FORBIDDEN in said, said
    return "" if status == 0 else said


def copies_of_a_good_certificate_are_refused_and_told(installation: Installation) -> None:
    held = installation.issue()
    for kind, copy in copies(installation, held).items():
        assert "altered copy" in reason(copy), kind
    assert held.lists_namespaces()
    eventually(
        lambda: any(held.fingerprint in body for body in installation.events("credential.altered")),
    )


def copies_of_a_revoked_certificate_are_refused(installation: Installation) -> None:
    """Revoked by certificate, and by user with the CCE call."""
    lost, kept = installation.issue(), installation.issue()
    installation.revoke(lost)
    eventually(lambda: not lost.lists_namespaces())
    for kind, copy in copies(installation, lost).items():
        assert "revoked" in reason(copy), kind
    assert kept.lists_namespaces()

    installation.registered.post(
        f"{installation.registered.tenant.clustercert_path}revoke", {"userId": installation.demo.own.user_id}
    )
    eventually(lambda: not kept.lists_namespaces())
    for kind, copy in copies(installation, kept).items():
        assert "revoked" in reason(copy), kind
    assert installation.issue().lists_namespaces()


def no_exemption_spares_a_copy(installation: Installation) -> None:
    """In mode known-only, with the user's name and all groups of the service exempt."""
    lost, kept = installation.issue(), installation.issue()
    exempt = ("clustercert:*", f"{installation.demo.own.user_id[:4]}*", "system:*")
    operator(
        installation.demo,
        "cluster",
        "update",
        installation.id,
        *(f"--exempt={pattern}" for pattern in exempt),
    )
    installation.guard("known-only")
    try:
        installation.revoke(lost)
        eventually(lambda: not lost.lists_namespaces())
        for kind, copy in copies(installation, lost).items():
            assert "revoked" in reason(copy), kind
        assert kept.lists_namespaces()
        nameless = _forged(installation, "system:mallory", ["clustercert:admins"])
        assert "only certificates that clustercert issued" in reason(nameless)
        eventually(lambda: _told(installation, nameless))
    finally:
        removed = (f"--remove-exempt={pattern}" for pattern in exempt[:2])
        operator(installation.demo, "cluster", "update", installation.id, *removed)
        installation.guard("default")


def a_forged_certificate_is_refused_and_told(installation: Installation) -> None:
    """Signed with the client CA's key: with another user's credential number, with two, with an unknown one."""
    stranger, another = installation.issue(), installation.issue()
    first, second = _credential_group(stranger), _credential_group(another)
    nobody = f"clustercert:credential:{'0' * 40}"
    forged = [
        _forged(installation, "mallory", ["clustercert:admins", first]),
        _forged(installation, installation.demo.own.user_id, ["clustercert:admins", first, second]),
        _forged(installation, "mallory", ["clustercert:admins", nobody]),
    ]
    for one, words in zip(forged, ("does not match", "does not match", "not in the ledger"), strict=True):
        assert words in reason(one)
    eventually(lambda: all(_told(installation, one) for one in forged))
    assert stranger.lists_namespaces()
    assert another.lists_namespaces()


WITH_A_WEBHOOK = (
    copies_of_a_good_certificate_are_refused_and_told,
    copies_of_a_revoked_certificate_are_refused,
    no_exemption_spares_a_copy,
    a_forged_certificate_is_refused_and_told,
)


def the_admission_policy_stops_copies(installation: Installation) -> None:
    """For a cluster with `--admission`."""
    lost, kept = installation.issue(), installation.issue()
    installation.revoke(lost)
    eventually(lambda: "revoked" in _write(lost))
    for kind, copy in copies(installation, lost).items():
        assert "revoked" in _write(copy), kind
    assert "revoked" not in _write(kept)


def the_end_of_a_binding_stops_copies(installation: Installation) -> None:
    """For a cluster with `--credential-role`."""
    lost, kept = installation.issue(), installation.issue()
    before = copies(installation, lost)
    assert all(copy.lists_namespaces() for copy in before.values()), "RBAC sees groups alone"
    installation.revoke(lost)
    eventually(lambda: not lost.lists_namespaces())
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


def _forged(installation: Installation, username: str, groups: Sequence[str]) -> Holder:
    """The holder of a forged certificate, signed with the client CA's key from the demo's store."""
    done = subprocess.run(
        [Path(program()).with_name("python"), FORGER, installation.id, username, *groups],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        # The program imports from `support`.
        env=operators_environment(installation.demo) | {"PYTHONPATH": str(FORGER.parents[2])},
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(installation.issue().kubeconfig.read_text())
    user = document["users"][0]["user"]
    both = base64.b64encode(done.stdout.encode()).decode()
    user["client-certificate-data"], user["client-key-data"] = both, both
    path = written(installation.setup_folder.parent, document, f"forged-{hash(done.stdout):x}.json")
    holder = Holder(path, "")
    return replace(holder, fingerprint=altered_certificates.fingerprint(certificate(holder)))


def _told(installation: Installation, holder: Holder) -> bool:
    return any(holder.fingerprint in body for body in installation.events("credential.unknown"))
