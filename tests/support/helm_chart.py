"""The Helm chart in deploy/chart, rendered by a real Helm in the environment .venvs/chart."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.wait import SECONDS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
PYTHON = ROOT / ".venvs" / "chart" / "bin" / "python"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
NAMESPACE = "prod"
KUBERNETES = tuple(f"1.{minor}.0" for minor in range(31, 38))

Values = Mapping[str, Any]
Document = dict[str, Any]


class Refused(Exception):
    """Helm or the chart refuses the values."""


@dataclass(frozen=True)
class Release:
    """What Helm would install."""

    documents: tuple[Document, ...]

    def of_kind(self, kind: str) -> Iterator[Document]:
        return (each for each in self.documents if each["kind"] == kind)

    def one(self, kind: str, name: str) -> Document:
        [found] = (each for each in self.of_kind(kind) if each["metadata"]["name"] == name)
        return found

    @property
    def settings(self) -> str:
        """The settings file."""
        return str(self.one("ConfigMap", "clustercert-settings")["data"]["clustercert.toml"])

    @property
    def pods(self) -> list[Document]:
        """The templates of pods, with metadata and spec."""
        workloads = (*self.of_kind("Deployment"), *self.of_kind("StatefulSet"))
        return [each["spec"]["template"] for each in workloads]

    def container(self, name: str) -> Document:
        [found] = (each for pod in self.pods for each in pod["spec"]["containers"] if each["name"] == name)
        return dict(found)


def is_installed() -> bool:
    return PYTHON.exists()


def calls(*wanted: Mapping[str, Any]) -> list[Any]:
    """The results of calls in tests/chart/helm.py. Raises Refused for the first one that Helm refuses."""
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "chart" / "helm.py"],
        input=json.dumps({"calls": wanted}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def rendered(*several: Values, name: str = "clustercert", chart: Path = CHART) -> list[Release]:
    """The release for each of the values. Raises Refused."""
    results = rendering(several, name, chart)
    if refused := [each["error"] for each in results if "error" in each]:
        raise Refused(*refused)
    return [release(each["result"]) for each in results]


def refusals(several: Sequence[Values]) -> list[str]:
    """Why Helm refuses each of the values; an empty text if it doesn't."""
    return [each.get("error", "") for each in rendering(several, "clustercert", CHART)]


def rendering(several: Sequence[Values], name: str, chart: Path) -> list[Any]:
    common = {"call": "render", "chart": str(chart), "name": name, "namespace": NAMESPACE}
    return calls(*({**common, "values": values} for values in several))


def release(manifests: Mapping[str, str]) -> Release:
    texts = (text for path, text in sorted(manifests.items()) if path.endswith(".yaml"))
    return Release(tuple(each for text in texts for each in yaml.safe_load_all(text) if each))


def values_in(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text()) or {}
