"""`clustercert kubernetes setup`: what it writes, and what it refuses."""

import base64
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from clustercert.certificate import fingerprint
from kubernetes_site import Site
from operating import Operator


def files(site: Site) -> dict[str, str]:
    return {path.name: path.read_text() for path in site.folder.iterdir()}


def set_up(site: Site, *options: str | Path) -> Sequence[str | Path]:
    return (
        "kubernetes",
        "setup",
        "prod",
        "--out",
        site.folder,
        "--webhook-url",
        "https://c.example.com",
        *options,
    )


def test_the_folder_is_private_and_holds_the_clusters_client_ca(site: Site) -> None:
    printed = site.operator.gets(*set_up(site)).split()

    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in site.folder.iterdir())
    assert sorted(printed) == sorted(str(path) for path in site.folder.iterdir())
    written = files(site)
    (ca,) = x509.load_pem_x509_certificates(written["client-ca.pem"].encode())
    shown = site.operator.gets_json("cluster", "show", "prod")
    assert fingerprint(ca).hex() == shown["client_ca_sha256"]
    kubeconfig = yaml.safe_load(written["webhook.kubeconfig"])
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    assert server == f"https://c.example.com/clustercert/v1/kubernetes/clusters/{shown['id']}/authorize"
    audit = yaml.safe_load(written["audit-webhook.kubeconfig"])
    assert audit["clusters"][0]["cluster"]["server"] == server.replace("authorize", "audit-events")
    assert audit["users"] == kubeconfig["users"]
    webhook = yaml.safe_load(written["authorization-config.yaml"])["authorizers"][0]["webhook"]
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/etc/kubernetes/clustercert/webhook.kubeconfig"
    assert (webhook["unauthorizedTTL"], webhook["failurePolicy"]) == ("2s", "NoOpinion")


def token(site: Site) -> str:
    document = yaml.safe_load((site.folder / "webhook.kubeconfig").read_text())
    return str(document["users"][0]["user"]["token"])


def test_nothing_is_written_over_unasked_and_a_good_token_is_kept(site: Site) -> None:
    site.operator.gets(*set_up(site))
    first, before = token(site), files(site)

    said = site.operator.is_refused(*set_up(site))
    assert "--force" in said
    assert files(site) == before

    site.operator.gets(*set_up(site, "--force", "--no-audit"))
    assert token(site) == first
    assert "audit-webhook.kubeconfig" not in files(site)
    ids = [each["id"] for each in site.operator.gets_json("kubernetes", "token", "list", "prod")]
    assert len(ids) == 1
    site.operator.gets("kubernetes", "token", "remove", "prod", ids[0], "--yes")
    site.operator.gets(*set_up(site, "--force"))
    assert token(site) != first


def test_a_third_token_is_not_made(site: Site) -> None:
    for number in range(2):
        site.operator.gets(*set_up(site)[:4], site.folder / str(number), *set_up(site)[5:])
    said = site.operator.is_refused(*set_up(site)[:4], site.folder / "third", *set_up(site)[5:])
    assert "kubernetes token list prod" in said
    assert not (site.folder / "third").exists()


def test_options_are_in_the_files(site: Site) -> None:
    site.operator.gets(
        *set_up(
            site, "--mode", "known-only", "--failure-policy", "Deny", "--authorized-ttl", "1s", "--timeout", "1s",
            "--unauthorized-ttl", "1m30s", "--control-plane-dir", "/opt/k", "--group", "former", "--webhook-ca",
            site.cluster.server_ca, "--bind", "clustercert:admins=mine",
        )
    )  # fmt: skip
    written = files(site)
    webhook = yaml.safe_load(written["authorization-config.yaml"])["authorizers"][0]["webhook"]
    assert (webhook["authorizedTTL"], webhook["unauthorizedTTL"], webhook["timeout"]) == ("1s", "1m30s", "1s")
    assert webhook["failurePolicy"] == "Deny"
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/opt/k/webhook.kubeconfig"
    conditions = " ".join(each["expression"] for each in webhook["matchConditions"])
    assert '"former"' in conditions
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
        ("--webhook-url", "https://c.example.com/path"),
        ("--webhook-url", "nonsense"),
        ("--control-plane-dir", "etc/kubernetes"),
        ("--bind", "nobody=view"),
        ("--bind", "view"),
    ],
)
def test_what_an_api_server_would_not_take_is_not_written(
    made: tuple[Operator, str], tmp_path: Path, option: str, value: str
) -> None:
    folder = tmp_path / "control-plane"
    said = made[0].misuses(
        "kubernetes",
        "setup",
        "prod",
        "--out",
        folder,
        "--webhook-url",
        "https://c.example.com",
        option,
        value,
    )
    assert option in said
    assert not folder.exists()


def test_without_an_address_of_the_service_it_is_asked_for(
    made: tuple[Operator, str], tmp_path: Path
) -> None:
    assert "--webhook-url" in made[0].misuses("kubernetes", "setup", "prod", "--out", tmp_path / "folder")


def test_a_file_that_is_no_ca_is_named(site: Site, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    assert "PEM" in site.operator.is_refused(*set_up(site, "--webhook-ca", nothing))
    assert "no folder" in site.operator.is_refused(*set_up(site)[:4], nothing, *set_up(site)[5:])
    assert str(tmp_path / "absent") in site.operator.is_refused(
        *set_up(site, "--webhook-ca", tmp_path / "absent")
    )


def test_the_self_made_ca_of_the_service_is_in_the_kubeconfig(site: Site) -> None:
    made = site.operator.folder / "data" / "tls-ca.pem"
    made.write_bytes(site.cluster.server_ca.read_bytes())
    try:
        site.operator.gets(*set_up(site))
    finally:
        made.unlink()
    cluster = yaml.safe_load(files(site)["webhook.kubeconfig"])["clusters"][0]["cluster"]
    assert base64.b64decode(cluster["certificate-authority-data"]) == site.cluster.server_ca.read_bytes()


def test_a_folder_that_cant_be_written_leaves_no_token_behind(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    site.operator.is_refused(*set_up(site)[:4], tmp_path / "file" / "folder", *set_up(site)[5:])

    assert site.operator.gets_json("kubernetes", "token", "list", "prod") == []
