"""`clustercert kubernetes verify`, against a running service and a double of kube-apiserver."""

import re
import subprocess
from pathlib import Path

import yaml

import enforcing
from apiserver import ApiServer
from apiserver.files import replace_file
from clustercert.model import JsonObject
from kubernetes_site import Site
from running import COMMAND, interrupted, uncovered
from waiting import eventually


def test_a_cluster_that_is_set_up_proves_itself(site: Site) -> None:
    site.set_up()

    code, checks = site.verify()

    assert code == 0, checks
    assert [check["result"] for check in checks.values()] == ["ok"] * 6
    # The service's own second, and what the API server keeps an answer for.
    assert checks["revoke"]["seconds"] > 0
    assert checks["authorize"]["detail"] == "may do anything"
    assert site.cluster.webhook_calls > 0
    assert site.cluster.complaints == []
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_a_table_says_what_was_measured(site: Site) -> None:
    site.set_up("--no-audit")
    out = site.operator.gets("kubernetes", "verify", "prod", "--rule", "reader")
    assert re.search(r"^revoke +ok +\d+\.\d+ +refused, by the authorization webhook$", out, re.MULTILINE)
    assert "may list pods" in out


def test_a_cluster_that_does_not_ask_goes_on_accepting_and_the_proof_says_so(site: Site) -> None:
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify("--wait", "1.5")

    assert code == 1
    assert checks["revoke"]["result"] == "failed"
    assert "still accepted" in checks["revoke"]["detail"]
    assert "--authorization-config" in checks["revoke"]["advice"]
    assert checks["other certificate"]["result"] == "skipped"
    # Whatever came of it, nothing of it is good any more.
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_an_address_that_is_none_is_misuse_and_nothing_is_issued(site: Site) -> None:
    before = len(site.certificates())
    for address in ("foo", "http://10.0.0.5:6443", "https://"):
        said = site.operator.misuses("kubernetes", "verify", "prod", "--address", address)
        assert "is no address of an API server" in said
    assert len(site.certificates()) == before


def without_webhook(folder: Path) -> Path:
    document = yaml.safe_load((folder / "authorization-config.yaml").read_text())
    document["authorizers"] = [each for each in document["authorizers"] if each["type"] != "Webhook"]
    other = folder / "without.yaml"
    other.write_text(yaml.safe_dump(document))
    return other


def test_a_cluster_that_does_not_know_the_client_ca_refuses_and_the_proof_says_what_to_do(site: Site) -> None:
    site.set_up()
    site.cluster.trust(b"")
    code, checks = site.verify()
    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert "401" in checks["authenticate"]["detail"]
    assert "ca-bundle" in checks["authenticate"]["advice"]


def test_a_cluster_without_the_bindings_is_seen(site: Site) -> None:
    code, checks = site.verify()
    assert (code, checks["authorize"]["result"]) == (1, "failed")
    assert "kubernetes rbac" in checks["authorize"]["advice"]


def test_other_rights_are_asked_about_as_the_operator_says(site: Site) -> None:
    site.set_up()
    code, checks = site.verify("--rule", "reader", "--can", "list:pods", "--can", "create:deployments.apps")
    assert (code, checks["authorize"]["result"]) == (1, "failed")
    assert checks["authorize"]["detail"] == "may not create deployments.apps"
    assert "--can" in site.operator.misuses("kubernetes", "verify", "prod", "--can", "pods")
    assert "--rule" in site.operator.misuses("kubernetes", "verify", "prod", "--rule", "nobody")


def test_an_api_server_that_is_not_there_is_told_and_nothing_stays_good(site: Site) -> None:
    code, checks = site.verify("--address", "https://127.0.0.1:1")
    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


def test_with_failure_policy_deny_a_service_that_is_away_is_named(site: Site) -> None:
    site.set_up("--failure-policy", "Deny")
    # A port that nobody listens on.
    text = (site.folder / "webhook.kubeconfig").read_text().replace(site.url, "https://127.0.0.1:1")
    (site.folder / "elsewhere.kubeconfig").write_text(text)
    config = site.folder / "authorization-config.yaml"
    replace_file(config, config.read_bytes().replace(b"/webhook.kubeconfig", b"/elsewhere.kubeconfig"))
    site.cluster.authorize_with(config)

    code, checks = site.verify()

    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert "500" in checks["authenticate"]["detail"]
    assert "failurePolicy" in checks["authenticate"]["advice"]


def test_in_known_only_the_throw_away_certificates_are_known(site: Site) -> None:
    site.update("--webhook-mode", "known-only")
    site.set_up()
    code, checks = site.verify()
    assert code == 0, checks


def test_without_a_webhook_the_admission_policy_stops_writes(site: Site) -> None:
    site.update("--admission")
    site.set_up()
    apply(site, "admission.yaml", "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "it still reads" in checks["revoke"]["detail"]
    assert checks["revoke"]["seconds"] > 0


def test_an_admission_policy_is_not_proved_with_a_rule_that_writes_nothing(site: Site) -> None:
    site.update("--admission")
    site.set_up()
    code, checks = site.verify("--rule", "reader")
    assert (code, checks["revoke"]["result"]) == (1, "failed")
    assert "--rule" in checks["revoke"]["advice"]


def test_without_a_webhook_the_end_of_its_binding_stops_a_certificate(site: Site) -> None:
    site.update("--credential-role", "admin=cluster-admin")
    site.set_up()
    apply(site, "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "by the end of its binding" in checks["revoke"]["detail"]
    assert checks["revoke"]["seconds"] > 0
    # The API server isn't asked to ask anybody, so that nothing else would have stopped it.
    assert site.verify("--by", "webhook", "--wait", "1")[1]["revoke"]["result"] == "failed"
    refused = site.verify("--rule", "reader")[1]
    assert refused["issue"]["result"] == "failed"


def test_members_of_masters_are_told_to_be_beyond_revocation(site: Site) -> None:
    site.set_up()
    before = site.operator.config.read_text()
    site.operator.configure(
        '[policy]\nallow_system = ["system:masters"]\n[[policy.rules]]\nrole = "admin"\ngroups = ["system:masters"]\n'
    )
    try:
        code, checks = site.verify()
    finally:
        site.operator.config.write_text(before)
    assert (code, checks["revoke"]["result"]) == (1, "failed")
    assert "system:masters pass before any webhook" in checks["revoke"]["detail"]
    assert checks["authorize"]["detail"].startswith("nothing was asked")


def test_an_interrupted_proof_leaves_nothing_that_is_good(site: Site) -> None:
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
        # It revokes the first, and waits for an end that doesn't come.
        eventually(lambda: any(revoked_at for _, revoked_at in site.certificates()[before:]))
        said, _ = interrupted(process)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert [revoked_at is not None for _, revoked_at in site.certificates()[before:]] == [True, True]


def apply(site: Site, *names: str) -> None:
    """As `kubectl apply -f` does what is not there yet."""
    for name in names:
        for document in yaml.safe_load_all((site.folder / name).read_text()):
            create(site.cluster, document)


def create(cluster: ApiServer, document: JsonObject) -> None:
    path = enforcing._PATHS[str(document["kind"])]
    enforcing.as_admin(cluster, lambda api: api.create(path, document))
