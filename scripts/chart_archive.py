"""Packs the Helm chart, as `helm package` does. The same source and the same time stamp give the same file."""

import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from scripts.folder_archive import compress, pack_folder


def build(source: Path, out: Path, version: str, moment: datetime) -> None:
    """Pack the chart in `source`/deploy/chart into the folder `out`. Linked files are copied."""
    original = source / "deploy" / "chart"
    with tempfile.TemporaryDirectory(prefix="clustercert-chart-") as folder:
        chart = Path(folder, "clustercert")
        shutil.copytree(original, chart, ignore=shutil.ignore_patterns(*_ignored_folders(original)))
        content = pack_folder(chart, int(moment.timestamp()), prefix="clustercert/")
    (out / f"clustercert-chart-{version}.tgz").write_bytes(compress(content))


def _ignored_folders(chart: Path) -> list[str]:
    """The folders that .helmignore lists, each as `/NAME/`."""
    lines = (chart / ".helmignore").read_text(encoding="utf-8").splitlines()
    return [line.strip("/") for line in lines if not line.startswith("#")]
