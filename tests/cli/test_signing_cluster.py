"""A cluster that signs with its own CA: registration, files and verification with the command line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert.kubernetes.verify import signing
from support.apiserver import ApiServer, kinds
from support.operated_cluster import OperatedCluster
from support.page_steps import compare, steps_below
from support.signing_cluster import apply_manifest, first_token, requests_in


@dataclass
class SigningSite:
    """The operator's second cluster, `own`, which signs itself."""

    site: OperatedCluster
    double: ApiServer
    folder: Path

    def run(self, *arguments: str | Path) -> str:
        return self.site.operator.output(*arguments)

    def verify(self, *options: str) -> tuple[int, dict[str, Any]]:
        done = self.site.operator.run("kubernetes", "verify", "own", "--output", "json", *options)
        return done.code, {each["check"]: each for each in yaml.safe_load(done.out)}

    def set_up(self) -> None:
        """Write the files, and configure the API server with them."""
        self.run(
            "kubernetes", "setup", "own", "--out", self.folder, "--control-plane-dir", self.folder, "--force",
            "--webhook-url", self.site.url, "--webhook-ca", self.site.ca, "--unauthorized-ttl", "500ms",
            "--timeout", "30s",
        )  # fmt: skip
        for document in yaml.safe_load_all((self.folder / "rbac.yaml").read_text()):
            self.double.bind(document["subjects"][0]["name"], document["roleRef"]["name"])
        self.double.authorize_with(self.folder / "authorization-config.yaml")


@pytest.fixture
def own(site: OperatedCluster, tmp_path: Path) -> Iterator[SigningSite]:
    folder = tmp_path / "own"
    folder.mkdir()
    with ApiServer(folder) as double:
        apply_manifest(double, yaml.safe_load_all(site.operator.output("kubernetes", "signer-access")))
        token = folder / "token"
        token.write_bytes(first_token(double))
        project = site.operator.output_json("cluster", "show", "prod")["project_id"]
        added = site.operator.output(
            "cluster", "add", "own", "--project", project, "--internal-url", double.url, "--server-ca",
            double.server_ca, "--signer", "csr_api", "--signer-token-file", token, "--output", "json",
        )  # fmt: skip
        assert token.read_text().strip() not in added
        yield SigningSite(site, double, folder / "setup")
        site.operator.output("cluster", "remove", "own", "--yes")


def test_all_checks_pass_in_a_cluster_that_signs_itself(own: SigningSite) -> None:
    own.set_up()

    code, checks = own.verify()

    assert code == 0, checks
    assert checks["sign"]["result"] == "ok"
    # The double's CA ends within a day.
    assert re.fullmatch(r"signed in \d+\.\d\d s, for at most 2[34] hours", checks["sign"]["detail"])
    assert checks["system names"]["result"] == "ok"
    assert checks["revoke"]["result"] == "ok"
    assert checks["revoke"]["seconds"] > 0
    assert requests_in(own.double) == []
    assert own.double.webhook_calls > 0


def test_a_missing_admission_policy_is_named(own: SigningSite) -> None:
    own.set_up()
    [binding] = own.double.storage.all(kinds.POLICY_BINDINGS)
    own.double.storage.delete(kinds.POLICY_BINDINGS, "", binding["metadata"]["name"])

    code, checks = own.verify()

    assert code == 1
    assert (checks["sign"]["result"], checks["system names"]["result"]) == ("ok", "failed")
    assert "signed a certificate with the group system:clustercert-verify" in checks["system names"]["detail"]
    assert "clustercert kubernetes signer-access | kubectl apply" in checks["system names"]["advice"]
    assert checks["issue"]["result"] == "skipped"
    assert requests_in(own.double) == []


def test_the_files_add_no_ca_and_have_the_accounts_rights(own: SigningSite) -> None:
    own.set_up()
    files = {path.name: path.read_text() for path in own.folder.iterdir()}
    assert "client-ca.pem" not in files
    assert files["signer-access.yaml"] == own.run("kubernetes", "signer-access")
    assert "client-ca" not in files["kubeadm.yaml"]
    readme = files["README.md"]
    assert "kubectl apply -f signer-access.yaml" in readme
    assert "This cluster signs certificates itself" in readme
    assert "client-ca-bundle" not in readme
    assert "--client-ca-file" not in readme
    own.run("kubernetes", "remove", "own", "--out", own.folder)
    removal = (own.folder / "REMOVE.md").read_text()
    assert "there is no CA to remove" in " ".join(removal.split())
    assert "kubectl delete roles,rolebindings -A" in removal


def test_a_new_token_is_read_from_a_file(own: SigningSite, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(first_token(own.double))
    own.run("cluster", "update", "own", "--signer-token-file", token)
    shown = own.run("cluster", "ca", "show", "own")
    assert "system:serviceaccount:clustercert:clustercert-signer" in shown
    token.write_text("no token")
    refused = own.site.operator.run("cluster", "update", "own", "--signer-token-file", token)
    assert refused.code != 0
    assert "send only the token of a service account" in refused.err


@pytest.mark.full
def test_the_rate_is_measured_on_request(own: SigningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MOST_MEASURED", 3)
    own.set_up()
    _, checks = own.verify("--measure-rate")
    [(printed,)] = steps_below("docs/csr-api.md", "Set up")
    varying = {
        "20 certificates a second (101 signed, 32 at once)": "… certificates a second (… signed, … at once)",
        "365 days": "…",
    }
    compare(printed, own.run("kubernetes", "verify", "own", "--measure-rate"), varying)
    assert re.match(r"\d+ certificates a second \(\d+ signed", checks["rate"]["detail"])
    assert requests_in(own.double) == []


@pytest.mark.full
def test_a_cluster_that_stopped_signing_is_named(own: SigningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "SIGN_SECONDS", 0.2)
    own.double.signing.signs = False
    code, checks = own.verify()
    assert code == 1
    assert checks["sign"]["detail"] == "the cluster did not sign a certificate within 0.2 seconds"
    assert "kube-controller-manager" in checks["sign"]["advice"]
    assert checks["issue"]["result"] == "skipped"
    own.double.version = "v1.32.3-eks-bcf3d70"
    _, checks = own.verify()
    assert "Amazon EKS (v1.32.3-eks-bcf3d70), which never signs" in checks["sign"]["advice"]
    assert requests_in(own.double) == []
