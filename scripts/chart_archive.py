"""Packs the Helm chart, as `helm package` does. The same source and the same time stamp give the same file."""

import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from scripts.folder_archive import compress, pack_folder

# What deploy/chart/.helmignore lists.
IGNORED = ("ci",)


def build(source: Path, out: Path, version: str, moment: datetime) -> None:
    """Pack the chart in `source`/deploy/chart into the folder `out`. Linked files are copied."""
    with tempfile.TemporaryDirectory(prefix="clustercert-chart-") as folder:
        chart = Path(folder, "clustercert")
        shutil.copytree(source / "deploy" / "chart", chart, ignore=shutil.ignore_patterns(*IGNORED))
        content = pack_folder(chart, int(moment.timestamp()), prefix="clustercert/")
    (out / f"clustercert-chart-{version}.tgz").write_bytes(compress(content))
