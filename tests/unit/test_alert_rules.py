"""deploy/prometheus-alerts.yaml: names of metrics and of sections, and its syntax."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert.observability import metrics
from clustercert.store.disk_space import WARNING_FACTOR
from support.exported_metrics import labels_of_series

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "prometheus-alerts.yaml"
PROMTOOL = shutil.which("promtool")
# Metrics of Prometheus and of kube-apiserver.
FOREIGN = {"up", "apiserver_authorization_webhook_evaluations_fail_open_total"}


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(FILE.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_uses_metrics_that_exist_and_names_its_runbook(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\b(?:clustercert_\w+|apiserver_\w+|up)(?=[{\[) ]|$)", rule["expr"]))
    assert named
    assert named - FOREIGN <= set(labels_of_series())
    assert rule["labels"]["severity"] in ("warning", "critical")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert not anchor or anchor in anchors


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
        ("test", "rules", Path(__file__).with_name("prometheus_alerts.test.yaml")),
    ],
    ids=["syntax", "when they fire"],
)
def test_promtool_accepts_the_rules(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
