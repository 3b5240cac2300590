"""deploy/prometheus-alerts.yaml: names of metrics and of sections, and its syntax."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from clustercert.cli.main import app
from clustercert.observability import metrics
from clustercert.store.disk_space import WARNING_FACTOR
from support.exported_metrics import labels_of_series

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "prometheus-alerts.yaml"
CASES = Path(__file__).with_name("prometheus_alerts.test.yaml")
DOCS = "https://docs.clustercert.example/"
PROMTOOL = shutil.which("promtool")
# Metrics of Prometheus and of kube-apiserver.
FOREIGN = {"up", "apiserver_authorization_webhook_evaluations_fail_open_total"}


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(FILE.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


EACH_RULE = pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))


@EACH_RULE
def test_a_rule_uses_metrics_that_exist(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\b(?:clustercert_\w+|apiserver_\w+|up)(?=[{\[) ]|$)", rule["expr"]))
    assert named or rule["expr"] == "vector(1)"
    assert named - FOREIGN <= set(labels_of_series())
    assert rule["labels"]["severity"] in ("warning", "critical", "none")


@EACH_RULE
def test_a_rule_links_to_a_page_of_the_site_and_a_section_of_this_page(rule: dict[str, Any]) -> None:
    url = rule["annotations"]["runbook_url"]
    assert url.startswith(DOCS)
    page, _, anchor = url.removeprefix(DOCS).partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).with_suffix(".md").read_text(), re.MULTILINE)
    # Sphinx makes the anchors of letters and digits.
    assert not anchor or anchor in {re.sub(r"[^a-z0-9]+", "-", each.lower()).strip("-") for each in headings}


@EACH_RULE
def test_a_rule_names_a_command_that_exists(rule: dict[str, Any]) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(rule["annotations"]["command"])
    assert words.pop(0) == "clustercert"
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(command.name, words) as context:
        assert not context.args


def test_a_case_of_promtool_shows_when_a_rule_fires_and_when_it_does_not() -> None:
    checks = [
        check for case in yaml.safe_load(CASES.read_text())["tests"] for check in case["alert_rule_test"]
    ]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    rests = {check["alertname"] for check in checks if not check["exp_alerts"]}
    names = {rule["alert"] for rule in rules()}
    assert fires == names
    assert rests == names - {"ClustercertWatchdog"}


def test_the_threshold_for_the_feed_is_a_bucket() -> None:
    [expression] = [rule["expr"] for rule in rules() if "feed_seconds_bucket" in rule["expr"]]
    [bound] = re.findall(r'le="([\d.]+)"', expression)
    assert float(bound) in metrics.FEED_SECONDS._upper_bounds


def test_the_alerts_for_the_disk_compare_with_the_setting() -> None:
    """Not with its default: below the setting, the service issues no certificates."""
    compared = {rule["alert"]: rule["expr"] for rule in rules() if "disk_free" in rule["expr"]}
    reserve = "clustercert_disk_free_bytes < {}clustercert_disk_reserve_bytes"
    assert compared == {
        "ClustercertDiskLow": reserve.format(f"{WARNING_FACTOR} * "),
        "ClustercertDiskAlmostFull": reserve.format(""),
    }


def test_the_alert_for_stopped_tokens_says_that_credentials_live_on() -> None:
    """Only new ones stop: whoever reads the alert may have to revoke."""
    [summary] = [
        rule["annotations"]["summary"] for rule in rules() if "token_clusters_stopped" in rule["expr"]
    ]
    assert "Existing credentials keep their roles until they expire or are revoked" in summary


def test_names_are_unique() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint=all", "--lint-fatal", FILE),
        ("test", "rules", CASES),
    ],
    ids=["syntax", "when they fire"],
)
def test_promtool_accepts_the_rules(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
