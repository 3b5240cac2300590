"""Packs the Helm chart, as `helm package` does. The same source and the same time stamp give the same file."""

import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import yaml

from scripts.build_error import BuildError
from scripts.folder_archive import compress, pack_folder


def build(source: Path, out: Path, version: str, moment: datetime) -> None:
    """Pack the chart in `source`/deploy/chart into the folder `out`. Linked files are copied.

    Raises BuildError if the chart has another version.
    """
    original = source / "deploy" / "chart"
    about = yaml.safe_load((original / "Chart.yaml").read_text(encoding="utf-8"))
    if not about["version"] == about["appVersion"] == version:
        raise BuildError(
            f"deploy/chart/Chart.yaml has version {about['version']} and appVersion {about['appVersion']}. Make both"
            f" {version}, as in __version__."
        )
    with tempfile.TemporaryDirectory(prefix="clustercert-chart-") as folder:
        chart = Path(folder, "clustercert")
        shutil.copytree(original, chart, ignore=shutil.ignore_patterns(*_ignored_folders(original)))
        content = pack_folder(chart, int(moment.timestamp()), prefix="clustercert/")
    (out / f"clustercert-chart-{version}.tgz").write_bytes(compress(content))


def _ignored_folders(chart: Path) -> list[str]:
    """The folders that .helmignore lists, each as `/NAME/`."""
    lines = (chart / ".helmignore").read_text(encoding="utf-8").splitlines()
    return [line.strip("/") for line in lines if not line.startswith("#")]
