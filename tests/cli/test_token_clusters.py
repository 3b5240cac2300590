"""Clusters whose credentials are tokens: registered, changed and removed with an administrator's kubeconfig."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAME
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    INSTALLATION_LABEL,
    ISSUER_ACCOUNT,
    MANAGED_BY,
    USERS_NAMESPACE,
)
from support.apiserver import ApiServer, kinds
from support.apiserver.kinds import Kind
from support.certificate_authority import Authority
from support.command_line import CommandResult, Operator, run_in_terminal
from support.signing_cluster import apply_manifest

VIEW, EDIT = "audit=clusterrole/view", "team:blue=clusterrole/edit@shop"


@dataclass
class TokenSite:
    """An operator with a store, and a cluster that is not registered yet."""

    operator: Operator
    double: ApiServer

    @property
    def kubeconfig(self) -> Path:
        return self.double.admin_kubeconfig()

    def add_command(self, *options: str | Path) -> tuple[str | Path, ...]:
        return (
            *("cluster", "add", "prod", "--project", "eu-de", "--credential", "token"),
            *("--group-role", VIEW, "--group-role", EDIT, *options),
        )

    def add(self, *options: str | Path) -> CommandResult:
        return self.operator.run(*self.add_command("--from-kubeconfig", self.kubeconfig, "--yes", *options))

    def update(self, *options: str | Path) -> CommandResult:
        return self.operator.run("cluster", "update", "prod", "--yes", *options)

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.operator.output_json("cluster", "show", "prod")
        return found

    def names(self, kind: Kind, namespace: str = "") -> set[str]:
        return {each["metadata"]["name"] for each in self.double.storage.all(kind, namespace)}

    @property
    def is_untouched(self) -> bool:
        return USERS_NAMESPACE not in self.names(kinds.NAMESPACES) and not self.names(kinds.POLICIES)


@pytest.fixture
def site(operator: Operator, tmp_path: Path) -> Iterator[TokenSite]:
    operator.output("project", "create", "eu-de")
    folder = tmp_path / "cluster"
    folder.mkdir()
    with ApiServer(folder) as double:
        double.add_namespace("shop")
        yield TokenSite(operator, double)


def changed_kubeconfig(site: TokenSite, field: str, **values: object) -> Path:
    """A copy of the administrator's kubeconfig with other values in its only cluster or user."""
    document = yaml.safe_load(site.kubeconfig.read_text())
    document[f"{field}s"][0][field] = {
        **(document[f"{field}s"][0][field] if field == "cluster" else {}),
        **values,
    }
    path = site.double.folder / "changed.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def relabel(site: TokenSite, metadata: dict[str, Any]) -> None:
    site.double.storage.replace(
        kinds.NAMESPACES, "", metadata["name"], lambda old: {**old, "metadata": metadata}
    )


def test_a_cluster_is_prepared_and_registered_with_one_command(site: TokenSite) -> None:
    done = site.add("--output", "json")

    assert done.code == 0, done.err
    shown = yaml.safe_load(done.out)
    assert (shown["signer"], shown["client_ca_not_after"]) == ("token", None)
    assert shown["group_roles"] == {"audit": ["clusterrole/view"], "team:blue": ["clusterrole/edit@shop"]}
    assert "ClusterRole" in done.err
    assert "clusterrole/edit@shop: its holder can" in done.err
    assert "kubernetes verify" in done.err
    assert {USERS_NAMESPACE, ACCESS_NAMESPACE} <= site.names(kinds.NAMESPACES)
    assert NAME in site.names(kinds.ROLES, "shop")
    namespace = site.double.storage.get(kinds.NAMESPACES, "", USERS_NAMESPACE)
    labels = namespace["metadata"]["labels"]
    assert MANAGED_BY.items() <= labels.items()
    assert len(labels[INSTALLATION_LABEL]) == 32


def test_nothing_of_the_administrators_credential_is_stored(site: TokenSite) -> None:
    assert site.add().code == 0
    user = yaml.safe_load(site.kubeconfig.read_text())["users"][0]["user"]
    key = base64.b64decode(user["client-key-data"])
    secret_line = key.splitlines()[1]
    for path in (site.operator.folder / "data").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret_line not in content
            assert user["client-key-data"].encode()[:64] not in content


def test_the_command_can_be_repeated_after_a_failure_half_way(site: TokenSite) -> None:
    foreign = {"metadata": {"name": NAME}, "rules": []}
    site.double.storage.create(kinds.CLUSTER_ROLES, "", foreign)

    failed = site.add()

    assert failed.code == 1
    assert f"has the ClusterRole {NAME} already, and it is not from clustercert" in failed.err
    assert "To go on, run the same command again. To remove the objects" in failed.err
    assert site.operator.run("cluster", "show", "prod").code == 5
    site.double.storage.delete(kinds.CLUSTER_ROLES, "", NAME)
    assert site.add().code == 0
    again = site.add()
    assert again.code != 0
    assert "already a cluster prod" in again.err


def test_a_program_in_the_kubeconfig_is_not_run(site: TokenSite, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    command = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "/usr/bin/touch",
        "args": [str(trace)],
    }
    kubeconfig = changed_kubeconfig(site, "user", exec=command)
    said = site.operator.error(*site.add_command("--from-kubeconfig", kubeconfig, "--yes"))
    assert "logs in with a program (exec), which clustercert does not run" in said
    assert "--out FILE" in said
    assert not trace.exists()
    assert site.is_untouched


def test_an_api_server_with_another_ca_is_named(site: TokenSite) -> None:
    other = base64.b64encode(Authority("another").certificate_pem).decode()
    kubeconfig = changed_kubeconfig(site, "cluster", **{"certificate-authority-data": other})
    said = site.operator.error(*site.add_command("--from-kubeconfig", kubeconfig, "--yes"))
    assert f"The certificate of the API server at {site.double.url} is not signed by the CA" in said
    assert site.is_untouched


def test_only_an_administrators_kubeconfig_is_accepted(site: TokenSite) -> None:
    kubeconfig = site.double.kubeconfig("ann", ("developers",))
    said = site.operator.error(*site.add_command("--from-kubeconfig", kubeconfig, "--yes"))
    assert "The user ann of the kubeconfig is not an administrator of the whole cluster" in said
    assert site.is_untouched


def test_a_cluster_of_another_installation_is_refused(site: TokenSite) -> None:
    labels = {**MANAGED_BY, INSTALLATION_LABEL: "f" * 32}
    document = {"metadata": {"name": USERS_NAMESPACE, "labels": labels}}
    site.double.storage.create(kinds.NAMESPACES, "", document)
    said = site.add().err
    assert f"belongs to another installation of clustercert ({'f' * 32}" in said
    assert ACCESS_NAMESPACE not in site.names(kinds.NAMESPACES)


def test_without_a_yes_nothing_is_written_and_all_fits_into_80_columns(site: TokenSite) -> None:
    arguments = ["--config", str(site.operator.config)]
    command = [str(each) for each in site.add_command("--from-kubeconfig", site.kubeconfig, "--local")]
    for typed, code in (("\x03\n", 130), ("n\n", 1)):
        stopped, screen = run_in_terminal([*arguments, *command], typed)
        assert (stopped, site.is_untouched) == (code, True)
        assert "Write these objects into the cluster at" in screen
        assert max(map(len, screen.splitlines())) <= 80
    assert site.operator.run("cluster", "show", "prod").code == 5


def test_the_objects_can_be_applied_by_kubectl_instead(site: TokenSite, tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    written = site.operator.run(*site.add_command("--out", path))
    assert (written.code, written.out) == (0, "")
    assert f"kubectl apply -f {path}" in written.err
    assert site.is_untouched
    apply_manifest(site.double, yaml.safe_load_all(path.read_text()))
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "Namespace":
            # `apply_manifest` creates namespaces without labels.
            relabel(site, document["metadata"])
    token = tmp_path / "token"
    token.write_text(site.double.tokens.token(ACCESS_NAMESPACE, ISSUER_ACCOUNT, (site.double.tokens.issuer,)))
    address = ("--internal-url", site.double.url, "--server-ca", site.double.server_ca)
    added = site.operator.run(*site.add_command(*address, "--signer-token-file", token))
    assert added.code == 0, added.err
    assert site.shown()["signer"] == "token"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--credential", "token"), "Give at least one --group-role"),
        (("--group-role", VIEW), "Add --credential token"),
        (("--credential", "token", "--group-role", "view"), "is not of the form GROUP=ROLE"),
        (("--credential", "token", "--group-role", "a=view"), "is not a role"),
        (
            ("--credential", "token", "--group-role", "a=clusterrole/cluster-admin"),
            "Add --allow-cluster-admin",
        ),
        (("--credential", "token", "--group-role", VIEW, "--signer", "pkcs11"), "issues no tokens"),
        (("--credential", "certificate", "--signer", "token"), "issues no certificates"),
        (("--credential", "token", "--group-role", VIEW), "Give --internal-url and --server-ca"),
    ],
)
def test_options_that_do_not_fit_are_refused(site: TokenSite, options: tuple[str, ...], said: str) -> None:
    refused = site.operator.run("cluster", "add", "prod", "--project", "eu-de", *options)
    assert refused.code == 2
    assert said in " ".join(refused.err.split())


def test_a_new_role_needs_the_administrator_and_a_removed_one_takes_its_rights_along(site: TokenSite) -> None:
    assert site.add().code == 0
    site.double.add_namespace("bank")
    added = ("--group-role", "team:blue=clusterrole/edit@bank")
    refused = site.update(*added)
    assert refused.code == 2
    assert "clusterrole/edit@bank: the service needs further rights" in " ".join(refused.err.split())

    done = site.update(*added, "--from-kubeconfig", site.kubeconfig)

    assert done.code == 0, done.err
    assert site.shown()["group_roles"]["team:blue"] == ["clusterrole/edit@bank", "clusterrole/edit@shop"]
    assert NAME in site.names(kinds.ROLES, "bank")
    # The same role for another group needs no further right.
    assert site.update("--group-role", "ops=clusterrole/edit@bank").code == 0
    done = site.update(
        *("--remove-group-role", "team:blue=clusterrole/edit@shop", "--remove-group-role", "ops"),
        *("--from-kubeconfig", site.kubeconfig),
    )
    assert done.code == 0, done.err
    assert site.shown()["group_roles"] == {
        "audit": ["clusterrole/view"],
        "team:blue": ["clusterrole/edit@bank"],
    }
    assert site.names(kinds.ROLES, "shop") == site.names(kinds.ROLE_BINDINGS, "shop") == set()
    assert f"Role shop/{NAME}" in done.err
    policy = site.double.storage.get(kinds.POLICIES, "", BINDINGS_POLICY)
    assert "ClusterRole/bank/edit" in str(policy)
    assert "ClusterRole/shop/edit" not in str(policy)


def test_a_removed_role_without_a_kubeconfig_leaves_a_note(site: TokenSite) -> None:
    assert site.add().code == 0
    done = site.update("--remove-group-role", "team:blue")
    assert done.code == 0, done.err
    assert site.shown()["group_roles"] == {"audit": ["clusterrole/view"]}
    assert "until you run this command with --from-kubeconfig" in done.err
    unknown = site.update("--remove-group-role", "team:blue")
    assert (unknown.code, "is not in the map" in unknown.err) == (2, True)


def test_the_kubeconfig_of_another_cluster_is_refused(site: TokenSite, tmp_path: Path) -> None:
    assert site.add().code == 0
    folder = tmp_path / "another"
    folder.mkdir()
    with ApiServer(folder) as another:
        kubeconfig = another.admin_kubeconfig()
        said = site.update("--group-role", "ops=clusterrole/view", "--from-kubeconfig", kubeconfig).err
        assert "The kubeconfig is for another cluster" in said
        assert USERS_NAMESPACE not in {
            each["metadata"]["name"] for each in another.storage.all(kinds.NAMESPACES)
        }


def test_a_cluster_with_certificates_has_no_roles_of_groups(site: TokenSite) -> None:
    site.operator.output(
        *("cluster", "add", "prod", "--project", "eu-de", "--internal-url", site.double.url),
        *("--server-ca", site.double.server_ca),
    )
    refused = site.update("--group-role", VIEW)
    assert (refused.code, "Only a cluster whose credentials are tokens" in refused.err) == (2, True)


def test_a_new_role_can_be_applied_by_kubectl_instead(site: TokenSite, tmp_path: Path) -> None:
    assert site.add().code == 0
    site.double.add_namespace("bank")
    added, path = ("--group-role", "ops=clusterrole/view@bank"), tmp_path / "objects.yaml"
    assert site.update(*added, "--out", path).code == 0
    assert "ops" not in site.shown()["group_roles"]
    assert {"bank", "shop"} <= {
        document["metadata"].get("namespace") for document in yaml.safe_load_all(path.read_text())
    }
    assert site.update(*added, "--objects-applied").code == 0
    assert site.shown()["group_roles"]["ops"] == ["clusterrole/view@bank"]


def test_the_list_shows_the_kind_of_credential_and_a_removal_what_stays(site: TokenSite) -> None:
    assert site.add().code == 0
    [row] = site.operator.output_json("cluster", "list")
    assert row["credential"] == "token"
    assert "CREDENTIAL" in site.operator.output("cluster", "list").splitlines()[0]
    removed = site.operator.run("cluster", "remove", "prod", "--yes")
    assert removed.code == 0
    assert "client CA" not in removed.err
    assert f"namespaces {USERS_NAMESPACE}" in removed.err
