"""The files of `kubernetes setup` for each distribution, and the README.md that names them."""

import base64
import re
import stat
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import pytest
import yaml
from cryptography import x509
from ruamel.yaml import YAML

from clustercert.kubernetes.setup.authorization import authorization_configuration
from clustercert.kubernetes.setup.distributions import DISTRIBUTIONS, UNSUPPORTED
from clustercert.kubernetes.setup.files import files
from clustercert.kubernetes.setup.folder import SetupFolder
from clustercert.kubernetes.setup.removal import removal, write_removal
from clustercert.kubernetes.setup.values import FOR_CONTROL_PLANE, NAMES
from clustercert.model import ClusterOptions
from clustercert.model.choices import DistributionName, ManagedKubernetes
from support import samples
from support.cluster_setup import cluster_setup

ALL = get_args(DistributionName)
CONTROL_PLANE_FILES = {
    "client-ca.pem",
    "authorization-config.yaml",
    "webhook.kubeconfig",
    "audit-policy.yaml",
    "audit-webhook.kubeconfig",
}


def written(distribution: str, **changes: Any) -> Mapping[str, str]:
    return files(cluster_setup(distribution=distribution, **changes))


def document(name: str, distribution: str, **changes: Any) -> Any:
    return yaml.safe_load(written(distribution, **changes)[name])


def flags(folder: str) -> list[str]:
    return [
        f"client-ca-file={folder}/client-ca-bundle.pem",
        f"authorization-config={folder}/authorization-config.yaml",
        f"audit-policy-file={folder}/audit-policy.yaml",
        f"audit-webhook-config-file={folder}/audit-webhook.kubeconfig",
    ]


def test_every_distribution_and_managed_kubernetes_has_an_entry() -> None:
    assert set(DISTRIBUTIONS) == set(ALL)
    assert set(UNSUPPORTED) == set(get_args(ManagedKubernetes))


def test_k3s_gets_flags_in_addition_to_those_of_other_files() -> None:
    assert document("k3s.yaml", "k3s") == {"kube-apiserver-arg+": flags("/etc/rancher/k3s/clustercert")}
    assert document("k3s.yaml", "k3s", audit=False, control_plane_dir="/opt/k") == {
        "kube-apiserver-arg+": flags("/opt/k")[:2]
    }


def test_rke2_mounts_the_folder_into_the_api_servers_pod() -> None:
    folder = "/etc/rancher/rke2/clustercert"
    assert document("rke2.yaml", "rke2") == {
        "kube-apiserver-arg+": flags(folder),
        "kube-apiserver-extra-mount+": [f"{folder}:{folder}:ro"],
    }


def test_talos_asks_the_webhook_before_node_and_rbac() -> None:
    setup = cluster_setup(distribution="talos")
    cluster = yaml.safe_load(files(setup)["talos.yaml"])["cluster"]
    api_server = cluster["apiServer"]

    authorizers = api_server["authorizationConfig"]
    assert [each["type"] for each in authorizers] == ["Webhook", "Node", "RBAC"]
    connection = authorizers[0]["webhook"]["connectionInfo"]
    assert connection == {
        "type": "KubeConfigFile",
        "kubeConfigFile": "/var/lib/clustercert/webhook.kubeconfig",
    }
    # Talos denies client-ca-file and authorization-config here, and sets audit-policy-file itself.
    assert api_server["extraArgs"] == {
        "audit-webhook-config-file": "/var/lib/clustercert/audit-webhook.kubeconfig"
    }
    assert api_server["auditPolicy"] == document("audit-policy.yaml", "talos")
    volume = {"hostPath": "/var/lib/clustercert", "mountPath": "/var/lib/clustercert", "readonly": True}
    assert api_server["extraVolumes"] == [volume]
    [accepted] = cluster["acceptedCAs"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(accepted["crt"]))
    assert certificate == setup.cluster.client_ca.certificate


def test_talos_writes_the_kubeconfigs_so_that_the_api_server_can_read_them() -> None:
    content = written("talos")
    # Talos reads YAML 1.2.
    made = YAML(typ="safe").load(content["talos-files.yaml"])["machine"]["files"]
    assert [(each["path"], each["op"]) for each in made] == [
        ("/var/lib/clustercert/webhook.kubeconfig", "create"),
        ("/var/lib/clustercert/audit-webhook.kubeconfig", "create"),
    ]
    for each in made:
        assert each["permissions"] == stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
        assert each["content"] == content[PurePosixPath(each["path"]).name]
    without = document("talos-files.yaml", "talos", audit=False)["machine"]["files"]
    assert [each["path"] for each in without] == ["/var/lib/clustercert/webhook.kubeconfig"]
    assert "extraArgs" not in document("talos.yaml", "talos", audit=False)["cluster"]["apiServer"]


def test_talos_keeps_an_operators_authorizers() -> None:
    previous: Any = authorization_configuration(cluster_setup())
    previous["authorizers"] = [*previous["authorizers"][:1], {"type": "Node", "name": "node"}]
    previous["authorizers"].append({"type": "Webhook", "name": "own", "webhook": {"timeout": "1s"}})
    api_server = document("talos.yaml", "talos", previous_authorization=previous)["cluster"]["apiServer"]
    assert [each["name"] for each in api_server["authorizationConfig"]] == ["clustercert", "node", "own"]


def test_kamaji_mounts_the_bundle_in_place_of_the_client_ca() -> None:
    made = document("kamaji.yaml", "kamaji")
    secret = f"clustercert-{samples.cluster().id}"
    assert (made["apiVersion"], made["kind"]) == ("kamaji.clastix.io/v1alpha1", "TenantControlPlane")
    deployment = made["spec"]["controlPlane"]["deployment"]
    # Kamaji drops --client-ca-file.
    assert deployment["extraArgs"] == {
        "apiServer": [f"--{flag}" for flag in flags("/etc/kubernetes/clustercert")[1:]]
    }
    assert deployment["additionalVolumes"] == [{"name": "clustercert", "secret": {"secretName": secret}}]
    folder, bundle = deployment["additionalVolumeMounts"]["apiServer"]
    assert folder == {"name": "clustercert", "mountPath": "/etc/kubernetes/clustercert", "readOnly": True}
    assert (bundle["mountPath"], bundle["subPath"]) == ("/etc/kubernetes/pki/ca.crt", "client-ca-bundle.pem")
    text = written("kamaji")["README.md"]
    assert f"kubectl -n NAMESPACE create secret generic {secret} \\\n" in text
    assert "jsonpath='{.data.ca\\.crt}'" in text


def test_cluster_api_reads_the_files_from_a_secret_and_writes_the_bundle() -> None:
    made = document("cluster-api.yaml", "cluster-api")
    assert (made["apiVersion"], made["kind"]) == (
        "controlplane.cluster.x-k8s.io/v1beta2",
        "KubeadmControlPlane",
    )
    spec = made["spec"]["kubeadmConfigSpec"]
    secret = f"clustercert-{samples.cluster().id}"
    folder = "/etc/kubernetes/clustercert"
    assert {each["path"] for each in spec["files"]} == {f"{folder}/{name}" for name in CONTROL_PLANE_FILES}
    for each in spec["files"]:
        name = PurePosixPath(each["path"]).name
        assert (each["owner"], each["permissions"]) == ("root:root", "0600")
        assert each["contentFrom"] == {"secret": {"name": secret, "key": name}}
        assert f"  --from-file={name}" in written("cluster-api")["README.md"]
    assert spec["preKubeadmCommands"] == [
        f"cat /etc/kubernetes/pki/ca.crt {folder}/client-ca.pem > {folder}/client-ca-bundle.pem"
    ]
    api_server = spec["clusterConfiguration"]["apiServer"]
    assert [f"{each['name']}={each['value']}" for each in api_server["extraArgs"]] == flags(folder)
    [volume] = api_server["extraVolumes"]
    assert (volume["hostPath"], volume["mountPath"], volume["readOnly"]) == (folder, folder, True)


# README.md


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("mode", ["default", "known-only"])
@pytest.mark.parametrize("distribution", ALL)
def test_the_readme_of_each_distribution_is_whole(distribution: str, mode: str, audit: bool) -> None:
    content = written(distribution, mode=mode, audit=audit)
    assert content.keys() <= set(NAMES)
    assert set(DISTRIBUTIONS[distribution].files) <= content.keys()  # type: ignore[index] # a name
    of_others = {name for each in DISTRIBUTIONS.values() for name in each.files}
    assert of_others & content.keys() == set(DISTRIBUTIONS[distribution].files)  # type: ignore[index]
    text = content["README.md"]
    assert text.startswith(f"# Cluster {samples.cluster().name} ")
    assert [name for name in content if name != "README.md" and name not in text] == []
    headings = re.findall(r"^## (\d)\. ", text, re.MULTILINE)
    assert headings == ["1", "2", "3", "4"]
    assert not re.search(r"<!--|\{[a-z_]+\}", text)
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "**not tried" in text.lower()
    assert ("audit-webhook.kubeconfig" in text) == audit
    assert "### Undo step 3" in text


@pytest.mark.parametrize("distribution", ALL)
def test_only_marked_files_contain_the_token(distribution: str) -> None:
    content = written(distribution)
    secret = {name for name in content if "ccw_secret" in content[name]}
    expected = {"webhook.kubeconfig", "audit-webhook.kubeconfig"}
    assert secret == expected | ({"talos-files.yaml"} if distribution == "talos" else set())
    assert all(name in content["README.md"] for name in secret)


@pytest.mark.parametrize("distribution", ALL)
def test_a_token_is_exchanged_as_the_api_server_reads_it(distribution: str) -> None:
    text = " ".join(written(distribution)["README.md"].split())
    reloads = distribution in ("kubeadm", "k3s")
    assert ("a different name" in text) == reloads
    assert ("Put the new token into `webhook.kubeconfig` in this folder" in text) == (not reloads)


def test_components_to_exempt_are_those_of_the_distribution() -> None:
    def text(distribution: str, **options: Any) -> str:
        setup = cluster_setup(ClusterOptions(**options), distribution=distribution, mode="known-only")
        return files(setup)["README.md"]

    assert "--exempt system:rke2-controller --exempt rke2-cloud-controller-manager" in text("rke2")
    assert "kubeadm:cluster-admins" not in text("talos")
    assert "kubectl logs" in text("cluster-api")
    exempt = ("system:kube-controller-manager", "system:kube-scheduler")
    assert "--exempt system:" not in text("talos", exemptions=exempt)


def test_the_control_planes_files_have_the_same_names_everywhere() -> None:
    for distribution in ALL:
        assert set(FOR_CONTROL_PLANE) == CONTROL_PLANE_FILES <= written(distribution).keys()


@pytest.mark.parametrize("distribution", ALL)
def test_the_steps_of_a_removal_name_the_distributions_files(distribution: DistributionName) -> None:
    setup = cluster_setup(distribution=distribution, service_accounts="review")
    text = removal(setup.cluster, setup.choices, in_cluster=True)
    assert re.findall(r"<!--|[{}]", text) == []
    assert [line[3] for line in text.splitlines() if line.startswith("## ")] == list("12345")
    [_, steps] = text.split("## 2. ")
    steps = steps.split("## 3. ")[0]
    traits = DISTRIBUTIONS[distribution]
    named = {"k3s.yaml": "zz-clustercert.yaml", "rke2.yaml": "zz-clustercert.yaml"}
    assert all(named.get(name, name) in steps for name in traits.files)
    uses_secret = distribution in ("kamaji", "cluster-api")
    assert (f"delete secret --ignore-not-found {setup.secret}" if uses_secret else traits.folder) in steps
    assert f'`cluster = "{setup.cluster.id}"`' in text
    # README.md tells the operator to create such bindings, and they have no label.
    assert "`kubectl delete clusterrolebinding team-blue`" in text


@pytest.mark.parametrize("distribution", ["kubeadm", "k3s", "rke2"])
def test_a_removal_deletes_only_the_files_of_the_setup(
    distribution: DistributionName, tmp_path: Path
) -> None:
    folder = tmp_path / "pki"
    setup = cluster_setup(distribution=distribution, audit=False, control_plane_dir=str(folder))
    made = SetupFolder(tmp_path / "out")
    made.write(files(setup), setup.given)
    text = write_removal(made.path, setup.cluster).read_text()
    assert "rm -r" not in text
    commands = textwrap.dedent(text.split("kubectl get --raw /readyz\n")[1].split("```")[0])
    folder.mkdir()
    copied = ("client-ca.pem", "authorization-config.yaml", "webhook.kubeconfig", "client-ca-bundle.pem")
    for name in (*copied, "ca.key", "audit-policy.yaml"):
        (folder / name).write_text("")

    left = subprocess.run(["sh", "-c", commands], capture_output=True, text=True, check=False)

    assert {each.name for each in folder.iterdir()} == {"ca.key", "audit-policy.yaml"}
    assert left.returncode != 0
    assert "rmdir" in left.stderr
    for each in folder.iterdir():
        each.unlink()
    subprocess.run(["sh", "-ec", commands], check=True)
    assert not folder.exists()


@pytest.mark.parametrize("distribution", ALL)
def test_a_cluster_that_signs_itself_gets_no_client_ca(distribution: DistributionName) -> None:
    setup = replace(cluster_setup(distribution=distribution), client_cas_pem=b"", signs_itself=True)
    made = files(setup)
    assert "signer-access.yaml" in made
    assert "client-ca.pem" not in made
    for name in DISTRIBUTIONS[distribution].files:
        assert not re.search("client-?ca|acceptedCAs|pki/ca.crt", made[name], re.IGNORECASE)
    steps = made["README.md"].split("## 2. ")[1].split("## 4. ")[0]
    assert re.findall(r"client-ca\.pem > |client-ca-bundle|--client-ca-file|<!--", steps) == []
    assert "kubectl apply -f signer-access.yaml" in made["README.md"]
    choices = setup.choices.model_copy(update={"written": dict.fromkeys(made, "")})
    text = removal(setup.cluster, choices, in_cluster=True)
    assert "there is no CA to remove" in " ".join(text.split())
    assert "It must fail at `authenticate`" not in text


def test_policies_are_not_deleted_where_they_do_not_exist() -> None:
    for version, expected in (("1.29", False), ("1.30", True)):
        setup = cluster_setup(kubernetes_version=version)
        text = removal(setup.cluster, setup.choices, in_cluster=False)
        assert ("validatingadmissionpolicies" in text) is expected
        assert "kubectl get namespaces,clusterrolebindings,clusterroles" in text
