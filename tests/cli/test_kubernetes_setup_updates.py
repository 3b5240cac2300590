"""`clustercert kubernetes setup --force` in the folder of an earlier run."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kubernetes_setup import SERVICE, files, server, set_up, update
from support.operated_cluster import OperatedCluster


def parsed(site: OperatedCluster) -> dict[str, Any]:
    """The content of every file but the README."""
    written = files(site)
    return {
        name: list(yaml.safe_load_all(text)) if name.endswith((".yaml", ".kubeconfig")) else text
        for name, text in written.items()
        if name not in ("README.md", "setup.toml")
    }


def webhook_of(documents: Mapping[str, Any]) -> dict[str, Any]:
    (configuration,) = documents["authorization-config.yaml"]
    found: dict[str, Any] = configuration["authorizers"][0]["webhook"]
    return found


def set_up_with_everything(site: OperatedCluster) -> dict[str, Any]:
    site.operator.output(
        *set_up(
            site, "--mode", "known-only", "--failure-policy", "Deny", "--authorized-ttl", "1s", "--timeout", "1s",
            "--unauthorized-ttl", "1m30s", "--control-plane-dir", "/opt/k", "--webhook-ca",
            site.cluster.server_ca, "--bind", "clustercert:admins=mine", "--no-audit", "--service-accounts", "review",
        )
    )  # fmt: skip
    return parsed(site)


def test_a_second_run_keeps_all_values(site: OperatedCluster) -> None:
    first = set_up_with_everything(site)

    done = site.operator.run(*update(site))

    assert (done.code, parsed(site)) == (0, first), done.err
    (kept,) = [line for line in done.err.splitlines() if line.startswith("Kept from the existing folder: ")]
    for option in (
        f"--webhook-url {SERVICE}", "--webhook-ca (CN=", "--mode known-only", "--failure-policy Deny",
        "--authorized-ttl 1s", "--unauthorized-ttl 1m30s", "--timeout 1s", "--control-plane-dir /opt/k",
        "--bind clustercert:admins=mine", "--no-audit", "--service-accounts review",
    ):  # fmt: skip
        assert option in kept


def test_defaults_of_the_first_run_are_not_kept(site: OperatedCluster) -> None:
    site.operator.configure("[webhook]\npublic_url = 'https://127.0.0.1:1'\n")
    site.operator.output(*set_up(site)[:5])
    stored = (site.folder / "setup.toml").read_text()
    site.operator.configure("[webhook]\npublic_url = 'https://127.0.0.1:2'\n")
    site.update("--webhook-mode", "known-only", "--unauthorized-ttl", "9s")

    done = site.operator.run(*update(site))
    site.operator.configure()

    assert done.code == 0, done.err
    assert "Kept from the existing folder" not in done.err
    assert server(site).startswith("https://127.0.0.1:2/")
    webhook = webhook_of(parsed(site))
    assert (webhook["unauthorizedTTL"], len(webhook["matchConditions"])) == ("9s", 1)
    assert not {"webhook_url", "mode", "unauthorized_ttl", "timeout"} & {
        line.partition(" ")[0] for line in stored.splitlines()
    }


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

    site.operator.output(*update(site, *options))

    webhook_of(expected)[name] = value
    assert parsed(site) == expected


def test_options_override_kept_values(site: OperatedCluster, tmp_path: Path) -> None:
    set_up_with_everything(site)
    site.operator.output(
        *update(
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


def test_edited_files_are_kept_and_new_versions_are_put_beside_them(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    configuration = site.folder / "authorization-config.yaml"
    document = yaml.safe_load(configuration.read_text())
    document["authorizers"][0]["webhook"]["cacheUnauthorizedRequests"] = False
    document["authorizers"].append({"type": "AlwaysDeny", "name": "mine"})
    configuration.write_text(yaml.safe_dump(document))
    rbac = site.folder / "rbac.yaml"
    _, *others = yaml.safe_load_all(rbac.read_text())
    own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mine"}}
    rbac.write_text(yaml.safe_dump_all([*others, own]))
    edited = rbac.read_text()

    done = site.operator.run(*update(site, "--timeout", "1s"))

    assert done.code == 0, done.err
    written = parsed(site)
    document["authorizers"][0]["webhook"]["timeout"] = "1s"
    assert written["authorization-config.yaml"] == [document]
    assert rbac.read_text() == edited
    assert len(written["new-rbac.yaml"]) == len(others) + 1
    (said,) = [line for line in done.err.splitlines() if line.startswith("Edited by hand")]
    assert said.startswith(
        "Edited by hand, so not replaced: rbac.yaml. The new versions are in new-rbac.yaml. "
    )
    assert f"`diff {rbac} {site.folder / 'new-rbac.yaml'}`" in said
    assert str(site.folder / "new-rbac.yaml") in done.out.splitlines()


def test_setup_toml_can_be_edited(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    choices = site.folder / "setup.toml"
    lines = [line for line in choices.read_text().splitlines() if "cluster-admin" not in line]
    choices.write_text("\n".join(['unauthorized_ttl = "7s"', *lines]))

    done = site.operator.run(*update(site))

    assert done.code == 0, done.err
    written = parsed(site)
    assert webhook_of(written)["unauthorizedTTL"] == "7s"
    assert "clustercert:admins" not in {each["subjects"][0]["name"] for each in written["rbac.yaml"]}
    assert "# Not bound here: clustercert:admins." in files(site)["rbac.yaml"]
    assert "--unauthorized-ttl 7s" in done.err
    assert "no --bind clustercert:admins=ROLE, so this group has no rights in the cluster" in done.err
    assert "Edited by hand" not in done.err
    # Nothing changes from then on.
    before = files(site)
    site.operator.output(*update(site))
    assert files(site) == before


def test_custom_match_conditions_are_not_overwritten(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    configuration = site.folder / "authorization-config.yaml"
    document = yaml.safe_load(configuration.read_text())
    document["authorizers"][0]["webhook"]["matchConditions"].append({"expression": "request.user != 'me'"})
    configuration.write_text(yaml.safe_dump(document))

    done = site.operator.run(*update(site, "--mode", "known-only"))

    assert (done.code, "Edited by hand" in done.err) == (0, True)
    assert yaml.safe_load(configuration.read_text()) == document
    (new,) = parsed(site)["new-authorization-config.yaml"]
    assert len(new["authorizers"][0]["webhook"]["matchConditions"]) == 1


@pytest.mark.parametrize("name", ["setup.toml", "webhook.kubeconfig"])
@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- a"], ids=["no syntax", "not UTF-8", "a list"])
def test_an_unreadable_file_is_named_and_nothing_is_written(
    site: OperatedCluster, name: str, content: bytes
) -> None:
    site.operator.output(*set_up(site))
    (site.folder / name).write_bytes(content)

    refused = site.operator.error(*update(site, "--timeout", "1s"))

    assert str(site.folder / name) in refused
    assert "timeout: 1s" not in (site.folder / "authorization-config.yaml").read_text()


def test_a_missing_kubeconfig_is_written_anew(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    (site.folder / "webhook.kubeconfig").unlink()
    site.operator.output(*update(site))
    assert server(site).startswith(SERVICE)


def test_another_clusters_folder_is_refused(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site))
    choices = site.folder / "setup.toml"
    id_ = site.operator.output_json("cluster", "show", "prod")["id"]
    choices.write_text(choices.read_text().replace(id_, "0f-1e"))

    assert "another cluster (0f-1e)" in site.operator.error(*update(site))


def test_the_policy_about_certificate_requests_stays_off(site: OperatedCluster) -> None:
    name = "certificate-requests.yaml"
    site.operator.output(*set_up(site))
    assert f"kubectl apply -f {name}" in files(site)["README.md"]
    site.operator.output(*update(site, "--allow-certificate-requests"))
    assert name not in files(site)

    done = site.operator.run(*update(site))

    assert "--allow-certificate-requests" in done.err
    written = files(site)
    assert name not in written
    assert f"kubectl delete --ignore-not-found -f removed-{name}" in written["README.md"]
    assert site.operator.run(*update(site, "--deny-certificate-requests")).code == 0
    assert name in files(site)
    assert f"removed-{name}" not in files(site)
    assert f"removed-{name}" not in files(site)["README.md"]


def test_files_for_the_cluster_stay_until_their_objects_are_deleted(site: OperatedCluster) -> None:
    site.update("--admission")
    site.operator.output(*set_up(site, "--service-accounts", "review"))
    before = files(site)
    site.update("--no-admission")
    site.operator.output(*update(site, "--service-accounts", "none"))
    written = files(site)
    for name in ("admission.yaml", "service-access.yaml", "service-accounts.yaml"):
        assert name not in written
        assert written[f"removed-{name}"] == before[name]
    deletions = [line for line in written["README.md"].splitlines() if line.startswith("kubectl delete")]
    assert deletions == [
        "kubectl delete --ignore-not-found -f removed-admission.yaml",
        "kubectl delete --ignore-not-found -f removed-service-accounts.yaml",
    ]
    # The service needs its rights until the last binding is gone.
    assert "Delete the objects of `removed-service-access.yaml` only when" in written["README.md"]
    # The namespace is in both files, so the deletions come first.
    site.update("--credential-role", "admin=cluster-admin")
    site.operator.output(*update(site))
    commands = [line for line in files(site)["README.md"].splitlines() if line.startswith("kubectl")]
    assert commands.index("kubectl delete --ignore-not-found -f removed-admission.yaml") < commands.index(
        "kubectl apply -f service-access.yaml"
    )
    assert "removed-service-access.yaml" not in files(site)


def test_known_only_is_refused_in_a_folder_for_an_older_api_server(site: OperatedCluster) -> None:
    site.operator.output(*set_up(site, "--kubernetes-version", "1.31"))
    before = files(site)

    refused = site.operator.error(*update(site, "--mode", "known-only"))

    assert "Mode known-only needs Kubernetes 1.32 or newer, not 1.31. After an upgrade, add" in refused
    assert files(site) == before
    site.operator.output(*update(site, "--mode", "known-only", "--kubernetes-version", "1.32"))
    (configuration,) = parsed(site)["authorization-config.yaml"]
    assert configuration["apiVersion"] == "apiserver.config.k8s.io/v1"
