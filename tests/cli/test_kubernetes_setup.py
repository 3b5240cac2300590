"""`clustercert kubernetes setup`."""

import base64
import io
import re
import stat
import tarfile
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from clustercert.pki.certificates import fingerprint
from support.certificate_authority import Authority
from support.command_line import Operator
from support.kubernetes_setup import SERVICE, files, set_up, update
from support.operated_cluster import OperatedCluster


def test_the_folder_is_private_and_holds_the_clusters_client_ca(site: OperatedCluster) -> None:
    printed = site.operator.output(*set_up(site)).split()

    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in site.folder.iterdir())
    assert sorted(printed) == sorted(str(path) for path in site.folder.iterdir())
    written = files(site)
    (ca,) = x509.load_pem_x509_certificates(written["client-ca.pem"].encode())
    shown = site.operator.output_json("cluster", "show", "prod")
    assert fingerprint(ca).hex() == shown["client_ca_sha256"]
    kubeconfig = yaml.safe_load(written["webhook.kubeconfig"])
    assert kubeconfig["users"][0]["user"]["token"] not in written["setup.toml"]
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    assert server == f"{SERVICE}/clustercert/v1/kubernetes/clusters/{shown['id']}/authorize"
    audit = yaml.safe_load(written["audit-webhook.kubeconfig"])
    assert audit["clusters"][0]["cluster"]["server"] == server.replace("authorize", "audit-events")
    assert audit["users"] == kubeconfig["users"]
    webhook = yaml.safe_load(written["authorization-config.yaml"])["authorizers"][0]["webhook"]
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/etc/kubernetes/clustercert/webhook.kubeconfig"
    assert (webhook["unauthorizedTTL"], webhook["failurePolicy"]) == ("2s", "NoOpinion")


@pytest.mark.parametrize("selection", [("prod",), ("--all",)])
def test_an_archive_on_standard_output_has_the_same_files(
    site: OperatedCluster, tmp_path: Path, selection: tuple[str, ...]
) -> None:
    """For a container from which nobody can copy files."""
    site.operator.output(*set_up(site))
    expected = files(site)
    command = ("kubernetes", "setup", *selection, "--webhook-url", SERVICE, "--out", "-")
    done = site.operator.run(*command)
    assert done.code == 0, done.err
    with tarfile.open(fileobj=io.BytesIO(done.out.encode())) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    folder = tmp_path / "unpacked"
    if selection == ("--all",):
        [folder] = folder.glob("*/*/prod")
    assert {path.name for path in folder.iterdir()} == expected.keys()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert (folder / "authorization-config.yaml").read_text() == expected["authorization-config.yaml"]
    assert "Next: follow" in done.err
    assert "--force" in site.operator.usage_error(*command, "--force")


def token(site: OperatedCluster) -> str:
    document = yaml.safe_load((site.folder / "webhook.kubeconfig").read_text())
    return str(document["users"][0]["user"]["token"])


def test_force_is_required_to_update_and_keeps_a_valid_token(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    first, before = token(site), files(site)

    said = site.operator.error(*set_up(site))
    assert "--force" in said
    assert files(site) == before

    site.operator.output(*set_up(site, "--force", "--no-audit"))
    assert token(site) == first
    assert "audit-webhook.kubeconfig" not in files(site)
    ids = [each["id"] for each in site.operator.output_json("kubernetes", "token", "list", "prod")]
    assert len(ids) == 1
    site.operator.output("kubernetes", "token", "remove", "prod", ids[0], "--yes")
    site.operator.output(*set_up(site, "--force"))
    assert token(site) != first


def test_a_third_token_is_not_created(site: OperatedCluster) -> None:
    for number in range(2):
        site.operator.output(*set_up(site)[:4], site.folder / str(number), *set_up(site)[5:])
    said = site.operator.error(*set_up(site)[:4], site.folder / "third", *set_up(site)[5:])
    cluster_id = site.operator.output_json("cluster", "show", "prod")["id"]
    assert f"kubernetes token list {cluster_id}" in said
    assert not (site.folder / "third").exists()


def test_the_unauthorized_ttl_of_the_cluster_is_written(site: OperatedCluster) -> None:
    def set_up_again(*options: str) -> tuple[str, bool]:
        """The TTL in the file, and whether the command said that it is longer than the cluster's."""
        done = site.operator.run(*set_up(site, *options))
        assert done.code == 0, done.err
        config = yaml.safe_load(files(site)["authorization-config.yaml"])
        return config["authorizers"][0]["webhook"][
            "unauthorizedTTL"
        ], "--unauthorized-ttl DURATION" in done.err

    site.update("--unauthorized-ttl", "30s")
    assert set_up_again() == ("30s", False)
    site.update("--unauthorized-ttl", "5s")
    assert set_up_again("--force") == ("5s", False)
    assert set_up_again("--force", "--unauthorized-ttl", "5000ms") == ("5000ms", False)
    # The file keeps the value that was given.
    site.update("--unauthorized-ttl", "4s")
    assert set_up_again("--force") == ("5000ms", True)


def test_options_are_written_into_the_files(site: OperatedCluster) -> None:
    site.operator.output(
        *set_up(
            site, "--mode", "known-only", "--failure-policy", "Deny", "--authorized-ttl", "1s", "--timeout", "1s",
            "--unauthorized-ttl", "1m30s", "--control-plane-dir", "/opt/k", "--webhook-ca",
            site.cluster.server_ca, "--bind", "clustercert:admins=mine",
        )
    )  # fmt: skip
    written = files(site)
    webhook = yaml.safe_load(written["authorization-config.yaml"])["authorizers"][0]["webhook"]
    assert (webhook["authorizedTTL"], webhook["unauthorizedTTL"], webhook["timeout"]) == ("1s", "1m30s", "1s")
    assert webhook["failurePolicy"] == "Deny"
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/opt/k/webhook.kubeconfig"
    conditions = " ".join(each["expression"] for each in webhook["matchConditions"])
    assert 'startsWith("system:")' in conditions
    cluster = yaml.safe_load(written["webhook.kubeconfig"])["clusters"][0]["cluster"]
    assert base64.b64decode(cluster["certificate-authority-data"]) == site.cluster.server_ca.read_bytes()
    bound = {d["subjects"][0]["name"]: d["roleRef"]["name"] for d in yaml.safe_load_all(written["rbac.yaml"])}
    assert bound["clustercert:admins"] == "mine"
    assert "--webhook-mode known-only" in written["README.md"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--unauthorized-ttl", "0s"),
        ("--unauthorized-ttl", "-1s"),
        ("--unauthorized-ttl", "2"),
        ("--unauthorized-ttl", "2s "),
        ("--authorized-ttl", "6m"),
        ("--timeout", "31s"),
        ("--webhook-url", "http://c.example.com"),
        ("--webhook-url", "http://127.0.0.1:8080"),
        ("--webhook-url", "https://c.example.com/path"),
        ("--webhook-url", "nonsense"),
        ("--control-plane-dir", "etc/kubernetes"),
        ("--control-plane-dir", "/etc/kubernetes/my files"),
        ("--bind", "nobody=view"),
        ("--bind", "view"),
    ],
)
def test_values_that_an_api_server_rejects_are_wrong_usage(
    made: tuple[Operator, str], tmp_path: Path, option: str, value: str
) -> None:
    folder = tmp_path / "control-plane"
    said = made[0].usage_error(
        "kubernetes",
        "setup",
        "prod",
        "--out",
        folder,
        "--webhook-url",
        SERVICE,
        option,
        value,
    )
    assert option in said
    assert not folder.exists()


def test_the_address_of_the_service_is_required(made: tuple[Operator, str], tmp_path: Path) -> None:
    assert "--webhook-url" in made[0].usage_error("kubernetes", "setup", "prod", "--out", tmp_path / "folder")


def test_an_invalid_ca_file_is_named(site: OperatedCluster, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    assert "PEM" in site.operator.error(*set_up(site, "--webhook-ca", nothing))
    assert "not a folder" in site.operator.error(*set_up(site)[:4], nothing, *set_up(site)[5:])
    assert str(tmp_path / "absent") in site.operator.error(*set_up(site, "--webhook-ca", tmp_path / "absent"))


def test_the_self_made_ca_of_the_service_is_in_the_kubeconfig(site: OperatedCluster) -> None:
    made = site.operator.folder / "data" / "tls-ca.pem"
    made.write_bytes(site.cluster.server_ca.read_bytes())
    try:
        site.operator.output(*set_up(site))
    finally:
        made.unlink()
    cluster = yaml.safe_load(files(site)["webhook.kubeconfig"])["clusters"][0]["cluster"]
    assert base64.b64decode(cluster["certificate-authority-data"]) == site.cluster.server_ca.read_bytes()


def test_a_failed_write_removes_the_new_token(site: OperatedCluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    site.operator.error(*set_up(site)[:4], tmp_path / "file" / "folder", *set_up(site)[5:])

    assert site.operator.output_json("kubernetes", "token", "list", "prod") == []


# Plain HTTP


def test_plain_http_is_refused_with_advice(site: OperatedCluster) -> None:
    said = site.operator.usage_error(*set_up(site)[:5], "--webhook-url", "http://127.0.0.1:8080")
    assert "sends its token only over https" in words(said)
    site.operator.configure("[server]\npublic_url = 'http://127.0.0.1:8080'\n")
    try:
        refused = site.operator.error(*set_up(site)[:5])
    finally:
        site.operator.configure()
    assert refused.startswith("server.public_url: an API server can't use http://127.0.0.1:8080.")
    assert "--webhook-url" in refused
    assert not site.folder.exists()
    assert site.operator.output_json("kubernetes", "token", "list", "prod") == []


def words(said: str) -> str:
    """The text of an error, in one line."""
    return " ".join(re.sub(r"[^\x21-\x7e]", " ", said).split())


def test_a_plain_http_address_in_the_folder_is_refused(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    choices = site.folder / "setup.toml"
    choices.write_text(choices.read_text().replace(SERVICE, "http://127.0.0.1:1"))
    before = files(site)

    refused = site.operator.error(*update(site))

    assert str(choices) in refused
    assert "an API server can't use http://127.0.0.1:1." in refused
    assert files(site) == before


def test_the_webhooks_own_address_and_a_client_certificate_are_written(
    operator: Operator, tmp_path: Path
) -> None:
    authority = Authority("api servers")
    identity = tmp_path / "client.pem"
    identity.write_bytes(authority.client_identity_pem("kube-apiserver"))
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    operator.configure(
        "[server]\npublic_url = 'https://c.example.com'\n"
        f"[webhook]\npublic_url = '{SERVICE}'\nclient_ca = '{tmp_path / 'ca.pem'}'\n"
    )
    operator.output("project", "create", "eu-de")
    there = ("--project", "eu-de", "--internal-url", "https://10.0.0.5:6443")
    operator.output("cluster", "add", "prod", *there, "--server-ca", tmp_path / "ca.pem")
    out = tmp_path / "out"
    set_up = ("kubernetes", "setup", "prod", "--out", out)

    said = operator.error(*set_up)
    assert "--webhook-client-certificate" in said
    assert "Give both" in operator.usage_error(*set_up, "--webhook-client-key", identity)
    wrong = operator.usage_error(
        *set_up, "--webhook-client-certificate", tmp_path / "ca.pem", "--webhook-client-key", identity
    )
    assert "not a certificate and its unencrypted key" in " ".join(wrong.replace("│", " ").split())
    operator.output(*set_up, "--webhook-client-certificate", identity, "--webhook-client-key", identity)
    kept = operator.run(*set_up, "--force")
    assert (kept.code, "--webhook-client-certificate" in kept.err) == (0, True)
    for name in ("webhook.kubeconfig", "audit-webhook.kubeconfig"):
        document = yaml.safe_load((out / name).read_text())
        assert document["clusters"][0]["cluster"]["server"].startswith(f"{SERVICE}/clustercert/")
        user = document["users"][0]["user"]
        assert user.keys() == {"token", "client-certificate-data", "client-key-data"}
        assert base64.b64decode(user["client-certificate-data"]) == identity.read_bytes()
