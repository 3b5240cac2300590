"""`clustercert kubernetes setup --distribution`."""

from typing import get_args

import pytest
import yaml

from clustercert.kubernetes.setup.distributions import DISTRIBUTIONS, UNSUPPORTED
from clustercert.model.choices import ManagedKubernetes
from support.kubernetes_setup import files, set_up, update
from support.operated_cluster import OperatedCluster

OWN_FILES = {name for each in DISTRIBUTIONS.values() for name in each.files}


def written(site: OperatedCluster) -> set[str]:
    """The files that are only for one distribution."""
    return OWN_FILES & files(site).keys()


def kubeconfig_path(site: OperatedCluster) -> str:
    document = yaml.safe_load(files(site)["authorization-config.yaml"])
    return str(document["authorizers"][0]["webhook"]["connectionInfo"]["kubeConfigFile"])


def test_the_distribution_is_kept_until_it_is_changed(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site, "--distribution", "rke2"))
    assert written(site) == {"rke2.yaml"}
    assert kubeconfig_path(site) == "/etc/rancher/rke2/clustercert/webhook.kubeconfig"
    assert "systemctl restart rke2-server" in files(site)["README.md"]

    again = site.operator.run(*update(site, "--no-audit"))
    assert (again.code, "--distribution rke2" in again.err) == (0, True), again.err
    assert written(site) == {"rke2.yaml"}
    assert "audit" not in files(site)["rke2.yaml"]

    changed = site.operator.run(*update(site, "--distribution", "talos"))
    assert (changed.code, "Edited by hand" in changed.err) == (0, False), changed.err
    assert written(site) == {"talos.yaml", "talos-files.yaml"}
    assert kubeconfig_path(site) == "/var/lib/clustercert/webhook.kubeconfig"


def test_kubeadm_is_the_default(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    assert written(site) == {"kubeadm.yaml"}


def test_a_given_folder_is_used_for_every_distribution(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site, "--distribution", "k3s", "--control-plane-dir", "/opt/k"))
    site.operator.output(*update(site, "--distribution", "rke2"))
    assert yaml.safe_load(files(site)["rke2.yaml"])["kube-apiserver-extra-mount+"] == ["/opt/k:/opt/k:ro"]


def test_a_new_token_in_the_folder_is_written_into_all_files(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site, "--distribution", "talos"))
    old = yaml.safe_load(files(site)["webhook.kubeconfig"])["users"][0]["user"]["token"]
    new = site.operator.output_json("kubernetes", "token", "create", "prod")["token"]
    kubeconfig = site.folder / "webhook.kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace(old, new))

    site.operator.output(*update(site))

    content = files(site)
    assert {name for name in content if new in content[name]} == {
        "webhook.kubeconfig",
        "audit-webhook.kubeconfig",
        "talos-files.yaml",
    }
    assert not any(old in text for text in content.values())


@pytest.mark.parametrize("managed", get_args(ManagedKubernetes))
def test_managed_kubernetes_is_refused_with_what_works_instead(site: OperatedCluster, managed: str) -> None:
    said = site.operator.error(*set_up(site, "--distribution", managed))
    assert " ".join(said.split()) == UNSUPPORTED[managed]  # type: ignore[index] # a name
    assert "no documented setting for a further client CA" in UNSUPPORTED[managed]  # type: ignore[index]
    assert " instead" in UNSUPPORTED[managed]  # type: ignore[index]
    assert not site.folder.exists()
    assert site.operator.output_json("kubernetes", "token", "list", "prod") == []


def test_flags_are_written_only_for_kubeadm(site: OperatedCluster) -> None:
    said = site.operator.error(*set_up(site, "--distribution", "k3s", "--kubernetes-version", "1.29"))
    assert said.strip() == "--distribution k3s needs Kubernetes 1.30 or newer, not 1.29."
    assert not site.folder.exists()


def test_another_name_is_wrong_usage(site: OperatedCluster) -> None:
    assert "'openshift' is not one of" in site.operator.usage_error(
        *set_up(site, "--distribution", "openshift")
    )
