"""Packs the Helm chart, as `helm package` does. The same source and the same time stamp give the same file."""

import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import yaml

from scripts import publication
from scripts.build_error import BuildError
from scripts.folder_archive import compress, pack_folder


def build(source: Path, out: Path, version: str, moment: datetime) -> None:
    """Pack the chart in `source`/deploy/chart into the folder `out`. Linked files are copied.

    Chart.yaml also gets the addresses in publication.toml that are filled in.

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
        with (chart / "Chart.yaml").open("a", encoding="utf-8") as file:
            file.write(_addresses(publication.read(source)))
        content = pack_folder(chart, int(moment.timestamp()), prefix="clustercert/")
    (out / f"clustercert-chart-{version}.tgz").write_bytes(compress(content))


def _addresses(published: publication.Publication) -> str:
    """Lines of Chart.yaml."""
    home, source = published.urls.get("Homepage"), published.urls.get("Source")
    fields = {"home": home, "sources": source and [source], "icon": published.icon}
    given = {name: value for name, value in fields.items() if value}
    return yaml.safe_dump(given, sort_keys=False) if given else ""


def _ignored_folders(chart: Path) -> list[str]:
    """The folders that .helmignore lists, each as `/NAME/`."""
    lines = (chart / ".helmignore").read_text(encoding="utf-8").splitlines()
    return [line.strip("/") for line in lines if not line.startswith("#")]
