"""`clustercert kubernetes verify`, `remove` and `setup` for a cluster whose credentials are tokens.

The service runs, because it deletes the bindings and accounts of revoked credentials.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, USERS_NAMESPACE
from support.apiserver import ApiServer, kinds
from support.command_line import Operator

GROUP_ROLES = ("--group-role", "audit=clusterrole/view", "--group-role", "dev=clusterrole/edit@shop")


@dataclass
class VerifiedCluster:
    """An operator with a running service, and its cluster `tokens`."""

    operator: Operator
    double: ApiServer

    def verify(self, *options: str | Path) -> tuple[int, dict[str, Any], str]:
        done = self.operator.run("kubernetes", "verify", "tokens", "--output", "json", *options)
        return done.code, {each["check"]: each for each in json.loads(done.out)}, done.err

    def bind(self, name: str, role: str, subject: dict[str, str]) -> None:
        document = {
            "metadata": {"name": name},
            "roleRef": {"kind": "ClusterRole", "name": role, "apiGroup": kinds.RBAC},
            "subjects": [subject],
        }
        self.double.storage.create(kinds.CLUSTER_ROLE_BINDINGS, "", document)

    @property
    def accounts(self) -> set[str]:
        found = self.double.storage.all(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE)
        return {each["metadata"]["name"] for each in found} - {"default"}


@pytest.fixture
def cluster(made: tuple[Operator, str], tmp_path: Path) -> Iterator[VerifiedCluster]:
    operator, _ = made
    with ApiServer(tmp_path) as double:
        double.add_namespace("shop")
        operator.output(
            *("cluster", "add", "tokens", "--project", "eu-de", "--credential", "token", *GROUP_ROLES),
            *("--from-kubeconfig", double.admin_kubeconfig(), "--yes"),
        )
        try:
            yield VerifiedCluster(operator, double)
        finally:
            operator.output("cluster", "remove", "tokens", "--yes")


def test_all_checks_pass_and_the_time_of_a_revocation_is_measured(cluster: VerifiedCluster) -> None:
    cluster.bind("ops-edit", "edit", {"kind": "Group", "name": "ops", "apiGroup": kinds.RBAC})

    code, checks, notes = cluster.verify("--from-kubeconfig", cluster.double.admin_kubeconfig())

    assert code == 0, checks
    assert {each["result"] for each in checks.values()} == {"ok"}
    assert checks["authenticate"]["detail"].startswith(
        f"accepted as system:serviceaccount:{USERS_NAMESPACE}:"
    )
    assert checks["rights"]["detail"].startswith("the rights of clusterrole/edit@shop, clusterrole/view")
    assert 0 < checks["revoke"]["seconds"] < 60
    assert "and the token was refused after" in checks["revoke"]["detail"]
    assert "Group ops can" in notes
    assert "in the whole cluster (ClusterRole edit)." in notes
    assert "Every service account of this cluster may also" in notes
    shown = cluster.operator.output_json("cluster", "show", "tokens")
    assert shown["verified_at"] is not None
    assert (shown["credential"], shown["problem"]) == ("token", None)


def test_further_rights_of_a_credential_are_named(cluster: VerifiedCluster) -> None:
    everybody = {"kind": "Group", "name": f"system:serviceaccounts:{USERS_NAMESPACE}", "apiGroup": kinds.RBAC}
    issuer = {"kind": "ServiceAccount", "name": ISSUER_ACCOUNT, "namespace": ACCESS_NAMESPACE}
    cluster.bind("extra", "admin", issuer)
    code, checks, _ = cluster.verify()
    assert (code, checks["revoke"]["result"]) == (1, "skipped")
    assert "the service's own account" in checks["look"]["detail"] + checks["own account"]["detail"]
    cluster.double.storage.delete(kinds.CLUSTER_ROLE_BINDINGS, "", "extra")
    cluster.bind("everybody", "view", everybody)
    _, checks, notes = cluster.verify()
    assert checks["rights"]["result"] == "ok"
    assert "Every service account of this cluster may also" in notes


def test_a_missing_admission_policy_is_named(cluster: VerifiedCluster) -> None:
    cluster.double.storage.delete(kinds.POLICY_BINDINGS, "", BINDINGS_POLICY)
    code, checks, notes = cluster.verify()
    assert (code, checks["look"]["result"], checks["issue"]["result"]) == (1, "failed", "skipped")
    assert BINDINGS_POLICY in checks["look"]["detail"]
    assert "clustercert cluster update CLUSTER --from-kubeconfig" in notes


def test_options_for_certificates_are_refused(cluster: VerifiedCluster) -> None:
    refused = cluster.operator.run("kubernetes", "verify", "tokens", "--by", "webhook")
    assert (refused.code, "--by: the credentials of the cluster tokens are tokens" in refused.err) == (
        2,
        True,
    )
    setup = cluster.operator.run("kubernetes", "setup", "tokens", "--out", cluster.double.folder / "x")
    assert setup.code == 2
    assert "needs no files: its credentials are tokens" in setup.err
    removed = cluster.operator.run("kubernetes", "remove", "tokens", "--out", cluster.double.folder)
    assert (removed.code, "Give --from-kubeconfig" in removed.err) == (2, True)


def test_removing_leaves_nothing_in_the_cluster(cluster: VerifiedCluster) -> None:
    kubeconfig = cluster.double.admin_kubeconfig()
    removed = cluster.operator.run("kubernetes", "remove", "tokens", "--from-kubeconfig", kubeconfig, "--yes")
    assert removed.code == 0, removed.err
    left = {
        each["metadata"]["name"]
        for kind in kinds.KINDS
        if kind.stored
        for each in cluster.double.storage.all(kind)
        if "clustercert" in json.dumps(each["metadata"])
    }
    assert left == set()
    again = cluster.operator.run("kubernetes", "remove", "tokens", "--from-kubeconfig", kubeconfig, "--yes")
    assert (again.code, "has nothing of this installation" in again.err) == (0, True)
