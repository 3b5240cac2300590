"""`clustercert kubernetes verify`, against a running service and a double of kube-apiserver."""

import re
import subprocess
from pathlib import Path

import yaml

from clustercert.model import JsonObject
from support import managed_cluster
from support.apiserver import ApiServer
from support.apiserver.files import replace_file
from support.demo_process import COMMAND, interrupted, uncovered
from support.operated_cluster import OperatedCluster
from support.wait import eventually


def test_all_checks_pass_in_a_configured_cluster(site: OperatedCluster) -> None:
    site.set_up()

    code, checks = site.verify()

    assert code == 0, checks
    assert [check["result"] for check in checks.values()] == ["ok"] * 6
    # The service's delay plus the API server's cache.
    assert checks["revoke"]["seconds"] > 0
    assert checks["authorize"]["detail"] == "may do anything"
    assert site.cluster.webhook_calls > 0
    assert site.cluster.complaints == []
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_the_table_shows_the_measured_seconds(site: OperatedCluster) -> None:
    site.set_up("--no-audit")
    out = site.operator.output("kubernetes", "verify", "prod", "--rule", "reader")
    assert re.search(r"^revoke +ok +\d+\.\d+ +refused, by the authorization webhook$", out, re.MULTILINE)
    assert "may list pods" in out


def test_a_cluster_without_the_webhook_fails_the_revocation_check(site: OperatedCluster) -> None:
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify("--wait", "1.5")

    assert code == 1
    assert checks["revoke"]["result"] == "failed"
    assert "still accepted" in checks["revoke"]["detail"]
    assert "--authorization-config" in checks["revoke"]["advice"]
    assert checks["other certificate"]["result"] == "skipped"
    # Both certificates are revoked in any case.
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_an_invalid_address_is_wrong_usage_and_issues_nothing(site: OperatedCluster) -> None:
    before = len(site.certificates())
    for address in ("foo", "http://10.0.0.5:6443", "https://"):
        said = site.operator.usage_error("kubernetes", "verify", "prod", "--address", address)
        assert "is not a valid API server address" in said
    assert len(site.certificates()) == before


def without_webhook(folder: Path) -> Path:
    document = yaml.safe_load((folder / "authorization-config.yaml").read_text())
    document["authorizers"] = [each for each in document["authorizers"] if each["type"] != "Webhook"]
    other = folder / "without.yaml"
    other.write_text(yaml.safe_dump(document))
    return other


def test_a_cluster_without_the_client_ca_fails_with_advice(site: OperatedCluster) -> None:
    site.set_up()
    site.cluster.trust(b"")
    code, checks = site.verify()
    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert "401" in checks["authenticate"]["detail"]
    assert "ca-bundle" in checks["authenticate"]["advice"]


def test_a_cluster_without_bindings_fails_the_authorization_check(site: OperatedCluster) -> None:
    code, checks = site.verify()
    assert (code, checks["authorize"]["result"]) == (1, "failed")
    assert "kubernetes rbac" in checks["authorize"]["advice"]


def test_the_option_can_names_the_permissions_to_test(site: OperatedCluster) -> None:
    site.set_up()
    code, checks = site.verify("--rule", "reader", "--can", "list:pods", "--can", "create:deployments.apps")
    assert (code, checks["authorize"]["result"]) == (1, "failed")
    assert (
        checks["authorize"]["detail"] == "the certificate's user lacks permission to: create deployments.apps"
    )
    assert "--can" in site.operator.usage_error("kubernetes", "verify", "prod", "--can", "pods")
    assert "--rule" in site.operator.usage_error("kubernetes", "verify", "prod", "--rule", "nobody")


def test_certificates_are_revoked_if_the_api_server_is_unreachable(site: OperatedCluster) -> None:
    code, checks = site.verify("--address", "https://127.0.0.1:1")
    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_an_unreachable_service_fails_with_advice_on_deny(site: OperatedCluster) -> None:
    site.set_up("--failure-policy", "Deny")
    # Nothing listens on this port.
    text = (site.folder / "webhook.kubeconfig").read_text().replace(site.url, "https://127.0.0.1:1")
    (site.folder / "elsewhere.kubeconfig").write_text(text)
    config = site.folder / "authorization-config.yaml"
    replace_file(config, config.read_bytes().replace(b"/webhook.kubeconfig", b"/elsewhere.kubeconfig"))
    site.cluster.authorize_with(config)

    code, checks = site.verify()

    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert "500" in checks["authenticate"]["detail"]
    assert "failurePolicy" in checks["authenticate"]["advice"]


def test_all_checks_pass_in_mode_known_only(site: OperatedCluster) -> None:
    site.update("--webhook-mode", "known-only")
    site.set_up()
    code, checks = site.verify()
    assert code == 0, checks


def test_the_admission_policy_stops_writes_without_a_webhook(site: OperatedCluster) -> None:
    site.update("--admission")
    site.set_up()
    apply(site, "admission.yaml", "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "it still reads" in checks["revoke"]["detail"]
    assert checks["revoke"]["seconds"] > 0


def test_an_admission_policy_needs_a_rule_that_may_write(site: OperatedCluster) -> None:
    site.update("--admission")
    site.set_up()
    code, checks = site.verify("--rule", "reader")
    assert (code, checks["revoke"]["result"]) == (1, "failed")
    assert "--rule" in checks["revoke"]["advice"]


def test_the_end_of_a_binding_stops_a_certificate(site: OperatedCluster) -> None:
    site.update("--credential-role", "admin=cluster-admin")
    site.set_up()
    apply(site, "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "by the end of its binding" in checks["revoke"]["detail"]
    assert checks["revoke"]["seconds"] > 0
    # The API server calls no webhook, so only the binding could have stopped the certificate.
    assert site.verify("--by", "webhook", "--wait", "1")[1]["revoke"]["result"] == "failed"
    refused = site.verify("--rule", "reader")[1]
    assert refused["issue"]["result"] == "failed"


def test_a_rule_for_system_masters_fails_the_revocation_check(site: OperatedCluster) -> None:
    site.set_up()
    before = site.operator.config.read_text()
    site.operator.configure(
        '[policy]\nallow_system = ["system:masters"]\n'
        '[[policy.rules]]\nwhen.roles = ["admin"]\ngrant.groups = ["system:masters"]\n'
    )
    try:
        code, checks = site.verify()
    finally:
        site.operator.config.write_text(before)
    assert (code, checks["revoke"]["result"]) == (1, "failed")
    assert "system:masters are authorized before any webhook" in checks["revoke"]["detail"]
    assert checks["authorize"]["detail"].startswith("no permission was tested")


def test_all_checks_pass_if_the_policy_chooses_user_names(site: OperatedCluster) -> None:
    site.set_up()
    before = site.operator.config.read_text()
    site.operator.configure(
        '[policy]\nusername = "{user.name}@{user.domain}"\n'
        '[[policy.rules]]\nname = "limit"\ngrant.max_lifetime = "30d"\n'
        '[[policy.rules]]\nname = "admin"\nwhen.roles = ["admin"]\ngrant.groups = ["clustercert:admins"]\n'
    )
    try:
        code, checks = site.verify()
        said = site.operator.usage_error("kubernetes", "verify", "prod", "--rule", "limit")
    finally:
        site.operator.config.write_text(before)
    assert code == 0, checks
    assert checks["issue"]["detail"] == "two certificates for clustercert:verify in clustercert:admins"
    assert "The rule limit can't be tested" in said


def test_an_interrupted_verification_revokes_its_certificates(site: OperatedCluster) -> None:
    before = len(site.certificates())
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))
    with subprocess.Popen(
        [*COMMAND, "--config", site.operator.config, "kubernetes", "verify", "prod"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=uncovered(),
    ) as process:
        # It revokes the first certificate, and waits in vain for the refusal.
        eventually(lambda: any(revoked_at for _, revoked_at in site.certificates()[before:]))
        said, _ = interrupted(process)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert [revoked_at is not None for _, revoked_at in site.certificates()[before:]] == [True, True]


def apply(site: OperatedCluster, *names: str) -> None:
    """Create objects, like `kubectl apply -f` for new ones."""
    for name in names:
        for document in yaml.safe_load_all((site.folder / name).read_text()):
            create(site.cluster, document)


def create(cluster: ApiServer, document: JsonObject) -> None:
    path = managed_cluster.PATHS[str(document["kind"])]
    managed_cluster.as_admin(cluster, lambda api: api.create(path, document))
