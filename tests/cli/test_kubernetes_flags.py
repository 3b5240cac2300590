"""`clustercert kubernetes setup` for API servers before 1.30, which have flags for the webhook."""

from collections.abc import Mapping

import pytest
import yaml

from support.operated_cluster import OperatedCluster


def files(site: OperatedCluster) -> dict[str, str]:
    return {path.name: path.read_text() for path in site.folder.iterdir()}


def written_flags(site: OperatedCluster) -> Mapping[str, str]:
    flags: Mapping[str, str] = yaml.safe_load(files(site)["kubeadm.yaml"])["apiServer"]["extraArgs"]
    return flags


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_revocations_are_enforced_with_flags(site: OperatedCluster, version: str) -> None:
    site.write_files("--kubernetes-version", "1.24")
    site.bind_groups()
    flags = written_flags(site)
    assert flags["authorization-webhook-version"] == "v1"
    site.cluster.authorize_with_flags({**flags, "authorization-webhook-version": version})

    code, checks = site.verify()

    assert code == 0, checks
    assert "by the authorization webhook" in checks["revoke"]["detail"]
    assert site.cluster.webhook_calls > 0


def test_the_files_have_flags_instead_of_a_configuration(site: OperatedCluster) -> None:
    done = site.set_up_command("--kubernetes-version", "1.29", "--authorized-ttl", "7s")
    assert done.code == 0, done.err
    assert "They don't support failing closed, the mode known-only, or a second webhook" in " ".join(
        done.err.split()
    )
    written = files(site)
    assert "authorization-config.yaml" not in written
    kubeadm = yaml.safe_load(written["kubeadm.yaml"])
    assert kubeadm["apiVersion"] == "kubeadm.k8s.io/v1beta3"
    kubeconfig = str(site.folder / "webhook.kubeconfig")
    expected = {
        "authorization-mode": "Node,Webhook,RBAC",
        "authorization-webhook-config-file": kubeconfig,
        "authorization-webhook-version": "v1",
        "authorization-webhook-cache-authorized-ttl": "7s",
        "authorization-webhook-cache-unauthorized-ttl": "500ms",
    }
    assert expected.items() <= kubeadm["apiServer"]["extraArgs"].items()
    for flag, value in expected.items():
        assert f"--{flag}={value}" in written["README.md"]
    assert "authorization-config.yaml`:" not in written["README.md"]
    assert "failurePolicy" not in written["README.md"]
    assert "fails open" in written["README.md"]
    # Admission policies need 1.30.
    assert "certificate-requests.yaml" not in written
    assert "kubectl certificate approve" in written["README.md"]
    refused = site.set_up_command("--kubernetes-version", "1.29", "--deny-certificate-requests")
    assert "--deny-certificate-requests is not possible before Kubernetes 1.30" in " ".join(
        refused.err.split()
    )


def test_flags_are_read_back_and_replaced_after_an_upgrade(site: OperatedCluster) -> None:
    assert site.set_up_command("--kubernetes-version", "1.28", "--unauthorized-ttl", "3s").code == 0
    before = written_flags(site)
    again = site.operator.run("kubernetes", "setup", "prod", "--out", site.folder, "--force")
    assert again.code == 0, again.err
    assert "--kubernetes-version 1.28" in again.err
    assert written_flags(site) == before
    assert "--allow-certificate-requests" not in again.err
    site.operator.output(
        "kubernetes", "setup", "prod", "--out", site.folder, "--force", "--kubernetes-version", "1.31"
    )
    document = yaml.safe_load(files(site)["authorization-config.yaml"])
    assert document["apiVersion"] == "apiserver.config.k8s.io/v1beta1"
    assert document["authorizers"][0]["webhook"]["unauthorizedTTL"] == "3s"
    site.operator.output(
        "kubernetes", "setup", "prod", "--out", site.folder, "--force", "--kubernetes-version", "1.32"
    )
    document = yaml.safe_load(files(site)["authorization-config.yaml"])
    assert document["apiVersion"] == "apiserver.config.k8s.io/v1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("1.29", "--failure-policy", "Deny"),
            "--failure-policy Deny is not possible before Kubernetes 1.30",
        ),
        (("1.29", "--timeout", "2s"), "--timeout is not possible"),
        (("1.29", "--mode", "known-only"), "Mode known-only needs Kubernetes 1.32"),
        (("1.31", "--mode", "known-only"), "Mode known-only needs Kubernetes 1.32"),
    ],
)
def test_what_such_an_api_server_lacks_is_an_error(
    site: OperatedCluster, options: tuple[str, ...], said: str
) -> None:
    done = site.set_up_command("--kubernetes-version", *options)
    assert (done.code, said in done.err) == (1, True), done.err


def test_known_only_clusters_are_an_error(site: OperatedCluster) -> None:
    site.update("--webhook-mode", "known-only")
    done = site.set_up_command("--kubernetes-version", "1.29")
    assert (done.code, "--webhook-mode default" in done.err) == (1, True), done.err


@pytest.mark.parametrize("version", ["1.23", "1", "1.32.1", "v1.29", "2.0"])
def test_other_versions_are_wrong_usage(site: OperatedCluster, version: str) -> None:
    assert site.set_up_command("--kubernetes-version", version).code == 2
