"""The files of a release, built twice."""

import json
import os
import subprocess
import tarfile
from datetime import date
from pathlib import Path

import pytest

from clustercert import __version__
from scripts import release, sbom

MOMENT = release.midnight(date(2026, 12, 1))


@pytest.mark.slow
def test_a_release_built_again_from_its_sdist_elsewhere_is_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path.name: path for path in release.build(release.ROOT, tmp_path / "first", MOMENT)}
    name = f"clustercert-{__version__}"
    assert sorted(first) == ["SHA256SUMS", f"{name}-py3-none-any.whl", f"{name}.cdx.json", f"{name}.tar.gz"]
    subprocess.run(("sha256sum", "--check", "--quiet", "SHA256SUMS"), cwd=tmp_path / "first", check=True)
    built = json.loads(first[f"{name}.cdx.json"].read_bytes())
    assert built["components"] == sbom.document(release.ROOT, __version__)["components"]

    with tarfile.open(first[f"{name}.tar.gz"]) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    for path in (tmp_path / "elsewhere").rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1, 1))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    again = release.build(tmp_path / "elsewhere" / name, tmp_path / "second", MOMENT)
    assert {path.name: path.read_bytes() for path in again} == {
        name: path.read_bytes() for name, path in first.items()
    }
