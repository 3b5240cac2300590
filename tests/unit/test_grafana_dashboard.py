"""deploy/grafana-dashboard.json: metrics, labels and routes in its queries, their syntax, and its layout."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from clustercert.http.app import new_app
from support.exported_metrics import labels_of_series

FILE = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
# Labels that Prometheus adds to each series.
SCRAPED = {"job", "instance"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """The panels with queries."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def selectors(query: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each series in a query, with its pairs of label and pattern."""
    return [
        (name, re.findall(r'(\w+)=~?"([^"]*)"', matchers))
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", query)
    ]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel_uses_series_and_labels_that_exist(panel: dict[str, Any]) -> None:
    exported = labels_of_series()
    for target in panel["targets"]:
        found = selectors(target["expr"])
        assert found
        # The pattern for selectors misses no metric.
        assert len(found) == len(re.findall(r"\b(?:clustercert|process)_\w+", target["expr"]))
        for name, matchers in found:
            assert {label for label, _ in matchers} <= exported[name] | SCRAPED, name
            assert {label for label, _ in matchers} >= SCRAPED, name
        kept = {
            label for clause in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in clause.split(", ")
        }
        assert kept <= SCRAPED.union(*(exported[name] for name, _ in found))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_each_pattern_for_routes_matches_routes_of_the_service() -> None:
    paths = [route.path for route in new_app(console=True).routes if isinstance(route, Route)]
    patterns = {
        pattern
        for panel in panels()
        for target in panel["targets"]
        for _, matchers in selectors(target["expr"])
        for label, pattern in matchers
        if label == "route"
    }
    assert len(patterns) == 2
    for pattern in patterns:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


def test_the_variables_of_the_dashboard_are_declared_and_choose_among_exported_series() -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text()))
    assert used - {"__all", "__rate_interval"} == set(variables) == {"datasource", "job", "instance"}
    for name in ("job", "instance"):
        [(series, label)] = re.findall(r"^label_values\((\w+).*, (\w+)\)$", variables[name]["query"]["query"])
        assert series in labels_of_series()
        assert label == name


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        for place in (panel["gridPos"] for panel in everything)
    ]
    assert all(x < 24 for cell in cells for x, _ in cell)
    assert not any(one & other for one, other in combinations(cells, 2))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_parses_each_query(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
