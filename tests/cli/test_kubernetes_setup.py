"""`clustercert kubernetes setup`."""

import base64
import contextlib
import re
import socket
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from clustercert.pki.certificates import fingerprint
from support.certificate_authority import Authority
from support.command_line import Operator
from support.operated_cluster import OperatedCluster

# Nothing listens on this port: the files do not depend on the handshake.
SERVICE = "https://127.0.0.1:1"


def files(site: OperatedCluster) -> dict[str, str]:
    return {path.name: path.read_text() for path in site.folder.iterdir()}


def set_up(site: OperatedCluster, *options: str | Path) -> Sequence[str | Path]:
    return (
        "kubernetes",
        "setup",
        "prod",
        "--out",
        site.folder,
        "--webhook-url",
        SERVICE,
        *options,
    )


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
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    assert server == f"{SERVICE}/clustercert/v1/kubernetes/clusters/{shown['id']}/authorize"
    audit = yaml.safe_load(written["audit-webhook.kubeconfig"])
    assert audit["clusters"][0]["cluster"]["server"] == server.replace("authorize", "audit-events")
    assert audit["users"] == kubeconfig["users"]
    webhook = yaml.safe_load(written["authorization-config.yaml"])["authorizers"][0]["webhook"]
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/etc/kubernetes/clustercert/webhook.kubeconfig"
    assert (webhook["unauthorizedTTL"], webhook["failurePolicy"]) == ("2s", "NoOpinion")


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
    assert "kubernetes token list prod" in said
    assert not (site.folder / "third").exists()


def test_options_are_written_into_the_files(site: OperatedCluster) -> None:
    site.operator.output(
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
        ("--webhook-url", "http://127.0.0.1:8080"),
        ("--webhook-url", "https://c.example.com/path"),
        ("--webhook-url", "nonsense"),
        ("--control-plane-dir", "etc/kubernetes"),
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
    assert "sends its token over https only" in words(said)
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
    kubeconfig = site.folder / "webhook.kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace(SERVICE, "http://127.0.0.1:1"))
    before = files(site)

    refused = site.operator.error(*again(site))

    assert refused.startswith(f"{kubeconfig}: an API server can't use http://127.0.0.1:1.")
    assert files(site) == before
    site.operator.output(*again(site), "--webhook-url", SERVICE)
    assert server(site).startswith(SERVICE)


# Updates


def again(site: OperatedCluster, *options: str | Path) -> Sequence[str | Path]:
    """The command that updates the folder."""
    return ("kubernetes", "setup", "prod", "--out", site.folder, "--force", *options)


def server(site: OperatedCluster) -> str:
    return str(yaml.safe_load(files(site)["webhook.kubeconfig"])["clusters"][0]["cluster"]["server"])


def parsed(site: OperatedCluster) -> dict[str, Any]:
    """The content of every file but the README."""
    written = files(site)
    return {
        name: list(yaml.safe_load_all(text)) if name.endswith((".yaml", ".kubeconfig")) else text
        for name, text in written.items()
        if name != "README.md"
    }


def webhook_of(documents: Mapping[str, Any]) -> dict[str, Any]:
    (configuration,) = documents["authorization-config.yaml"]
    found: dict[str, Any] = configuration["authorizers"][0]["webhook"]
    return found


def set_up_with_everything(site: OperatedCluster) -> dict[str, Any]:
    site.operator.output(
        *set_up(
            site, "--mode", "known-only", "--failure-policy", "Deny", "--authorized-ttl", "1s", "--timeout", "1s",
            "--unauthorized-ttl", "1m30s", "--control-plane-dir", "/opt/k", "--group", "former", "--webhook-ca",
            site.cluster.server_ca, "--bind", "clustercert:admins=mine", "--no-audit", "--service-accounts", "review",
        )
    )  # fmt: skip
    return parsed(site)


def test_a_second_run_keeps_all_values(site: OperatedCluster) -> None:
    first = set_up_with_everything(site)

    done = site.operator.run(*again(site))

    assert (done.code, parsed(site)) == (0, first), done.err
    (kept,) = [line for line in done.err.splitlines() if line.startswith("Kept from the existing folder: ")]
    for option in (
        f"--webhook-url {SERVICE}", "--webhook-ca (CN=", "--mode known-only", "--failure-policy Deny",
        "--authorized-ttl 1s", "--unauthorized-ttl 1m30s", "--timeout 1s", "--control-plane-dir /opt/k",
        "--group former", "--bind clustercert:admins=mine", "--no-audit", "--service-accounts review",
    ):  # fmt: skip
        assert option in kept


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (("--failure-policy", "NoOpinion"), "failurePolicy", "NoOpinion"),
        (("--authorized-ttl", "5s"), "authorizedTTL", "5s"),
        (("--unauthorized-ttl", "2s"), "unauthorizedTTL", "2s"),
        (("--timeout", "3s"), "timeout", "3s"),
    ],
)
def test_a_second_run_changes_only_the_given_option(
    site: OperatedCluster, options: Sequence[str], name: str, value: str
) -> None:
    expected = set_up_with_everything(site)
    assert webhook_of(expected)[name] != value

    site.operator.output(*again(site, *options))

    webhook_of(expected)[name] = value
    assert parsed(site) == expected


def test_options_override_kept_values(site: OperatedCluster, tmp_path: Path) -> None:
    set_up_with_everything(site)
    site.operator.output(
        *again(
            site, "--mode", "default", "--webhook-url", "https://127.0.0.1:2", "--webhook-ca", site.ca, "--audit",
            "--control-plane-dir", "/opt/l", "--bind", "clustercert:admins=admin",
        )
    )  # fmt: skip
    written = parsed(site)
    (cluster,) = written["webhook.kubeconfig"][0]["clusters"]
    assert cluster["cluster"]["server"].startswith("https://127.0.0.1:2/")
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == site.ca.read_bytes()
    assert "audit-webhook.kubeconfig" in written
    webhook = webhook_of(written)
    assert webhook["connectionInfo"]["kubeConfigFile"] == "/opt/l/webhook.kubeconfig"
    assert [each["expression"] for each in webhook["matchConditions"]] == [
        'size(request.groups) > 128 || request.groups.exists(g, g.startsWith("clustercert:credential:"))'
    ]
    bound = {each["subjects"][0]["name"]: each["roleRef"]["name"] for each in written["rbac.yaml"]}
    assert bound["clustercert:admins"] == "admin"
    assert webhook["failurePolicy"] == "Deny"


def test_manual_changes_are_kept(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    configuration = site.folder / "authorization-config.yaml"
    document = yaml.safe_load(configuration.read_text())
    document["apiVersion"] = "apiserver.config.k8s.io/v1beta1"
    document["authorizers"][0]["webhook"] |= {"unauthorizedTTL": "7s", "cacheUnauthorizedRequests": False}
    document["authorizers"].append({"type": "AlwaysDeny", "name": "mine"})
    configuration.write_text(yaml.safe_dump(document))
    rbac = site.folder / "rbac.yaml"
    admins, *others = yaml.safe_load_all(rbac.read_text())
    own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mine"}}
    rbac.write_text(yaml.safe_dump_all([*others, own]))
    expected = parsed(site)

    done = site.operator.run(*again(site))

    assert (done.code, parsed(site)) == (0, expected), done.err
    assert admins["subjects"][0]["name"] == "clustercert:admins"
    assert "--unauthorized-ttl 7s" in done.err
    assert "no binding of clustercert:admins" in done.err
    assert "# Not bound here: clustercert:admins." in rbac.read_text()


def test_custom_match_conditions_are_not_overwritten(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    configuration = site.folder / "authorization-config.yaml"
    document = yaml.safe_load(configuration.read_text())
    document["authorizers"][0]["webhook"]["matchConditions"].append({"expression": "request.user != 'me'"})
    configuration.write_text(yaml.safe_dump(document))
    before = files(site)

    refused = site.operator.error(*again(site))

    assert str(configuration) in refused
    assert "--mode" in refused
    assert files(site) == before
    site.operator.output(*again(site, "--mode", "default"))
    assert len(webhook_of(parsed(site))["matchConditions"]) == 1


@pytest.mark.parametrize("name", ["authorization-config.yaml", "webhook.kubeconfig", "rbac.yaml"])
@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- a"], ids=["not YAML", "not UTF-8", "a list"])
def test_an_unreadable_file_is_named_and_nothing_is_written(
    site: OperatedCluster, name: str, content: bytes
) -> None:
    site.operator.output(*set_up(site))
    (site.folder / name).write_bytes(content)

    refused = site.operator.error(*again(site, "--timeout", "1s"))

    assert refused.startswith(f"{site.folder / name} can't be read back: ")
    assert "move it away" in refused
    assert "timeout: 1s" not in (site.folder / "authorization-config.yaml").read_text(errors="replace")
    (site.folder / name).unlink()
    site.operator.output(*again(site, "--webhook-url", SERVICE))


def test_another_clusters_folder_is_refused(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    kubeconfig = site.folder / "webhook.kubeconfig"
    id_ = site.operator.output_json("cluster", "show", "prod")["id"]
    kubeconfig.write_text(kubeconfig.read_text().replace(id_, "0f-1e"))

    assert "another cluster (0f-1e)" in site.operator.error(*again(site))


# The handshake


def notes(site: OperatedCluster, *options: str | Path) -> str:
    done = site.operator.run("kubernetes", "setup", "prod", "--out", site.folder, "--force", *options)
    assert done.code == 0, done.err
    return done.err


def test_the_certificate_of_the_service_is_printed(site: OperatedCluster) -> None:
    (ca,) = x509.load_pem_x509_certificates(site.ca.read_bytes())
    leaf = x509.load_pem_x509_certificate(site.ca.with_name("service.pem").read_bytes())
    said = notes(site, "--webhook-url", site.url, "--webhook-ca", site.ca)
    assert (
        f"{site.url} presented a certificate for CN=clustercert, issued by {ca.subject.rfc4514_string()}, "
        f"valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.\n"
    ) in said
    assert "Warning" not in said


def test_an_untrusted_certificate_is_a_warning(site: OperatedCluster) -> None:
    said = notes(site, "--webhook-url", site.url, "--webhook-ca", site.cluster.server_ca)
    assert f"Warning: the TLS handshake with {site.url} failed: its certificate is not trusted (" in said
    assert "revoked certificates keep working" in said
    assert "--webhook-ca FILE" in said
    # The operating system does not trust it either.
    (site.folder / "webhook.kubeconfig").unlink()
    assert "--webhook-ca FILE" in notes(site, "--webhook-url", site.url)


def test_a_wrong_host_name_is_a_warning(site: OperatedCluster) -> None:
    url = site.url.replace("127.0.0.1", "localhost")
    said = notes(site, "--webhook-url", url, "--webhook-ca", site.ca)
    assert f"Warning: the TLS handshake with {url} failed: its certificate is not trusted (" in said
    assert "Hostname mismatch" in said


def test_an_unreachable_service_is_a_warning_with_its_effect(site: OperatedCluster) -> None:
    said = notes(site, "--webhook-url", SERVICE, "--failure-policy", "Deny")
    assert f"Warning: the TLS handshake with {SERVICE} failed: connection refused." in said
    assert "HTTP 500" in said
    assert "Start the service" in said


def test_an_unresolvable_name_is_a_warning(site: OperatedCluster) -> None:
    url = f"https://{'a' * 64}.example"
    assert f"Warning: the TLS handshake with {url} failed: its name" in notes(site, "--webhook-url", url)


def test_a_service_without_tls_is_a_warning(site: OperatedCluster) -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        said = notes(site, "--webhook-url", f"https://127.0.0.1:{port}")
    assert "failed: it does not speak TLS (" in said


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """A port that answers one connection with these bytes."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer)
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # In case no client connects.
        listener.settimeout(20)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


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
