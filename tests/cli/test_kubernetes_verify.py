"""`clustercert kubernetes verify`, against a running service and a double of kube-apiserver."""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert.kubernetes.setup.webhook_check import NO_WEBHOOK
from clustercert.kubernetes.verify import diagnosis
from clustercert.model import JsonObject, utc_now
from clustercert.model.times import parse_rfc3339
from support import managed_cluster
from support.apiserver import ApiServer
from support.apiserver.files import replace_file
from support.command_line import Operator, run_in_terminal
from support.demo_process import COMMAND, interrupted, uncovered
from support.operated_cluster import OperatedCluster, tls_service
from support.scripted_webhook import ScriptedWebhook
from support.signing_cluster import first_token, give_access
from support.stores import Store
from support.wait import eventually


def test_all_checks_pass_in_a_configured_cluster(site: OperatedCluster) -> None:
    site.set_up()
    started = utc_now().replace(microsecond=0)

    code, checks = site.verify()

    assert code == 0, checks
    assert [check["result"] for check in checks.values()] == ["ok"] * 6
    # The service's delay plus the API server's cache.
    assert checks["revoke"]["seconds"] > 0
    assert checks["authorize"]["detail"] == "may do anything"
    assert site.cluster.webhook_calls > 0
    assert site.cluster.complaints == []
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])
    verified_at = parse_rfc3339(site.operator.output_json("cluster", "show", "prod")["verified_at"])
    assert started <= verified_at <= utc_now()


def test_a_terminal_shows_each_check_before_it_ends(site: OperatedCluster) -> None:
    # Nothing listens at this address, so only the first check is good.
    verify = ("kubernetes", "verify", "prod", "--address", "https://127.0.0.1:1")
    _, screen = run_in_terminal(("--config", str(site.operator.config), *verify))
    shown = [line for line in screen.split("\r\x1b[K") if "checks done" in line]
    assert [line.split("]")[1] for line in shown] == [f" {done}/6 checks done" for done in range(6)]
    # The table has no room for the details.
    assert "authenticate: The cluster's API server can't be reached." in screen


@pytest.mark.full
def test_a_verification_is_left_out_of_access_and_of_the_last_events_unless_asked_for(
    site: OperatedCluster,
) -> None:
    site.set_up()
    last = site.operator.output_json("audit", "tail", "-n", "1")
    site.verify()
    kinds = ["certificate.issued"] * 2 + ["certificate.revoked"] * 2 + ["credential.altered"] * 2

    logged = [json.loads(line) for line in site.operator.output("audit", "tail", "-o", "json").splitlines()]
    # Events about an earlier test's certificates may still arrive.
    issued = [
        each for each in logged if each["kind"] == "certificate.issued" and each["place"] > last["place"]
    ]
    own = {each["subject"] for each in issued}

    def events(*options: str) -> list[str]:
        """The kinds of the events of the verification."""
        said = site.operator.output("audit", "tail", "-n", "50", *options)
        # Events of other tests may have several spaces in other columns.
        rows = [line.split("   ") for line in said.splitlines()]
        return sorted(row[2] for row in rows if own.intersection(row))

    eventually(lambda: events("--verifications") == kinds)
    assert events() == []
    assert "--verifications" in site.operator.run("audit", "tail", "-n", "50").err
    logged = [json.loads(line) for line in site.operator.output("audit", "tail", "-o", "json").splitlines()]
    assert sorted(each["kind"] for each in logged if each["subject"] in own) == kinds
    access = ("certificate", "access", "--cluster", "prod")
    report = site.operator.output_json(*access)
    assert (report["users"], report["groups"]) == ([], [])
    assert report["verifications"] == 2
    assert "Left out 2 certificates used to verify clusters and client CAs." in site.operator.run(*access).err
    [user] = site.operator.output_json(*access, "--verifications")["users"]
    assert (user["user_id"], len(user["credentials"])) == ("clustercert:verify", 2)


def test_the_table_shows_the_measured_seconds(site: OperatedCluster) -> None:
    site.set_up("--no-audit")
    out = site.operator.output("kubernetes", "verify", "prod", "--rule", "reader")
    assert re.search(r"^revoke +ok +\d+\.\d+ +refused, by the authorization webhook$", out, re.MULTILINE)
    assert "may list pods" in out


@pytest.mark.full
def test_a_cluster_without_the_webhook_fails_the_revocation_check(site: OperatedCluster) -> None:
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify("--wait", "2s")

    assert code == 1
    assert checks["revoke"]["result"] == "failed"
    assert "still accepted" in checks["revoke"]["detail"]
    assert checks["revoke"]["advice"] == diagnosis.NOT_ASKED
    assert checks["other certificate"]["result"] == "skipped"
    assert site.operator.output_json("cluster", "show", "prod")["verified_at"] is None
    # Both certificates are revoked in any case.
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


@pytest.mark.full
def test_use_of_a_revoked_certificate_is_reported_where_the_webhook_has_no_effect(
    site: OperatedCluster,
) -> None:
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))
    site.cluster.send_audit_events(site.folder)

    def reports() -> list[dict[str, Any]]:
        events = Store(f"sqlite+aiosqlite:///{site.database}").events()
        return [event for event in events if event["kind"] == "credential.revoked_used"]

    # A use counts three seconds after the revocation.
    code, _ = site.verify("--wait", "6s")
    assert code == 1
    eventually(lambda: len(reports()) == 1)
    (report,) = reports()
    assert report["detail"]["username"] == "clustercert:verify"
    assert report["detail"]["reported_by"] == "audit-events"
    shown = site.operator.output("certificate", "access", "--cluster", "prod")
    assert (
        "Certificates that were used after their revocation, because the API server did not refuse them:"
        in shown
    )
    access = site.operator.output_json("certificate", "access", "--cluster", "prod")
    (used,) = [
        each
        for user in access["users"]
        for each in user["credentials"]
        if each["used_after_revocation_at"] is not None
    ]
    assert (used["fingerprint"], used["state"], used["has_access"]) == (report["subject"], "revoked", True)
    assert access["use_not_seen"] is None
    assert site.operator.output_json("cluster", "show", "prod")["use_after_revocation"] == "seen"
    assert "not seen" not in site.operator.run("kubernetes", "verify", "prod", "--wait", "1s").err


@pytest.mark.full
def test_a_cluster_without_audit_events_does_not_see_use_after_a_revocation(site: OperatedCluster) -> None:
    site.set_up("--no-audit")
    sentence = "Use after a revocation is not seen"
    assert sentence in site.operator.run("kubernetes", "verify", "prod").err
    shown = site.operator.run("cluster", "show", "prod", "--output", "json")
    assert json.loads(shown.out)["use_after_revocation"] == "not seen"
    assert sentence in shown.err
    access = site.operator.output_json("certificate", "access", "--cluster", "prod")
    assert access["use_not_seen"] is not None
    assert sentence in access["residual_risks"][0]


@pytest.mark.full
def test_a_verification_at_another_address_is_not_stored(site: OperatedCluster) -> None:
    site.set_up()
    before = site.operator.output_json("cluster", "show", "prod")
    code, checks = site.verify("--address", before["internal_url"])
    assert code == 0, checks
    after = site.operator.output_json("cluster", "show", "prod")
    assert after["verified_at"] is None
    # The API server has called the webhook, as in every verification. The time is stored some seconds later.
    seen = {"enforcement", "webhook_called_at"}
    assert {name: after[name] for name in after.keys() - seen} == {
        name: before[name] for name in before.keys() - seen
    }


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
    assert "client-ca.pem" in checks["authenticate"]["advice"]


def test_a_cluster_without_bindings_fails_the_authorization_check(site: OperatedCluster) -> None:
    code, checks = site.verify()
    assert (code, checks["authorize"]["result"]) == (1, "failed")
    assert "rbac.yaml" in checks["authorize"]["advice"]


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


# What can be wrong with the webhook


def change_kubeconfig(site: OperatedCluster, old: str, new: str) -> None:
    """Make the API server read a changed kubeconfig."""
    content = (site.folder / "webhook.kubeconfig").read_text()
    assert old in content
    (site.folder / "changed.kubeconfig").write_text(content.replace(old, new))
    config = site.folder / "authorization-config.yaml"
    replace_file(config, config.read_bytes().replace(b"/webhook.kubeconfig", b"/changed.kubeconfig"))
    site.cluster.authorize_with(config)


def webhook_behind_rbac(site: OperatedCluster) -> None:
    config = site.folder / "authorization-config.yaml"
    document = yaml.safe_load(config.read_text())
    document["authorizers"].sort(key=lambda each: each["type"] == "Webhook")
    replace_file(config, yaml.safe_dump(document).encode())
    site.cluster.authorize_with(config)


def long_cache(site: OperatedCluster) -> None:
    config = site.folder / "authorization-config.yaml"
    replace_file(config, config.read_bytes().replace(b"unauthorizedTTL: 500ms", b"unauthorizedTTL: 30s"))
    site.cluster.authorize_with(config)


def wrong_token(site: OperatedCluster) -> None:
    change_kubeconfig(site, "token: ccw_", "token: ccw_x")


def wrong_address(site: OperatedCluster) -> None:
    # Nothing listens on this port.
    change_kubeconfig(site, site.url, "https://127.0.0.1:1")


def wrong_ca(site: OperatedCluster) -> None:
    authority = (base64.b64encode(path.read_bytes()).decode() for path in (site.ca, site.cluster.server_ca))
    change_kubeconfig(site, *authority)


# Whether calls fail is known after several seconds.
LATE = {wrong_token, wrong_address, wrong_ca}
CAUSES: Mapping[Callable[[OperatedCluster], None], str] = {
    webhook_behind_rbac: diagnosis.BEHIND_RBAC,
    long_cache: diagnosis.CACHED,
    wrong_token: diagnosis.WRONG_TOKEN,
    wrong_address: diagnosis.NO_ADDRESS,
    wrong_ca: diagnosis.NO_ADDRESS,
}


@pytest.mark.parametrize(
    "cause",
    [pytest.param(cause, marks=[pytest.mark.full] if cause in LATE else []) for cause in CAUSES],
    ids=lambda cause: cause.__name__,
)
def test_each_cause_of_an_accepted_certificate_has_its_advice(
    site: OperatedCluster, cause: Callable[[OperatedCluster], None]
) -> None:
    site.set_up()
    cause(site)

    code, checks = site.verify("--wait", "2s")

    assert (code, checks["revoke"]["result"]) == (1, "failed"), checks
    assert "still accepted 2 seconds after it was revoked" in checks["revoke"]["detail"]
    assert checks["revoke"]["advice"] == CAUSES[cause]
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-3:])


@pytest.mark.full
def test_the_service_is_asked_where_the_settings_say(site: OperatedCluster) -> None:
    """An API server that can't reach a service that answers here has another CA or address."""
    site.set_up()
    wrong_ca(site)
    made = site.operator.folder / "data" / "tls-ca.pem"
    made.write_bytes(site.ca.read_bytes())
    before = site.operator.config.read_text()
    advice = []
    try:
        with tls_service(site.operator, "--role", "api") as api:
            for url in (site.url, api, "https://127.0.0.1:1"):
                site.operator.configure(f"[webhook]\npublic_url = '{url}'\n")
                advice.append(site.verify("--wait", "1s")[1]["revoke"]["advice"])
    finally:
        made.unlink()
        site.operator.config.write_text(before)
    refused = diagnosis.TLS.format(url="https://127.0.0.1:1", error="connection refused")
    assert advice == [diagnosis.WRONG_CA.format(url=site.url), NO_WEBHOOK.format(url=api), refused]


@pytest.mark.full
def test_a_webhook_that_does_not_answer_is_named_first(site: OperatedCluster) -> None:
    site.set_up()
    wrong_address(site)
    before = site.operator.config.read_text()
    site.operator.configure("[webhook]\npublic_url = 'https://127.0.0.1:1'\n")
    try:
        # A reader may not read the metrics, so the cause is unknown.
        done = site.operator.run(
            "kubernetes", "verify", "prod", "--rule", "reader", "--wait", "600s", "-o", "json"
        )
    finally:
        site.operator.config.write_text(before)
    (failed,) = [each for each in json.loads(done.out) if each["check"] == "revoke"]
    # More time does not help.
    assert "still accepted 10 seconds after it was revoked" in failed["detail"]
    problem = diagnosis.UNANSWERED.format(url="https://127.0.0.1:1", error="connection refused")
    assert done.err.startswith(f"Warning: {problem}\n")
    assert failed["advice"] == f"{problem} {diagnosis.UNKNOWN}"


@pytest.mark.full
def test_a_webhook_that_answers_only_the_control_plane_is_a_warning(site: OperatedCluster) -> None:
    site.set_up()
    before = site.operator.config.read_text()
    site.operator.configure("[webhook]\npublic_url = 'https://127.0.0.1:1'\n")
    try:
        done = site.operator.run("kubernetes", "verify", "prod")
    finally:
        site.operator.config.write_text(before)
    assert done.code == 0, done.err
    assert done.err.startswith("Warning: https://127.0.0.1:1 does not answer from here: connection refused. ")


@pytest.mark.full
def test_a_webhook_that_denies_nothing_is_not_ours(site: OperatedCluster, tmp_path: Path) -> None:
    site.set_up()
    config = site.folder / "authorization-config.yaml"
    with ScriptedWebhook() as webhook:
        other = str(webhook.kubeconfig(tmp_path)).encode()
        replace_file(
            config, config.read_bytes().replace(str(site.folder / "webhook.kubeconfig").encode(), other)
        )
        site.cluster.authorize_with(config)
        checks = site.verify("--wait", "1s")[1]
    assert checks["revoke"]["advice"] == diagnosis.NOT_OURS


@pytest.mark.full
def test_without_tokens_or_metrics_the_advice_says_so(site: OperatedCluster) -> None:
    site.set_up()
    wrong_address(site)
    # A reader may not read the metrics.
    unknown = site.verify("--wait", "1s", "--rule", "reader")[1]["revoke"]["advice"]
    (token,) = site.operator.output_json("kubernetes", "token", "list", "prod")
    site.operator.output("kubernetes", "token", "remove", "prod", token["id"], "--yes")
    removed = site.verify("--wait", "1s")[1]["revoke"]["advice"]
    assert (unknown, removed) == (diagnosis.UNKNOWN, diagnosis.NO_TOKEN)


@pytest.mark.parametrize(
    "cause",
    [wrong_address, wrong_token],
    ids=lambda cause: cause.__name__,
)
@pytest.mark.full
def test_an_unanswered_api_server_fails_with_advice_on_deny(
    site: OperatedCluster, cause: Callable[[OperatedCluster], None]
) -> None:
    site.set_up("--failure-policy", "Deny")
    cause(site)

    code, checks = site.verify()

    assert (code, checks["authenticate"]["result"]) == (1, "failed")
    assert "500" in checks["authenticate"]["detail"]
    assert checks["authenticate"]["advice"] == CAUSES[cause]


def test_known_only_without_effect_fails(site: OperatedCluster) -> None:
    """As on 1.31, or with files for the mode default."""
    site.update("--webhook-mode", "known-only")
    site.set_up("--mode", "default")
    code, checks = site.verify("--wait", "1s")
    assert code == 1
    assert checks["unknown certificate"]["result"] == "failed"
    assert "is accepted in mode known-only" in checks["unknown certificate"]["detail"]
    assert "--mode known-only" in checks["unknown certificate"]["advice"]
    assert {name for name, check in checks.items() if check["result"] != "ok"} == {"unknown certificate"}
    site.write_files("--mode", "known-only")
    site.cluster.tells_credential_ids = False
    checks = site.verify("--wait", "1s")[1]
    assert checks["unknown certificate"]["advice"].startswith("Mode known-only needs Kubernetes 1.32")


def test_all_checks_pass_in_mode_known_only(site: OperatedCluster) -> None:
    site.update("--webhook-mode", "known-only")
    site.set_up()
    code, checks = site.verify()
    assert code == 0, checks
    assert checks["unknown certificate"]["result"] == "ok"


@pytest.mark.full
def test_known_only_is_verified_in_a_cluster_that_signs_itself(
    made: tuple[Operator, str], tmp_path: Path
) -> None:
    """The cluster signs only certificates with a credential number."""
    operator, url = made
    with ApiServer(tmp_path) as cluster:
        give_access(cluster)
        token = tmp_path / "token"
        token.write_bytes(first_token(cluster))
        operator.output(
            *("cluster", "add", "prod", "--project", "eu-de", "--internal-url", cluster.url),
            *("--server-ca", cluster.server_ca, "--signer", "csr_api", "--signer-token-file", token),
            *("--webhook-mode", "known-only"),
        )
        try:
            cluster.trust(operator.output("cluster", "ca", "show", "prod", "--bundle").encode())
            site = OperatedCluster(operator, cluster, url)
            site.set_up()
            checks = site.verify()[1]
        finally:
            operator.output("cluster", "remove", "prod", "--yes")
    assert checks["unknown certificate"]["result"] == "skipped", checks


def test_the_admission_policy_stops_writes_without_a_webhook(site: OperatedCluster) -> None:
    site.update("--admission")
    site.set_up()
    apply(site, "admission.yaml", "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "reads still work" in checks["revoke"]["detail"]
    assert checks["altered copy"]["detail"] == "refused with a different signature too"
    assert checks["revoke"]["seconds"] > 0


@pytest.mark.full
def test_an_admission_policy_needs_a_rule_that_may_write(site: OperatedCluster) -> None:
    site.update("--admission")
    site.set_up()
    code, checks = site.verify("--rule", "reader")
    assert (code, checks["revoke"]["result"]) == (1, "failed")
    assert "--rule" in checks["revoke"]["advice"]


@pytest.mark.full
def test_the_end_of_a_binding_stops_a_certificate(site: OperatedCluster) -> None:
    site.update("--credential-role", "admin=cluster-admin")
    site.set_up()
    apply(site, "service-access.yaml")
    site.cluster.authorize_with(without_webhook(site.folder))

    code, checks = site.verify()

    assert code == 0, checks
    assert "because its binding was deleted" in checks["revoke"]["detail"]
    assert checks["altered copy"]["result"] == "ok"
    assert checks["revoke"]["seconds"] > 0
    # The API server calls no webhook, so only the binding could have stopped the certificate.
    assert site.verify("--by", "webhook", "--wait", "1s")[1]["revoke"]["result"] == "failed"
    refused = site.verify("--rule", "reader")[1]
    assert refused["issue"]["result"] == "failed"


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
def test_a_policy_whose_rules_need_groups_is_verified_without_groups(site: OperatedCluster) -> None:
    site.set_up()
    before = site.operator.config.read_text()
    site.operator.configure(
        '[policy]\nrole_groups = false\nmax_lifetime = "24h"\nusername = "{user.name}"\n'
        '[[policy.rules]]\nname = "teams"\nwhen.groups = ["team-*"]\ngrant.groups = ["team:{group}"]\n'
    )
    try:
        code, checks = site.verify()
        unknown_right = site.operator.usage_error("kubernetes", "verify", "prod", "--can", "list:pods")
        no_right = site.operator.usage_error("kubernetes", "verify", "prod", "--by", "admission")
    finally:
        site.operator.config.write_text(before)
    assert code == 0, checks
    assert {check["result"] for name, check in checks.items() if name != "authorize"} == {"ok"}
    assert checks["issue"]["detail"] == "two certificates for clustercert:verify in one credential group each"
    assert checks["authorize"]["result"] == "skipped"
    assert checks["authorize"]["detail"] == "no rule of the policy needs only a role"
    assert "--can" in unknown_right
    assert "--by webhook" in no_right
    assert all(revoked_at is not None for _, revoked_at in site.certificates()[-2:])


@pytest.mark.parametrize("chosen", ["prod", pytest.param("--all", marks=pytest.mark.full)])
def test_an_interrupted_verification_revokes_its_certificates(site: OperatedCluster, chosen: str) -> None:
    before = len(site.certificates())
    site.set_up()
    site.cluster.authorize_with(without_webhook(site.folder))
    with subprocess.Popen(
        [*COMMAND, "--config", site.operator.config, "kubernetes", "verify", chosen],
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
    path = managed_cluster.path_of(document)
    managed_cluster.as_admin(cluster, lambda api: api.create(path, document))
