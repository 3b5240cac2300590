"""What is counted and what the documentation says is counted are the same."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from clustercert.observability import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| \**`(\w+)(?:\{([\w,]+)\})?`\** \| (\w+) \|", re.MULTILINE)


def test_the_documented_metrics_are_those_of_the_code() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## All metrics\n")[1].split("\n## ")[0]
    documented = {
        name: (kind, labels.split(",") if labels else []) for name, labels, kind in ROW.findall(section)
    }
    assert documented == {
        f"{one._name}_total" if isinstance(one, Counter) else one._name: (one._type, list(one._labelnames))
        for one in vars(metrics).values()
        if isinstance(one, MetricWrapperBase)
    }


def test_no_documentation_names_a_metric_that_there_is_not() -> None:
    registered = {
        f"{one._name}{suffix}"
        for one in vars(metrics).values()
        if isinstance(one, MetricWrapperBase)
        for suffix in (("_total",) if isinstance(one, Counter) else ("",))
    }
    named = {
        name
        for page in PAGE.parent.glob("*.md")
        for name in re.findall(r"`(clustercert_\w+)", page.read_text(encoding="utf-8"))
    }
    assert named <= registered


def test_a_file_that_a_starting_worker_has_not_filled_yet_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    assert b"process_resident_memory_bytes" in metrics.exposition()
